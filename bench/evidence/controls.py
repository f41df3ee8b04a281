"""The rival ways to a second try that need no training: plain and shuffled retries, better prompts, worked answers.

All go through the API. What a retry is shown is composed here as the server composes it, so that two arms differ by the
reflection alone: failed tries are kept with their answers, and each arm retries the same ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bench.evidence.plan import PLAIN_TRIES, PROMPTS, SHOW_WORK, WORKED_TRIES, Subject
from bench.evidence.scene import BASE, Part, Scene
from bench.evidence.serving import Row, Site
from demo.drive.display import Phase
from demo.problem import Problem
from server.orchestration.reflection import Prompts, retry_messages


def before_training(scene: Scene, subject: Subject) -> list[Part]:
    """List the controls that ask the base model."""
    n = scene.plan.problems

    async def plain(site: Site, phase: Phase) -> list[Row]:
        return await _try_often(site, scene, subject, phase, most=PLAIN_TRIES)

    async def worked(site: Site, phase: Phase) -> list[Row]:
        return await _try_often(site, scene, subject, phase, most=WORKED_TRIES, suffix=f" {SHOW_WORK}")

    return [
        Part(scene.name(subject.name, "plain"), 5 * n, plain),
        Part(scene.name(subject.name, "shuffled_before"), n, _shuffle(scene, subject, "plain", "before", lambda: BASE)),
        Part(scene.name(subject.name, "worked"), n, worked),
        *_prompted(scene, subject),
    ]


def after_training(scene: Scene, subject: Subject) -> list[Part]:
    """List the controls that ask the trained adapter: its own tries, with another episode's reflection."""

    async def again(site: Site, phase: Phase) -> list[Row]:
        task, problems = scene.task(subject.task), scene.draw(subject)
        return await site.ask_all(task, problems, phase, model=scene.champion(subject.task), retries=0)

    work = _shuffle(scene, subject, "tries_after", "after", lambda: scene.champion(subject.task))
    return [
        Part(scene.name(subject.name, "tries_after"), scene.plan.problems, again),
        Part(scene.name(subject.name, "shuffled_after"), scene.plan.problems, work),
    ]


async def _try_often(
    site: Site, scene: Scene, subject: Subject, phase: Phase, *, most: int, suffix: str = ""
) -> list[Row]:
    """Ask the base a problem until it is solved, `most` times at most; `tries` has each try's verdict and tokens.

    The answer kept is the first try's. `second`: solved by the second try. A `suffix` asks for worked answers, which
    may take as many tokens as an answer, a reflection and a retry.
    """
    task = scene.task(subject.task)
    tokens = 2 * task.answer_max_tokens + task.reflection_max_tokens if suffix else 0

    async def ask(problem: Problem) -> Row:
        question = problem.messages[-1]
        messages = [*problem.messages[:-1], {**question, "content": question["content"] + suffix}]
        tries: list[Row] = []
        while len(tries) < most and not (tries and tries[-1]["first"]):
            how: dict[str, Any] = {"model": BASE, "retries": 0, "messages": messages, "answer_max_tokens": tokens}
            tries.append(await site.ask(task, problem, **how))
        told = [{"passed": one["first"], "checked": one["checked"], "tokens": one["tokens"]} for one in tries]
        seconds = sum(one["seconds"] for one in tries)
        return {**tries[0], "second": any(one["first"] for one in tries[:2]), "tries": told, "seconds": seconds}

    return await site.map(ask, scene.draw(subject), phase)


def _shuffle(
    scene: Scene, subject: Subject, tries: str, loop: str, model: Callable[[], str]
) -> Callable[[Site, Phase], Any]:
    """Make the work that retries failed tries with the reflections on other problems' failures."""

    async def work(site: Site, phase: Phase) -> list[Row]:
        problems = {problem.key: problem for problem in scene.draw(subject)}
        rows, pool = scene.read(subject.name, tries), [one for one in scene.read(subject.name, loop) if "kind" in one]
        given = deal_reflections([row["key"] for row in rows if not row["first"]], pool)

        async def retry(row: Row) -> Row:
            reflection = given.get(row["key"])
            if row["first"] or reflection is None:
                return {**row, "second": row["first"], "checked": row["first"]}
            problem = problems[row["key"]]
            messages = retry_messages(problem.messages, row["answer"], reflection, Prompts())
            retried = await site.ask(scene.task(subject.task), problem, model=model(), retries=0, messages=messages)
            return {**retried, "first": False, "second": retried["first"], "reflection": reflection}

        return await site.map(retry, rows, phase)

    return work


def deal_reflections(keys: Sequence[str], rows: Sequence[Row]) -> dict[str, str]:
    """Give each failed problem the reflection on another one, going through those there are. Needs two problems."""
    found: dict[str, str] = {}
    for place, key in enumerate(sorted(keys)):
        others = [row for row in sorted(rows, key=lambda row: row["key"]) if row["key"] != key]
        if others:
            found[key] = others[place % len(others)]["reflection"]
    return found


def _prompted(scene: Scene, subject: Subject) -> list[Part]:
    """Choose the best hand-written reflection prompt on development problems, and measure it."""

    async def ask(site: Site, number: int, problems: Sequence[Problem], phase: Phase) -> list[Row]:
        task = replace(scene.task(subject.task), name=f"{subject.task}-prompt-{number}")
        await site.register(task, prompts={"reflect": PROMPTS[number]})
        return await site.ask_all(task, problems, phase)

    async def choose(site: Site, phase: Phase) -> list[dict[str, Any]]:
        problems = subject.draw("development", scene.plan.choosing_problems)
        counted = []
        for number, prompt in enumerate(PROMPTS):
            rows = await ask(site, number, problems, phase)
            counted.append({"prompt": prompt, "n": len(rows), "second": sum(row["second"] for row in rows)})
        return counted

    async def measure(site: Site, phase: Phase) -> list[Row]:
        counted = scene.read(subject.name, "prompts")
        best = max(range(len(counted)), key=lambda number: counted[number]["second"])
        return await ask(site, best, scene.draw(subject), phase)

    weight = 2 * len(PROMPTS) * scene.plan.choosing_problems
    return [
        Part(scene.name(subject.name, "prompts"), weight, choose),
        Part(scene.name(subject.name, "prompted"), 2 * scene.plan.problems, measure),
    ]

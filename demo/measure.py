"""Measures a demo model's skill without a server: first try, second try, and what its reflections are worth.

Run as `python -m demo.measure demo/model`. It walks the served loop (attempt, verdict, reflection, retry) with
transformers, sampling at temperature 1. "asked" is the share solved when the question says "Show your work.": the
ceiling of what training on reflections can reach.
"""

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo import countdown
from demo.problems import TASKS, Problem, problems
from demo.reflections import KINDS, kind_of_reflection
from demo.splits import Split
from server.orchestration.reflection import Prompts, reflection_messages, retry_messages

ATTEMPT_TOKENS = 160
REFLECTION_TOKENS = 120
MEASURED: tuple[Split, ...] = ("pretraining", "training", "development")
"""What may be looked at while settings are chosen: all but the test split, which is `make evidence`'s alone."""
_CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)

Message = dict[str, Any]


@dataclass
class Walk:
    """What one problem's walk through the loop gave."""

    first: bool
    reflection: str = ""
    second: bool = False


@dataclass
class Report:
    """The figures of one task."""

    task: str
    walks: list[Walk]
    asked: float

    def lines(self) -> list[str]:
        """Render the figures."""
        total = len(self.walks)
        failed = [walk for walk in self.walks if not walk.first]
        first = 1 - len(failed) / total
        second = first + sum(walk.second for walk in failed) / total
        text = (
            f"{self.task}: n={total}  first {first:.1%}  second {second:.1%}  asked to show its work {self.asked:.1%}"
        )
        lines = [text]
        kinds = Counter(kind_of_reflection(walk.reflection) for walk in failed)
        for kind in KINDS:
            if kinds[kind]:
                solved = sum(walk.second for walk in failed if kind_of_reflection(walk.reflection) == kind)
                lines.append(
                    f"  {kind:12} {kinds[kind] / len(failed):6.1%} of reflections, {solved / kinds[kind]:.1%} solved"
                )
        return lines


class Player:
    """A model that answers conversations in batches."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        torch.manual_seed(seed)

    @torch.no_grad()
    def answer(self, conversations: list[tuple[list[Message], list[Any]]], tokens: int, batch: int = 128) -> list[str]:
        """Sample one answer to each (messages, tools) at temperature 1."""
        render = partial(self.tokenizer.apply_chat_template, add_generation_prompt=True, tokenize=False)
        prompts = [render(messages, tools=tools or None) for messages, tools in conversations]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers = [""] * len(prompts)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs = self.tokenizer([prompts[index] for index in chosen], return_tensors="pt", padding=True)
            output = self.model.generate(  # pyright: ignore[reportAttributeAccessIssue]
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=tokens,
            )
            for index, ids in zip(chosen, output[:, inputs.input_ids.shape[1] :], strict=True):
                answers[index] = self.tokenizer.decode(ids, skip_special_tokens=True)
        return answers


def parse_answer(text: str) -> Message:
    """Turn sampled text into an assistant message, its tool call parsed as the engine does; text if it cannot be."""
    found = _CALL.search(text)
    try:
        call = json.loads(found.group(1)) if found else None
        function = {"name": call["name"], "arguments": json.dumps(call["arguments"])} if call else None
    except (ValueError, KeyError, TypeError):
        function = None
    if found is None or function is None:
        return {"role": "assistant", "content": text}
    content = text[: found.start()].strip() or None
    return {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "function": function}]}


def evaluate(expression: str) -> Fraction | None:
    """Evaluate sums over whole numbers exactly, or return None for anything else."""
    if not re.fullmatch(r"[0-9()+\-*/]{1,60}", expression) or re.search(r"\*\*|//|\b0\d", expression):
        return None
    try:
        return eval(re.sub(r"([0-9]+)", r"Fraction(\1)", expression), {"Fraction": Fraction})  # noqa: S307 symbols checked
    except (SyntaxError, TypeError, ZeroDivisionError):
        return None


def passes(problem: Problem, answer: Message) -> bool:
    """Judge an answer as the task's verifier does."""
    if problem.task == "countdown":
        _, marked, expression = (answer.get("content") or "").rpartition("answer:")
        expression = expression.strip().replace(" ", "")
        used = sorted(int(number) for number in re.findall(r"[0-9]+", expression))
        right = used == sorted(problem.args["numbers"]) and evaluate(expression) == problem.args["target"]
        return bool(marked) and right
    calls = [call["function"] for call in answer.get("tool_calls") or []]
    made = [{"name": call["name"], "arguments": json.loads(call["arguments"])} for call in calls]
    return [json.dumps(call, sort_keys=True) for call in made] == [
        json.dumps(problem.args["reference"], sort_keys=True)
    ]


def walk_problems(player: Player, chosen: list[Problem], prompts: Prompts) -> list[Walk]:
    """Walk every problem through attempt, reflection and retry."""
    texts = player.answer([(problem.messages, problem.tools) for problem in chosen], ATTEMPT_TOKENS)
    attempts = [parse_answer(text) for text in texts]
    walks = [Walk(passes(problem, attempt)) for problem, attempt in zip(chosen, attempts, strict=True)]
    failed = [index for index, walk in enumerate(walks) if not walk.first]
    asked = [
        (reflection_messages(chosen[index].messages, chosen[index].tools, attempts[index], prompts), [])
        for index in failed
    ]
    reflections = player.answer(asked, REFLECTION_TOKENS)
    retried = [
        (retry_messages(chosen[index].messages, attempts[index], reflection, prompts), chosen[index].tools)
        for index, reflection in zip(failed, reflections, strict=True)
    ]
    for index, reflection, text in zip(failed, reflections, player.answer(retried, ATTEMPT_TOKENS), strict=True):
        walks[index].reflection = reflection
        walks[index].second = passes(chosen[index], parse_answer(text))
    return walks


def measure_asked(player: Player, chosen: list[Problem]) -> float:
    """Return the share solved when asked to show the work."""
    conversations = []
    for problem in chosen:
        question = problem.messages[0]["content"]
        conversations.append(([{"role": "user", "content": f"{question} Show your work."}], problem.tools))
    texts = player.answer(conversations, ATTEMPT_TOKENS)
    right = [passes(problem, parse_answer(text)) for problem, text in zip(chosen, texts, strict=True)]
    return sum(right) / len(right)


def measure(player: Player, task: str, split: Split, count: int, seed: int, *, numbers: int = 3) -> Report:
    """Measure one task on `count` problems of a split; Countdown's have so many `numbers`."""
    drawn = countdown.problems(split, seed, numbers) if task == "countdown" else problems(task, split, seed)
    chosen = list(islice(drawn, count))
    return Report(task, walk_problems(player, chosen, Prompts()), measure_asked(player, chosen))


def main() -> None:
    """Measure the model named on the command line and print its figures."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the model, e.g. demo/model")
    parser.add_argument("--task", choices=TASKS, action="append", help="measure this task only (default: both)")
    parser.add_argument("--split", choices=MEASURED, default="development", help="default: development")
    parser.add_argument("--count", type=int, default=400, help="problems a task (default: 400)")
    parser.add_argument("--numbers", type=int, choices=(3, 4), default=3, help="of Countdown's problems (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of problems and sampling (default: 0)")
    parser.add_argument("--show", type=int, default=0, help="also print so many reflections of each task")
    arguments = parser.parse_args()
    player = Player(arguments.model, arguments.seed)
    for task in arguments.task or TASKS:
        report = measure(player, task, arguments.split, arguments.count, arguments.seed, numbers=arguments.numbers)
        shown = [f"    {walk.second:d} {walk.reflection}" for walk in report.walks if not walk.first][: arguments.show]
        sys.stdout.write("\n".join([*report.lines(), *shown]) + "\n")


if __name__ == "__main__":
    main()

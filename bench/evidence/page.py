"""Writes what was measured: evidence.json with every figure, evidence.md for people, and the plots beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.evidence.figures import build_figures
from bench.evidence.folder import RunFolder
from bench.evidence.plan import CURVES, HEADLINES, LOOP, SUBJECTS, VARIANTS, Plan
from bench.evidence.plots import draw_lines, draw_shares
from bench.evidence.words import (
    describe_chosen,
    describe_examples,
    describe_kinds,
    percent,
    points,
    table,
    word_arm,
)

Figures = Mapping[str, Any]

TITLES = {
    "countdown3": "Countdown, 3 numbers",
    "countdown4": "Countdown, 4 numbers",
    "function_call": "function calling",
}


def publish(plan: Plan, folder: RunFolder, target: Path) -> int:
    """Write the figures, the page and the plots into a folder; return how many verdicts the checks doubt."""
    figures = build_figures(plan, folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / "evidence.json").write_text(json.dumps(figures, indent=1) + "\n")
    drawn = draw_plots(figures)
    for name, picture in drawn.items():
        (target / name).write_text(picture)
    (target / "evidence.md").write_text(render_page(figures, list(drawn)))
    return figures["checks"]["differ"]


def draw_plots(figures: Figures) -> dict[str, str]:
    """Draw the plots that there are figures for, by the names of their files."""
    found = {}
    learnt = {
        f"{row['task']}, seed {row['seed']}": _learning_curve(row["steps"])
        for row in figures["rounds"]
        if row["variant"] == LOOP and row["number"] == 1
    }
    if learnt:
        title = "Rollouts that were rewarded, by failures seen"
        found["evidence-learning.svg"] = draw_lines(title, "failures reflected on", learnt)
    bars = {
        f"{TITLES[name].replace('Countdown', 'Cd')} {when}": {
            kind: one["share"] for kind, one in told["kinds"][when].items()
        }
        for name, told in figures["subjects"].items()
        if "kinds" in told
        for when in ("before", "after")
    }
    if bars:
        found["evidence-kinds.svg"] = draw_shares("Kinds of reflection", bars)
    return found


def _learning_curve(steps: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    seen, curve = 0.0, []
    for step in steps:
        curve.append((seen, step["reward"] or 0.0))
        seen += step["groups"] or 0
    return curve


def render_page(figures: Figures, plots: Sequence[str]) -> str:
    """Render the page as Markdown."""
    parts = [_open(figures), _render_table(figures)]
    parts += [f"![{name}]({name})" for name in plots]
    parts += [_render_controls(figures), _render_kinds(figures), _render_variants(figures)]
    parts += [_render_rounds(figures), _render_forgetting(figures), _render_examples(figures)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _open(figures: Figures) -> str:
    plan, checks = figures["plan"], figures["checks"]
    trial = "" if plan["split"] == "test" else "**A trial: not the test split. These figures mean nothing.**\n\n"
    seeds = ", ".join(map(str, plan["seeds"]))
    return f"""# The evidence that it learns

<!-- Written by `make evidence`; do not edit. docs/measuring-learning.md says how it is measured. -->

{trial}Split `{plan["split"]}`, {plan["problems"]} problems of each kind, the same for every seed; seeds {seeds}; base
model `{figures["model_sha256"][:12]}`. Second try: solved by the second attempt at most, of all problems. Brackets are
95 % intervals. {checks["judged"]} answers were judged a second time by independent checks; {checks["differ"]} verdicts
differ."""


def _render_table(figures: Figures) -> str:
    rows = []
    for name, told in figures["subjects"].items():
        for mode, gains in told["gains"].items():
            suffix = "" if mode == "sampled" else "_greedy"
            before, after = told["arms"]["before" + suffix], told["arms"]["after" + suffix]
            for which, words in (("first", "first try"), ("second", "second try")):
                seeds = ", ".join(f"{100 * one['gain']:+.1f}" for one in gains[which]["seeds"])
                cells = [f"{TITLES[name]}, {mode}", words, percent(before[which]), percent(after[which])]
                rows.append([*cells, points(gains[which]["gain"], gains[which]["ci95"]), seeds])
    if not rows:
        return ""
    head = ["", "", "before, %", "after, %", "gain, points", "by seed"]
    return (
        f"## Before and after\n\n{table(head, rows)}\n\n"
        "The mean over seeds, its interval by resampling seeds and problems; `evidence.json` has each seed's own.\n"
        "Greedy: answers at temperature 0; the loop samples reflections at temperature 1 all the same."
    )


def _render_controls(figures: Figures) -> str:
    found = []
    for name, told in figures["subjects"].items():
        controls = told.get("controls") or {}
        if not controls:
            continue
        arms = {"before": told["arms"]["before"], "after": told["arms"]["after"], **controls}
        rows = []
        for arm, one in arms.items():
            if arm == "chosen":
                continue
            lead = points(one["lead"]["gain"], one["lead"]["ci95"]) if "lead" in one else ""
            rows.append([word_arm(arm, one), percent(one["first"]), percent(one["second"]), lead, *_spent(arm, one)])
        head = [
            "",
            "first try, %",
            "second try, %",
            "lead of the trained loop, points",
            "tokens generated",
            "tokens read",
        ]
        head.append("seconds")
        found += [f"### {TITLES[name]}", table(head, rows), describe_chosen(controls.get("chosen") or {})]
    if not found:
        return ""
    return "\n\n".join(
        [
            "## Beside what else could be done",
            "Tokens and seconds are means a problem, with 64 problems at once at most. Leads are paired by problem.",
            *found,
        ]
    )


def _spent(arm: str, one: Mapping[str, Any]) -> list[str]:
    if arm.startswith("shuffled"):  # its retries only: the failed tries and the reflections are those of other arms
        return ["", "", ""]
    return [f"{one['generated_tokens']:.0f}", f"{one['prompt_tokens']:.0f}", f"{one['seconds']:.1f}"]


def _render_kinds(figures: Figures) -> str:
    found = [
        describe_kinds(TITLES[name], told["kinds"], told["arms"])
        for name, told in figures["subjects"].items()
        if "kinds" in told
    ]
    return "\n\n".join(["## What is learnt", *found]) if found else ""


def _render_variants(figures: Figures) -> str:
    found = []
    for subject, variants in figures["variants"].items():
        rows = []
        for name, arms in variants.items():
            for arm, one in arms.items():
                number = arm.partition("_")[2] or str(VARIANTS[name].rounds)
                cells = [VARIANTS[name].about, number, percent(one["first"]), percent(one["second"])]
                gains = one.get("gains") or {}
                told = [points(gains[which]["gain"], gains[which]["ci95"]) for which in ("first", "second") if gains]
                rows.append([*cells, *(told or ["", ""]), str(len(one["seeds"]))])
        head = ["loop", "rounds", "first try, %", "second try, %", "gain of the first", "gain of the second", "seeds"]
        found += [f"### {TITLES[subject]}", table(head, rows)]
    if len(found) < 2 or not any(name in variants for variants in figures["variants"].values() for name in VARIANTS):
        return ""
    left = [name for name in CURVES if all(name not in variants for variants in figures["variants"].values())]
    more = f"\n\nNot measured yet: {', '.join(left)}." if left else ""
    return "## Other ways to run the loop\n\n" + "\n\n".join(found) + more


def _render_rounds(figures: Figures) -> str:
    rows = [
        [
            VARIANTS[row["variant"]].about,
            row["task"],
            str(row["seed"]),
            str(row["number"]),
            f"{row['state']}, {row['champion'] or 'the base model'} serves",
            row["reason"].replace("|", "/") + (f" (stopped: {row['stopped']['words']})" if row["stopped"] else ""),
            f"{row['seconds']:.0f}",
        ]
        for row in figures["rounds"]
    ]
    if not rows:
        return ""
    return "## Every round\n\n" + table(["loop", "task", "seed", "round", "ended", "why", "seconds"], rows)


def _render_forgetting(figures: Figures) -> str:
    rows = []
    for task, told in figures["forgetting"].items():
        for subject in SUBJECTS:
            if subject in told:
                for which in ("first", "second"):
                    change = points(told[subject]["gains"][which]["gain"], told[subject]["gains"][which]["ci95"])
                    rows.append([task, f"{TITLES[subject]}, {which} try", change])
        if "chat" in told:
            chat = told["chat"]
            words = f"{percent(chat['before'])} -> {percent(chat['after'])} % word for word"
            rows.append([task, f"plain conversation (n = {chat['n']})", words])
    if not rows:
        return ""
    head = ["adapter of", "asked", "change from the base model, points"]
    note = "An adapter serves its own task alone; this is what it would do elsewhere."
    return f"## What is forgotten\n\n{note}\n\n{table(head, rows)}"


def _render_examples(figures: Figures) -> str:
    wanted = [subject.name for subject in HEADLINES.values()]
    found = [
        describe_examples(TITLES[name], told["examples"])
        for name, told in figures["subjects"].items()
        if name in wanted and told.get("examples")
    ]
    if not found:
        return ""
    rule = (
        "The first ten, by the SHA-256 of the problem's key, of those that failed at first both before and after;\n"
        "failures included."
    )
    return "\n\n".join(["## Ten examples of each", rule, *found])

"""Builds the figures of a run from what its parts left: what of it is not measured yet is left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bench.evidence.folder import RunFolder, name_part
from bench.evidence.plan import HEADLINES, LOOP, PLAIN_TRIES, SUBJECTS, VARIANTS, WORKED_TRIES, Plan
from bench.evidence.tallies import (
    Row,
    Rows,
    compare,
    count_checks,
    count_kinds,
    cut_tries,
    decompose,
    describe_arm,
    fit_tries,
    pick_examples,
)
from demo.model_record import read_weights_hash
from server.settings import DEMO_MODEL

BySeed = dict[int, Rows]

CONTROLS = ("shuffled_before", "shuffled_after", "prompted", "sft", "whole")
ASKED_OFTEN = {"plain": PLAIN_TRIES, "worked": WORKED_TRIES}


@dataclass(frozen=True)
class Measured:
    """What a run has measured so far."""

    plan: Plan
    folder: RunFolder

    def read(self, variant: str, subject: str, arm: str) -> dict[int, Any]:
        """Read a part by seed, of the seeds that have it: of an arm its rows."""
        names = {seed: name_part(variant, seed, subject, arm) for seed in self.plan.seeds}
        return {seed: self.folder.read(name) for seed, name in names.items() if self.folder.has(name)}


def build_figures(plan: Plan, folder: RunFolder) -> dict[str, Any]:
    """Build all figures; shares are fractions of all problems."""
    measured = Measured(plan, folder)
    subjects = [one.name for one in SUBJECTS.values() if one.task in plan.tasks]
    return {
        "plan": {**plan.fixed(), "seeds": list(plan.seeds)},
        "model_sha256": read_weights_hash(DEMO_MODEL),
        "subjects": {name: told for name in subjects if (told := _describe_subject(measured, name))},
        "rounds": [told for variant in VARIANTS for told in _describe_rounds(measured, variant)],
        "variants": _describe_variants(measured),
        "forgetting": _describe_forgetting(measured),
        "checks": _count_all_checks(measured, subjects),
    }


def _describe_subject(measured: Measured, subject: str) -> dict[str, Any]:
    arms = {arm: measured.read(LOOP, subject, arm) for arm in ("before", "after", "before_greedy", "after_greedy")}
    found: dict[str, Any] = {
        "arms": {arm: describe_arm(rows) for arm, rows in arms.items() if rows},
        "gains": {},
    }
    for mode, early, late in (("sampled", "before", "after"), ("greedy", "before_greedy", "after_greedy")):
        if set(arms[early]) & set(arms[late]):
            found["gains"][mode] = {which: compare(arms[early], arms[late], which) for which in ("first", "second")}
    if not set(arms["before"]) & set(arms["after"]):
        return found if found["arms"] else {}
    before, after = _pool(arms["before"]), _pool(arms["after"])
    found["kinds"] = {"before": count_kinds(before), "after": count_kinds(after), "gain": decompose(before, after)}
    found["controls"] = _describe_controls(measured, subject, arms["after"])
    first = min(set(arms["before"]) & set(arms["after"]))
    pairs = pick_examples(arms["before"][first], arms["after"][first])
    found["examples"] = {"seed": first, "rows": [[_shorten(row) for row in pair] for pair in pairs]}
    return found


def _shorten(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in ("key", "kind", "reflection", "second")}


def _describe_controls(measured: Measured, subject: str, after: BySeed) -> dict[str, Any]:
    """Describe each control, and by how much the trained reflection leads it on the second try."""
    found: dict[str, Any] = {}
    spent = fmean(row["tokens"]["generated"] for row in _pool(after))
    for arm in CONTROLS:
        if rows := measured.read(LOOP, subject, arm):
            found[arm] = {**describe_arm(rows), "lead": compare(rows, after, "second")}
    for arm, most in ASKED_OFTEN.items():
        rows = measured.read(LOOP, subject, arm)
        if not rows:
            continue
        fits = fit_tries(rows, spent, most)
        for name, tries in ((arm, 2 if arm == "plain" else 1), (f"{arm}_equal_tokens", fits)):
            cut: BySeed = {seed: cut_tries(some, tries) for seed, some in rows.items()}
            found[name] = {**describe_arm(cut), "tries": tries, "lead": compare(cut, after, "second")}
    for name in ("prompts", "sft_rates", "sft_0_trained", "sft_1_trained", "whole_trained"):
        if chosen := measured.read(LOOP, subject, name):
            found.setdefault("chosen", {})[name] = chosen
    return found


def _describe_rounds(measured: Measured, variant: str) -> list[dict[str, Any]]:
    found = []
    for task in (*measured.plan.tasks, "both"):
        for number in range(1, VARIANTS[variant].rounds + 1):
            for seed, told in measured.read(variant, task, f"round_{number}").items():
                row: Mapping[str, Any] = told["round"]
                steps = told["steps"]
                found.append(
                    {
                        "variant": variant,
                        "task": task,
                        "seed": seed,
                        "number": number,
                        "state": row["state"],
                        "reason": row["reason"],
                        "champion": told["champion"],
                        "stopped": (row["report"] or {}).get("stopped"),
                        "seconds": told["seconds"],
                        "steps": [
                            {name: step["metrics"].get(name) for name in ("reward", "groups", "kl", "entropy")}
                            for step in steps
                        ],
                    }
                )
    return found


def _describe_variants(measured: Measured) -> dict[str, Any]:
    """Describe the other ways to run the loop, beside the loop itself, on the headline subjects."""
    found: dict[str, Any] = {}
    for task in measured.plan.tasks:
        subject = HEADLINES[task].name
        before = measured.read(LOOP, subject, "before")
        for variant in VARIANTS.values():
            for arm in [*(f"after_{number}" for number in range(1, variant.rounds)), "after"]:
                rows = measured.read(variant.name, subject, arm)
                if not rows:
                    continue
                told = describe_arm(rows)
                if set(before) & set(rows):
                    told["gains"] = {which: compare(before, rows, which) for which in ("first", "second")}
                found.setdefault(subject, {}).setdefault(variant.name, {})[arm] = told
    return found


def _describe_forgetting(measured: Measured) -> dict[str, Any]:
    """Describe what a task's adapter does to the other tasks' problems and to plain conversation."""
    found: dict[str, Any] = {}
    said = measured.read(LOOP, "chat", "before")
    for task in measured.plan.tasks:
        for other in measured.plan.tasks:
            subject = HEADLINES[other].name
            rows, before = measured.read(LOOP, subject, f"under_{task}"), measured.read(LOOP, subject, "before")
            if rows and before:
                changes = {which: compare(before, rows, which) for which in ("first", "second")}
                found.setdefault(task, {})[subject] = {**describe_arm(rows), "gains": changes}
        chat = measured.read(LOOP, "chat", f"under_{task}")
        if chat and said:
            shares = {name: fmean(one["right"] for one in _pool(some)) for name, some in (("b", said), ("a", chat))}
            found.setdefault(task, {})["chat"] = {"n": len(_pool(chat)), "before": shares["b"], "after": shares["a"]}
    return found


def _count_all_checks(measured: Measured, subjects: list[str]) -> dict[str, int]:
    judged = differ = 0
    for variant in VARIANTS:
        for seed in measured.plan.seeds:
            for path in sorted((measured.folder.path / variant / str(seed)).glob("*.json")):
                subject = path.name.partition(".")[0]
                rows = measured.folder.read(f"{variant}/{seed}/{path.stem}")
                if subject in subjects and isinstance(rows, list) and rows and "checked" in rows[0]:
                    counted = count_checks(rows)
                    judged, differ = judged + counted[0], differ + counted[1]
    return {"judged": judged, "differ": differ}


def _pool(by_seed: Mapping[int, Rows]) -> list[Row]:
    return [row for rows in by_seed.values() for row in rows]

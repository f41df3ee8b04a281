"""The demo's figures: as a table for people and as JSON for machines."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from demo.drive.client import Answered
from demo.drive.intervals import Interval, paired_gain, share, wilson_interval
from demo.drive.play import TaskResult


def build_figures(results: Sequence[TaskResult], seconds: Mapping[str, float], seed: int) -> dict[str, Any]:
    """Build the figures of the demo; accuracies are fractions of all problems.

    Raises ValueError where one is missing.
    """
    return {
        "seconds": round(sum(seconds.values()), 1),
        "seed": seed,
        "phases": {name: round(value, 1) for name, value in seconds.items()},
        "rounds": [_describe_round(result, row) for result in results for row in result.rounds],
        "tasks": {result.task.name: _describe_task(result, seed) for result in results},
    }


def _describe_task(result: TaskResult, seed: int) -> dict[str, Any]:
    first_before, second_before = _firsts(result.before), _seconds(result.before)
    first_after, second_after = _firsts(result.after), _seconds(result.after)
    first_gain, first_interval = paired_gain(first_before, first_after, seed)
    second_gain, second_interval = paired_gain(second_before, second_after, seed)
    return {
        "n": len(result.before),
        "first_before": share(first_before),
        "first_before_ci95": wilson_interval(first_before),
        "second_before": share(second_before),
        "second_before_ci95": wilson_interval(second_before),
        "first_after": share(first_after),
        "first_after_ci95": wilson_interval(first_after),
        "second_after": share(second_after),
        "second_after_ci95": wilson_interval(second_after),
        "first_gain": first_gain,
        "first_gain_ci95": first_interval,
        "second_gain": second_gain,
        "second_gain_ci95": second_interval,
        "recovered_before": _recovered(result.before),
        "recovered_after": _recovered(result.after),
        "training_problems": len(result.training),
        "training_failures": sum(not answered.first for answered in result.training),
        "adapter": result.champion,
        "adapters_that_answered": sorted({answered.adapter for answered in result.after}),
    }


def _describe_round(result: TaskResult, row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "number", "state", "reason", "adapter", "steps_done", "steps_total", "report")
    rewards = [step["metrics"]["reward"] for step in row.get("steps") or [] if "reward" in step["metrics"]]
    kept = {name: row.get(name) for name in names}
    return {"task": result.task.name, **kept, "rewards": rewards, "seconds": round(row["seconds"], 1)}


def print_report(console: Console, figures: Mapping[str, Any]) -> None:
    """Print the tables: accuracy by task, rounds, and wall time by phase. They fit into 80 columns.

    `retries`: the share of the retries that were right, of those that followed a failed first try.
    """
    table = _table("Accuracy on held-out problems at temperature 1, in % with 95 % intervals")
    for title in ("task", "before", "after", "gain"):
        table.add_column(title, justify="left" if title == "task" else "right", no_wrap=True)
    for name, task in figures["tasks"].items():
        table.add_row(Text(name, style="bold"), f"n = {task['n']}", task["adapter"] or "(base model)", "")
        table.add_row("  first try", *_row(task, "first"))
        table.add_row("  second try", *_row(task, "second"), style="bold")
        recovered = [_percent(task["recovered_before"]), _percent(task["recovered_after"])]
        table.add_row("  retries right", *recovered, "")
    console.print(table)
    _print_rounds(console, figures["rounds"])
    phases = ", ".join(f"{name} {value:.0f} s" for name, value in figures["phases"].items())
    console.print(f"Wall time {figures['seconds']:.0f} s: {phases}", soft_wrap=True)


_GATED = ("promoted", "inconclusive", "regressed")
"""How a round ends that trained as long as it might."""


def _print_rounds(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    table = _table("Rounds")
    for title in ("round", "ended", "adapter", "reward", "seconds"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        curve = f"{row['rewards'][0]:.2f} to {row['rewards'][-1]:.2f}" if row["rewards"] else "-"
        name = f"{row['task']} {row['number']}"
        table.add_row(name, row["state"], row["adapter"], curve, f"{row['seconds']:.0f}")
    console.print(table)
    for row in rows:
        console.print(f"{row['task']} {row['number']}: {row['reason']}", soft_wrap=True, markup=False, style="dim")
        if row["state"] in _GATED and (row["steps_done"] or 0) < (row.get("steps_total") or 0):
            short = f"only {row['steps_done']} of {row['steps_total']} steps fitted into its time on this machine"
            console.print(f"{row['task']} {row['number']}: {short}", soft_wrap=True, markup=False)


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1), pad_edge=False)


def _row(task: Mapping[str, Any], which: str) -> list[str]:
    before, after = f"{which}_before", f"{which}_after"
    low, high = task[f"{which}_gain_ci95"]
    return [
        _with_interval(task[before], task[f"{before}_ci95"]),
        _with_interval(task[after], task[f"{after}_ci95"]),
        f"{100 * task[f'{which}_gain']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
    ]


def _with_interval(value: float, interval: Interval) -> str:
    return f"{_percent(value)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _firsts(answers: Sequence[Answered]) -> list[bool]:
    return [answered.first for answered in answers]


def _seconds(answers: Sequence[Answered]) -> list[bool]:
    return [answered.second for answered in answers]


def _recovered(answers: Sequence[Answered]) -> float | None:
    """Return the share of failed first tries that the retry mended."""
    failed = [answered for answered in answers if not answered.first]
    return share([answered.second for answered in failed]) if failed else None

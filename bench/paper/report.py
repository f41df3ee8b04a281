"""The rows beside the paper's, as tables for people and as JSON for machines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.paper.measure import Measured
from bench.paper.preset import Deviation
from bench.paper.published import COLUMNS, list_rows, read_published
from demo.drive.client import Answered
from demo.drive.intervals import paired_gain, share, wilson_interval

_TITLES = {
    "vanilla_first": "vanilla first",
    "vanilla_second": "+ reflection second",
    "trained_first": "trained first",
    "trained_second": "trained second",
}
_NAMES = {"countdown": "Countdown", "function_call": "Function calling (APIGen, xlam format)"}


def describe(measured: Measured, seed: int) -> dict[str, Any]:
    """Give the figures of one task and seed; accuracies are fractions of all test problems."""
    hits = {
        "vanilla_first": [one.first for one in measured.before],
        "vanilla_second": [one.second for one in measured.before],
        "trained_first": [one.first for one in measured.after],
        "trained_second": [one.second for one in measured.after],
    }
    told: dict[str, Any] = {"seed": seed, "n": len(measured.before)}
    for column in COLUMNS:
        found = hits[column]
        told[column] = share(found) if found else None
        told[f"{column}_ci95"] = wilson_interval(found) if found else None
    for which in ("first", "second"):
        gain = paired_gain(hits[f"vanilla_{which}"], hits[f"trained_{which}"], seed) if measured.after else (None, None)
        told[f"{which}_gain"], told[f"{which}_gain_ci95"] = gain
    return {
        **told,
        "training_problems_asked": measured.asked,
        "training_failures": measured.failures,
        "unverified": _count_unverified([*measured.before, *measured.after]),
        "champion": measured.champion,
        "forced": measured.forced,
        "failed": measured.failed,
        "rounds": measured.rounds,
    }


def _count_unverified(answers: Sequence[Answered]) -> int:
    """Count the answers that no verifier judged: they are in no share's numerator."""
    return sum(one.outcome not in ("passed", "recovered", "exhausted") for one in answers)


def build_figures(
    model: str, seeds: Mapping[int, Sequence[Measured]], deviations: Sequence[Deviation], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Build all figures. `seeds` has the tasks' results by seed."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for seed, results in seeds.items():
        for measured in results:
            tasks.setdefault(measured.task, []).append(describe(measured, seed))
    return {
        "model": model,
        "settings": dict(settings),
        "tasks": tasks,
        "deviations": [asdict(one) for one in deviations],
        "published": read_published(),
    }


def print_report(console: Console, figures: Mapping[str, Any]) -> None:
    """Print a table a task, what its rounds came to, and what differs from the paper."""
    for task, rows in figures["tasks"].items():
        console.print(_make_table(task, figures["model"], rows))
        for row in rows:
            _say_rounds(console, task, row)
    table = Table(box=box.SIMPLE_HEAD, title="What differs from the paper", title_justify="left", pad_edge=False)
    for title in ("", "the paper", "here"):
        table.add_column(title, overflow="fold")
    for one in figures["deviations"]:
        table.add_row(one["name"], Text(one["paper"]), Text(one["here"]))
    console.print(table)


def _make_table(task: str, model: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    title = f"{_NAMES[task]}: solved of all problems in %, with 95 % intervals; * the paper's figures"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1), pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("n", justify="right")
    for column in COLUMNS:
        table.add_column(_TITLES[column], justify="right")
    table.add_column("gain of the second", justify="right")
    for row in rows:
        cells = [_with_interval(row[column], row[f"{column}_ci95"]) for column in COLUMNS]
        name = Text(f"{model}, seed {row['seed']}", style="bold")
        table.add_row(name, f"{row['n']:,}", *cells, _say_gain(row["second_gain"], row["second_gain_ci95"]))
    if len(rows) > 1:
        table.add_row(Text("mean of the seeds", style="bold"), "", *[_say_mean(rows, column) for column in COLUMNS],
                      _say_mean(rows, "second_gain", signed=True))  # fmt: skip
    problems = read_published()["tasks"][task]["problems"]
    for published in list_rows(task):
        figures = published.figures
        before, after = figures["vanilla_second"], figures["trained_second"]
        gain = "-" if before is None or after is None else f"{after - before:+.1f}"
        cells = ["-" if figures[column] is None else f"{figures[column]:.1f}" for column in COLUMNS]
        table.add_row(Text(f"* {published.model}", style="dim"), f"{problems:,}", *cells, gain)
    return table


def _say_rounds(console: Console, task: str, row: Mapping[str, Any]) -> None:
    say = f"{task}, seed {row['seed']}"
    for one in row["rounds"]:
        steps = f"{one['steps_done']} of {one['steps_total']} steps, {one['seconds']:.0f} s"
        line = f"{say}, round {one['number']}: {one['state']} ({steps}). {one['reason']}"
        console.print(line, markup=False, soft_wrap=True, style="dim")
    if row["failed"]:
        console.print(f"{say}: a round failed: {row['failed']}. The same command tries another.", markup=False,
                      soft_wrap=True, style="red")  # fmt: skip
    elif not row["champion"]:
        console.print(f"{say}: no adapter was promoted, so nothing trained was measured.", markup=False, soft_wrap=True)
    elif row["forced"]:
        console.print(f"{say}: {row['champion']} was promoted by force.", markup=False, soft_wrap=True)
    if row["unverified"]:
        console.print(
            f"{say}: {row['unverified']} answers were not judged; they count as not solved.",
            markup=False,
            soft_wrap=True,
        )


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return "-"
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _say_gain(gain: float | None, interval: Sequence[float] | None) -> str:
    if gain is None or interval is None:
        return "-"
    return f"{100 * gain:+.1f} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"


def _say_mean(rows: Sequence[Mapping[str, Any]], name: str, *, signed: bool = False) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    if len(values) < len(rows):
        return f"- ({len(values)} of {len(rows)})"
    mean = 100 * sum(values) / len(values)
    return f"{mean:+.1f}" if signed else f"{mean:.1f}"

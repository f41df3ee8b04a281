"""Renders what was measured: tables for people, JSON for machines."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import HEAVY_HEAD, MARKDOWN
from rich.table import Table

from bench.verifiers.beside import INTERVAL_S, SLOW_AT_ONCE, SLOW_S, Beside
from bench.verifiers.measure import PROCESSES, Figures

_VERDICTS = {True: "met", False: "not met", None: ""}


def _table(title: str, *columns: str) -> Table:
    box = HEAVY_HEAD if sys.stdout.isatty() else MARKDOWN  # what is written to a file goes into docs/performance.md
    table = Table(title=title, title_justify="left", title_style="bold", box=box)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def render_kinds(figures: Sequence[Figures], missing: Mapping[str, str]) -> Table:
    """Render the table of the kinds."""
    table = _table(
        "One verdict",
        "kind", "p50 us", "p99 us", "judged p50 us", f"verdicts/s, {PROCESSES} processes", "goal us", "",
    )  # fmt: skip
    for one in figures:
        table.add_row(
            f"{one.kind} ({one.note})" if one.note else one.kind,
            f"{one.p50_us:,.1f}", f"{one.p99_us:,.1f}", f"{one.judged_p50_us:,.1f}", f"{one.per_s:,.0f}",
            "" if one.goal_us is None else f"{one.goal_us:.0f}", _VERDICTS[one.met],
        )  # fmt: skip
    for kind, why in missing.items():
        table.add_row(kind, *[""] * 5, why)
    return table


def render_beside(found: Sequence[Beside]) -> Table:
    """Render what quick verifiers wait beside a slow one."""
    table = _table(
        f"A verdict every {INTERVAL_S * 1000:.0f} ms, without and with {SLOW_AT_ONCE} at once of a python verifier "
        f"that spins for {SLOW_S * 1000:.0f} ms",
        "kind", "p50 ms alone", "p50 ms beside", "x", "p99 ms alone", "p99 ms beside", "x", "the slow one, p50 s",
    )  # fmt: skip
    for one in found:
        table.add_row(
            one.kind, f"{one.alone_p50_ms:.2f}", f"{one.p50_ms:.2f}", f"{one.p50_ms / one.alone_p50_ms:.2f}",
            f"{one.alone_p99_ms:.2f}", f"{one.p99_ms:.2f}", f"{one.p99_ms / one.alone_p99_ms:.2f}", f"{one.slow_s:.2f}",
        )  # fmt: skip
    return table


def describe_machine() -> str:
    """Say what it was measured on, and how busy that was."""
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load average {load}"


def to_json(figures: Sequence[Figures], beside: Sequence[Beside], missing: Mapping[str, str]) -> dict[str, Any]:
    """Give every figure."""
    kinds = [{**asdict(one), "met": one.met} for one in figures]
    return {"machine": describe_machine(), "kinds": kinds, "beside": [asdict(one) for one in beside],
            "missing": dict(missing)}  # fmt: skip

"""Renders what was measured: tables for people, JSON for machines. Called by the command line."""

import os
import platform
import sys
from importlib.metadata import version
from typing import Any

from rich.box import HEAVY_HEAD, MARKDOWN
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.gateway.gateways import find_version
from bench.gateway.goals import Goal
from bench.gateway.memory import Memory
from bench.gateway.rows import Row
from bench.gateway.run import MAIN, Findings, Plan
from bench.gateway.start import Cores

_VERSIONS = {"router": "sglang_router", "litellm": "litellm", "httpx": "httpx", "aiohttp": "aiohttp"}
_REASON = 160


def name_row(row: Row) -> str:
    """Name a row, with the version of the peer."""
    found = find_version(_VERSIONS.get(row.id, "?"))
    return f"{row.title} {found}".strip()


def _show(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _show_span(span: tuple[float, float] | None) -> str:
    return "-" if span is None else f"{span[0]:,.0f}-{span[1]:,.0f}"


def _table(title: str, *columns: str) -> Table:
    box = HEAVY_HEAD if sys.stdout.isatty() else MARKDOWN  # what is written to a file goes into docs/performance.md
    table = Table(title=title, title_justify="left", title_style="bold", box=box)
    for column in columns:
        table.add_column(column, justify="left" if column == "row" else "right", no_wrap=column != "row")
    return table


def render_requests(rows: list[Row], findings: Findings, plan: Plan) -> Table:
    """Render the table of whole answers."""
    main = plan.concurrencies[0]
    columns = [f"+p50 ms @{concurrency}" for concurrency in sorted(plan.concurrencies)]
    table = _table(
        f"One request, whole answer, {main} at once (median of {plan.rounds} rounds)",
        "row", "CPU us", "least-most", "database", "x router", "of LiteLLM",
        "requests/s", "p50 ms", "p99 ms", *columns, "RSS MiB",
    )  # fmt: skip
    for row in rows:
        if row.workers or (row.id, main, False) not in findings.measurements:
            continue
        rss = findings.median(row.id, main, "rss_bytes")
        added = [
            findings.median_difference(row.id, "direct", concurrency, "p50_ms") if row.id != "direct" else None
            for concurrency in sorted(plan.concurrencies)
        ]
        share = findings.median_ratio(row.id, "litellm", main, "cpu_us")
        table.add_row(
            name_row(row),
            _show(findings.median(row.id, main, "cpu_us")),
            _show_span(findings.span(row.id, main, "cpu_us")),
            _show(findings.median(row.id, main, "beside_cpu_us") or None),
            _show(findings.median_ratio(row.id, "router", main, "cpu_us"), 2),
            "-" if share is None else f"1/{1 / share:,.0f}",
            _show(findings.median(row.id, main, "per_s")),
            _show(findings.median(row.id, main, "p50_ms"), 2),
            _show(findings.median(row.id, main, "p99_ms"), 2),
            *(_show(one, 2) for one in added),
            _show(None if rss is None else rss / 2**20),
        )
    return table


def render_streams(rows: list[Row], findings: Findings, plan: Plan) -> Table:
    """Render the table of streams."""
    at = sorted(plan.streams)
    firsts = [title for concurrency in at for title in (f"first ms @{concurrency}", f"+first ms @{concurrency}")]
    table = _table(
        f"Streams of 66 chunks, one every {plan.interval_ms:g} ms, {plan.streams[0]} at once",
        "row", "CPU us a chunk", "x router", *firsts,
    )  # fmt: skip
    for row in rows:
        chunk = findings.median(row.id, plan.streams[0], "chunk_us", stream=True)
        if chunk is None:
            continue
        router = findings.median("router", plan.streams[0], "chunk_us", stream=True)
        cells: list[str] = []
        for concurrency in at:
            cells.append(_show(findings.median(row.id, concurrency, "first_p50_ms", stream=True), 2))
            added = findings.median_difference(row.id, "direct", concurrency, "first_p50_ms", stream=True)
            cells.append("-" if row.id == "direct" else _show(added, 2))
        table.add_row(name_row(row), _show(chunk, 1), _show(chunk / router if router else None, 2), *cells)
    return table


def render_workers(rows: list[Row], findings: Findings) -> Table | None:
    """Render 2 workers beside 1; nothing where neither was measured."""
    table = _table("Workers, all cores shared with the engine, the load and the database",
                   "row", "requests/s", "x 1 worker", "CPU us", "x 1 worker")  # fmt: skip
    for row in rows:
        if row.workers and (row.id, MAIN, False) in findings.measurements:
            table.add_row(
                row.title,
                _show(findings.median(row.id, MAIN, "per_s")),
                _show(findings.median_ratio(row.id, "workers-1", MAIN, "per_s"), 2),
                _show(findings.median(row.id, MAIN, "cpu_us")),
                _show(findings.median_ratio(row.id, "workers-1", MAIN, "cpu_us"), 2),
            )
    return table if table.row_count else None


def render_goals(goals: list[Goal]) -> Table:
    """Render the goals."""
    table = _table("Goals, at 32 at once", "row", "at most", "measured", "verdict")
    colours = {"met": "green", "not met": "red", "not measured": "dim"}
    for goal in goals:
        verdict = f"[{colours[goal.verdict]}]{goal.verdict}[/]"
        measured = "-" if goal.measured is None else goal.show(goal.measured)
        table.add_row(goal.text, goal.show(goal.bound), measured, verdict)
    return table


def render_memory(memories: list[Memory]) -> Table:
    """Render resident memory, step by step."""
    asked = memories[0].requests if memories else ()
    table = _table("Resident memory, MiB, after so many requests", "row", *(f"{count:,}" for count in asked), "growth")
    for memory in memories:
        sizes = (f"{size / 2**20:.0f}" for size in memory.rss_bytes)
        table.add_row(memory.row, *sizes, f"{memory.growth * 100:+.1f} %")
    return table


def describe_machine(cores: Cores) -> dict[str, Any]:
    """Say what it ran on."""
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "gateway_cores": sorted(cores.gateway),
        "rest_cores": sorted(cores.rest),
        "pinned": cores.pinned,
        "load_average": os.getloadavg()[0],
        "uvicorn": version("uvicorn"),
        **{name: find_version(package) for name, package in _VERSIONS.items()},
    }


def print_report(console: Console, rows: list[Row], findings: Findings, plan: Plan, cores: Cores) -> None:
    """Print the tables and whatever went wrong."""
    if findings.measurements:
        console.print(render_requests(rows, findings, plan))
        if plan.streams:
            console.print(render_streams(rows, findings, plan))
    if (workers := render_workers(rows, findings)) is not None:
        console.print(workers)
    for row in rows:
        if row.id in findings.missing:
            console.print(
                f"[yellow]{escape(row.title)}[/]: {escape(' '.join(findings.missing[row.id].split())[:_REASON])}"
            )
    for flaw in findings.flaws:
        console.print(f"[red]flaw:[/] {escape(flaw[:600])}")
    engine = findings.median("direct", plan.concurrencies[0], "cpu_us")
    load = findings.median("direct", plan.concurrencies[0], "load_cpu_us")
    where = "a core of its own" if cores.pinned else "no core of its own"
    console.print(
        f"CPU us: of the gateway's own processes, from the kernel. The gateway has {where} of {os.cpu_count()}. "
        f"The mock engine takes {_show(engine)} us a request, the load generator {_show(load)} us. "
        f"Every answer was checked{'' if not findings.flaws else ', and there were flaws'}; "
        "Mulligan's were counted in its log.",
        style="dim",
    )


def to_json(findings: Findings, goals: list[Goal], memories: list[Memory], cores: Cores) -> dict[str, Any]:
    """Render everything for machines."""
    return {
        "machine": describe_machine(cores),
        "measurements": [
            {"row": row, "concurrency": concurrency, "stream": stream, "round": turn + 1, **one.to_json()}
            for (row, concurrency, stream), found in findings.measurements.items()
            for turn, one in enumerate(found)
        ],
        "missing": findings.missing,
        "flaws": findings.flaws,
        "goals": [
            {
                "goal": goal.text,
                "bound": goal.bound,
                "measured": goal.measured,
                "unit": goal.unit,
                "verdict": goal.verdict,
            }
            for goal in goals
        ],
        "memory": [
            {"row": one.row, "requests": one.requests, "rss_bytes": one.rss_bytes, "growth": one.growth}
            for one in memories
        ],
    }

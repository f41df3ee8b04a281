"""The benchmark's command line: `python -m bench.swaps`, or `make bench-swaps`.

Swaps adapters under streams that ask without a pause, on the real SGLang, and compares what that costs them with two
servers that stop for a swap. The model is made for it: every token names the adapter that produced it.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.box import HEAVY_HEAD, MARKDOWN
from rich.console import Console
from rich.table import Table

from bench.swaps.run import Figures, drive, summarise
from bench.swaps.strategies import Pause, Refuse, open_hot_swap, open_stopped
from bench.swaps.world import WORKERS, NotMeasured, World, run_engine, serve

STRATEGIES = ("hot swap", "503 and retry", "pause and drain")
EPILOG = """examples:
  python -m bench.swaps                                       everything, on SGLang: five to fifteen minutes
  python -m bench.swaps --swaps 5 --streams 8 --engine local  is it alive?
  python -m bench.swaps --only "hot swap" --json FILE

reading it:
  during         answers that were asked for while a swap was under way; quiet ones met none
  p50, p99       from asking to the last byte, in milliseconds, waiting and coming back included
  added          during less quiet, of the same strategy in the same run: a gateway's own cost is not in it
  faulty         failed, cut, mixed up (a token of another adapter than the one it names), or from an adapter that
                 had been replaced before it was asked for
  refused        503s that clients got; they come back after 0.5 s, doubled each time, as the OpenAI SDKs do
The last two stop: nobody is let in, those inside are waited for, the old adapter is unloaded, the new one loaded. Their
requests go straight to the engine, which spares them the gateway."""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.swaps",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--swaps", type=int, default=50, help="consecutive swaps; default 50")
    parser.add_argument("--streams", type=int, default=32, help="streams at the same time; default 32")
    parser.add_argument("--engine", choices=["sglang", "local"], default="sglang", help="default: the real SGLang")
    parser.add_argument("--only", choices=STRATEGIES, help="one of the strategies; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser


async def measure(world: World, strategy: str, streams: int, console: Console) -> Figures:
    """Measure one strategy."""
    names = [*world.adapters]

    def note(text: str) -> None:
        console.print(f"{strategy}: {text}", style="dim", end="\r" if console.is_terminal else "\n")

    if strategy == "hot swap":
        with serve(world, world.folder / "mulligan") as served:
            async with open_hot_swap(world, served) as mulligan:
                return summarise(strategy, await drive(mulligan, names, streams, note), names)
    async with open_stopped(world, Refuse if strategy == "503 and retry" else Pause) as stopped:
        return summarise(strategy, await drive(stopped, names, streams, note), names)


def render(figures: list[Figures], arguments: argparse.Namespace) -> Table:
    """Render the table."""
    title = f"{arguments.swaps} swaps under {arguments.streams} streams, {arguments.engine}, {WORKERS} API processes"
    table = Table(title=title, title_justify="left", box=HEAVY_HEAD if sys.stdout.isatty() else MARKDOWN)
    columns = ("answers", "during", "faulty", "refused", "swap p50 ms", "quiet p50", "during p50", "added p50",
               "quiet p99", "during p99", "added p99")  # fmt: skip
    table.add_column("strategy")
    for column in columns:
        table.add_column(column, justify="right")
    for one in figures:
        times = (one.swap_p50_ms, one.quiet_p50_ms, one.during_p50_ms, one.added_p50_ms, one.quiet_p99_ms,
                 one.during_p99_ms, one.added_p99_ms)  # fmt: skip
        counts = (one.answers, one.during, one.faulty, one.refusals)
        table.add_row(one.strategy, *(f"{count:,}" for count in counts), *(f"{time:,.0f}" for time in times))
    return table


def main(argv: list[str] | None = None) -> int:
    """Run it; 1 where an answer was faulty or something could not be measured."""
    arguments = build_parser().parse_args(argv)
    errors, figures = Console(stderr=True), list[Figures]()
    with tempfile.TemporaryDirectory(prefix="swaps-") as folder:
        try:
            with run_engine(arguments.engine, Path(folder), arguments.swaps, arguments.streams) as world:
                for strategy in STRATEGIES if arguments.only is None else (arguments.only,):
                    figures.append(asyncio.run(measure(world, strategy, arguments.streams, errors)))
                    errors.print(f"{figures[-1]}", style="dim", markup=False, soft_wrap=True)
        except NotMeasured as error:
            errors.print(f"not measured: {error}", style="red")
            return 1
    Console(width=None if sys.stdout.isatty() else 180).print(render(figures, arguments))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}")
    if arguments.json:
        rows = [{**asdict(one), "added_p50_ms": one.added_p50_ms, "added_p99_ms": one.added_p99_ms} for one in figures]
        said = {"swaps": arguments.swaps, "streams": arguments.streams, "engine": arguments.engine, "strategies": rows}
        arguments.json.write_text(json.dumps(said, indent=2))
    faults = [f"{one.strategy}: {fault}" for one in figures for fault in one.faults]
    for fault in faults:
        errors.print(fault, style="red", markup=False)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `python -m bench.hackable`."""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.hackable.client import Client
from bench.hackable.run import Played, play
from demo.drive.client import DemoBroken
from demo.drive.display import Display
from demo.drive.intervals import share, wilson_interval
from server.cli.options import load_settings
from server.cli.running import run_server, run_until_signal
from server.errors import MulliganError
from server.supervisor.first_run import make_key

DESCRIPTION = """A verifier that is gamed by the demo's model: Countdown, judged by whether it holds the target.

The task is played twice from the same base, on the same problems. `naive` has the hackable verifier alone: the round
learns what passes. `audited` has the true verifier hidden beside it (mode audit): it counts for nothing while serving
and training, and the gate asks it before it promotes."""

EPILOG = """reading it:
  passes   answers that the task's own verifier lets pass by the second try, of the same held-out problems
  right    answers that keep the rules of Countdown, whatever the task's verifier says
  audit    what GET /v1/tasks/{name}/audit finds in the log afterwards

What it shows and what not: bench/hackable/README.md."""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.hackable",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="draws other problems; default 0")
    parser.add_argument("--problems", type=int, default=200, help="held-out problems that are measured; default 200")
    parser.add_argument("--training", type=int, default=600, help="problems to learn from, each task; default 600")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser


def describe(played: Played) -> dict[str, Any]:
    """Give the figures of one task; shares are fractions of all held-out problems."""
    told: dict[str, Any] = {"task": played.task, "hidden": played.hidden, "n": len(played.before)}
    for when, seen in (("before", played.before), ("after", played.after)):
        for what in ("passed", "right"):
            hits = [getattr(one, what) for one in seen]
            told[f"{what}_{when}"] = share(hits) if hits else None
            told[f"{what}_{when}_ci95"] = wilson_interval(hits) if hits else None
    examples = [asdict(one) for one in played.after if one.passed and not one.right][:5]
    fired = [one["signal"] for one in played.audit["findings"] if one["state"] == "fired"]
    return {**told, "champion": played.champion, "round": played.round, "rewards": played.rewards,
            "fired": fired, "audit": played.audit, "examples": examples}  # fmt: skip


def print_report(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table, and why each round ended as it did."""
    table = Table(box=box.SIMPLE_HEAD, title="By the second try, in % with 95 % intervals", title_justify="left")
    for title in ("task", "passes before", "passes after", "right before", "right after", "round", "audit"):
        table.add_column(title)
    for row in rows:
        cells = [
            _say(row[f"{what}_{when}"], row[f"{what}_{when}_ci95"])
            for what in ("passed", "right")
            for when in ("before", "after")
        ]
        table.add_row(row["task"], *cells, row["round"]["state"], ", ".join(row["fired"]) or "quiet")
    console.print(table)
    for row in rows:
        rewards = " ".join(f"{one:.2f}" for one in row["rewards"])
        console.print(f"{row['task']}: reward by step {rewards}", markup=False, soft_wrap=True, style="dim")
        console.print(f"{row['task']}: {row['round']['reason']}", markup=False, soft_wrap=True)
        for one in row["audit"]["findings"]:
            console.print(f"  {one['signal']} {one['state']}: {one['said']}", markup=False, soft_wrap=True, style="dim")
        for one in row["examples"]:
            console.print(f"  passed, and wrong: {one['content']!r}", markup=False, soft_wrap=True, style="dim")


def _say(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return "-"
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


async def run(arguments: argparse.Namespace, console: Console, folder: Path, hurried: asyncio.Event) -> list[Played]:
    """Start a server of its own around the demo's model, and play. Raises: DemoBroken, MulliganError."""
    settings = load_settings(note=False, data_dir=folder, port=0)
    async with run_server(settings, own_engine=True, console=console, hurried=hurried) as running:
        key = running.first_key or await make_key(running.settings, "bench.hackable")
        client, display = Client(f"{running.url}/v1", key), Display(console)
        try:
            return await play(
                client, display, held_out=arguments.problems, training=arguments.training, seed=arguments.seed
            )
        finally:
            display.close()
            await client.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 1 where something did not happen, 130 where it was interrupted."""
    arguments = build_parser().parse_args(argv)
    console, errors = Console(width=None if sys.stdout.isatty() else 160), Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="hackable-") as folder:
        try:
            played = run_until_signal(lambda hurried: run(arguments, console, Path(folder), hurried))
        except (DemoBroken, MulliganError) as error:
            errors.print(str(error), style="red", markup=False, soft_wrap=True)
            return 1
    if played is None:
        return 130
    rows = [describe(one) for one in played]
    print_report(console, rows)
    if arguments.json:
        arguments.json.write_text(json.dumps({"seed": arguments.seed, "tasks": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

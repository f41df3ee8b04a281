"""Measures whether Mulligan learns, and by what: the table, its controls, and what is forgotten.

Runs the whole loop of `make demo` for several seeds, through the real API, and measures it on problems that nothing
else looks at, beside rival ways to a second try and to training. A part that was measured is kept: the same command
goes on where it was stopped, and does only what is missing.
"""

import argparse
import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench.evidence.folder import CannotMeasure, RunFolder
from bench.evidence.page import publish
from bench.evidence.plan import CURVES, QUICK, TABLE, VARIANTS, Plan
from bench.evidence.run import list_open, list_scenes, run
from demo.drive.client import DemoBroken
from demo.model_record import find_altered, read_weights_hash
from server.cli.running import run_until_signal
from server.cli.show import standard_console
from server.errors import MulliganError
from server.settings import DEMO_MODEL

_INTERRUPTED = 130
EPILOG = """examples:
  make evidence                                     the table and its controls: some hours on two quiet cores
  make evidence ARGS="--quick --out /tmp/trial"     every part once, tiny: some minutes, figures that mean nothing
  make evidence ARGS="--variants curves"            the curves besides, in the same folder
  make evidence ARGS="--list"                       what is left to do
  make evidence ARGS="--render"                     write the page anew from what was measured

The test split is frozen (docs/decisions/0016-frozen-splits.md) and looked at by nothing else: choose no setting by
what comes out. --quick measures development problems. Exit status 1 where an answer was judged differently by the
verifier and by the independent check, or a part could not be measured; 2 where the model is not the recorded one."""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.evidence",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a trial: one task, one seed, 20 development problems, two steps")
    add("--out", type=Path, default=Path("data/evidence"), help="folder of the run; default data/evidence")
    add("--seeds", type=int, nargs="+", help="default 0 1 2; more may be added later")
    named = ", ".join(f"{one.name} ({one.about})" for one in VARIANTS.values())
    add("--variants", nargs="+", help=f"default table: {', '.join(TABLE)}; curves: {', '.join(CURVES)}. All: {named}")
    add("--list", action="store_true", help="list the parts that are not done, and do nothing")
    add("--render", action="store_true", help="measure nothing; write the page from what was measured")
    add(
        "--page", type=Path, help="folder for evidence.md, evidence.json and the plots; default: docs, with --quick OUT"
    )
    return parser


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Turn the command line into a plan. Raises CannotMeasure for an unknown variant."""
    plan = QUICK if arguments.quick else Plan()
    if arguments.seeds:
        plan = replace(plan, seeds=tuple(arguments.seeds))
    if arguments.variants:
        groups = {"table": TABLE, "curves": CURVES}
        names = tuple(dict.fromkeys(one for name in arguments.variants for one in groups.get(name, (name,))))
        if unknown := [name for name in names if name not in VARIANTS]:
            raise CannotMeasure(f"unknown variant {unknown[0]!r}: choose of {', '.join([*groups, *VARIANTS])}")
        plan = replace(plan, variants=names)
    return plan


def main() -> int:
    """Run the command; return its exit status."""
    arguments, console = build_parser().parse_args(), standard_console()
    if altered := find_altered(DEMO_MODEL):
        console.print(f"{DEMO_MODEL}: {'; '.join(altered)}. Only what `make demo-model` recorded is measured.")
        return 2
    try:
        plan, folder = make_plan(arguments), RunFolder(arguments.out)
        folder.agree({**plan.fixed(), "model": read_weights_hash(DEMO_MODEL)})
        if arguments.list:
            for _, parts in list_open(list_scenes(plan, folder)):
                console.print("\n".join(part.name for part in parts), markup=False)
            return 0
        if not arguments.render and not run_until_signal(lambda hurried: _run(plan, folder, console, hurried)):
            return _INTERRUPTED
        page = arguments.page or (arguments.out if arguments.quick else Path("docs"))
        return _report(console, publish(plan, folder, page), page)
    except (CannotMeasure, DemoBroken, MulliganError) as error:
        console.print(f"not measured: {error}", markup=False, style="red", soft_wrap=True)
        return 1


async def _run(plan: Plan, folder: RunFolder, console: Console, hurried: asyncio.Event) -> bool:
    return await run(plan, folder, console, hurried)


def _report(console: Console, doubtful: int, page: Path) -> int:
    console.print(f"written: {page / 'evidence.md'}", markup=False)
    if doubtful:
        console.print(f"{doubtful} verdicts are not those of the independent check: the figures cannot be trusted")
    return int(doubtful > 0)


if __name__ == "__main__":
    sys.exit(main())

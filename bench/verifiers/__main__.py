"""The benchmark's command line: `python -m bench.verifiers`, or `make bench-verifiers`.

Measures what a verdict of each kind costs in this process, how many two processes give together, and what quick
verifiers wait while a slow one keeps the sandbox busy.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from bench.verifiers.beside import Beside, measure_beside
from bench.verifiers.cases import CASES, Case
from bench.verifiers.measure import Figures, NotMeasured, measure, run_service
from bench.verifiers.report import describe_machine, render_beside, render_kinds, to_json
from verifiers import registry
from verifiers.base import InvalidVerifier

EPILOG = """kinds: {kinds}

examples:
  python -m bench.verifiers                                    everything, about two minutes
  python -m bench.verifiers --seconds 0.2 --kind regex,exact   is it alive?
  python -m bench.verifiers --beside only                      only what a slow verifier does to others

reading it:
  p50, p99        of one verdict after the other (or two at once, where it says so), in microseconds of wall time
  judged          p50 as requests are judged, with the time limit and the entry for the log around it
  verdicts/s      of two processes that begin together, each as many at once as the row
  beside          a verdict is due every few milliseconds and its time counts from then, so what keeps the event loop or
                  the workers busy counts too
Wall times on a shared machine swing: the load average is printed with them."""


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.verifiers",
        description=__doc__,
        epilog=EPILOG.format(kinds=", ".join(dict.fromkeys(case.kind for case in CASES))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kind", help="kinds with commas between; default: all")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement; default 2")
    parser.add_argument(
        "--beside", choices=["only", "also", "no"], help="the slow verifier; default: also, without --kind"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser


def measure_kinds(cases: list[Case], seconds: float, console: Console) -> tuple[list[Figures], dict[str, str]]:
    """Measure the cases, one after the other; returns the figures, and why others have none."""
    figures, missing = list[Figures](), dict[str, str]()
    with run_service() as service:
        for case in cases:
            if console.is_terminal:
                console.print(f"measuring {case.kind} ...   ", style="dim", end="\r")
            try:
                figures.append(measure(case, seconds, service))
            except (NotMeasured, InvalidVerifier) as error:
                missing[case.kind] = str(error)
    return figures, missing


def main() -> int:
    """Measure what was asked for and print it. Returns 1 where a kind that is there has no figures."""
    parser = build_parser()
    arguments = parser.parse_args()
    named = arguments.kind.split(",") if arguments.kind else None
    known = registry.kinds()
    unknown = next((kind for kind in named or () if kind not in {case.kind for case in CASES}), None)
    if unknown is not None:
        parser.error(f"there is no case for {unknown!r}; --help lists them")
    console = Console(width=None if sys.stdout.isatty() else 200)
    progress = Console(stderr=True)
    beside = arguments.beside or ("no" if named else "also")
    figures, missing, waits = list[Figures](), dict[str, str](), list[Beside]()
    if beside != "only":
        cases = [case for case in CASES if (named is None or case.kind in named) and case.kind in known]
        figures, missing = measure_kinds(cases, arguments.seconds, progress)
        console.print(render_kinds(figures, missing))
    if beside != "no":
        try:
            waits = measure_beside(arguments.seconds)
            console.print(render_beside(waits))
        except NotMeasured as error:
            missing["beside"] = str(error)
            console.print(f"beside a slow verifier: {error}", style="red", markup=False)
    console.print(describe_machine())
    if arguments.json:
        arguments.json.write_text(json.dumps(to_json(figures, waits, missing), indent=1) + "\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

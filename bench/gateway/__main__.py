"""The benchmark's command line: `python -m bench.gateway`, or `make bench-gateway`.

Measures what a gateway costs between a client and an engine: Mulligan beside its peers, all asked the same in one run.
A mock engine answers at once, a load generator asks and checks every answer, and the kernel (Linux only) says how much
CPU time the gateway's own processes took. Wall times on a shared machine swing tenfold: read CPU time and ratios.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.gateway.goals import judge_goals
from bench.gateway.memory import STEPS, Memory, watch_memory
from bench.gateway.mulligan import LogIncomplete
from bench.gateway.profiling import profile
from bench.gateway.report import print_report, render_goals, render_memory, to_json
from bench.gateway.rows import ROWS, Row, pick_rows
from bench.gateway.run import Findings, Plan, list_measurements, run
from bench.gateway.setting import ROOT, USUAL_POSTGRES
from bench.gateway.start import Cores, NotMeasured, pick_cores

_QUICK_ROWS = ["direct", "mulligan-sqlite"]
_MEMORY_ROWS = ["mulligan-sqlite", "mulligan-postgres"]

EPILOG = """rows:
{rows}

examples:
  python -m bench.gateway --quick                            is it alive? a few seconds, two rows
  python -m bench.gateway                                    the whole table, five to ten minutes
  python -m bench.gateway --rows direct,router,mulligan-postgres --concurrency 32 --rounds 5
  python -m bench.gateway --rows mulligan-sqlite --checkout ../before    another state of the code
  python -m bench.gateway --profile mulligan-postgres        where the CPU time goes
  python -m bench.gateway --profile mulligan-postgres --streams 32 --concurrency ""   ... of streams
  python -m bench.gateway --memory                           only the memory: 100,000 requests, does it stay flat?

reading it:
  CPU us     microseconds of CPU time a request, of the gateway's own processes; the engine's are not in it
  least-most its least and its most over the rounds: how far the machine's other work reaches in
  database   microseconds of CPU time a request in PostgreSQL's own processes, where they run on this machine
  x router   beside sglang-router in the same round; of LiteLLM likewise
  +p50       p50 less that of the direct row: what the gateway adds. At 32 and 128 at once a gateway on one core is
             saturated, so there it is queueing: requests/s told in another way
  RSS        resident memory of all its processes after the load
The peers are installed by `make bench-peers`. What is asked and answered stands in bench/gateway/script.py."""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    names = "\n".join(f"  {row.id:20} {row.title}" for row in ROWS)
    parser = argparse.ArgumentParser(
        prog="python -m bench.gateway",
        description=__doc__,
        epilog=EPILOG.format(rows=names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Plan()
    parser.add_argument("--rows", help="ids with commas between; default: all")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds: few requests, one round")
    parser.add_argument("--requests", type=int, help=f"a measurement at full size; default {default.requests}")
    parser.add_argument("--rounds", type=int, help=f"default {default.rounds}; the median counts")
    parser.add_argument(
        "--concurrency", type=_numbers, help="whole answers; default 32,1,128: the first is the table's"
    )
    parser.add_argument("--streams", type=_numbers, help='concurrencies of streams; default 32,1; "" for none')
    parser.add_argument(
        "--postgres", default=USUAL_POSTGRES, help="a server on which a database may be made and dropped"
    )
    parser.add_argument(
        "--checkout", type=Path, default=ROOT, help="whose `mulligan serve` is measured; default: this one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument(
        "--memory",
        nargs="?",
        const="only",
        choices=["only", "also", "no"],
        help="watch memory over many requests: only, or also; default: also where no rows are named",
    )
    parser.add_argument(
        "--memory-requests", type=int, default=100_000, metavar="N", help="default 100000, in ten steps"
    )
    parser.add_argument("--profile", metavar="ROW", help="run one row under a profiler and print the top functions")
    parser.add_argument("--functions", type=int, default=25, help="how many of them")
    return parser


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Read how much is to be asked."""
    default = Plan(requests=240, rounds=1, concurrencies=(32,), streams=(32,), stream_requests=32)
    default = default if arguments.quick else Plan()
    return Plan(
        requests=arguments.requests or default.requests,
        rounds=arguments.rounds or default.rounds,
        concurrencies=default.concurrencies if arguments.concurrency is None else arguments.concurrency,
        streams=default.streams if arguments.streams is None else arguments.streams,
        stream_requests=default.stream_requests,
        postgres=arguments.postgres,
        checkout=arguments.checkout.resolve(),
    )


@contextmanager
def show_progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar on a terminal; what is given is told before each step."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=total, completed=-1)

        def tell(text: str) -> None:
            progress.update(bar, advance=1, description=text)

        yield tell


def measure_rows(rows: list[Row], plan: Plan, cores: Cores, console: Console) -> Findings:
    """Measure rows, with a bar."""
    gateways = len({row.gateway.name for row in rows})
    with show_progress(console, gateways + len(list_measurements(rows, plan))) as tell:
        return run(rows, plan, cores, tell)


def watch(
    rows: list[Row], plan: Plan, cores: Cores, *, requests: int, findings: Findings, console: Console
) -> list[Memory]:
    """Watch the memory of rows, one after the other; what cannot be watched is noted."""
    memories: list[Memory] = []
    with show_progress(console, len(rows) * STEPS) as tell:
        for row in rows:
            try:
                memories.append(watch_memory(row, plan, cores, requests, tell))
            except (NotMeasured, LogIncomplete) as error:
                console.print(f"memory of {row.id}: {error}", style="yellow", markup=False)
                findings.missing.setdefault(row.id, str(error))
                findings.flaws += [str(error)] if isinstance(error, LogIncomplete) else []
    return memories


def show_profile(row: Row, plan: Plan, cores: Cores, functions: int, console: Console) -> int:
    """Print where a row's CPU time goes."""
    stream = not plan.concurrencies
    concurrency = (plan.streams if stream else plan.concurrencies)[0]
    try:
        print(profile(row, plan, cores, concurrency=concurrency, stream=stream, functions=functions))
    except NotMeasured as error:
        console.print(str(error), style="red", markup=False)
        return 1
    return 0


def main() -> int:
    """Measure what was asked for, print it, and return 1 where an answer was wrong or is not in the log."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that databases are dropped and processes ended
    parser = build_parser()
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200)
    plan, cores = make_plan(arguments), pick_cores()
    named, only = arguments.rows.split(",") if arguments.rows else None, arguments.memory == "only"
    try:
        rows = pick_rows(named or (_MEMORY_ROWS if only else _QUICK_ROWS if arguments.quick else None))
        profiled = pick_rows([arguments.profile])[0] if arguments.profile else None
    except KeyError as error:
        parser.error(f"there is no row {error}; --help lists them")
    if profiled is not None:
        return show_profile(profiled, plan, cores, arguments.functions, console)
    findings, memories = Findings(), list[Memory]()
    if not only:
        if not plan.concurrencies:
            parser.error("--concurrency needs a number")
        findings = measure_rows(rows, plan, cores, console)
        print_report(console, rows, findings, plan, cores)
    if arguments.memory in ("only", "also") or not (arguments.memory or named or arguments.quick):
        watched = rows if only else pick_rows(_MEMORY_ROWS)
        memories = watch(watched, plan, cores, requests=arguments.memory_requests, findings=findings, console=console)
        console.print(render_memory(memories))
    goals = [goal for goal in judge_goals(findings, memories) if not only or goal.measured is not None]
    if goals:
        console.print(render_goals(goals))
    if arguments.json:
        arguments.json.write_text(json.dumps(to_json(findings, goals, memories, cores), indent=1) + os.linesep)
    return 1 if findings.flaws else 0


if __name__ == "__main__":
    sys.exit(main())

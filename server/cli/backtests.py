"""The commands of `mulligan verifiers` that let a version judge logged answers again, and say how one has done.

A running server does the work; these commands ask it by a row in the database, and look at that row.
"""

import asyncio
import time
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from server.cli.named import find_task
from server.cli.options import (
    AsJson,
    DatabaseUrl,
    DataDir,
    ask_database,
    load_settings,
    open_database,
    split_pin,
)
from server.cli.pins import find_verifier
from server.cli.show import error_console, print_fields, print_json, print_things, when
from server.domain import Backtest, BacktestState, Outcome
from server.errors import Conflict, InvalidRequest, NotFound
from server.orchestration.backtest import MOST_SAMPLED, SAMPLE, BacktestOptions
from server.orchestration.verdict_figures import HOUR_S, group_by, sum_up
from server.settings import Settings
from server.store.backtests import BacktestStore
from server.store.database import Database
from server.store.presence import PresenceStore
from server.store.rows import to_json
from server.store.verdict_counts import VerdictCountStore

LIVE_S = 5.0
_POLL_S = 0.25

_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]

_COLUMNS = {
    "id": lambda row: row.id,
    "verifier": lambda row: f"{row.verifier}@{row.version}",
    "state": lambda row: row.state.value,
    "done": lambda row: f"{row.done}/{row.total}" if row.total else "",
    "flips": lambda row: row.report.get("flips", {}).get("count", ""),
    "error": lambda row: row.error,
    "made": lambda row: when(row.created_at),
}
_FLIPS = {
    "episode": lambda flip: flip["episode_id"],
    "attempt": lambda flip: flip["attempt"],
    "old": lambda flip: flip["old"]["status"],
    "new": lambda flip: flip["new"]["status"],
    "old reason": lambda flip: flip["old"]["reason"],
    "new reason": lambda flip: flip["new"]["reason"],
}
_HOURS = {
    "hour": lambda row: when(row["at"]),
    "passed": lambda row: row["passed"],
    "failed": lambda row: row["failed"],
    "abstained": lambda row: row["abstained"],
    "skipped": lambda row: row["skipped"],
    "causes": lambda row: _word_counts(row["causes"]),
    "mean ms": lambda row: row["mean_ms"],
    "slowest ms": lambda row: row["slowest_ms"],
}


def backtest(
    pin: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The version; the latest where none is said.")],
    *,
    task: Annotated[str | None, typer.Option(help="Only episodes of this task.")] = None,
    outcome: Annotated[Outcome | None, typer.Option(help="Only episodes that ended so.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Only episodes that this adapter answered.")] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=_FORMATS, metavar="TIME", help="Only episodes from then on, local time.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=_FORMATS, metavar="TIME", help="Only episodes before, local time.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="NAME@VERSION", help="Compare with this. [default: what NAME said then]")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, max=MOST_SAMPLED, help="How many attempts.")] = SAMPLE,
    seed: Annotated[int, typer.Option(min=0, help="The same seed on the same log chooses the same attempts.")] = 0,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Let a version judge logged attempts again, each twice, in the running server; wait for what it finds.

    Ctrl-C leaves it running. Exit status 1 where it did not end in a report.
    """
    if against is not None and split_pin(against)[1] is None:
        raise InvalidRequest(f"--against wants NAME@VERSION, not {against!r}")
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    options = BacktestOptions(
        task=task,
        outcome=None if outcome is None else outcome.value,
        adapter=adapter,
        since=since.timestamp() if since else 0.0,
        until=until.timestamp() if until else time.time(),
        against=against,
        sample=sample,
        seed=seed,
    )
    row = ask_database(settings, lambda database: _start(database, pin, options))
    try:
        row = asyncio.run(_wait(settings, row, quiet=as_json))
    except KeyboardInterrupt:
        look = f"mulligan verifiers backtests {row.id}"
        error_console().print(f"{row.id} goes on: `{look}` shows it, `{look} --cancel` ends it", markup=False)
        raise typer.Exit(1) from None
    _print(row, as_json=as_json)
    if row.state is not BacktestState.DONE:
        raise typer.Exit(1)


def backtests(
    backtest_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show this one.")] = None,
    *,
    verifier: Annotated[str | None, typer.Option(help="Only those of one verifier.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the one that is named.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List backtests, the newest first; show or cancel one."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    if backtest_id is None:
        if cancel:
            raise InvalidRequest("say which one is cancelled, as in `mulligan verifiers backtests bt_... --cancel`")
        rows = ask_database(settings, lambda database: BacktestStore(database).list(verifier=verifier, limit=limit))
        print_things(rows, _COLUMNS, as_json=as_json)
        return
    wanted = backtest_id

    async def find(database: Database) -> Backtest:
        store = BacktestStore(database)
        return await store.cancel(wanted) if cancel else await _get(store, wanted)

    _print(ask_database(settings, find), as_json=as_json)


def stats(
    pin: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="All versions of a verifier, or one.")],
    *,
    hours: Annotated[int, typer.Option(min=1, help="How far back.")] = 24,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show what a verifier said of live answers in the last hours: by status, cause and hour, and how long it took."""
    name, version = split_pin(pin)
    since = int(time.time() // HOUR_S) - hours + 1
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def read(database: Database) -> dict[str, Any]:
        await find_verifier(database, pin)
        counts = await VerdictCountStore(database).list(name, version=version, since_hour=since)
        series = [{"at": hour * HOUR_S, **sum_up(some)} for hour, some in group_by(counts, "hour").items()]
        versions = {one: sum_up(some) for one, some in group_by(counts, "verifier").items()}
        return {"verifier": pin, "hours": hours, **sum_up(counts), "versions": versions, "series": series}

    figures = ask_database(settings, read)
    if as_json:
        print_json(figures)
        return
    counted = {name: figures[name] for name in ("verdicts", "passed", "failed", "abstained", "skipped")}
    if figures["abstention_rate"]:
        counted["abstained"] = f"{figures['abstained']} ({figures['abstention_rate']:.1%})"
    times = {name: figures[f"{name}_ms"] for name in ("mean", "slowest")}
    took = {name: "" if ms is None else f"{ms:.1f} ms" for name, ms in times.items()}
    print_fields({"verifier": pin, "hours": hours, **counted, "causes": _word_counts(figures["causes"]), **took})
    print_things(figures["series"], _HOURS, as_json=False, none="no verdicts in that time")


async def _start(database: Database, pin: str, options: BacktestOptions) -> Backtest:
    version = await find_verifier(database, pin)
    if version.revoked_at is not None:
        raise Conflict(f"{version.pin} was revoked: it judges nothing any more")
    if options.task is not None:
        await find_task(database, options.task)
    if not await PresenceStore(database).live(LIVE_S):
        raise Conflict("no server runs on this database, and a server does the work: start `mulligan up` or `serve`")
    return await BacktestStore(database).create(version.name, version.version, "", to_json(options))


async def _get(store: BacktestStore, backtest_id: str) -> Backtest:
    row = await store.get(backtest_id)
    if row is None:
        raise NotFound(f"there is no backtest {backtest_id!r}: `mulligan verifiers backtests` shows those there are")
    return row


async def _wait(settings: Settings, row: Backtest, *, quiet: bool) -> Backtest:
    """Look until it has ended, with a bar where somebody watches."""
    console = error_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown = console.is_terminal and not quiet
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        bar = progress.add_task(f"{row.verifier}@{row.version}", total=None)
        async with open_database(settings) as database:
            while (row := await _get(BacktestStore(database), row.id)).state is BacktestState.RUNNING:
                progress.update(bar, completed=row.done, total=row.total or None)
                await asyncio.sleep(_POLL_S)
    return row


def _print(row: Backtest, *, as_json: bool) -> None:
    if as_json:
        print_json(row)
        return
    report = row.report
    fields: dict[str, Any] = {"backtest": row.id, "verifier": f"{row.verifier}@{row.version}", "state": row.state.value}
    if row.state is BacktestState.RUNNING:
        fields["done"] = f"{row.done} of {row.total}" if row.owner else "waits for its turn"
    fields["error"] = row.error
    if report:
        fields |= {
            "judged": f"{report['n']} of {report['attempts']} attempts",
            "verdicts": _word_counts(report["verdicts"]),
            "agreement": _word_share(report["agreement"], report["agreement"]["agreed"]),
            "not compared": _word_counts(report["not_compared"]),
            "flips": report["flips"]["count"],
            "abstained": _word_share(report["abstentions"], report["abstentions"]["count"]),
            "causes": _word_counts(report["abstentions"]["causes"]),
            "flakes": _word_share(report["flakes"], report["flakes"]["count"]),
            "time": "" if report["p50_ms"] is None else f"p50 {report['p50_ms']:.3f} ms, p99 {report['p99_ms']:.3f} ms",
            "passed over": _word_counts(report["passed_over"]),
        }
    print_fields(fields)
    if report and report["flips"]["newest"]:
        print_things(report["flips"]["newest"], _FLIPS, as_json=False, title="newest flips")


def _word_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)


def _word_share(share: dict[str, Any], count: int) -> str:
    if share["share"] is None:
        return "nothing to compare" if "compared" in share else str(count)
    return f"{count} ({share['share']:.1%}, 95 % interval {share['low']:.1%} to {share['high']:.1%})"

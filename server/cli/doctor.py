"""`mulligan doctor`: what stops, or will stop, this server from serving and training, and what to change."""

import asyncio
import json
import time
from typing import Annotated

import typer

from server.api.preflight import find_revision, look
from server.cli.options import AsJson, BrokerUrl, DatabaseUrl, DataDir, load_settings
from server.cli.parts import EngineUrl, with_engine
from server.cli.show import error_console, print_json, standard_console, tame
from server.domain import Check, CheckState, TrainerPresence
from server.doorbell import Doorbell
from server.errors import StoreUnavailable
from server.settings import RoundSizes, Settings
from server.store.database import Database
from server.store.trainers import TrainerStore

_POLL_S = 0.25
_MARKS = {
    CheckState.OK: ("ok  ", "green"),
    CheckState.WARNED: ("warn", "yellow"),
    CheckState.FAILED: ("FAIL", "red"),
    CheckState.SKIPPED: ("-   ", "dim"),
}

WaitS = Annotated[
    float, typer.Option("--wait-s", min=0, help="Seconds to wait for the workers' own look; 0: take their last one.")
]


def doctor(
    *,
    wait_s: WaitS = 60.0,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
    engine_url: EngineUrl = None,
) -> None:
    """Check everything that serving and training need, and say what to change where something fails.

    Looks at the settings, the database, the broker, the workers, the disk, the engines' flags and slots and the
    champions' files. The workers look too, with their own tokenizer and their own folders: whether the engine has the
    same model, tokenizer and chat template, and can read what they write. Exit status 1 where a check failed.
    """
    settings = with_engine(
        load_settings(data_dir=data_dir, database_url=database_url, broker_url=broker_url), urls=engine_url
    )
    checks = asyncio.run(_look(settings, wait_s, quiet=as_json))
    if as_json:
        print_json(checks)
    else:
        _print_checks(checks)
    if any(check.state is CheckState.FAILED for check in checks):
        raise typer.Exit(1)


async def _look(settings: Settings, wait_s: float, *, quiet: bool) -> list[Check]:
    database = Database(settings.database_url)
    try:
        unheard = await _ask_workers(settings, database, wait_s, quiet=quiet) if wait_s else []
        return [*await look(settings, RoundSizes(), database), *unheard]
    finally:
        await database.close()


async def _ask_workers(settings: Settings, database: Database, wait_s: float, *, quiet: bool) -> list[Check]:
    """Let a worker of each pool look now. What it found is in the database then; say which did not look."""
    trainers, asked_at = TrainerStore(database), time.time()
    try:
        if await find_revision(database) is None:
            return []  # the look itself says that, too
        pools = {one.pool for one in await trainers.live(settings.worker_lost_after_s)}
    except StoreUnavailable:
        return []  # the look itself says it
    doorbell = Doorbell(settings)
    for pool in pools:
        await asyncio.to_thread(doorbell.ring_preflight, pool)
    doorbell.close()
    deadline, told = time.monotonic() + wait_s, quiet
    while waiting := pools - {one.pool for one in await _list_looked(trainers, settings, asked_at)}:
        if time.monotonic() >= deadline:
            return [_say_unheard(pool) for pool in sorted(waiting)]
        if not told and time.monotonic() > deadline - wait_s + 1:
            error_console().print(f"waiting for the worker of pool {', '.join(sorted(waiting))} to look ...")
            told = True
        await asyncio.sleep(_POLL_S)
    return []


async def _list_looked(trainers: TrainerStore, settings: Settings, asked_at: float) -> list[TrainerPresence]:
    live = await trainers.live(settings.worker_lost_after_s)
    return [one for one in live if one.preflight.get("at", 0.0) >= asked_at]


def _say_unheard(pool: str) -> Check:
    says = f"the worker of pool {pool} did not look in time: a round keeps it busy, or the broker loses its jobs"
    return Check("worker's own look", CheckState.WARNED, says, "ask again once the round is over, or raise --wait-s")


def _put_in_words(says: str) -> str:
    """Put what a worker told the server as JSON in words: names and values."""
    if not says.startswith("{"):
        return says
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in json.loads(says).items())


def _print_checks(checks: list[Check]) -> None:
    console = standard_console()
    for check in checks:
        mark, style = _MARKS[check.state]
        where = f" [worker {check.where}]" if check.where else ""
        console.print(f"{mark} ", style=style, end="", markup=False)
        console.print(tame(f"{check.name}{where}: {_put_in_words(check.says)}"), markup=False)
        if check.remedy:
            console.print(tame(f"     change: {check.remedy}"), markup=False)
    count = {state: sum(check.state is state for check in checks) for state in CheckState}
    failed, warned = count[CheckState.FAILED], count[CheckState.WARNED]
    ending = f"{count[CheckState.OK]} ok, {warned} warned, {failed} failed"
    console.print(ending, style="red" if failed else "yellow" if warned else "green")

"""The composition root of the API process: settings in, wired ASGI application out.

Run by `mulligan serve`, or by any ASGI server with `server.app:create_app_from_environment` as its factory. Its
lifespan owns every client, pool and loop; nothing else in the server opens one.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
from fastapi import FastAPI

from server.adapters.reconcile import OrphanSweep, ServingShelf, name_serving
from server.admin import admin_routers
from server.api.auth import USES_NOTED_EVERY_S, Keyring
from server.api.backtest_runner import INTERVAL_S as BACKTESTS_INTERVAL_S
from server.api.backtest_runner import BacktestRunner, leave_room
from server.api.champion_files import INTERVAL_S as FILES_INTERVAL_S
from server.api.champion_files import ChampionFiles
from server.api.context import Context
from server.api.deletion_runner import INTERVAL_S as DELETIONS_INTERVAL_S
from server.api.deletion_runner import DeletionRunner
from server.api.gate import Gate
from server.api.limits import KeyLimiter
from server.api.preflight import log_preflight
from server.api.replay import INTERVAL_S as REPLAYS_INTERVAL_S
from server.api.replay import Replays
from server.api.rest.application import build_rest
from server.api.roster import Roster
from server.api.sessions import Sessions
from server.api.telemetry import observed
from server.api.traffic import Traffic
from server.api.verdict_counts import INTERVAL_S as VERDICTS_INTERVAL_S
from server.api.verdict_counts import VerdictBook
from server.api.watch import (
    ENGINE_INTERVAL_S,
    PRESENCE_INTERVAL_S,
    SWEEP_INTERVAL_S,
    PresenceReport,
    Readiness,
    announce_presence,
    keep_default_task,
    let_episodes_end,
    repeat,
    watch_engine,
)
from server.domain import new_id
from server.doorbell import Doorbell
from server.engine.base import Engine
from server.engine.replicas import open_replicas, open_sglang
from server.errors import StoreUnavailable
from server.logs import configure_logs
from server.orchestration.breaker import StopRule
from server.orchestration.verdict_watch import VerdictWatch
from server.orchestration.verification import allow
from server.redaction import load_redactor, make_log_redactor
from server.settings import EngineSettings, Settings
from server.store.adapters import AdapterStore
from server.store.audit import AuditStore
from server.store.backtests import BacktestStore
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.events import EventStore
from server.store.feedback import FeedbackStore
from server.store.holds import HoldStore
from server.store.key_limits import KeyLimitStore
from server.store.keys import KeyStore
from server.store.logged_answers import LoggedAnswerStore
from server.store.presence import PresenceStore
from server.store.replays import ReplayStore
from server.store.rounds import RoundStore
from server.store.sessions import SessionStore
from server.store.tasks import TaskStore
from server.store.verdict_counts import VerdictCountStore
from server.store.verifiers import VerifierStore
from server.telemetry.meter import Meter
from verifiers.registry import close as close_verifiers

OpenEngine = Callable[[EngineSettings], Engine]

_log = structlog.get_logger(__name__)


def create_app(settings: Settings, *, open_engine: OpenEngine = open_sglang, meter: Meter | None = None) -> Gate:
    """Make the application; `open_engine` makes the client of the engine at `engine.url`, once for each engine.

    `meter` is what counts where several processes tell of themselves together.

    Nothing is opened before its lifespan begins.
    """
    return Gate(build_rest(partial(_live, settings=settings, open_engine=open_engine, meter=meter), admin_routers()))


def create_app_from_environment() -> Gate:
    """Make the application from `MULLIGAN_*` variables: the factory for an ASGI server."""
    settings = Settings()
    configure_logs(settings.log_level, json=settings.log_json, redact=make_log_redactor(settings.log.redact))
    app = create_app(settings)
    gc.collect()
    gc.freeze()  # what is here now stays: no collection looks at it again, which would hold up everything for a while
    return app


@asynccontextmanager
async def _live(
    app: FastAPI, *, settings: Settings, open_engine: OpenEngine, meter: Meter | None
) -> AsyncIterator[None]:
    """Open everything, serve, and close it in the opposite order: loops, log, engine, database."""
    async with AsyncExitStack() as stack:
        context = await _open_context(settings, open_engine, stack)
        context = await stack.enter_async_context(observed(context, meter))
        await stack.enter_async_context(_watching(context))
        app.state.context = context
        yield


async def _open_context(settings: Settings, open_engine: OpenEngine, stack: AsyncExitStack) -> Context:
    allow(settings.verifiers)
    stack.callback(close_verifiers)
    database = Database(settings.database_url)
    stack.push_async_callback(database.close)
    engine = open_replicas(settings.engine, open_engine)
    stack.push_async_callback(engine.close)
    redact = load_redactor(settings.log.redact)
    log = EpisodeLog(database, settings.log, settings.spool_dir, redact=redact)
    await log.start()
    stack.push_async_callback(log.stop)
    doorbell = Doorbell(settings)
    stack.callback(doorbell.close)
    tasks, verifiers, keys = TaskStore(database), VerifierStore(database), KeyStore(database)
    keyring = Keyring(keys)
    return Context(
        settings=settings,
        database=database,
        engine=engine,
        log=log,
        episodes=EpisodeStore(database),
        feedback=FeedbackStore(database),
        audit=AuditStore(database),
        tasks=tasks,
        verifiers=verifiers,
        verdict_counts=VerdictCountStore(database),
        backtests=BacktestStore(database),
        adapters=AdapterStore(database),
        rounds=RoundStore(database),
        keys=keys,
        events=EventStore(database),
        presence=PresenceStore(database),
        holds=HoldStore(database),
        doorbell=doorbell,
        keyring=keyring,
        sessions=Sessions(SessionStore(database), keyring),
        limiter=KeyLimiter(KeyLimitStore(database), new_id("api")),
        roster=Roster(tasks, verifiers),
        traffic=Traffic(settings.limits.max_concurrent, settings.limits.max_queued, settings.limits.queue_timeout_s),
        readiness=Readiness(),
        deletions=DeletionRunner(database, settings),
        replays=Replays(ReplayStore(database), settings.limits.replay_s, redact),
        redact=redact,
        watch=_open_watch(settings),
    )


def _open_watch(settings: Settings) -> VerdictWatch:
    stops = settings.verifiers
    return VerdictWatch(StopRule(stops.stop_share, stops.stop_after, stops.stop_s))


@asynccontextmanager
async def _watching(context: Context) -> AsyncIterator[None]:
    """Keep the loops running. The first report is made before any request, or as soon as there is a database."""
    process_id = new_id("api")

    presence = PresenceReport(process_id, context.roster, context.traffic, context.presence, context.engine)
    book = VerdictBook(context.watch, context.verdict_counts, context.events, process_id)
    answers, room = LoggedAnswerStore(context.database), leave_room(context.traffic)
    backtests = BacktestRunner(process_id, context.backtests, answers, context.verifiers, room)

    files = ChampionFiles(context.roster, context.adapters, context.readiness)

    def is_up() -> bool:
        return context.readiness.adapters

    async def report() -> None:
        await presence.renew()
        await keep_default_task(context.roster, context.tasks)

    glance = lambda: name_serving(context.roster.snapshot.tasks.values())  # noqa: E731
    shelf = ServingShelf(context.tasks, context.adapters, glance=glance)
    watch = partial(watch_engine, context.engine, shelf, context.readiness)
    orphans = OrphanSweep(context.engine, context.holds, context.presence)
    try:
        await announce_presence(process_id, context.presence)
        await report()
    except StoreUnavailable as error:
        _log.warning("started_without_database", error=str(error))
    loops = [
        asyncio.create_task(repeat("presence", report, PRESENCE_INTERVAL_S)),
        asyncio.create_task(repeat("engine", watch, ENGINE_INTERVAL_S)),
        asyncio.create_task(repeat("orphans", orphans.sweep, SWEEP_INTERVAL_S)),
        asyncio.create_task(repeat("champion_files", files.look, FILES_INTERVAL_S)),
        asyncio.create_task(log_preflight(context.settings, context.round_sizes, context.database, is_up)),
        asyncio.create_task(repeat("key_uses", context.keyring.note_uses, USES_NOTED_EVERY_S)),
        asyncio.create_task(repeat("replays", context.replays.keep, REPLAYS_INTERVAL_S)),
        asyncio.create_task(repeat("verdicts", book.write, VERDICTS_INTERVAL_S)),
        asyncio.create_task(repeat("backtests", backtests.look, BACKTESTS_INTERVAL_S)),
        asyncio.create_task(repeat("deletions", context.deletions.look, DELETIONS_INTERVAL_S)),
        asyncio.create_task(context.limiter.run()),
    ]
    try:
        yield
    finally:
        await let_episodes_end(context.traffic)
        for loop in loops:
            loop.cancel()
        await asyncio.wait(loops)
        await context.deletions.stop()
        await backtests.stop()
        await book.close()
        await context.limiter.stop()
        try:
            await context.keyring.note_uses()
            await context.presence.leave(process_id)
        except StoreUnavailable as error:
            _log.warning("presence_not_left", error=str(error))

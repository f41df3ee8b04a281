"""The composition root of the API process: settings in, wired ASGI application out.

Run by `mulligan serve`, or by any ASGI server with `server.app:create_app_from_environment` as its factory. Its
lifespan owns every client, pool and loop; nothing else in the server opens one.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
from fastapi import FastAPI

from server.api.auth import USES_NOTED_EVERY_S, Keyring
from server.api.context import Context
from server.api.gate import Gate
from server.api.limits import KeyLimiter
from server.api.replay import INTERVAL_S as REPLAYS_INTERVAL_S
from server.api.replay import Replays
from server.api.rest.application import build_rest
from server.api.roster import Roster
from server.api.traffic import Traffic
from server.api.watch import (
    ENGINE_INTERVAL_S,
    PRESENCE_INTERVAL_S,
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
from server.engine.sglang import SGLangEngine
from server.errors import StoreUnavailable
from server.logs import configure_logs
from server.settings import EngineSettings, Settings
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.events import EventStore
from server.store.key_limits import KeyLimitStore
from server.store.keys import KeyStore
from server.store.presence import PresenceStore
from server.store.replays import ReplayStore
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore
from verifiers.registry import close as close_verifiers

OpenEngine = Callable[[EngineSettings], Engine]

_log = structlog.get_logger(__name__)


def open_sglang(engine: EngineSettings) -> Engine:
    """Make the client of the engine that the settings name; the local engine speaks the same protocol."""
    return SGLangEngine(engine.url, model_name=engine.model_name, timeout_s=engine.request_timeout_s)


def create_app(settings: Settings, *, open_engine: OpenEngine = open_sglang) -> Gate:
    """Make the application. Nothing is opened before its lifespan begins."""
    return Gate(build_rest(partial(_live, settings=settings, open_engine=open_engine)))


def create_app_from_environment() -> Gate:
    """Make the application from `MULLIGAN_*` variables: the factory for an ASGI server."""
    settings = Settings()
    configure_logs(settings.log_level, json=settings.log_json)
    return create_app(settings)


@asynccontextmanager
async def _live(app: FastAPI, *, settings: Settings, open_engine: OpenEngine) -> AsyncIterator[None]:
    """Open everything, serve, and close it in the opposite order: loops, log, engine, database."""
    async with AsyncExitStack() as stack:
        context = await _open_context(settings, open_engine, stack)
        await stack.enter_async_context(_watching(context))
        app.state.context = context
        yield


async def _open_context(settings: Settings, open_engine: OpenEngine, stack: AsyncExitStack) -> Context:
    stack.callback(close_verifiers)
    database = Database(settings.database_url)
    stack.push_async_callback(database.close)
    engine = open_engine(settings.engine)
    stack.push_async_callback(engine.close)
    log = EpisodeLog(database, settings.log, settings.spool_dir)
    await log.start()
    stack.push_async_callback(log.stop)
    doorbell = Doorbell(settings)
    stack.callback(doorbell.close)
    tasks, verifiers, keys = TaskStore(database), VerifierStore(database), KeyStore(database)
    return Context(
        settings=settings,
        database=database,
        engine=engine,
        log=log,
        episodes=EpisodeStore(database),
        tasks=tasks,
        verifiers=verifiers,
        adapters=AdapterStore(database),
        rounds=RoundStore(database),
        keys=keys,
        events=EventStore(database),
        presence=PresenceStore(database),
        doorbell=doorbell,
        keyring=Keyring(keys),
        limiter=KeyLimiter(KeyLimitStore(database), new_id("api")),
        roster=Roster(tasks, verifiers),
        traffic=Traffic(settings.limits.max_concurrent, settings.limits.max_queued, settings.limits.queue_timeout_s),
        readiness=Readiness(),
        replays=Replays(ReplayStore(database), settings.limits.replay_s),
    )


@asynccontextmanager
async def _watching(context: Context) -> AsyncIterator[None]:
    """Keep the loops running. The first report is made before any request, or as soon as there is a database."""
    process_id = new_id("api")

    presence = PresenceReport(process_id, context.roster, context.traffic, context.presence)

    async def report() -> None:
        await presence.renew()
        await keep_default_task(context.roster, context.tasks)

    watch = partial(watch_engine, context.engine, context.roster, context.tasks, context.adapters, context.readiness)
    try:
        await announce_presence(process_id, context.presence)
        await report()
    except StoreUnavailable as error:
        _log.warning("started_without_database", error=str(error))
    loops = [
        asyncio.create_task(repeat("presence", report, PRESENCE_INTERVAL_S)),
        asyncio.create_task(repeat("engine", watch, ENGINE_INTERVAL_S)),
        asyncio.create_task(repeat("key_uses", context.keyring.note_uses, USES_NOTED_EVERY_S)),
        asyncio.create_task(repeat("replays", context.replays.keep, REPLAYS_INTERVAL_S)),
        asyncio.create_task(context.limiter.run()),
    ]
    try:
        yield
    finally:
        await let_episodes_end(context.traffic)
        for loop in loops:
            loop.cancel()
        await asyncio.wait(loops)
        await context.limiter.stop()
        try:
            await context.keyring.note_uses()
            await context.presence.leave(process_id)
        except StoreUnavailable as error:
            _log.warning("presence_not_left", error=str(error))

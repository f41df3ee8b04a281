"""Which children `mulligan up` has, and the command line of each; the parts started alone use the same ones."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import server
from server.addresses import hide_password
from server.engine.launch import engine_command
from server.errors import EngineUnavailable, NotFound
from server.settings import EngineSettings, Settings
from server.supervisor.child import Child, ChildSpec
from server.supervisor.ports import ask_status, can_connect, claim_port, pick_free_port

_ROOT = str(Path(server.__file__).resolve().parent.parent)
_ENGINE_TRIES, _ENGINE_PAUSE_S = 5, 1.0
_REDIS_PORT = 6379

Command = tuple[list[str], dict[str, str]]
"""A command line and the whole environment that it runs in."""


def resolve_addresses(settings: Settings, *, own_engine: bool) -> Settings:
    """Fix the API's port and, for an engine of our own, its address.

    Raises Conflict where the API's port is taken.
    """
    engine = settings.engine
    if own_engine:
        engine = engine.model_copy(update={"url": f"http://127.0.0.1:{pick_free_port('127.0.0.1')}", "urls": ()})
    return settings.model_copy(update={"port": claim_port(settings.host, settings.port), "engine": engine})


def api_url(settings: Settings) -> str:
    """Return the API's address as this machine reaches it, without `/v1`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.host, settings.host)  # noqa: S104 - read, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


async def find_engines(urls: Sequence[str]) -> None:
    """Check that one of the engines that are not ours answers; the others may come later.

    Raises EngineUnavailable, saying what to do.
    """
    for _ in range(_ENGINE_TRIES):
        answers = await asyncio.gather(*(ask_status(f"{url}/health") for url in urls))
        if any(answer is not None for answer in answers):
            return
        await asyncio.sleep(_ENGINE_PAUSE_S)
    raise EngineUnavailable(
        f"no engine answers at {' or '.join(urls)}: start one (`mulligan engine`), or leave --engine-url out to have "
        "one started"
    )


async def find_broker(url: str) -> None:
    """Check that the broker answers, where it is Redis. Raises NotFound, saying what to do."""
    if url.startswith(("redis://", "rediss://")) and not await can_connect(url, _REDIS_PORT):
        raise NotFound(
            f"no Redis answers at {hide_password(url)}: start it, or leave --broker-url out to keep the queue in files"
        )


def check_engine(engine: EngineSettings) -> None:
    """Check that what the engine needs is there, before anything starts. Raises NotFound, saying what to do."""
    argv, _ = engine_command(engine, 0)
    if not Path(argv[0]).exists():
        raise NotFound(
            f"there is no SGLang at {engine.sglang_python}: install it with `make sglang-cpu`, or name the interpreter "
            "of its environment with MULLIGAN_ENGINE__SGLANG_PYTHON"
        )
    local_path = Path(engine.model)
    if (local_path.is_absolute() or engine.model.startswith(".")) and not local_path.exists():
        raise NotFound(f"there is no model at {engine.model}: name one with --model")


def serve_command(settings: Settings) -> Command:
    """Build the API's command."""
    return [sys.executable, "-m", "server.cli", "serve"], part_environment(settings)


def worker_command(settings: Settings) -> Command:
    """Build the worker's command: one job at a time, in its own process."""
    argv = [*_celery(), "worker", "--pool", "solo", "--loglevel", settings.log_level]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    # The trainer shares the machine with the engine: its idle threads must sleep, not spin.
    return [*argv, *quiet], {"OMP_WAIT_POLICY": "PASSIVE", **part_environment(settings)}


def beat_command(settings: Settings) -> Command:
    """Build the scheduler's command. Its schedule and pid file stay in the data folder."""
    folder = settings.data_dir / "beat"
    folder.mkdir(parents=True, exist_ok=True)
    argv = [*_celery(), "beat", "--loglevel", settings.log_level, "--pidfile", "", "--schedule", str(folder / "beat")]
    return argv, part_environment(settings)


def part_environment(settings: Settings) -> dict[str, str]:
    """Build the environment of a part: our settings, and our own packages first on the path."""
    paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return {**settings.environment(), **quiet, "PYTHONPATH": os.pathsep.join(paths)}


def plan_children(settings: Settings, *, own_engine: bool) -> list[ChildSpec]:
    """List the children, addresses already resolved. Stop order: API, worker and beat; then the engine."""
    specs = []
    if own_engine:
        specs.append(_engine_spec(settings))
    api_argv, api_env = serve_command(settings)
    worker_argv, worker_env = worker_command(settings)
    beat_argv, beat_env = beat_command(settings)
    patience_s = settings.engine.start_timeout_s
    return [
        *specs,
        # The worker is killed outright should we vanish: told politely, it would first finish its round.
        ChildSpec("worker", worker_argv, worker_env, _log_says("ready."), 90, parting_signal=signal.SIGKILL),
        ChildSpec("beat", beat_argv, beat_env, _log_says("ready."), 90),
        ChildSpec("API", api_argv, api_env, _answers(f"{api_url(settings)}/ready"), patience_s),
    ]


def _engine_spec(settings: Settings) -> ChildSpec:
    url = settings.engine.url
    argv, env = engine_command(settings.engine, int(url.rsplit(":", 1)[1]))
    return ChildSpec(
        "engine",
        argv,
        env,
        _answers(f"{url}/health"),
        settings.engine.start_timeout_s,
        stop_stage=1,
        parting_signal=signal.SIGKILL,  # it holds no state, and SGLang's own processes follow it
    )


def _celery() -> Sequence[str]:
    return [sys.executable, "-m", "celery", "--app", "trainer.worker:app", "--quiet"]


def _answers(url: str) -> Callable[[Child], Awaitable[bool]]:
    async def ask(_child: Child) -> bool:
        return await ask_status(url) == 200

    return ask


def _log_says(words: str) -> Callable[[Child], Awaitable[bool]]:
    async def look(child: Child) -> bool:
        return words in child.read_log()

    return look

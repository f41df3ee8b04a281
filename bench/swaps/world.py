"""Starts what the benchmark swaps in: an engine with the letters' model, and `mulligan serve` with two API processes.

Called by `bench.swaps.run`. Everything listens on loopback and is killed at the end, whatever happened.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.gateway.start import find_port, open_child, stop_child
from bench.swaps.letters import letter_of, make_adapter, make_model
from server.engine.launch import engine_command
from server.settings import EngineSettings

ROOT = Path(__file__).resolve().parents[2]
TASK = "letters"
WORKERS = 2
_START_S = 400.0


class NotMeasured(Exception):
    """Says what is missing."""


@dataclass(frozen=True)
class World:
    """What runs. `engine_url` is the engine's address, `adapters` the folder of each adapter by its name."""

    folder: Path
    model: Path
    adapters: dict[str, Path]
    engine_url: str
    engine: EngineSettings


@dataclass(frozen=True)
class Served:
    """A running `mulligan serve`."""

    port: int
    key: str
    database_url: str


@contextmanager
def run_engine(kind: Literal["sglang", "local"], folder: Path, adapters: int, streams: int) -> Iterator[World]:
    """Make the model and its adapters, and run the engine while the block runs. Raises: NotMeasured."""
    model = make_model(folder / "model")
    made = {f"{TASK}@{number}": folder / "adapters" / TASK / f"{TASK}@{number}" for number in range(1, adapters + 1)}
    for name, path in made.items():
        make_adapter(path, model, letter_of(name))
    port = find_port()
    settings = EngineSettings(
        kind=kind, model=str(model), device="cpu", threads=1, context_tokens=256, max_running_requests=max(streams, 8)
    )
    command, environment = engine_command(settings, port)
    if not Path(command[0]).exists():
        raise NotMeasured(f"there is no SGLang at {command[0]}: run `make sglang-cpu`, or say --engine local")
    with _child(command, environment, folder / "engine.log", f"http://127.0.0.1:{port}/health"):
        url = f"http://127.0.0.1:{port}"
        yield World(folder, model, made, url, settings.model_copy(update={"url": url}))


@contextmanager
def serve(world: World, folder: Path) -> Iterator[Served]:
    """Run `mulligan serve --workers 2` on a new database while the block runs. Raises: NotMeasured."""
    folder.mkdir(parents=True)
    url, port = f"sqlite:///{folder / 'mulligan.db'}", find_port()
    where = ["--data-dir", str(folder), "--database-url", url]
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("MULLIGAN_")}
    environment["PYTHONPATH"] = str(ROOT)
    _run(["db", "upgrade", *where], environment)
    key = json.loads(_run(["keys", "create", "bench", "--role", "admin", "--json", *where], environment))["secret"]
    _run(["tasks", "create", TASK, *where], environment)
    command = [sys.executable, "-m", "server.cli", "serve", "--port", str(port), "--workers", str(WORKERS), *where]
    with _child(
        [*command, "--engine-url", world.engine_url],
        environment,
        folder / "serve.log",
        f"http://127.0.0.1:{port}/ready",
    ):
        yield Served(port, key, url)


def _run(arguments: list[str], environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "server.cli", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise NotMeasured(f"mulligan {' '.join(arguments[:2])}: {done.stderr.strip()[-500:]}")
    return done.stdout


@contextmanager
def _child(command: list[str], environment: dict[str, str], log: Path, ready_url: str) -> Iterator[None]:
    cores = frozenset(os.sched_getaffinity(0))
    with log.open("wb") as output:
        child = open_child(command, cores, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _START_S
        while not _answers(ready_url):
            if child.poll() is not None or time.monotonic() > deadline:
                said = re.sub(r"\s+", " ", log.read_text(errors="replace"))[-500:]
                raise NotMeasured(f"{' '.join(command[1:4])} did not start: {said}")
            time.sleep(0.2)
        yield
    finally:
        stop_child(child)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310 - loopback
            return reply.status == 200
    except OSError:
        return False

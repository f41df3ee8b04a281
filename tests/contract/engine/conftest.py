"""Starts each engine once a session on the same tiny model, by the very command lines that the supervisor uses."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio
from safetensors.torch import load_file, save_file

from server.engine.launch import engine_command
from server.engine.sglang import SGLangEngine
from server.settings import EngineSettings
from tests.fixtures.models import make_adapter, make_model

ROOT = Path(__file__).resolve().parents[3]
SGLANG_PYTHON = Path(os.environ.get("MULLIGAN_ENGINE__SGLANG_PYTHON", ROOT / ".venv-sglang/bin/python"))
CONTEXT_TOKENS = 2048
MAX_RUNNING = 16
PIDS: dict[str, int] = {}
"""The first process of each engine that runs, by its address."""


@dataclass(frozen=True)
class World:
    """The model and the adapters that both engines get to see."""

    model: Path
    adapters: Path

    def adapter(self, name: str) -> str:
        return str(self.adapters / name)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("engines")
    model = make_model(folder / "model", context=CONTEXT_TOKENS)
    # Defaults that would make every answer the same, if an engine applied them where a request is silent.
    defaults = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.01, "repetition_penalty": 1.9}
    generation = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**generation, **defaults}))
    adapters = folder / "adapters"
    for seed, name in enumerate(("one", "two", "three"), start=1):
        make_adapter(adapters / name, model, seed=seed, scale=0.15)
    make_adapter(adapters / "attention_only", model, targets=("q_proj", "v_proj"), seed=4, scale=0.3)
    make_adapter(adapters / "rank_32", model, rank=32)
    make_adapter(adapters / "rslora", model, seed=5, scale=0.15, use_rslora=True)
    make_adapter(adapters / "dora", model, seed=5, use_dora=True)
    renamed = make_adapter(adapters / "renamed", model, seed=6, scale=0.15) / "adapter_model.safetensors"
    tensors = {name.replace("layers.0.", "layers.0.extra."): one for name, one in load_file(renamed).items()}
    save_file(tensors, renamed)
    truncated = make_adapter(adapters / "truncated", model) / "adapter_model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    return World(model, adapters)


@pytest.fixture(scope="session", params=["local", pytest.param("sglang", marks=pytest.mark.sglang)])
def engine_url(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_engine(request.param, world, tmp_path_factory.mktemp(request.param)) as url:
        yield url


@contextmanager
def run_engine(kind: Literal["local", "sglang"], world: World, folder: Path, *options: str) -> Iterator[str]:
    """Run an engine on a free port while the block runs, with more options of its own command line."""
    if kind == "sglang" and not SGLANG_PYTHON.exists():
        reason = f"no SGLang at {SGLANG_PYTHON}: run `make sglang-cpu` first"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    settings = EngineSettings(
        kind=kind,
        model=str(world.model),
        device="cpu",
        threads=1,
        context_tokens=CONTEXT_TOKENS,
        max_running_requests=MAX_RUNNING,
        reasoning_parser="deepseek-v3",  # takes out <think>...</think>, and expects none
        sglang_python=str(SGLANG_PYTHON),
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, environment = engine_command(settings, port)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options], env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process, log)
        PIDS[url] = process.pid
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10) as reply:
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the engine did not start:\n{log.read_text(errors='replace')[-4000:]}")


@pytest_asyncio.fixture
async def engine(engine_url: str) -> AsyncIterator[SGLangEngine]:
    client = SGLangEngine(engine_url, timeout_s=120)
    yield client
    for name in (await client.state()).adapters:
        await client.unload_adapter(name)
    await client.close()

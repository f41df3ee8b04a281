"""Starts what Mulligan is measured beside: nothing at all, plain proxies, sglang-router and LiteLLM.

The peers live in an environment of their own, `.venv-bench`; a missing one raises `NotMeasured`. Called by
`bench.gateway.rows`.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.gateway.setting import ROOT, Setting, Start
from bench.gateway.start import NotMeasured, Started, find_port, start_gateway

PEERS = ROOT / ".venv-bench"
NOT_INSTALLED = "not installed: make bench-peers"


@contextmanager
def direct(setting: Setting) -> Iterator[Started]:
    """No gateway at all: the load asks the engine."""
    yield setting.engine


def plain_app(module: str, name: str) -> Start:
    """Start an ASGI application of ours on uvicorn: in the peers' environment, but for the no-op, which needs none."""

    @contextmanager
    def start(setting: Setting) -> Iterator[Started]:
        python, port = setting.python if module == "noop" else find_peer("fastapi"), find_port()
        arguments = [f"bench.gateway.peers.{module}:app", "--port", str(port), "--log-level", "warning"]
        arguments += ["--loop", "uvloop", "--http", "httptools", "--backlog", "2048"]
        with start_gateway(
            name,
            setting.run_module("uvicorn", *arguments, python=python),
            port=port,
            cores=setting.cores.gateway,
            folder=setting.folder,
            cwd=ROOT,
            env={**os.environ, "BENCH_ENGINE_URL": setting.engine.url, "PYTHONPATH": str(ROOT)},
        ) as started:
            yield started

    return start


@contextmanager
def sglang_router(setting: Setting) -> Iterator[Started]:
    """SGLang's own router, in Rust; neither authenticates nor logs. The cheapest policy that it has."""
    port = find_port()
    command = [find_peer("sglang_router"), "-m", "sglang_router.launch_router", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--worker-urls", setting.engine.url, "--policy", "round_robin"]
    command += ["--prometheus-port", str(find_port()), "--log-level", "error"]
    with start_gateway(
        "sglang-router",
        command,
        port=port,
        cores=setting.cores.gateway,
        folder=setting.folder,
        env=os.environ,
        ready_path="/readiness",
    ) as started:
        yield started


@contextmanager
def litellm(setting: Setting) -> Iterator[Started]:
    """LiteLLM's proxy with one worker and a master key, without a database and without a log."""
    python, port, key = find_peer("litellm"), find_port(), "sk-" + secrets.token_hex(8)
    parameters = {"model": "openai/base", "api_base": setting.engine.url + "/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "base", "litellm_params": parameters}],
        "general_settings": {"master_key": key},
        "litellm_settings": {"telemetry": False},
    }
    written = setting.folder / "litellm.yaml"
    written.write_text(json.dumps(config))  # JSON is YAML
    command = [str(Path(python).with_name("litellm")), "--config", str(written), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--num_workers", "1", "--telemetry", "False"]
    with start_gateway(
        "LiteLLM",
        command,
        port=port,
        cores=setting.cores.gateway,
        folder=setting.folder,
        env={
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
        },
        ready_path="/health/liveliness",
        ready_s=120,
        headers={"authorization": f"Bearer {key}"},
    ) as started:
        yield started


def find_peer(module: str) -> str:
    """Find the interpreter of the peers' environment. Raises: NotMeasured where the peer is not installed."""
    python = PEERS / "bin" / "python"
    if not python.exists() or not any(PEERS.glob(f"lib/python*/site-packages/{module}")):
        raise NotMeasured(NOT_INSTALLED)
    return str(python)


def find_version(package: str) -> str:
    """Find the version of an installed peer; nothing where it is not installed."""
    found = sorted(PEERS.glob(f"lib/python*/site-packages/{package}-*.dist-info"))
    return found[-1].name.removesuffix(".dist-info").partition("-")[2] if found else ""

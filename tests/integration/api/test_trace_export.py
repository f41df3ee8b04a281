"""Spans go out by OTLP where an address is set, and nothing of OpenTelemetry's SDK is loaded where none is."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from server.errors import InvalidRequest
from server.settings import TelemetrySettings
from server.telemetry.traces import Traces
from tests.fixtures.episodes import make_episode

CANARY = "canary-prompt-heron"


class Collector(BaseHTTPRequestHandler):
    """Takes what comes."""

    taken: ClassVar[list[tuple[str, str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.taken.append((self.path, self.headers["x-tenant"], body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


def trace_one(traces: Traces) -> None:
    episode = make_episode()
    episode.request = {"messages": [{"role": "user", "content": CANARY}]}
    trace = traces.open(episode, b"", 1_000, "base")
    trace.add_queue(1_000, 2_000)
    trace.end(3_000, logged=True)


def test_spans_reach_a_collector_when_the_server_stops_at_the_latest():
    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    try:
        traces = Traces(TelemetrySettings(traces_url=url, traces_headers={"x-tenant": "t1"}, traces_service="mine"))
        trace_one(traces)
        traces.close()
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
    ((path, tenant, body),) = Collector.taken
    assert (path, tenant) == ("/v1/traces", "t1")
    for word in (b"mine", b"episode", b"queue", b"mulligan.outcome"):
        assert word in body
    assert CANARY.encode() not in body


def test_a_collector_that_is_away_breaks_nothing():
    traces = Traces(TelemetrySettings(traces_url="http://127.0.0.1:9/v1/traces"))
    trace_one(traces)
    traces.close()


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'mulligan\[otel\]'"):
        Traces(TelemetrySettings(traces_url="http://127.0.0.1:9/v1/traces"))


def test_nothing_is_loaded_without_an_address():
    code = """
import asyncio, sys, tempfile
from server.app import create_app
from server.settings import Settings
from tests.fixtures.engines import ScriptedEngine
async def main():
    app = create_app(Settings(data_dir=tempfile.mkdtemp()), open_engine=lambda _: ScriptedEngine())
    async with app.rest.router.lifespan_context(app.rest):
        assert app.rest.state.context.traces is None
asyncio.run(main())
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.stdout.splitlines()[-1:] == ["[]"], ran.stderr

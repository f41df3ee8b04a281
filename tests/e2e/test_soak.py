"""Thousands of requests of every kind against real API processes, with clients and an engine that misbehave.

Afterwards nothing is left over: no connection, no job, no memory; and the log has every answer exactly once. How many
requests: MULLIGAN_TEST_SOAK, on PostgreSQL a quarter of them. The figures are printed (`pytest -s`).
"""

import asyncio
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from sqlalchemy import select

from server.store import tables
from server.store.presence import PresenceStore
from tests.e2e.harness import ROOT, environment, wait_for
from tests.fixtures.server import make_keys, with_database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REQUESTS = int(os.environ.get("MULLIGAN_TEST_SOAK", "20000"))
WORKERS = 2
CLIENTS = 48
POOL = 10
"""The most idle connections of a process to the database: its pool, and those of the log."""

SEED = 7
GROWTH_MIB = 24
"""How much bigger a process may be at the end than after the first quarter, by then all its pools are full."""

RIGHT = [{"kind": "regex", "config": {"pattern": "right"}}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
NO_STORE = {"store": False}


@dataclass(frozen=True)
class Kind:
    """A kind of request: what the engine does, the request's fields, what the client does, and how it ends.

    `client`: `reads` it all, `slowly`, `leaves` at once or in the `midst` of the answer, or sends it `twice`.
    """

    weight: int
    engine: str = "fine"
    fields: dict = field(default_factory=dict)
    client: str = "reads"
    status: int = 200
    outcomes: tuple[str, ...] = ("unverified",)
    key: str = "client"

    @property
    def count(self) -> int:
        return self.fields.get("n", 1)

    @property
    def streams(self) -> bool:
        return bool(self.fields.get("stream"))


GONE = ("cancelled",)
BROKEN = ("errored", "cancelled")  # of several choices the others are cancelled
KINDS = {
    "whole": Kind(20),
    "live": Kind(14, fields={"stream": True, "stream_options": {"include_usage": True}}),
    "passes": Kind(10, fields={"verifiers": RIGHT}, outcomes=("passed",)),
    "held": Kind(8, fields={"verifiers": RIGHT, "stream": True}, outcomes=("passed",)),
    "fails, then passes": Kind(8, "fails", {"verifiers": RIGHT}, outcomes=("recovered",)),
    "held, fails, then passes": Kind(5, "fails", {"verifiers": RIGHT, "stream": True}, outcomes=("recovered",)),
    "several": Kind(4, fields={"n": 2}),
    "several, streamed": Kind(3, fields={"n": 2, "stream": True}),
    "several, verified": Kind(3, "fails", {"n": 2, "verifiers": RIGHT}, outcomes=("recovered",)),
    "calls": Kind(4, "calls", {"tools": [TOOL]}),
    "calls, streamed": Kind(2, "calls", {"tools": [TOOL], "stream": True}),
    "slow reader": Kind(1, "long", {"stream": True}, "slowly"),
    "twice": Kind(3, fields={"verifiers": RIGHT}, client="twice", outcomes=("passed",)),
    "twice, streamed": Kind(2, fields={"stream": True}, client="twice"),
    "not kept": Kind(1, fields=NO_STORE),
    "unknown field": Kind(1, fields={"colour": "red"}, status=400),
    "unknown model": Kind(1, fields={"model": "nobody"}, status=404),
    "unknown key": Kind(1, key="mk-nobody", status=401),
    "engine broken": Kind(1, "broken", status=502, outcomes=BROKEN),
    "engine broken, several": Kind(1, "broken", {"n": 2}, status=502, outcomes=BROKEN),
    "engine broken, live": Kind(1, "broken", {"stream": True}, status=502, outcomes=BROKEN),
    "engine aborts": Kind(1, "abort", status=502, outcomes=BROKEN),
    "engine cuts off": Kind(1, "cut", status=503, outcomes=BROKEN),
    "engine cuts off, live": Kind(1, "cut", {"stream": True}, outcomes=BROKEN),
    "leaves": Kind(2, "hang", client="leaves", outcomes=GONE),
    "leaves, live": Kind(1, "hang", {"stream": True}, "leaves", outcomes=GONE),
    "leaves, held": Kind(1, "hang", {"stream": True, "verifiers": RIGHT}, "leaves", outcomes=GONE),
    "leaves, several": Kind(1, "hang", {"n": 2}, "leaves", outcomes=GONE),
    "leaves in the midst": Kind(2, "long", {"stream": True}, "midst", outcomes=("unverified", "cancelled")),
}


@dataclass
class Asked:
    """One request and what its client saw of it."""

    number: int
    name: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    failed: bool = False  # ended in an error inside a stream

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def answered(self) -> bool:
        """Whether the client has a whole answer."""
        return self.kind.client in ("reads", "slowly", "twice") and self.kind.status == 200 and not self.failed


class Wire:
    """A client's connection, kept alive as long as it can be."""

    def __init__(self, port: int, *, slow: bool = False) -> None:
        self.port, self.slow = port, slow
        self.reader: Any = None
        self.writer: Any = None

    async def send(self, asked: Asked, keys: dict[str, str], headers: dict[str, str]) -> None:
        if self.writer is None or self.writer.is_closing():
            connection = socket.socket()
            if self.slow:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
            limit = 2048 if self.slow else 2**16
            self.reader, self.writer = await asyncio.open_connection(sock=connection, limit=limit)
        text = f"{asked.kind.engine} #{asked.number}"
        body = {"model": "default", "messages": [{"role": "user", "content": text}], **asked.kind.fields}
        raw = json.dumps(body).encode()
        given = {"host": "soak", "authorization": f"Bearer {keys.get(asked.kind.key, asked.kind.key)}", **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self.writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\n{head}content-type: application/json\r\n"
            f"content-length: {len(raw)}\r\n\r\n".encode()
            + raw
        )

    async def read_head(self) -> tuple[int, dict[str, str]]:
        line, *rest = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(one.split(": ", 1) for one in rest if one)
        return int(line.split(" ")[1]), {name.lower(): value for name, value in headers.items()}

    async def read_body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        parts = []
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            parts.append(await self.reader.readexactly(size))
            await self.reader.readexactly(2)
            if self.slow:
                await asyncio.sleep(0.002)
        await self.reader.readexactly(2)
        return b"".join(parts)

    def leave(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()
        self.writer = None


class Soak:
    """The load: clients that take one request after the other until there are no more."""

    def __init__(self, port: int, keys: dict[str, str]) -> None:
        self.port, self.keys = port, keys
        self.dice = random.Random(SEED)
        self.asked: list[Asked] = []
        self.left = 0

    async def run(self, count: int) -> None:
        self.left = count
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(self._be_client())

    async def _be_client(self) -> None:
        wire = Wire(self.port)
        names, weights = [*KINDS], [kind.weight for kind in KINDS.values()]
        while self.left > 0:
            self.left -= 1
            asked = Asked(len(self.asked), self.dice.choices(names, weights)[0])
            self.asked.append(asked)
            async with asyncio.timeout(120):
                await self._ask(asked, wire)
        wire.leave()

    async def _ask(self, asked: Asked, wire: Wire) -> None:
        match asked.kind.client:
            case "reads":
                await self._read(asked, wire)
            case "slowly":
                slow = Wire(self.port, slow=True)
                await self._read(asked, slow)
                slow.leave()
            case "twice":
                once = {"idempotency-key": f"soak {asked.number}"}
                await self._read(asked, wire, once)
                again = Asked(asked.number, asked.name)
                await self._read(again, wire, once)
                assert again.body == asked.body
                assert again.headers["x-mulligan-replayed"] == "true"
            case "leaves":
                await wire.send(asked, self.keys, {})
                await asyncio.sleep(self.dice.choice([0, 0.01, 0.1, 0.3]))
                wire.leave()
            case "midst":
                await wire.send(asked, self.keys, {})
                asked.status, asked.headers = await wire.read_head()
                await wire.reader.readuntil(b"\n\n")
                wire.leave()

    async def _read(self, asked: Asked, wire: Wire, headers: dict[str, str] | None = None) -> None:
        await wire.send(asked, self.keys, headers or {})
        asked.status, asked.headers = await wire.read_head()
        asked.body = await wire.read_body(asked.headers)
        asked.failed = asked.kind.streams and not asked.body.endswith(b"data: [DONE]\n\n")
        assert asked.status == asked.kind.status, (asked.name, asked.status, asked.body[:500])
        if asked.status == 200:
            assert asked.failed is (asked.kind.engine == "cut"), (asked.name, asked.body[-500:])
        if asked.headers.get("connection") == "close":
            wire.leave()


class Serve:
    """`mulligan serve` with the soak's engine, each in processes of their own."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.database_url, self.log_path = database_url, folder / "serve.log"
        self.keys = make_keys(database_url)
        engine = [sys.executable, "-m", "tests.e2e.soak_engine"]
        self.engine = subprocess.Popen(
            engine, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.engine.stdout is not None
        self.engine_port = int(self.engine.stdout.readline())
        options = ["--data-dir", str(folder / "data"), "--database-url", database_url, "--port", "0"]
        options += ["--engine-url", f"http://127.0.0.1:{self.engine_port}", "--workers", str(WORKERS)]
        with self.log_path.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "server.cli", "serve", *options],
                cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def port(self) -> int:
        found = re.search(r"api_listens .*url=http://127\.0\.0\.1:(\d+)", self.log)
        assert found is not None, self.log
        return int(found[1])

    def wait_ready(self) -> None:
        def all_report() -> bool:
            assert self.popen.poll() is None, self.log
            return len(self.in_flight()) == WORKERS

        wait_for(all_report, 60, "all processes report")
        self.processes = psutil.Process(self.popen.pid).children()
        assert len(self.processes) == WORKERS

    def in_flight(self) -> list[dict[str, int]]:
        live = with_database(self.database_url, lambda db: PresenceStore(db).live(5.0))
        return [dict(one.in_flight) for one in live]

    def connections(self) -> Counter[str]:
        """Count the connections of all API processes, by who is at the other end."""
        found = [one for process in self.processes for one in process.net_connections("tcp") if one.raddr]
        return Counter(
            "client" if one.laddr.port == self.port else "engine" if one.raddr.port == self.engine_port else "database"
            for one in found
        )

    def is_quiet(self) -> bool:
        """Say whether only those connections are left that a process keeps: two ask how the engine is, all the time."""
        left = self.connections()
        return not left["client"] and left["engine"] <= 2 * WORKERS and left["database"] <= POOL * WORKERS

    def files(self) -> list[int]:
        return [process.num_fds() for process in self.processes]

    def threads(self) -> list[int]:
        return [process.num_threads() for process in self.processes]

    def memory_mib(self) -> list[float]:
        return [process.memory_info().rss / 2**20 for process in self.processes]

    def engine_seen(self) -> dict[str, int]:
        with socket.create_connection(("127.0.0.1", self.engine_port), timeout=10) as connection:
            connection.sendall(b"GET /seen HTTP/1.1\r\nhost: soak\r\n\r\n")
            return json.loads(connection.recv(2**16).partition(b"\r\n\r\n")[2])

    def close(self) -> None:
        self.popen.terminate()
        self.popen.wait(60)
        assert self.engine.stdin is not None
        assert self.engine.stdout is not None
        self.engine.stdin.close()
        self.engine.wait(20)
        self.engine.stdout.close()


@pytest.fixture
def serve(tmp_path, database_url):
    started = Serve(tmp_path, database_url)
    try:
        started.wait_ready()
        yield started
    finally:
        started.close()


def read_log(url):
    """Read the log: the episodes by the number of their request, each with its outcome and its last answer."""

    async def fetch(database):
        async with database.read() as connection:
            found = await connection.execute(
                select(tables.episodes.c.id, tables.episodes.c.outcome, tables.episodes.c.request)
            )
            tried = await connection.execute(
                select(tables.attempts.c.episode_id, tables.attempts.c.answer).order_by(tables.attempts.c.number)
            )
            return found.all(), dict(tuple(row) for row in tried)  # of several attempts the last one stays

    found, last_answers = with_database(url, fetch)
    episodes, unnamed = defaultdict(list), []
    for episode_id, outcome, request in found:
        row = (episode_id, outcome, last_answers.get(episode_id))
        if request is None:
            unnamed.append(row)
        else:
            episodes[int(request["messages"][0]["content"].partition("#")[2])].append(row)
    return episodes, unnamed


def read_answer(asked):
    """Read what a client got: ids of the episodes and the texts of the choices."""
    texts, said = defaultdict(str), None
    if asked.kind.streams:
        events = [json.loads(one[6:]) for one in asked.body.split(b"\n\n") if one.startswith(b"data: {")]
    else:
        events = [json.loads(asked.body)]
    for event in events:
        said = event.get("mulligan") or said
        for choice in event["choices"]:
            part = choice.get("message") or choice["delta"]
            texts[choice["index"]] += part.get("content") or ""
            for call in part.get("tool_calls") or ():
                texts[choice["index"]] += call["function"]["arguments"]
    each = said.get("choices") or [said]
    return [(one["episode_id"], one["outcome"], texts[index]) for index, one in enumerate(each)]


def said_in(answer):
    if answer is None:
        return ""
    return "".join([answer.get("content") or "", *(c["function"]["arguments"] for c in answer.get("tool_calls") or ())])


def check_log(soak, url):
    """Compare what the clients saw with what is in the log."""
    episodes, unnamed = read_log(url)
    logged_of = Counter()
    for asked in soak.asked:
        rows = episodes.pop(asked.number, [])
        kind, where = asked.kind, (asked.name, asked.number, rows)
        if asked.name == "not kept":
            ((episode_id, _, text),) = read_answer(asked)
            assert text == f"right #{asked.number}"
            assert [row for row in unnamed if row[0] == episode_id] == [(episode_id, "unverified", {})], where
            continue
        if kind.status in (400, 401, 404):
            assert rows == [], where
            continue
        if kind.client == "leaves":
            assert len(rows) in (0, kind.count), where  # it may have gone before anything began
        else:
            assert len(rows) == kind.count, where
        assert {outcome for _, outcome, _ in rows} <= set(kind.outcomes), where
        logged_of[asked.name] += len(rows)
        if asked.answered:
            seen = sorted(read_answer(asked))
            assert seen == sorted((episode_id, outcome, said_in(answer)) for episode_id, outcome, answer in rows), where
            assert all(f"#{asked.number}" in text for _, _, text in seen), where
    assert episodes == {}
    return logged_of


def test_nothing_is_left_over_and_every_answer_is_in_the_log_exactly_once(serve):
    count = REQUESTS if serve.database_url.startswith("sqlite") else REQUESTS // 4
    soak = Soak(serve.port, serve.keys)
    started = time.monotonic()
    uvloop.run(soak.run(count // 4))
    warm_mib, warm_files, warm_threads = serve.memory_mib(), serve.files(), serve.threads()
    uvloop.run(soak.run(count - count // 4))
    took_s = time.monotonic() - started
    assert len(soak.asked) == count
    wait_for(lambda: serve.in_flight() == [{}] * WORKERS, 20, "no episode is in flight")
    wait_for(lambda: serve.engine_seen()["hanging"] == 0, 20, "the engine works on nothing")
    wait_for(serve.is_quiet, 30, "the connections are closed")
    end_mib, end_files, end_threads = serve.memory_mib(), serve.files(), serve.threads()
    seen = serve.engine_seen()
    print(f"\n{count} requests in {took_s:.0f} s; the engine saw {seen}")
    print(f"memory, MiB: {warm_mib} after a quarter, {end_mib} at the end")
    print(f"connections: {dict(serve.connections())}")
    print(f"files: {warm_files}, {end_files}; threads: {warm_threads}, {end_threads}")
    logged_of = check_log(soak, serve.database_url)
    print(f"episodes: {dict(logged_of)}")
    left = [asked for asked in soak.asked if asked.kind.client == "leaves"]
    assert seen["cut off"] >= sum(logged_of[name] for name, kind in KINDS.items() if kind.client == "leaves")
    assert sum(logged_of[asked.name] > 0 for asked in left) == len(left)  # of each kind of leaving some had begun
    for warm, end in zip(warm_mib, end_mib, strict=True):
        assert end - warm < GROWTH_MIB
    for warm, end in zip(warm_files, end_files, strict=True):
        assert end <= warm + 16
    for warm, end in zip(warm_threads, end_threads, strict=True):
        assert end <= warm + 16
    for trouble in ("request_broke", "Traceback", "never retrieved", "was destroyed", "worker_died"):
        assert trouble not in serve.log, serve.log[-5000:]

"""A `mulligan serve --workers 2` in a process of its own, and clients that ask it without a pause."""

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.presence import Presence, PresenceStore
from tests.e2e.harness import ROOT, environment, is_gone, wait_for
from tests.fixtures.server import make_keys, with_database

WORKERS = 2
LIVE_S = 5.0


class Serve:
    """A `mulligan serve --workers 2` on a migrated database."""

    def __init__(self, data_dir: Path, database_url: str, engine_url: str) -> None:
        self.database_url = database_url
        self.keys = make_keys(database_url)
        self.log_path = data_dir / "serve.log"
        data_dir.mkdir(parents=True, exist_ok=True)
        options = ["--data-dir", str(data_dir), "--database-url", database_url, "--engine-url", engine_url]
        with self.log_path.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "server.cli", "serve", "--workers", str(WORKERS), "--port", "0", *options],
                cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.seen: dict[int, psutil.Process] = {}

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def port(self) -> int:
        return int(re.search(r"api_listens .*url=http://127\.0\.0\.1:(\d+)", self.log)[1])

    def wait_ready(self) -> "Serve":
        def all_report() -> bool:
            assert self.popen.poll() is None, self.log
            return len(self.presences()) == WORKERS and self.ask("GET", "/ready", key=None)[0] == 200

        wait_for(all_report, 60, "both are ready")
        self.workers()
        return self

    def wait_back(self) -> None:
        """Wait until one that ended serves again; one that does not come up in a minute is started once more."""
        try:
            wait_for(lambda: "worker_back" in self.log, 150, "it is back")
        except AssertionError as error:
            raise AssertionError(f"{error}; the log:\n{self.log}") from None

    def workers(self) -> list[psutil.Process]:
        """The workers that run now, by number."""
        found = {}
        for process in psutil.Process(self.popen.pid).children():
            try:
                words = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if "server.cli.serving" in words:
                found[int(words[words.index("server.cli.serving") + 1])] = process
                self.seen[process.pid] = process
        return [process for _, process in sorted(found.items())]

    def presences(self) -> list[Presence]:
        return with_database(self.database_url, lambda db: PresenceStore(db).live(LIVE_S))

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = "client",
        over: http.client.HTTPConnection | None = None,
    ) -> tuple[int, Any, dict[str, str]]:  # fmt: skip
        """Make one request, over a connection that is kept or a fresh one."""
        connection = over or self.connect()
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {self.keys.get(key, key)}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read()), {k.lower(): v for k, v in response.getheaders()}
        finally:
            if over is None:
                connection.close()

    def chat(self, text: str, *, model: str = "default", **more: Any) -> tuple[int, Any, dict[str, str]]:
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        return self.ask("POST", "/v1/chat/completions", body, **more)

    def server_of(self, connection: http.client.HTTPConnection) -> int | None:
        """The worker's pid at the other end of a connection."""
        ours = connection.sock.getsockname()
        for worker in self.workers():
            if any(tuple(one.raddr) == ours for one in worker.net_connections("tcp") if one.raddr):
                return worker.pid
        return None

    @contextmanager
    def one_connection_each(self) -> Iterator[list[http.client.HTTPConnection]]:
        """Open connections until there is one to each worker; those are kept."""
        found: dict[int, http.client.HTTPConnection] = {}
        with ExitStack() as stack:

            def every_worker_has_one() -> bool:
                connection = self.connect()
                stack.callback(connection.close)
                assert self.ask("GET", "/health", key=None, over=connection)[0] == 200
                pid = self.server_of(connection)
                if pid is not None:
                    found.setdefault(pid, connection)
                return len(found) == WORKERS

            wait_for(every_worker_has_one, 20, "both workers accept connections")
            yield list(found.values())

    def episodes(self) -> list[Any]:
        async def read(database: Database) -> list[Any]:
            return [episode async for episode in EpisodeStore(database).iterate()]

        return with_database(self.database_url, read)

    def close(self) -> None:
        """End whatever is left."""
        if self.popen.poll() is None:
            self.workers()
            self.popen.kill()
        self.popen.wait(10)
        for process in self.seen.values():
            if not is_gone(process):
                process.kill()


@dataclass
class Load:
    """Clients that ask without a pause, each time over a new connection and with another text."""

    serve: Serve
    ask: Callable[[Serve, str], tuple[int, Any, dict[str, str]]] = Serve.chat
    answered: dict[str, tuple[float, Any]] = field(default_factory=dict)  # text -> when asked, the answer
    refused: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, clients: int) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._ask_until_stopped, args=(one,)) for one in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(70)

    def wait_for_answers(self, count: int = 20) -> None:
        """Wait until so many of the requests that begin from now on are answered."""
        began = time.monotonic()

        def enough() -> bool:
            return sum(asked_at > began for asked_at, _ in list(self.answered.values())) >= count

        wait_for(enough, 60, f"{count} more answers; refused: {self.refused[:3]}, cut: {self.cut[:3]}")

    def _ask_until_stopped(self, client: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            text, asked_at = f"client {client} asks {number}", time.monotonic()
            try:
                status, answer, _ = self.ask(self.serve, text)
            except ConnectionRefusedError as error:
                self.refused.append(repr(error))
            except (OSError, http.client.HTTPException) as error:
                self.cut.append(repr(error))
            else:
                if status == 200:
                    self.answered[text] = (asked_at, answer)
                else:
                    self.refused.append(f"{status}: {answer}")

"""Every part of a deployment as processes of their own on one machine, kept alive as an init system would.

Two engines, two API servers (one of them with two workers), a worker, a scheduler; PostgreSQL and Redis are the
machine's. Clients ask without a pause, a person promotes and rolls back now and then, and a test kills what it likes.
"""

import http.client
import json
import random
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil

from demo.problems import problems
from server.supervisor.ports import pick_free_port
from tests.e2e.harness import ROOT, environment, is_gone, wait_for

TASK = "sums"
READY_S = 180
RESTART_PAUSE_S = 0.2
LEARNS_A_LITTLE = {
    "min_failures": 4, "steps": 2, "step_failures": 4, "group_size": 2, "threads": 1, "gate_min_problems": 4,
    "gate_problems": 6, "gate_samples": 1, "gate_max_samples": 1, "gate_looks": 1, "first_try_samples": 1,
    "guard_max_samples": 1, "probes_margin": None, "control_problems": 0,
    "panel_min_problems": 1000, "panel_problems": 1000,
}  # fmt: skip


@dataclass
class Part:
    """One process that is started again whenever it ends."""

    name: str
    words: list[str]
    env: dict[str, str]
    log_path: Path
    popen: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "server.cli", *self.words],
                cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.starts += 1

    @property
    def runs(self) -> bool:
        return self.popen is not None and self.popen.poll() is None


class Deployment:
    """The parts, whoever keeps them alive, and every process that was ever seen."""

    def __init__(self, folder: Path, database_url: str, broker_url: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        ports = {name: pick_free_port("127.0.0.1") for name in ("engine 1", "engine 2", "api 1", "api 2")}
        self.engines = [f"http://127.0.0.1:{ports[name]}" for name in ("engine 1", "engine 2")]
        self.apis = [f"http://127.0.0.1:{ports[name]}" for name in ("api 1", "api 2")]
        env = environment(
            MULLIGAN_DATA_DIR=str(folder / "data"), MULLIGAN_DATABASE_URL=database_url, MULLIGAN_BROKER_URL=broker_url,
            MULLIGAN_ENGINE__URLS=json.dumps(self.engines), MULLIGAN_BEAT_INTERVAL_S="1",
            MULLIGAN_WORKER_HEARTBEAT_S="0.5", MULLIGAN_WORKER_LOST_AFTER_S="6",
            MULLIGAN_TRAINER__DRAIN_TIMEOUT_S="5",
        )  # fmt: skip
        self.env = env
        words = {
            "engine 1": ["engine", "--port", str(ports["engine 1"])],
            "engine 2": ["engine", "--port", str(ports["engine 2"])],
            "api 1": ["serve", "--port", str(ports["api 1"]), "--workers", "2"],
            "api 2": ["serve", "--port", str(ports["api 2"])],
            "worker": ["worker"],
            "beat": ["beat"],
        }
        self.parts = {name: Part(name, told, env, folder / f"{name}.log") for name, told in words.items()}
        self.seen: dict[int, psutil.Process] = {}
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def command(self, *words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "server.cli", *words], cwd=ROOT, env=self.env,
                              capture_output=True, text=True, timeout=READY_S, check=False)  # fmt: skip
        assert done.returncode == 0, f"mulligan {' '.join(words)}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self) -> None:
        for part in self.parts.values():
            part.start()
        self._keeper.start()

    def _keep(self) -> None:
        while not self._stopping.wait(0.05):
            self.family()
            for part in self.parts.values():
                if not part.runs and not self._stopping.wait(RESTART_PAUSE_S):
                    part.start()

    def wait_ready(self) -> None:
        for url in self.apis:
            try:
                wait_for(lambda url=url: is_ready(url), READY_S, f"{url} is ready")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.tails()}") from None

    def tails(self, lines: int = 30) -> str:
        told = {name: part.log_path.read_text().splitlines()[-lines:] for name, part in self.parts.items()}
        return "\n".join(f"== {name}\n" + "\n".join(some) for name, some in told.items())

    def family(self) -> list[psutil.Process]:
        """Every process of the deployment that was ever seen."""
        for part in self.parts.values():
            try:
                if part.popen is not None and part.runs:
                    head = psutil.Process(part.popen.pid)
                    for process in [head, *head.children(recursive=True)]:
                        self.seen[process.pid] = process
            except psutil.NoSuchProcess:
                continue
        return list(self.seen.values())

    def trainers(self) -> list[psutil.Process]:
        """Every process that trains a round of this deployment, whoever its parent is by now."""
        found = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                ours = "trainer.round" in words and process.environ().get("MULLIGAN_DATA_DIR") == str(
                    self.folder / "data"
                )
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            if ours and not is_gone(process):
                found.append(process)
        return found

    def victims(self) -> dict[str, Callable[[], psutil.Process | None]]:
        """What a test may kill, by name; None where it is not there just now."""

        def head(part: Part) -> Callable[[], psutil.Process | None]:
            return lambda: psutil.Process(part.popen.pid) if part.popen is not None and part.runs else None

        def one_api_worker() -> psutil.Process | None:
            parent = head(self.parts["api 1"])()
            found = [] if parent is None else parent.children()
            return random.choice(found) if found else None

        def trainer() -> psutil.Process | None:
            return next(iter(self.trainers()), None)

        return {name: head(part) for name, part in self.parts.items()} | {
            "api 1's worker": one_api_worker,
            "trainer": trainer,
        }

    def stop(self) -> None:
        """Stop all parts as an init system would; what is left after that is an orphan."""
        self._stopping.set()
        self._keeper.join(30)
        self.family()
        for part in self.parts.values():
            if part.popen is not None and part.runs:
                part.popen.terminate()
        for part in self.parts.values():
            if part.popen is not None:
                try:
                    part.popen.wait(60)
                except subprocess.TimeoutExpired:
                    part.popen.kill()
                    raise

    def close(self) -> None:
        """End whatever is left."""
        self._stopping.set()
        for process in [*self.family(), *self.trainers()]:
            if not is_gone(process):
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
        for part in self.parts.values():
            if part.popen is not None:
                part.popen.wait(30)


def ask(url: str, method: str, path: str, key: str, body: Any = None, timeout_s: float = 60) -> tuple[int, Any]:
    """Make one request; the status, and the body as JSON. Raises: OSError where nobody answers to the end."""
    request = urllib.request.Request(
        url + path, None if body is None else json.dumps(body).encode(), method=method,
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )  # fmt: skip
    try:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()
            return error.code, json.loads(said) if said[:1] == b"{" else said.decode(errors="replace")
    except http.client.HTTPException as error:  # cut off in the middle
        raise ConnectionError(repr(error)) from error


def read(url: str, path: str, key: str) -> Any:
    """Read until somebody answers: right after a kill the port may be nobody's for some seconds."""

    def answered() -> Any:
        try:
            status, said = ask(url, "GET", path, key)
        except (OSError, ValueError):
            return None
        return said if status == 200 else None

    return wait_for(answered, READY_S, f"{url} answers {path}")


def is_ready(url: str) -> bool:
    try:
        return ask(url, "GET", "/ready", "", timeout_s=10)[0] == 200
    except (OSError, ValueError):
        return False


@dataclass
class Clients:
    """People who ask problems without a pause, at one API after the other, and remember what they were answered."""

    deployment: Deployment
    key: str
    acknowledged: dict[str, str] = field(default_factory=dict)  # episode -> adapter
    refused: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, count: int) -> None:
        self._threads = [threading.Thread(target=self._ask, args=(one,), daemon=True) for one in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def ask(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)

    def _ask(self, number: int) -> None:
        urls = cycle(self.deployment.apis)
        for problem in problems("countdown", "training", 100 + number):
            if self._stop.is_set():
                return
            body = {
                "model": TASK, "messages": problem.messages, "max_completion_tokens": 24,
                "verifiers": [{"name": "countdown", "args": problem.args}], "retry": {"reflection_max_tokens": 16},
            }  # fmt: skip
            try:
                status, said = ask(next(urls), "POST", "/v1/chat/completions", self.key, body)
            except (OSError, ValueError) as error:
                self.refused.append(repr(error))
                time.sleep(0.05)
                continue
            if status == 200:
                self.acknowledged[said["mulligan"]["episode_id"]] = said["mulligan"]["adapter"]
            else:
                self.refused.append(f"{status}: {said}")
                time.sleep(0.05)


@dataclass
class Person:
    """Somebody who starts rounds, forces candidates into service and rolls back, as long as the test runs."""

    deployment: Deployment
    key: str
    rng: random.Random
    done: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._act, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(90)

    def _act(self) -> None:
        while not self._stop.wait(self.rng.uniform(0.5, 2.0)):
            try:
                self._do_one_thing(self.rng.choice(self.deployment.apis))
            except (OSError, ValueError) as error:  # whoever was asked is being killed
                self.refused.append(repr(error))

    def _do_one_thing(self, url: str) -> None:
        status, rounds = ask(url, "GET", f"/v1/rounds?task={TASK}", self.key)
        if status == 200 and not any(one["state"] in ("queued", "running") for one in rounds["data"]):
            self._note("round", ask(url, "POST", f"/v1/tasks/{TASK}/rounds", self.key, {}))
        status, adapters = ask(url, "GET", f"/v1/adapters?task={TASK}", self.key)
        ours = adapters["data"] if status == 200 else []
        waiting = [one for one in ours if one["status"] == "candidate"]
        if waiting and self.rng.random() < 0.7:
            body = {"comment": "to see it served", "force": True}
            name = waiting[0]["name"]
            self._note("promote", ask(url, "POST", f"/v1/adapters/{name}/promote", self.key, body))
        elif self.rng.random() < 0.2:
            body = {"comment": "to see it undone"}
            self._note("rollback", ask(url, "POST", f"/v1/tasks/{TASK}/rollback", self.key, body))

    def _note(self, what: str, answer: tuple[int, Any]) -> None:
        if answer[0] in (200, 201, 202):
            self.done.append(what)
        else:
            self.refused.append(f"{what}: {answer}")

    @property
    def acts(self) -> bool:
        return self._thread is not None and self._thread.is_alive()


def names_of_pushes(names: list[str]) -> list[str]:
    """The names of candidates pushed inside a round, among adapters' names."""
    return [name for name in names if re.fullmatch(rf"{TASK}@\d+\.\d+-[0-9a-f]+", name)]

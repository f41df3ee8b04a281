"""The services of docker-compose.yml as processes: same commands, same environment, same health checks, same order.

For machines without a Docker engine. What an image would hold is taken from this repository; hosts become 127.0.0.1,
ports free ones, volumes folders, and PostgreSQL and Redis are those of this machine.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from server.supervisor.ports import pick_free_port
from tests.e2e.harness import is_gone, wait_for
from tests.fixtures.brokers import borrow_redis
from tests.fixtures.compose_file import ROOT, argv, environment, services

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.redis, pytest.mark.timeout(900)]

PATIENCE_S = 240
ORDER = ["migrate", "engine-cpu", "api", "worker-cpu", "beat"]
NEVER = {"kind": "regex", "config": {"pattern": "^never this$"}}
FEW = {"min_failures": 1, "steps": 500, "step_failures": 2, "group_size": 2, "threads": 1}


@pytest.fixture
def redis_url() -> Iterator[str]:
    with borrow_redis(os.environ.get("MULLIGAN_TEST_COMPOSE_REDIS_URL", "redis://127.0.0.1:6379/12")) as url:
        yield url


class Composed:
    """The services of the profile `cpu`, each a process of its own."""

    def __init__(self, folder: Path, database_url: str, broker_url: str) -> None:
        self.services = services("cpu")
        self.folder = folder
        self.ports = {"30000": str(pick_free_port("127.0.0.1")), "8000": str(pick_free_port("127.0.0.1"))}
        self.urls = {"MULLIGAN_DATABASE_URL": database_url, "MULLIGAN_BROKER_URL": broker_url}
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.seen: dict[int, psutil.Process] = {}
        for place in ("data/adapters", "cache", "tmp"):
            (folder / place).mkdir(parents=True)

    def move(self, text: str) -> str:
        """Move what is said of a container to this machine."""
        for port, free in self.ports.items():
            text = re.sub(rf"(?<!\d){port}(?!\d)", free, text)
        text = text.replace("//engine:", "//127.0.0.1:").replace("0.0.0.0", "127.0.0.1")
        text = re.sub(r"(?<![\w.])/app(?=/|$)", str(ROOT), text)
        return re.sub(r"(?<![\w.])/(data|cache)(?=/|$)", rf"{self.folder}/\1", text)

    def environment(self, name: str) -> dict[str, str]:
        """What the image and the file give a service, and nothing of ours but where programs are."""
        image = (ROOT / "docker" / "mulligan.Dockerfile").read_text()
        variables = dict(re.findall(r"^(?:ENV|   ) +([A-Z]+)=(\S+)", image, re.MULTILINE))
        moved = {key: self.move(value) for key, value in {**variables, **environment(self.services[name])}.items()}
        path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
        return {
            **moved,
            **{key: url for key, url in self.urls.items() if key in moved},
            "PATH": path,
            "TMPDIR": str(self.folder / "tmp"),
        }

    def run(self, name: str, *words: str) -> str:
        """Do what `docker compose exec` or `run` does; its output."""
        done = subprocess.run(words, cwd=ROOT, env=self.environment(name), capture_output=True, text=True,
                              timeout=PATIENCE_S, check=False)  # fmt: skip
        assert done.returncode == 0, f"{name}: {words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, name: str) -> None:
        words = [self.move(word) for word in argv(self.services[name])]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.started[name] = subprocess.Popen(words, cwd=ROOT, env=self.environment(name), stdout=log, stderr=log,
                                                  stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def is_healthy(self, name: str) -> bool:
        """Run the service's own health check."""
        how, *words = self.services[name]["healthcheck"]["test"]
        words = ["/bin/sh", "-c", *words] if how == "CMD-SHELL" else words
        if name in self.started:
            assert self.started[name].poll() is None, self.log(name)
        moved, variables = [self.move(word) for word in words], self.environment(name)
        done = subprocess.run(moved, cwd=ROOT, env=variables, capture_output=True, timeout=PATIENCE_S, check=False)
        return done.returncode == 0

    def wait_healthy(self, name: str) -> None:
        try:
            wait_for(lambda: self.is_healthy(name), PATIENCE_S, f"{name} is healthy")
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.log(name)}") from error

    def family(self) -> list[psutil.Process]:
        for popen in self.started.values():
            if popen.poll() is None:
                head = psutil.Process(popen.pid)
                for process in [head, *head.children(recursive=True)]:
                    self.seen[process.pid] = process
        return list(self.seen.values())

    def stop(self, name: str) -> int:
        """Stop it as Docker does, but wait longer than it would: this machine may be slow. Its exit status."""
        self.family()
        self.started[name].send_signal(signal.SIGTERM)
        grace_s = int(self.services[name]["stop_grace_period"].removesuffix("s"))
        return self.started[name].wait(timeout=3 * grace_s)

    def close(self) -> None:
        for process in self.family():
            if not is_gone(process):
                process.kill()
        for popen in self.started.values():
            popen.wait(timeout=30)


@pytest.fixture
def composed(tmp_path: Path, empty_postgres_url: str, redis_url: str) -> Iterator[Composed]:
    opened = Composed(tmp_path, empty_postgres_url, redis_url)
    try:
        yield opened
    finally:
        opened.close()


def test_the_services_come_up_answer_train_and_go(composed: Composed):
    for name, program, url in (
        ("postgres", "pg_isready", composed.urls["MULLIGAN_DATABASE_URL"]),
        ("redis", "redis-cli", composed.urls["MULLIGAN_BROKER_URL"]),
    ):
        usual = re.search(r"@?(127\.0\.0\.1|localhost):(5432|6379)/", url)  # the checks ask the usual ports
        assert not (usual and shutil.which(program)) or composed.is_healthy(name)
    assert not composed.is_healthy("api")
    assert not composed.is_healthy("worker-cpu")
    for name in ORDER:
        if name == "migrate":
            composed.run(name, *argv(composed.services[name]))
            continue
        composed.start(name)
        needs = [other for other, how in composed.services[name].get("depends_on", {}).items()
                 if how["condition"] == "service_healthy" and other in composed.started]  # fmt: skip
        assert all(composed.is_healthy(other) for other in needs)
        composed.wait_healthy(name)

    created = json.loads(composed.run("api", "mulligan", "keys", "create", "first", "--role", "admin", "--json"))
    url = f"http://127.0.0.1:{composed.ports['8000']}/v1"
    with openai.OpenAI(base_url=url, api_key=created["secret"], timeout=120) as client:
        for number in range(10):
            answer = client.chat.completions.create(
                model="default", messages=[{"role": "user", "content": f"Make {number}."}], max_completion_tokens=8,
                extra_body={"verifiers": [NEVER], "retry": {"reflection_max_tokens": 8}},
            )  # fmt: skip
            assert answer.mulligan["outcome"] == "exhausted"
        queued = client.post("/tasks/default/rounds", body={"options": FEW}, cast_to=dict)

        def round_now() -> dict:
            return client.get(f"/rounds/{queued['id']}", cast_to=dict)["round"]

        wait_for(lambda: round_now()["state"] != "queued", PATIENCE_S, "the worker takes the round")
        assert round_now()["epoch"] == 1
        composed.family()
        client.post(f"/rounds/{queued['id']}/cancel", cast_to=dict)
        wait_for(lambda: round_now()["state"] != "running", PATIENCE_S, "the round ends")
        assert round_now()["state"] == "cancelled", round_now()

    for name in reversed(ORDER[1:]):
        assert composed.stop(name) in (0, -signal.SIGTERM), composed.log(name)
        del composed.started[name]
        assert not composed.is_healthy(name)
    assert [process for process in composed.family() if not is_gone(process)] == []
    left = [path.name for path in (composed.folder / "tmp").iterdir()]
    assert [name for name in left if not name.startswith("torchinductor")] == []  # torch keeps a cache there

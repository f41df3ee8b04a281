"""Kill -9 of every process of a deployment at random moments: nothing answered is lost, nothing is served unjudged."""

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.domain import RoundState
from tests.e2e.distributed import (
    LEARNS_A_LITTLE,
    READY_S,
    TASK,
    Clients,
    Deployment,
    Person,
    ask,
    names_of_pushes,
    read,
)
from tests.e2e.harness import is_gone, wait_for
from tests.fixtures.brokers import borrow_redis

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.redis]

SETTLE_S = 240


@pytest.fixture
def redis_url() -> Iterator[str]:
    with borrow_redis(os.environ.get("MULLIGAN_TEST_KILLS_REDIS_URL", "redis://127.0.0.1:6379/13")) as url:
        yield url


@pytest.fixture
def deployment(tmp_path: Path, empty_postgres_url: str, redis_url: str) -> Iterator[Deployment]:
    opened = Deployment(tmp_path / "deployment", empty_postgres_url, redis_url)
    try:
        yield opened
    finally:
        opened.close()


def walk_pages(url: str, path: str, key: str) -> list[dict[str, Any]]:
    """Read a list to its end."""
    found: list[dict[str, Any]] = []
    before = ""
    while True:
        page = read(url, f"{path}&limit=100{before}", key)
        found += page["data"]
        if not page.get("has_more"):
            return found
        before = f"&before={page['data'][-1]['id']}"


@pytest.mark.parametrize(
    ("kills", "seed"),
    [
        pytest.param(10, 0, marks=pytest.mark.timeout(900)),
        pytest.param(100, 1, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)]),
    ],
)
def test_nothing_is_lost_or_stuck_whatever_is_killed(deployment: Deployment, kills: int, seed: int):
    rng = random.Random(seed)
    deployment.command("db", "upgrade")
    key = json.loads(deployment.command("keys", "create", "everybody", "--role", "admin", "--json"))["secret"]
    deployment.start()
    deployment.wait_ready()
    url = deployment.apis[0]
    assert ask(url, "POST", "/v1/verifiers", key, {"name": "countdown", "kind": "countdown"})[0] == 201
    training = {"options": LEARNS_A_LITTLE, "train_on_new_failures": 8}
    task = {"name": TASK, "verifiers": ["countdown@1"], "training": training}
    assert ask(url, "POST", "/v1/tasks", key, task)[0] == 201

    clients, person = Clients(deployment, key), Person(deployment, key, random.Random(seed))
    clients.start(3)
    person.start()
    killed: list[str] = []
    wait_for(deployment.trainers, READY_S, f"a round begins\n{deployment.tails()}")
    order: list[str] = []
    while len(killed) < kills:
        order = order or rng.sample(sorted(deployment.victims()), len(deployment.victims()))
        name = order.pop()  # each in turn, so that ten kills reach them all
        try:
            victim = wait_for(deployment.victims()[name], SETTLE_S, f"there is a {name}\n{deployment.tails()}")
            time.sleep(rng.uniform(0, 1.5))
            victim.kill()
        except psutil.NoSuchProcess:
            order.append(name)  # it ended by itself in between
            continue
        killed.append(name)
        answered = len(clients.acknowledged)
        wait_for(lambda n=answered: len(clients.acknowledged) > n, SETTLE_S, f"answers again\n{deployment.tails()}")
    assert len(killed) == kills
    assert set(killed) == set(deployment.victims())

    # Everything is up again, and a round that begins now comes to its end.
    deployment.wait_ready()
    rounds = f"/v1/rounds?task={TASK}&limit=200"
    before = {one["id"] for one in read(url, rounds, key)["data"]}

    def a_new_round_ended() -> bool:
        ended = {one["id"] for one in read(url, rounds, key)["data"] if RoundState(one["state"]).ended}
        return before <= ended and bool(ended - before)

    try:
        wait_for(a_new_round_ended, SETTLE_S, "rounds end")
    except AssertionError as error:
        said = (clients.ask, clients.refused[-5:], person.acts, person.done, person.refused[-5:])
        raise AssertionError(f"{error}\n{said}\n{read(url, rounds, key)}\n{deployment.tails()}") from None
    assert clients.ask
    assert person.acts
    person.stop()
    clients.stop()
    assert {"round", "promote"} <= set(person.done), (person.done, person.refused[-5:])
    wait_for(lambda: _open_rounds(url, key) == [] or _cancel_all(url, key), SETTLE_S, "no round is open")

    check_log(url, key, clients)
    check_champions(url, key, clients)
    check_engines(deployment, url, key)
    deployment.stop()
    wait_for(lambda: deployment.trainers() == [], 15, "no trainer outlives its worker")
    wait_for(lambda: all(is_gone(one) for one in deployment.family()), 15, "no process is left")


def _open_rounds(url: str, key: str) -> list[str]:
    page = read(url, f"/v1/rounds?task={TASK}&limit=200", key)
    return [one["id"] for one in page["data"] if not RoundState(one["state"]).ended]


def _cancel_all(url: str, key: str) -> bool:
    ask(url, "PATCH", f"/v1/tasks/{TASK}", key, {"training": {"train_on_new_failures": None}})
    for one in _open_rounds(url, key):
        ask(url, "POST", f"/v1/rounds/{one}/cancel", key, {})
    return False


def check_log(url: str, key: str, clients: Clients) -> None:
    """Every episode that was acknowledged is in the log once, with the adapter that its answer named."""
    assert len(clients.acknowledged) > 20

    def all_are_home() -> bool:
        logged = walk_pages(url, f"/v1/episodes?task={TASK}", key)
        assert len({one["id"] for one in logged}) == len(logged)
        adapters = {one["id"]: one["adapter"] for one in logged}
        return all(adapters.get(episode) == adapter for episode, adapter in clients.acknowledged.items())

    wait_for(all_are_home, 60, "every acknowledged episode is in the log")  # a spool may still be on its way


def check_champions(url: str, key: str, clients: Clients) -> None:
    """One champion, and whatever ever answered passed the gate or was forced by a person."""
    task = read(url, f"/v1/tasks/{TASK}", key)
    adapters = {one["name"]: one for one in read(url, f"/v1/adapters?task={TASK}", key)["data"]}
    champions = [name for name, one in adapters.items() if one["status"] == "champion"]
    assert champions == ([task["champion"]] if task["champion"] else [])
    rounds = {one["id"]: one for one in read(url, f"/v1/rounds?task={TASK}&limit=200", key)["data"]}
    for name in {adapter for adapter in clients.acknowledged.values() if adapter} | set(champions):
        gate_passed = rounds[adapters[name]["round_id"]]["report"].get("decision") == "promoted"
        assert gate_passed or adapters[name]["forced"], adapters[name]


def check_engines(deployment: Deployment, url: str, key: str) -> None:
    """Every engine holds the champion, and soon nothing that a dead round left."""
    champion = read(url, f"/v1/tasks/{TASK}", key)["champion"]

    def loaded(engine: str) -> list[str]:
        return [one["id"] for one in ask(engine, "GET", "/v1/models", "")[1]["data"] if one.get("parent")]

    for engine in deployment.engines:
        wait_for(lambda engine=engine: not champion or champion in loaded(engine), 60, f"{engine} holds {champion!r}")
        wait_for(lambda engine=engine: names_of_pushes(loaded(engine)) == [], 90, f"{engine} is swept")

"""`GET /v1/overview`: what it counts, what it says of each part, and that it answers while the database is away."""

import time

import pytest

from server.domain import Outcome, Task
from server.errors import StoreUnavailable
from server.settings import LogSettings
from server.store.episode_log import EpisodeLog
from server.store.partitions import border_id
from server.store.presence import PresenceStore
from server.store.recent import RecentStore
from server.store.tasks import TaskStore
from server.store.trainers import TrainerStore
from tests.fixtures.episodes import make_episode

ENDED = {Outcome.PASSED: 6, Outcome.RECOVERED: 2, Outcome.EXHAUSTED: 1, Outcome.UNVERIFIED: 1, Outcome.ERRORED: 1}


async def log_some(house, tmp_path, at, task="sums", ended=ENDED):
    log = EpisodeLog(house.database, LogSettings(), tmp_path / "spool-of-test")
    await log.start()
    number = 0
    for outcome, count in ended.items():
        for _ in range(count):
            number += 1
            made = make_episode(outcome, task=task, created_at=at, duration_ms=float(number))
            made.id = f"{border_id(at)}{hash(task) & 0xFFFF:04x}{number:012x}"
            await log.record(made)
    await log.stop()


async def test_it_counts_how_requests_ended_and_what_they_took(house, tmp_path):
    await TaskStore(house.database).create(Task("sums"))
    now = time.time()
    await log_some(house, tmp_path, now - 60)
    await log_some(house, tmp_path, now - 30 * 3600, task="old")
    browser = await house.log_in("viewer")
    seen = (await browser.ask("GET", "/v1/overview")).json()
    traffic = seen["traffic"]
    assert (traffic["requests"], traffic["bounded"], traffic["sample"]) == (11, False, 11)
    assert traffic["outcomes"] == {str(outcome): count for outcome, count in ENDED.items()}
    assert (traffic["first_try"]["count"], traffic["first_try"]["of"]) == (6, 9)
    assert (traffic["recovered"]["count"], traffic["recovered"]["of"]) == (2, 3)
    low, high = traffic["first_try"]["ci95"]
    assert low < 6 / 9 < high
    assert (traffic["p50_ms"], traffic["p95_ms"]) == (5.0, 10.0)  # the errored one, 11 ms, waited for no answer
    assert (traffic["prompt_tokens"], traffic["completion_tokens"]) == (14 * 11 + 3 * 30, 14 * 7 + 3 * 4)
    assert sum(sum(slot["outcomes"].values()) for slot in traffic["slots"]) == 11
    (slot,) = traffic["slots"]
    assert slot["at"] <= now - 60 < slot["at"] + traffic["slot_s"]
    by_task = {task["task"]: task for task in seen["tasks"]}
    assert (by_task["sums"]["sample"], by_task["default"]["sample"]) == (11, 0)
    assert by_task["default"]["first_try"]["share"] is None
    week = (await browser.ask("GET", "/v1/overview?hours=168")).json()["traffic"]
    assert week["requests"] == 22
    assert (await browser.ask("GET", "/v1/overview?hours=2")).status == 400


async def test_what_is_too_much_to_count_is_said_to_be(house, tmp_path):
    await log_some(house, tmp_path, time.time() - 60)
    ended = await RecentStore(house.database).count_outcomes(0.0, digits=5, most=4)
    assert ended.bounded
    assert sum(sum(slot.outcomes.values()) for slot in ended.slots) == 4 + 2 + 1 + 1 + 1
    assert (await RecentStore(house.database).sample(0.0, most=3)).size == 3


async def test_it_says_how_each_part_is(house):
    browser = await house.log_in("viewer")

    async def look():
        seen = (await browser.ask("GET", "/v1/overview")).json()
        return {part["name"]: part for part in seen["parts"]}

    parts = await look()
    assert list(parts) == ["engine", "database", "api", "worker", "verifiers", "log"]
    assert parts["database"]["state"] == "good"
    assert (parts["worker"]["state"], parts["verifiers"]["state"]) == ("bad", "idle")
    await TrainerStore(house.database).report("worker", "gpu")
    assert (await look())["worker"] == {"name": "worker", "state": "good", "says": "1 worker, pool gpu."}


async def test_it_answers_while_the_database_is_away(house, monkeypatch):
    browser = await house.log_in("viewer")

    async def away(*_args, **_more):
        raise StoreUnavailable("away")

    for store, name in ((RecentStore, "count_outcomes"), (TrainerStore, "live"), (PresenceStore, "live")):
        monkeypatch.setattr(store, name, away)
    seen = (await browser.ask("GET", "/v1/overview")).json()
    assert seen["traffic"] is None
    assert {part["name"]: part["state"] for part in seen["parts"]}["database"] == "bad"


async def test_events_come_in_pages(house):
    admin = await house.log_in("admin")
    for name in ("a", "b", "c"):
        assert (await admin.ask("POST", "/v1/tasks", {"name": name})).status == 201
    page = (await admin.ask("GET", "/v1/events?kind=task.created&limit=2")).json()
    assert ([event["subject"] for event in page["data"]], page["has_more"]) == (["c", "b"], True)
    rest = (await admin.ask("GET", f"/v1/events?kind=task.created&before={page['data'][-1]['id']}")).json()
    assert ([event["subject"] for event in rest["data"]], rest["has_more"]) == (["a"], False)
    (one,) = (await admin.ask("GET", "/v1/events?subject=b")).json()["data"]
    assert one["actor"] == house.ids["admin"]


@pytest.mark.parametrize("asked", ["before=0", "before=-1", f"before={10**30}", "before=x", "limit=0", "subject=%00"])
async def test_what_no_event_can_be_like_is_refused(house, asked):
    viewer = await house.log_in("viewer")
    assert (await viewer.ask("GET", f"/v1/events?before={2**63 - 1}")).status == 200
    assert (await viewer.ask("GET", f"/v1/events?{asked}")).status == 400

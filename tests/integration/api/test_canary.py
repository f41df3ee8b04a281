"""A canary on a real API process: who gets it, how it widens, how it ends, and who may decide about it."""

import time

import pytest

from server.domain import CanaryPolicy
from server.store.adapters import AdapterStore
from server.store.canaries import CanaryStore
from server.store.events import EventStore
from server.store.rounds import RoundStore
from tests.fixtures.canaries import ask_about, look, make_trial
from tests.fixtures.server import with_database

POLICY = CanaryPolicy(share=0.3, widen=(0.7, 1.0), min_episodes=5, latency_ratio=None)
WHY = {"comment": "because"}


@pytest.fixture
def trial(api, wire_engine, tmp_path):
    """Make a task with a champion @1 and a candidate @2, and wait until the API serves it."""

    def make(task: str, passes: str = ".", policy: CanaryPolicy | None = POLICY, *, champion: bool = True, **more):
        url = api.settings.database_url
        with_database(url, lambda db: make_trial(db, tmp_path, policy, task=task, passes=passes, **more))
        if champion:
            status, made, _ = promote(api, f"{task}@1", canary=False, force=True)
            assert status == 200, made
        return task

    return make


def promote(api, name: str, key: str = "approver", **more):
    return api.ask("POST", f"/v1/adapters/{name}/promote", {**WHY, **more}, key=key)


def chat(api, task: str, number: int, *, turns: int = 0, key: str = "client", **fields) -> str:
    body = {"model": task, "messages": ask_about(number, turns), **fields}
    status, answer, headers = api.ask("POST", "/v1/chat/completions", body, key=key)
    assert status == 200, answer
    assert headers["x-mulligan-adapter"] == answer["mulligan"]["adapter"]
    return answer["mulligan"]["adapter"]


def show(api, task: str) -> dict:
    return api.ask("GET", f"/v1/tasks/{task}")[1]


def settle(api) -> int:
    return look(api.settings.database_url, f"{api.settings.engine.url}")


def test_a_share_of_conversations_begins_with_it_and_stays(api, trial):
    task = trial("shared")
    assert promote(api, "shared@2")[1]["canary"] == "shared@2"
    first = {number: chat(api, task, number) for number in range(200)}
    canaries = sum(adapter == "shared@2" for adapter in first.values())
    assert set(first.values()) == {"shared@1", "shared@2"}
    assert 35 <= canaries <= 86  # binomial, 200 of 0.3: beyond once in 10,000
    again = {number: chat(api, task, number, turns=2) for number in range(0, 200, 5)}
    assert again == {number: first[number] for number in again}
    others = {number: chat(api, task, number, user="u7") for number in range(40)}
    assert others != {number: first[number] for number in others}  # another user's conversations are others

    api.ask("POST", "/v1/tasks/shared/rollback", key="approver")
    assert {chat(api, task, number) for number in range(20)} == {"shared@1"}
    assert (show(api, task)["champion"], show(api, task)["canary"]) == ("shared@1", "")


def test_who_pins_an_adapter_or_the_base_has_no_part_in_it(api, trial):
    task = trial("pinned")
    promote(api, "pinned@2")
    assert {chat(api, "pinned@1", number, key="admin") for number in range(15)} == {"pinned@1"}
    assert {chat(api, "base", number, key="client") for number in range(15)} == {""}
    canary = with_database(api.settings.database_url, lambda db: CanaryStore(db).find_running(task))
    assert settle(api) == 0
    report = with_database(api.settings.database_url, lambda db: CanaryStore(db).find_running(task)).report
    assert (canary.report, report["canary"]["episodes"], report["champion"]["episodes"]) == ({}, 0, 0)
    api.ask("POST", "/v1/tasks/pinned/rollback", key="approver")


def test_one_that_is_as_good_widens_and_becomes_champion(api, wire_engine, trial):
    task = trial("good", passes="good@2")
    promote(api, "good@2")
    shares, number = [], 0
    deadline = time.monotonic() + 60
    while show(api, task)["canary"] and time.monotonic() < deadline:
        for _ in range(15):
            chat(api, task, number)
            number += 1
        settle(api)
        shares.append(show(api, task)["canary_share"])
    assert show(api, task)["champion"] == "good@2"
    assert shares == [*sorted(shares[:-1]), 0.0]
    shown = api.ask("GET", "/v1/adapters/good@2")[1]
    assert (shown["status"], shown["forced"], shown["passed_gate"]) == ("champion", False, True)
    assert (shown["trial"]["state"], [step["share"] for step in shown["trial"]["steps"]]) == ("promoted", [0.3, 0.7])
    assert "not worse by 5 points" in shown["trial"]["reason"]
    assert "good@1" not in wire_engine.adapters
    url = api.settings.database_url
    kinds = [one.kind for one in with_database(url, lambda db: EventStore(db).list(20)) if one.subject == "good@2"]
    assert kinds == ["adapter.promoted", "canary.widened", "canary.begun"]
    made = with_database(url, lambda db: RoundStore(db).get(shown["round_id"]))
    assert made.state == "promoted"
    assert chat(api, task, 10**6) == "good@2"


def test_one_that_is_worse_is_rolled_back(api, wire_engine, trial):
    task = trial("bad", passes="bad@1")
    promote(api, "bad@2")
    number, deadline = 0, time.monotonic() + 60
    while show(api, task)["canary"] and time.monotonic() < deadline:
        for _ in range(15):
            chat(api, task, number)
            number += 1
        settle(api)
    assert (show(api, task)["champion"], show(api, task)["canary"]) == ("bad@1", "")
    shown = api.ask("GET", "/v1/adapters/bad@2")[1]
    assert (shown["status"], shown["trial"]["state"]) == ("rejected", "rolled_back")
    assert shown["trial"]["reason"].startswith("it is worse: 0.0 % solved, the champion 100.0 %")
    assert "bad@2" not in wire_engine.adapters
    assert {chat(api, task, number) for number in range(20)} == {"bad@1"}
    assert promote(api, "bad@2", force=True)[0] == 409  # that is for good


def test_one_whose_files_changed_is_ended_after_the_engine_restarted(api, wire_engine, trial, tmp_path):
    task = trial("torn")
    promote(api, "torn@2")
    (tmp_path / "torn@2" / "adapter_model.safetensors").write_text("something else")
    wire_engine.adapters.clear()
    settle(api)
    assert (show(api, task)["champion"], show(api, task)["canary"]) == ("torn@1", "")
    assert "is not the one that was registered" in api.ask("GET", "/v1/adapters/torn@2")[1]["trial"]["reason"]


def test_a_canary_is_loaded_again_after_the_engine_restarted(api, wire_engine, trial):
    task = trial("back")
    promote(api, "back@2")
    wire_engine.adapters.clear()
    deadline = time.monotonic() + 10
    while not {"back@1", "back@2"} <= set(wire_engine.adapters) and time.monotonic() < deadline:
        time.sleep(0.05)
    api.wait_until_ready(10)
    assert {chat(api, task, number) for number in range(40)} == {"back@1", "back@2"}
    api.ask("POST", "/v1/tasks/back/rollback", key="approver")


class TestDecisions:
    def test_roles_and_reasons(self, api, trial):
        trial("roles", policy=None, champion=False)
        for key in ("client", "viewer"):
            assert promote(api, "roles@1", key=key)[0] == 403
            assert api.ask("POST", "/v1/adapters/roles@1/reject", WHY, key=key)[0] == 403
            assert api.ask("POST", "/v1/tasks/roles/rollback", key=key)[0] == 403
        assert api.ask("GET", "/v1/adapters/roles@1", key="viewer")[0] == 200
        for body in ({}, {"comment": ""}, {"comment": "  "}, {"comment": "x", "forced": False}):
            assert api.ask("POST", "/v1/adapters/roles@1/promote", body, key="approver")[0] == 400

    def test_what_waited_for_approval_is_approved_and_not_forced(self, api, trial):
        trial("waits", policy=None, champion=False)
        status, task, _ = promote(api, "waits@1", comment="read them all")
        assert (status, task["champion"]) == (200, "waits@1")
        shown = api.ask("GET", "/v1/adapters/waits@1")[1]
        assert (shown["forced"], shown["passed_gate"], shown["comment"]) == (False, True, "read them all")
        approver = next(key["id"] for key in api.ask("GET", "/v1/keys")[1]["data"] if key["role"] == "approver")
        assert shown["decided_by"] == approver
        made = api.ask("GET", f"/v1/rounds/{shown['round_id']}")[1]["round"]
        assert (made["state"], made["reason"]) == ("promoted", f"promoted by {approver}: read them all")

    def test_what_the_gate_did_not_pass_takes_force_and_stays_marked(self, api, trial):
        trial("force", policy=None, champion=False, decision="inconclusive")
        refused = promote(api, "force@1")
        assert (refused[0], "marked as forced" in refused[1]["error"]["message"]) == (409, True)
        assert promote(api, "force@1", force=True)[0] == 200
        assert promote(api, "force@2", force=True)[0] == 200
        shelf = {one["name"]: one for one in api.ask("GET", "/v1/adapters?task=force")[1]["data"]}
        assert [(one["status"], one["forced"]) for _, one in sorted(shelf.items())] == [
            ("retired", True),
            ("champion", True),
        ]
        assert api.ask("GET", "/v1/lineage/force@2")[1]["adapter"]["forced"] is True
        event = with_database(api.settings.database_url, lambda db: EventStore(db).list(1))[0]
        assert (event.kind, event.details["forced"], event.details["comment"]) == ("adapter.promoted", True, "because")

    def test_rejected_is_rejected(self, api, trial):
        trial("no", policy=None)
        status, adapter, _ = api.ask("POST", "/v1/adapters/no@2/reject", WHY, key="approver")
        assert (status, adapter["status"], adapter["comment"]) == (200, "rejected", "because")
        assert promote(api, "no@2", force=True)[0] == 409
        assert api.ask("POST", "/v1/adapters/no@1/reject", WHY, key="approver")[0] == 409
        made = with_database(api.settings.database_url, lambda db: RoundStore(db).get(adapter["round_id"]))
        assert made.state == "regressed"

    def test_to_any_former_champion_and_no_further(self, api, trial):
        trial("line", policy=None)
        assert promote(api, "line@2")[0] == 200
        plan = api.ask("GET", "/v1/tasks/line/rollback?to=base", key="approver")[1]
        assert plan["says"] == "task line: champion line@2 -> the base model"
        assert plan["choices"] == ["line@1"]
        back = api.ask("POST", "/v1/tasks/line/rollback", {"to": "base", "comment": "all wrong"}, key="approver")
        assert (back[0], back[1]["champion"]) == (200, "")
        event = with_database(api.settings.database_url, lambda db: EventStore(db).list(1))[0]
        assert (event.kind, event.subject) == ("adapter.rolled_back", "line@2")
        assert (event.details["to"], event.details["from"], event.details["comment"]) == ("", "line@2", "all wrong")
        forth = api.ask("POST", "/v1/tasks/line/rollback", {"to": "line@2"}, key="approver")
        assert (forth[0], forth[1]["champion"]) == (200, "line@2")
        for to, status in (("line@2", 409), ("line@9", 404), ("bad@1", 400)):
            assert api.ask("POST", "/v1/tasks/line/rollback", {"to": to}, key="approver")[0] == status

    def test_a_rollback_with_a_target_ends_the_canary_too(self, api, wire_engine, trial):
        trial("both")
        promote(api, "both@2")
        plan = api.ask("GET", "/v1/tasks/both/rollback", key="approver")[1]
        assert plan["says"] == "task both: the canary both@2 (30 %) ends; champion both@1 stays"
        back = api.ask("POST", "/v1/tasks/both/rollback", {"to": "base"}, key="approver")[1]
        assert (back["champion"], back["canary"]) == ("", "")
        shelf = {one["name"]: one["status"] for one in api.ask("GET", "/v1/adapters?task=both")[1]["data"]}
        assert shelf == {"both@1": "retired", "both@2": "rejected"}
        assert not {"both@1", "both@2"} & set(wire_engine.adapters)
        url = api.settings.database_url
        assert with_database(url, lambda db: AdapterStore(db).get("both@2")).forced is False


def test_a_policy_is_read_over_the_api(api):
    made = api.ask("POST", "/v1/tasks", {"name": "policed", "training": {"canary": {"share": 0.2}}})
    assert made[0] == 201, made[1]
    assert made[1]["training"]["canary"] == {
        "share": 0.2, "widen": [0.5, 1.0], "min_episodes": 50, "max_hours": 72.0, "margin": 0.05, "latency_ratio": 1.5,
    }  # fmt: skip
    patch = {"training": {"canary": {"latency_ratio": None, "widen": [1]}}}
    changed = api.ask("PATCH", "/v1/tasks/policed", patch)[1]["training"]["canary"]
    assert (changed["share"], changed["widen"], changed["latency_ratio"]) == (0.2, [1.0], None)
    for wrong in ({"share": 1}, {"widen": [0.1, 1]}, {"widen": [0.5]}, {"min_episodes": 0}, {"odd": 1}):
        assert api.ask("PATCH", "/v1/tasks/policed", {"training": {"canary": wrong}})[0] == 400, wrong
    off = api.ask("PATCH", "/v1/tasks/policed", {"training": {"canary": None}})[1]
    assert off["training"]["canary"] is None

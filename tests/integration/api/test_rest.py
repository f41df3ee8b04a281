"""The REST routes against a real process and database."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.domain import Adapter, RoundState
from server.store.adapters import AdapterStore
from server.store.episodes import EpisodeStore
from server.store.presence import PresenceStore
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore
from tests.fixtures.server import with_database


def chat(api, text="4", *, key="client", model="sums", headers=None, **fields):
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return api.ask("POST", "/v1/chat/completions", body, key=key, headers=headers)


def test_tasks_are_made_shown_and_changed(api):
    made = api.ask("POST", "/v1/tasks", {"name": "t1", "verifiers": ["four@1"], "retry": {"max_retries": 2}})
    assert made[0] == 201
    pin = {"name": "four", "version": 1, "args": {}, "when": {}, "mode": "enforce"}
    assert made[1]["verifiers"] == [pin]
    assert (made[1]["retry"]["max_retries"], made[1]["retry"]["show"], made[1]["champion"]) == (2, "verdict", "")
    changes = {"retry": {"show": "reason"}, "verify": "observe", "prompts": {"reflect": "Why?"}}
    status, changed, _ = api.ask("PATCH", "/v1/tasks/t1", changes)
    assert status == 200
    assert (changed["retry"]["max_retries"], changed["retry"]["show"]) == (2, "reason")
    assert (changed["verify"], changed["prompts"]) == ("observe", {"reflect": "Why?"})
    assert api.ask("GET", "/v1/tasks/t1", key="client")[1] == {**changed, "progress": None}
    assert "t1" in [task["name"] for task in api.ask("GET", "/v1/tasks", key="client")[1]["data"]]
    cleared = api.ask("PATCH", "/v1/tasks/t1", {"retry": {"show": None}, "prompts": {"reflect": None}})[1]
    assert (cleared["retry"]["show"], cleared["prompts"]) == ("verdict", {})


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"name": "sums"}, 409, "conflict"),
        ({"name": "base"}, 409, "conflict"),
        ({"name": "a@1"}, 400, None),
        ({"name": "t2", "verifiers": ["nothing"]}, 400, "verifier_not_found"),
        ({"name": "t2", "verifiers": ["four@7"]}, 400, "verifier_not_found"),
        ({"name": "t2", "verifiers": ["four@one"]}, 400, None),
        ({"name": "t2", "verifiers": [{"name": "four", "mode": "guess"}]}, 400, None),
        ({"name": "t2", "verifiers": [{"name": "four", "when": {"answer": "poem"}}]}, 400, None),
        ({"name": "t2", "retry": {"max_retries": 99}}, 400, None),
    ],
)
def test_tasks_that_cannot_be(api, body, status, code):
    answer = api.ask("POST", "/v1/tasks", body)
    assert (answer[0], answer[1]["error"]["code"]) == (status, code)


def test_a_new_task_serves_at_once(api):
    api.ask("POST", "/v1/tasks", {"name": "quick", "verifiers": ["four"]})
    assert chat(api, model="quick")[2]["x-mulligan-outcome"] == "passed"


def test_what_is_missing_is_404(api):
    for method, path in [
        ("GET", "/v1/tasks/nothing"),
        ("PATCH", "/v1/tasks/nothing"),
        ("GET", "/v1/verifiers/nothing"),
        ("GET", "/v1/verifiers/nothing/versions"),
        ("GET", "/v1/episodes/ep_nothing"),
        ("GET", "/v1/rounds/rd_nothing"),
        ("POST", "/v1/rounds/rd_nothing/cancel"),
        ("POST", "/v1/tasks/nothing/rounds"),
        ("POST", "/v1/adapters/nothing/promote"),
        ("POST", "/v1/tasks/nothing/rollback"),
        ("DELETE", "/v1/keys/nothing"),
    ]:
        said = {"comment": "why"} if path.endswith("promote") else {} if method == "PATCH" else None
        status, body, _ = api.ask(method, path, said)
        assert (method, path, status, body["error"]["type"]) == (method, path, 404, "invalid_request_error")


def test_verifiers_have_immutable_versions(api):
    for number, pattern in enumerate(("a", "b"), start=1):
        body = {"name": "letters", "kind": "regex", "config": {"pattern": pattern}, "description": "d"}
        status, made, _ = api.ask("POST", "/v1/verifiers", body, key="registrar")
        assert (status, made["version"], made["config"]) == (201, number, {"pattern": pattern})
    versions = api.ask("GET", "/v1/verifiers/letters/versions", key="registrar")[1]["data"]
    assert [one["version"] for one in versions] in ([1, 2], [2, 1])
    assert api.ask("GET", "/v1/verifiers/letters")[1]["version"] == 2
    assert api.ask("GET", "/v1/verifiers/letters?version=1")[1]["config"] == {"pattern": "a"}
    listed = api.ask("GET", "/v1/verifiers")[1]["data"]
    assert [one["version"] for one in listed if one["name"] == "letters"] == [2]


@pytest.mark.parametrize(
    "body",
    [
        {"name": "bad", "kind": "astrology"},
        {"name": "bad", "kind": "regex", "config": {"pattern": "("}},
        {"name": "bad", "kind": "regex", "config": {}},
        {"name": "bad", "kind": "python", "config": {"code": "def verify(:"}},
    ],
)
def test_verifiers_that_do_not_compile(api, body):
    status, answer, _ = api.ask("POST", "/v1/verifiers", body)
    assert (status, answer["error"]["code"]) == (400, "invalid_verifier")


def test_a_verifier_is_tried_on_the_live_path(api):
    run = "/v1/verifiers/four/run"
    assert api.ask("POST", run, {"answer": "4"}, key="registrar")[1]["status"] == "passed"
    status, said, _ = api.ask("POST", run, {"answer": {"role": "assistant", "content": "5"}}, key="registrar")
    assert (status, said["status"], said["score"], said["verifier"]) == (200, "failed", 0.0, "four@1")
    assert said["verdicts"][0]["reason"] == said["reason"] == "the pattern does not match"
    skipped = api.ask("POST", run, {"answer": "4", "when": {"answer": "tool_call"}})[1]
    assert skipped["status"] == "skipped"
    assert api.ask("POST", run, {"answer": "4", "args": {"x": 1}})[0] in (200, 400)
    assert api.ask("POST", run, {"answer": "4"}, key="client")[0] == 403


def test_user_code_checks_answers(api):
    code = "def verify(request, answer, args):\n    return {'passed': '4' in answer['content'], 'reason': 'four?'}\n"
    kinds = api.ask("POST", "/v1/verifiers", {"name": "code", "kind": "python", "config": {"code": code}})
    assert kinds[0] == 201, kinds[1]
    assert chat(api, "4", verifiers=["code"])[2]["x-mulligan-outcome"] == "passed"
    inline = [{"kind": "python", "config": {"code": code}}]
    assert chat(api, "4", verifiers=inline)[1]["error"]["code"] == "insufficient_scope"
    assert chat(api, "4", verifiers=inline, key="admin")[2]["x-mulligan-outcome"] == "passed"


def test_episodes_are_seen_by_their_own_key_only(api):
    secret = api.ask("POST", "/v1/keys", {"name": "other"})[1]["key"]
    mine = chat(api, "5 | Hm. | 4", key=secret)[2]["x-mulligan-episode"]
    theirs = chat(api, "4")[2]["x-mulligan-episode"]
    listed = api.ask("GET", "/v1/episodes", key=secret)[1]
    assert ([one["id"] for one in listed["data"]], listed["has_more"]) == ([mine], False)
    assert api.ask("GET", f"/v1/episodes/{theirs}", key=secret)[0] == 404
    assert api.ask("GET", f"/v1/episodes/{theirs}")[0] == 200
    page = api.ask("GET", "/v1/episodes?limit=1")[1]
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([theirs], True)
    following = api.ask("GET", f"/v1/episodes?limit=1&before={theirs}")[1]
    assert [one["id"] for one in following["data"]] == [mine]
    recovered = api.ask("GET", "/v1/episodes?outcome=recovered&limit=200")[1]["data"]
    assert mine in [one["id"] for one in recovered]
    assert theirs not in [one["id"] for one in recovered]


def test_an_episode_shows_everything_that_was_done(api):
    _, answer, headers = chat(api, "5 | I miscounted. | 4", user="u7")
    shown = api.ask("GET", f"/v1/episodes/{headers['x-mulligan-episode']}", key="client")[1]
    assert (shown["outcome"], shown["task"], shown["adapter"]) == ("recovered", "sums", "")
    assert shown["request"]["user"] == "u7"
    assert [attempt["answer"]["content"] for attempt in shown["attempts"]] == ["5", "4"]
    assert shown["bindings"][0]["name"] == "four"
    assert shown["usage"] == answer["usage"]
    assert shown["split"] in ("training", "held_out")
    (reflection,) = shown["reflections"]
    assert reflection["text"] == "I miscounted."
    assert "token_ids" not in reflection
    whole = api.ask("GET", f"/v1/episodes/{shown['id']}?tokens=true", key="client")[1]
    assert whole["reflections"][0]["token_ids"] == [0, 1, 2]
    assert whole["reflections"][0]["logprobs"] == [-0.5] * 3
    assert len(whole["reflections"][0]["prompt_ids"]) == 10


def test_store_false_leaves_a_row_without_content(api):
    _, answer, headers = chat(api, "5 secret | secret | 4 secret", store=False)
    assert answer["choices"][0]["message"]["content"] == "4 secret"
    shown = api.ask("GET", f"/v1/episodes/{headers['x-mulligan-episode']}", key="client")[1]
    assert (shown["store"], shown["request"], shown["outcome"]) == (False, None, "recovered")
    assert shown["usage"] == answer["usage"]
    assert "secret" not in str(shown)
    work = with_database(api.settings.database_url, lambda db: EpisodeStore(db).failures("sums", limit=1000))
    assert shown["id"] not in [episode.id for episode in work]


def test_odd_text_is_logged(api):
    status, answer, headers = chat(api, "null \x00 and \U0001f600", model="base")
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "null \x00 and \U0001f600")
    shown = api.ask("GET", f"/v1/episodes/{headers['x-mulligan-episode']}", key="client")[1]
    assert shown["attempts"][0]["answer"]["content"] == "null \u2400 and \U0001f600"


def test_keys_are_made_shown_once_and_revoked(api):
    status, made, _ = api.ask("POST", "/v1/keys", {"name": "app", "scopes": ["inline_verifiers"]})
    assert (status, made["scopes"], made["key"].startswith("mk-")) == (201, ["inline_verifiers"], True)
    listed = api.ask("GET", "/v1/keys")[1]
    assert made["id"] in [key["id"] for key in listed["data"]]
    assert made["key"] not in str(listed)
    assert "sha256" not in str(listed)
    assert chat(api, key=made["key"])[0] == 200
    assert (made["role"], made["tasks"], made["trains"], made["expires_at"]) == ("client", [], True, None)
    revoked = api.ask("DELETE", f"/v1/keys/{made['id']}")
    assert (revoked[0], revoked[1]["revoked_at"] is not None) == (200, True)
    assert chat(api, key=made["key"])[0] == 401


def test_a_key_is_made_with_limits_tasks_and_an_end(api):
    limits = {"requests_per_minute": 60, "token_budget": 1000, "budget_period": "day"}
    body = {"name": "trial", "tasks": ["sums"], "limits": limits, "trains": False, "expires_at": 4e9}
    status, made, _ = api.ask("POST", "/v1/keys", body)
    assert status == 201, made
    shown = {"tokens_per_minute": None, "max_concurrent": None, **limits}
    assert (made["tasks"], made["limits"], made["trains"], made["expires_at"]) == (["sums"], shown, False, 4e9)
    (listed,) = [key for key in api.ask("GET", "/v1/keys")[1]["data"] if key["id"] == made["id"]]
    assert {**listed, "key": made["key"]} == made
    assert listed["budget_spent"] == 0


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"name": "k", "role": "king"}, "role", None),
        ({"name": "k", "scopes": ["inference"]}, "scopes", None),
        ({"name": "k", "tasks": ["nothing"]}, "tasks", "task_not_found"),
        ({"name": "k", "limits": {"requests": 1}}, "limits.requests", "unknown_field"),
        ({"name": "k", "limits": {"max_concurrent": 0}}, "limits.max_concurrent", None),
        ({"name": "k", "limits": {"budget_period": "day"}}, "limits.budget_period", None),
        ({"name": "k", "expires_at": 1}, "expires_at", None),
        ({"name": "k", "expires_at": float("inf")}, "expires_at", None),
        ({"name": ""}, "name", None),
    ],
)
def test_keys_that_cannot_be(api, body, param, code):
    status, answer, _ = api.ask("POST", "/v1/keys", body)
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, param, code)


def test_when_a_key_was_used_is_noted_before_long(api):
    made = api.ask("POST", "/v1/keys", {"name": "used"})[1]
    before = time.time()
    api.ask("GET", "/v1/tasks", key=made["key"])
    deadline = time.monotonic() + 30
    used_at = None
    while used_at is None and time.monotonic() < deadline:
        time.sleep(0.25)
        used_at = next(key["last_used_at"] for key in api.ask("GET", "/v1/keys")[1]["data"] if key["id"] == made["id"])
    assert before - 1 <= used_at <= time.time() + 1


def test_a_task_says_what_becomes_of_unknown_fields(api):
    made = api.ask("POST", "/v1/tasks", {"name": "lenient", "unknown_fields": "ignore"})[1]
    assert made["unknown_fields"] == "ignore"
    assert api.ask("PATCH", "/v1/tasks/lenient", {"unknown_fields": "refuse"})[1]["unknown_fields"] == "refuse"
    assert api.ask("PATCH", "/v1/tasks/lenient", {"unknown_fields": "guess"})[0] == 400


def test_options_that_no_trainer_knows_are_refused(api):
    said = api.ask("POST", "/v1/tasks/sums/rounds", {"options": {"stepz": 2}})
    assert (said[0], said[1]["error"]["param"]) == (400, "stepz")
    said = api.ask("POST", "/v1/tasks", {"name": "misspelt", "training": {"options": {"steps": 0}}})
    assert (said[0], said[1]["error"]["param"]) == (400, "steps")
    assert api.ask("GET", "/v1/tasks/misspelt")[0] == 404


def test_a_round_is_asked_for_and_cancelled(api):
    status, queued, _ = api.ask("POST", "/v1/tasks/sums/rounds", {"options": {"steps": 2}})
    assert status == 201, queued
    assert (queued["state"], queued["options"]) == ("queued", {"steps": 2})
    again = api.ask("POST", "/v1/tasks/sums/rounds")
    assert (again[0], again[1]["error"]["code"]) == (409, "conflict")
    assert api.ask("GET", "/v1/rounds?task=sums")[1]["data"][0]["id"] == queued["id"]
    shown = api.ask("GET", f"/v1/rounds/{queued['id']}")[1]
    assert (shown["round"]["number"], shown["steps"]) == (1, [])
    cancelled = api.ask("POST", f"/v1/rounds/{queued['id']}/cancel")
    assert (cancelled[0], cancelled[1]["state"]) == (200, "cancelled")
    stored = with_database(api.settings.database_url, lambda db: RoundStore(db).get(queued["id"]))
    assert stored.state is RoundState.CANCELLED
    assert list(api.settings.broker_dir.rglob("*.msg"))  # the doorbell rang


def test_a_promotion_by_hand_and_a_rollback(api, wire_engine, tmp_path):
    names = [f"sums@{number}" for number in (101, 102)]
    for name, parent in zip(names, ("", names[0]), strict=True):
        adapter = Adapter(name, "sums", str(tmp_path), {}, parent=parent)
        with_database(api.settings.database_url, lambda db, adapter=adapter: AdapterStore(db).add(adapter))
    for name in names:
        status, task, _ = api.ask("POST", f"/v1/adapters/{name}/promote", {"comment": "by hand", "force": True})
        assert (status, task["champion"]) == (200, name)
        assert chat(api)[2]["x-mulligan-adapter"] == name
    assert names[1] in wire_engine.adapters
    assert names[0] not in wire_engine.adapters
    adapters = {one["name"]: one for one in api.ask("GET", "/v1/adapters?task=sums")[1]["data"]}
    assert (adapters[names[0]]["status"], adapters[names[1]]["status"]) == ("retired", "champion")
    assert adapters[names[1]]["forced"] is True
    assert (adapters[names[1]]["comment"], adapters[names[1]]["decided_by"][:4]) == ("by hand", "key_")
    models = [model["id"] for model in api.ask("GET", "/v1/models")[1]["data"]]
    assert set(names) < set(models)
    assert names[0] not in str(api.ask("GET", "/v1/models", key="client")[1]["data"])
    assert chat(api, model="base", task="sums")[2]["x-mulligan-adapter"] == ""
    assert api.ask("POST", "/v1/tasks/sums/rollback")[1]["champion"] == names[0]
    assert chat(api)[2]["x-mulligan-adapter"] == names[0]
    assert api.ask("POST", "/v1/tasks/sums/rollback")[1]["champion"] == ""
    assert chat(api)[2]["x-mulligan-adapter"] == ""
    assert api.ask("POST", "/v1/tasks/sums/rollback")[0] == 409


def test_hot_swaps_drop_no_request_and_every_answer_names_its_adapter(api, wire_engine, tmp_path):
    url = api.settings.database_url
    api.ask("POST", "/v1/tasks", {"name": "hot"})
    names = [f"hot@{number}" for number in range(1, 4)]
    for name in names:
        with_database(url, lambda db, name=name: AdapterStore(db).add(Adapter(name, "hot", str(tmp_path), {})))
    swapped = threading.Event()

    def keep_asking(_):
        answers = []
        while not swapped.is_set():
            status, answer, headers = chat(api, "who are you?", model="hot")
            assert status == 200, answer
            answers.append((answer["choices"][0]["message"]["content"], headers["x-mulligan-adapter"] or "base"))
        return answers

    with ThreadPoolExecutor(16) as pool:
        running = [pool.submit(keep_asking, number) for number in range(16)]
        try:
            for name in names:
                status, task, _ = api.ask("POST", f"/v1/adapters/{name}/promote", {"comment": "by hand", "force": True})
                assert (status, task["champion"]) == (200, name)
        finally:
            swapped.set()
        answers = [answer for future in running for answer in future.result()]
    assert {said == named for said, named in answers} == {True}
    assert {"base", *names[:-1]} <= {named for _, named in answers}
    assert [name for name in names if name in wire_engine.adapters] == names[-1:]


def test_after_the_engine_restarts_champions_are_loaded_before_it_is_ready(api, wire_engine, tmp_path):
    url = api.settings.database_url
    api.ask("POST", "/v1/tasks", {"name": "swapped"})
    adapter = Adapter("swapped@1", "swapped", str(tmp_path), {})
    with_database(url, lambda db: AdapterStore(db).add(adapter))
    with_database(url, lambda db: TaskStore(db).flip_champion("swapped", adapter.name, expected_generation=0))
    deadline = time.monotonic() + 5
    while "swapped@1" not in wire_engine.adapters and time.monotonic() < deadline:
        time.sleep(0.05)
    api.wait_until_ready(5)
    assert chat(api, model="swapped")[2]["x-mulligan-adapter"] == "swapped@1"
    wire_engine.adapters.clear()
    refused = chat(api, model="swapped")
    assert (refused[0], refused[2].get("retry-after")) in ((503, "2"), (200, None))  # the watch may have been quicker
    deadline = time.monotonic() + 5
    while "swapped@1" not in wire_engine.adapters and time.monotonic() < deadline:
        time.sleep(0.05)
    assert chat(api, model="swapped")[0] == 200


def test_the_process_reports_itself(api):
    deadline = time.monotonic() + 60  # until what tests before this one asked has ended
    while True:
        (process,) = with_database(api.settings.database_url, lambda db: PresenceStore(db).live(60.0))
        if process.in_flight == {} or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert process.in_flight == {}
    assert process.acknowledged["default"] == 0


def test_readiness_and_health_are_public(api):
    assert api.ask("GET", "/health", key=None)[:2] == (200, {"status": "ok"})
    assert api.ask("GET", "/ready", key=None)[:2] == (200, {"status": "ready", "missing": [], "degraded": []})

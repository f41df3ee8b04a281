"""The life of a verifier over the API, against a real process: tried, registered, watched, promoted, withdrawn."""

import time

import pytest

from server.store.events import EventStore
from tests.fixtures.server import with_database

CODE = """def verify(request, answer, args):
    print("looked at", answer["content"])
    return {"passed": args["word"] in answer["content"], "reason": "the word is missing"}
"""


def register(api, name, pattern, **more):
    status, made, _ = api.ask(
        "POST", "/v1/verifiers", {"name": name, "kind": "regex", "config": {"pattern": pattern}, **more}
    )
    assert status in (200, 201), made
    return made


def chat(api, text, *, model, key="client", **fields):
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return api.ask("POST", "/v1/chat/completions", body, key=key)


def verdicts_of(answer):
    (attempt,) = answer[1]["mulligan"]["attempts"]
    return {one["verifier"]: one["status"] for one in attempt["verdicts"]}


class TestRegistering:
    def test_a_sample_is_judged_before_anything_is_registered(self, api):
        sample = {"answer": "the cat", "args": {"word": "cat"}, "expect": "passed"}
        body = {"name": "life_words", "kind": "python", "config": {"code": CODE}, "sample": sample}
        wrong = {**body, "sample": {**sample, "expect": "failed"}}
        status, refused, _ = api.ask("POST", "/v1/verifiers", wrong)
        assert (status, refused["error"]["code"], refused["error"]["param"]) == (
            400,
            "sample_disagrees",
            "sample.expect",
        )
        assert "looked at the cat" in refused["error"]["message"]
        assert api.ask("GET", "/v1/verifiers/life_words")[0] == 404
        status, made, _ = api.ask("POST", "/v1/verifiers", body)
        assert (status, made["version"], made["trial"]["status"]) == (201, 1, "passed")
        assert made["trial"]["stdout"] == "looked at the cat\n"
        assert made["trial"]["duration_ms"] > 0

    def test_a_sample_that_is_only_tried_is_shown_whatever_comes_of_it(self, api):
        body = {"name": "life_broken", "kind": "python", "config": {"code": CODE}}
        made = api.ask("POST", "/v1/verifiers", {**body, "sample": {"answer": "x"}})[1]  # which has no word
        assert (made["version"], made["trial"]["status"], made["trial"]["cause"]) == (1, "abstained", "broke")
        expecting = {**body, "sample": {"answer": "x", "expect": "failed"}}
        assert api.ask("POST", "/v1/verifiers", expecting)[1]["error"]["code"] == "sample_disagrees"

    @pytest.mark.parametrize(
        ("body", "param", "said"),
        [
            ({"kind": "astrology"}, "kind", "astrology"),
            ({"kind": "regex", "config": {"pattern": "a("}}, "config.pattern", "column"),
            ({"kind": "regex", "config": {"patern": "a"}}, "config", "patern"),
            ({"kind": "json_schema", "config": {"schema": {"properties": {"a": {"type": "odd"}}}}},
             "config.schema.properties.a.type", "odd"),
            ({"kind": "python", "config": {"code": "x = 1\ndef verify(:\n"}}, "config.code", "line 2"),
            ({"kind": "countdown", "sample": {"answer": "1"}}, "sample.args.numbers", "numbers"),
            ({"kind": "regex", "config": {"pattern": "a"}, "sample": {"answer": "a", "expect": "maybe"}},
             "sample.expect", "passed"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_pointed_at(self, api, body, param, said):
        status, refused, _ = api.ask("POST", "/v1/verifiers", {"name": "life_wrong", **body})
        assert (status, refused["error"]["param"]) == (400, param)
        assert said in refused["error"]["message"]
        assert api.ask("GET", "/v1/verifiers/life_wrong")[0] == 404

    def test_the_same_again_is_the_version_that_is_there(self, api):
        body = {"name": "life_same", "kind": "regex", "config": {"pattern": "a"}, "description": "d"}
        first = api.ask("POST", "/v1/verifiers", body)
        again = api.ask("POST", "/v1/verifiers", body)
        assert (first[0], again[0], again[1]) == (201, 200, first[1])
        assert api.ask("POST", "/v1/verifiers", {**body, "config": {"pattern": "b"}})[1]["version"] == 2

    def test_the_kinds_are_listed_and_no_verifier_takes_their_place(self, api):
        kinds = {kind["name"]: kind for kind in api.ask("GET", "/v1/verifiers/kinds", key="client")[1]["data"]}
        assert kinds["regex"]["config_schema"]["required"] == ["pattern"]
        assert "numbers" in kinds["countdown"]["args_schema"]["properties"]
        body = {"name": "kinds", "kind": "regex", "config": {"pattern": "a"}}
        status, refused, _ = api.ask("POST", "/v1/verifiers", body)
        assert (status, refused["error"]["param"]) == (400, "name")


class TestWithdrawing:
    def test_an_archived_verifier_is_bound_to_nothing_new(self, api):
        register(api, "life_old", "4")
        api.ask("POST", "/v1/tasks", {"name": "life_pins", "verifiers": ["life_old@1"]})
        episode = chat(api, "4", model="life_pins")[2]["x-mulligan-episode"]
        status, refused, _ = api.ask("DELETE", "/v1/verifiers/life_old")
        assert (status, refused["error"]["code"]) == (409, "verifier_pinned")
        assert "'life_pins'" in refused["error"]["message"]
        api.ask("PATCH", "/v1/tasks/life_pins", {"verifiers": []})
        status, page, _ = api.ask("DELETE", "/v1/verifiers/life_old")
        assert (status, page["data"][0]["archived_at"] is not None) == (200, True)
        for method, path, body in (
            ("PATCH", "/v1/tasks/life_pins", {"verifiers": ["life_old@1"]}),
            ("POST", "/v1/keys", {"name": "k", "verifiers": ["life_old"]}),
        ):
            status, refused, _ = api.ask(method, path, body)
            assert (status, refused["error"]["code"], refused["error"]["param"]) == (
                400, "verifier_archived", "verifiers[0]",
            )  # fmt: skip
        refused = chat(api, "4", model="life_pins", verifiers=["life_old"])
        assert (refused[0], refused[1]["error"]["code"]) == (400, "verifier_archived")
        shown = api.ask("GET", f"/v1/episodes/{episode}")[1]
        assert (shown["bindings"][0]["name"], shown["bindings"][0]["config"]) == ("life_old", {"pattern": "4"})

        def names(query):
            return [one["name"] for one in api.ask("GET", f"/v1/verifiers{query}")[1]["data"]]

        assert "life_old" not in names("")
        assert "life_old" in names("?archived=true")
        assert register(api, "life_old", "4")["version"] == 2
        assert "life_old" in names("")
        assert chat(api, "4", model="life_pins", verifiers=["life_old"])[2]["x-mulligan-outcome"] == "passed"

    def test_a_revocation_puts_the_former_version_back_at_once(self, api):
        for pattern in ("4", ".*"):
            register(api, "life_bad", pattern)
        api.ask("POST", "/v1/tasks", {"name": "life_rev", "verifiers": ["life_bad@2"]})
        _, key, _ = api.ask("POST", "/v1/keys", {"name": "rev", "verifiers": ["life_bad"]})
        assert verdicts_of(chat(api, "5", model="life_rev")) == {"life_bad@2": "passed"}
        path = "/v1/verifiers/life_bad/versions/2"
        assert api.ask("POST", f"{path}/revoke", {})[0] == 400
        status, done, _ = api.ask("POST", f"{path}/revoke", {"reason": "it lets everything pass"})
        assert (status, done["former"], done["tasks"], done["keys"]) == (200, "life_bad@1", ["life_rev"], [key["id"]])
        answer = chat(api, "5 | Hm. | 4", model="life_rev")
        assert [one["verifier"] for one in answer[1]["mulligan"]["attempts"][0]["verdicts"]] == ["life_bad@1"]
        assert answer[2]["x-mulligan-outcome"] == "recovered"
        refused = chat(api, "5", model="life_rev", verifiers=["life_bad@2"])
        assert (refused[0], refused[1]["error"]["code"]) == (400, "verifier_revoked")
        shown = api.ask("GET", path)[1]
        assert (shown["revoked_reason"], shown["version"]) == ("it lets everything pass", 2)
        assert api.ask("GET", path, key="client")[1]["revoked_reason"] == ""
        events = with_database(api.settings.database_url, lambda db: EventStore(db).list())
        (event,) = [one for one in events if one.subject == "life_bad@2"]
        assert (event.kind, event.details["tasks"]) == ("verifier.revoked", ["life_rev"])
        assert api.ask("POST", "/v1/verifiers/life_bad/run", {"answer": "5", "version": 2})[1]["status"] == "passed"

    def test_where_there_is_none_before_it_abstains(self, api):
        register(api, "life_only", "4")
        api.ask("POST", "/v1/tasks", {"name": "life_single", "verifiers": ["life_only"]})
        done = api.ask("POST", "/v1/verifiers/life_only/versions/1/revoke", {"reason": "wrong"})[1]
        assert (done["former"], done["tasks"], done["tasks_left"]) == (None, [], ["life_single"])
        answer = chat(api, "4", model="life_single")
        assert answer[2]["x-mulligan-outcome"] == "unverified"
        assert answer[1]["mulligan"]["attempts"][0]["verdicts"][0]["cause"] == "revoked"
        changed = api.ask("PATCH", "/v1/tasks/life_single", {"verifiers": ["life_only@1"]})  # it stays as it was
        assert changed[0] == 200


class TestRollingOut:
    def test_a_version_on_trial_is_compared_and_promoted(self, api):
        for pattern in ("4", "5"):
            register(api, "life_new", pattern)
        pins = ["life_new@1", {"name": "life_new", "version": 2, "mode": "observe"}]
        status, task, _ = api.ask("POST", "/v1/tasks", {"name": "life_trial", "verifiers": pins})
        assert (status, [one["mode"] for one in task["verifiers"]]) == (201, ["enforce", "observe"])
        for text in ("4", "4 and 5", "4"):
            answer = chat(api, text, model="life_trial")
            assert answer[2]["x-mulligan-outcome"] == "passed"
        flip = answer[2]["x-mulligan-episode"]
        found = api.ask("GET", "/v1/verifiers/life_new/agreement?task=life_trial")[1]
        assert (found["version"], found["compared_with"]) == (2, 1)
        assert (found["n"], found["agree"], found["only_old_passed"]) == (3, 1, 2)
        assert found["flips"][0] == {"episode_id": flip, "attempt": 1, "old": "passed", "new": "failed"}
        turned = api.ask("GET", "/v1/verifiers/life_new/agreement?version=1&with=2")[1]
        assert (turned["n"], turned["only_new_passed"], turned["tasks"]) == (3, 2, ["life_trial"])
        assert api.ask("GET", "/v1/verifiers/life_new/agreement?version=1")[1]["error"]["param"] == "with"
        assert api.ask("GET", "/v1/verifiers/life_new/agreement?with=7")[0] == 404
        api.ask("PATCH", "/v1/tasks/life_trial", {"verifiers": ["life_new@2"]})
        assert verdicts_of(chat(api, "5", model="life_trial")) == {"life_new@2": "passed"}

    @pytest.mark.parametrize("mode", ["enforce", "observe", "audit"])
    def test_two_versions_have_two_modes(self, api, mode):
        for pattern in ("4", "5"):
            register(api, "life_two", pattern)
        pins = [{"name": "life_two", "version": version, "mode": mode} for version in (1, 2)]
        status, refused, _ = api.ask("POST", "/v1/tasks", {"name": "life_both", "verifiers": pins})
        assert (status, refused["error"]["param"]) == (400, "verifiers[1]")


class TestKeys:
    def test_a_key_is_changed_and_goes_by_it_within_a_second(self, api):
        register(api, "life_key", "4")
        _, made, _ = api.ask("POST", "/v1/keys", {"name": "changing", "tasks": ["sums"]})
        secret, path = made["key"], f"/v1/keys/{made['id']}"
        assert chat(api, "4", model="default", key=secret)[0] == 404
        body = {"name": "changed", "tasks": [], "verifiers": ["life_key"], "limits": {"token_budget": 50}}
        status, changed, _ = api.ask("PATCH", path, body)
        assert (status, changed["name"], changed["limits"]["token_budget"], changed["budget_spent"]) == (
            200, "changed", 50, 0,
        )  # fmt: skip
        assert changed["verifiers"] == [{"name": "life_key", "version": 1, "args": {}, "when": {}, "mode": "enforce"}]
        assert verdicts_of(chat(api, "4", model="default", key=secret)) == {"life_key@1": "passed"}
        assert verdicts_of(chat(api, "4", model="sums", key=secret)) == {"four@1": "passed"}
        assert "x-ratelimit-limit-tokens" not in chat(api, "4", model="sums", key=secret, verify="off")[2]
        api.ask("PATCH", path, {"limits": {"requests_per_minute": 1}})
        statuses = [chat(api, "4", model="sums", key=secret)[0] for _ in range(2)]
        assert statuses == [200, 429]
        cleared = api.ask("PATCH", path, {"limits": {"requests_per_minute": None}, "expires_at": time.time() + 999})[1]
        assert cleared["limits"]["requests_per_minute"] is None
        assert cleared["limits"]["token_budget"] == 50
        assert cleared["expires_at"] > time.time()
        assert api.ask("PATCH", path, {"expires_at": None})[1]["expires_at"] is None

    def test_what_cannot_be_changed_is_said(self, api):
        _, made, _ = api.ask("POST", "/v1/keys", {"name": "fixed"})
        path = f"/v1/keys/{made['id']}"
        for body, param in (
            ({"role": "admin"}, "role"),
            ({"scopes": ["everything"]}, "scopes"),
            ({"tasks": ["nothing"]}, "tasks"),
            ({"verifiers": ["nothing"]}, "verifiers[0]"),
            ({"verifiers": [{"name": "four", "mode": "audit"}]}, "verifiers"),
            ({"expires_at": 5}, "expires_at"),
        ):
            status, refused, _ = api.ask("PATCH", path, body)
            assert (status, refused["error"]["param"]) == (400, param)
        api.ask("DELETE", path)
        assert api.ask("PATCH", path, {"name": "again"})[0] == 409
        assert api.ask("PATCH", "/v1/keys/key_none", {"name": "again"})[0] == 404

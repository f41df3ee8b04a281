"""Which verifiers a request gets: its own, its task's or its key's, and what watches beside them unseen."""

import pytest

from server.domain import BindingMode, Task, TaskVerifier, VerifyMode
from tests.component.api.test_streams import gather
from tests.fixtures.api import CLIENT, make_api

OBSERVE, AUDIT = BindingMode.OBSERVE, BindingMode.AUDIT
KEYED = "mk-keyed"
COUNTS = {"numbers": [3, 5, 2], "target": 21}


async def open_api(*pins: TaskVerifier, script=("4",), key_pins=(), **task):
    """An API with the task `t`, and a key with verifiers of its own; sql@1 wants a 4, sql@2 a 5, audit@1 a 6."""
    api = make_api(*script)
    for name, pattern in (("sql", "4"), ("sql", "5"), ("hidden", "6"), ("other", "4")):
        api.verifiers.put(name, "regex", {"pattern": pattern})
    api.verifiers.put("sum", "countdown", {})
    api.verifiers.put("sum", "countdown", {"target": 21})
    api.tasks.put(Task("t", pins, **task))
    api.keys.put(KEYED, verifiers=tuple(key_pins))
    await api.roster.refresh()
    return api


def pins_of(api) -> list[tuple[str, str]]:
    """The pins that the only episode was bound to, with their modes."""
    return [(binding.pin, binding.mode.value) for binding in api.logged.bindings]


def verdicts_of(answer) -> dict[str, str]:
    (attempt,) = answer.json()["mulligan"]["attempts"]
    return {verdict["verifier"]: verdict["status"] for verdict in attempt["verdicts"]}


class TestPrecedence:
    async def test_the_request_goes_before_the_task_and_the_task_before_the_key(self):
        pins, key_pins = (TaskVerifier("sql", 1),), (TaskVerifier("other", 1),)
        for fields, task, expected in (
            ({"verifiers": ["hidden@1"]}, "t", ["hidden@1"]),
            ({"verifiers": []}, "t", []),
            ({}, "t", ["sql@1"]),
            ({}, "default", ["other@1"]),
            ({"verify": "off"}, "default", []),
        ):
            api = await open_api(*pins, key_pins=key_pins, script=("4 6",))
            assert (await api.chat(task, key=KEYED, **fields)).status == 200
            assert [pin for pin, _ in pins_of(api)] == expected

    async def test_a_task_that_only_watches_leaves_the_rest_to_the_key(self):
        api = await open_api(TaskVerifier("sql", 2, mode=OBSERVE), key_pins=[TaskVerifier("other", 1)])
        answer = await api.chat("t", key=KEYED)
        assert pins_of(api) == [("other@1", "enforce"), ("sql@2", "observe")]
        assert answer.json()["mulligan"]["outcome"] == "passed"
        for _ in range(2):  # each key by itself, however often it was asked
            api.log.episodes.clear()
            await api.chat("t", key=CLIENT)
            assert pins_of(api) == [("sql@2", "observe")]

    async def test_a_bare_name_is_the_keys_pin_with_its_arguments(self):
        api = await open_api(key_pins=[TaskVerifier("sum", 1, COUNTS)], script=("(5+2)*3",))
        answer = await api.chat("default", key=KEYED, verifiers=["sum"])
        assert verdicts_of(answer) == {"sum@1": "passed"}
        api.log.episodes.clear()
        refused = await api.chat("default", verifiers=["sum"])  # the latest, and nobody gave it arguments
        assert (refused.status, refused.error["param"]) == (400, "verifiers[0].args.numbers")

    async def test_a_change_of_the_key_counts_at_once(self):
        api = await open_api(key_pins=[TaskVerifier("other", 1)])
        await api.chat("default", key=KEYED)
        api.keys.put(KEYED, verifiers=(TaskVerifier("sql", 1),))
        api.context.keyring.forget(next(iter(k for k, key in api.keys.keys.items() if key.name == KEYED)))
        await api.roster.refresh()
        api.log.episodes.clear()
        await api.chat("default", key=KEYED)
        assert pins_of(api) == [("sql@1", "enforce")]


class TestWatching:
    async def test_two_versions_judge_and_one_counts(self):
        api = await open_api(TaskVerifier("sql", 1), TaskVerifier("sql", 2, mode=OBSERVE))
        answer = await api.chat("t")
        assert verdicts_of(answer) == {"sql@1": "passed", "sql@2": "failed"}
        assert answer.json()["mulligan"]["outcome"] == "passed"

    async def test_the_tasks_own_watch_beside_the_requests(self):
        pins = (TaskVerifier("sql", 1), TaskVerifier("sql", 2, mode=OBSERVE), TaskVerifier("hidden", 1, mode=AUDIT))
        for fields, expected in (
            ({"verifiers": ["other"]}, [("other@1", "enforce"), ("sql@2", "observe"), ("hidden@1", "audit")]),
            ({"verifiers": []}, [("sql@2", "observe"), ("hidden@1", "audit")]),
            ({"verifiers": [], "verify": "off"}, []),
        ):
            api = await open_api(*pins)
            assert (await api.chat("t", **fields)).status == 200
            assert pins_of(api) == expected

    async def test_a_bare_name_is_what_the_task_enforces(self):
        api = await open_api(TaskVerifier("sql", 1), TaskVerifier("sql", 2, {"x": 1}, mode=OBSERVE))
        answer = await api.chat("t", verifiers=["sql"])
        assert verdicts_of(answer) == {"sql@1": "passed", "sql@2": "abstained"}  # its own args do not fit: it says so
        (attempt,) = answer.json()["mulligan"]["attempts"]
        assert attempt["verdicts"][1]["cause"] == "bad_args"

    async def test_what_watches_is_given_the_arguments_of_its_namesake(self):
        api = await open_api(
            TaskVerifier("sum", 1), TaskVerifier("sum", 2, mode=OBSERVE), TaskVerifier("hidden", 1, mode=AUDIT),
            script=("(5+2)*3",),
        )  # fmt: skip
        answer = await api.chat("t", verifiers=[{"name": "sum", "args": COUNTS}])
        assert verdicts_of(answer) == {"sum@1": "passed", "sum@2": "passed"}
        args = {binding.pin: binding.args for binding in api.logged.bindings}
        assert args == {"sum@1": COUNTS, "sum@2": COUNTS, "hidden@1": {}}  # which takes none

    async def test_an_audit_of_another_name_is_given_those_of_the_only_one(self):
        api = await open_api(TaskVerifier("sum", 2, mode=AUDIT), script=("(5+2)*3",))
        await api.chat("t", verifiers=[{"kind": "countdown", "args": COUNTS}])
        assert [(one.verifier, one.status) for one in api.logged.attempts[0].verdicts] == [
            ("countdown", "passed"), ("sum@2", "passed"),
        ]  # fmt: skip

    @pytest.mark.parametrize("mode", [OBSERVE, AUDIT])
    async def test_what_cannot_watch_abstains_and_no_request_fails(self, mode):
        api = await open_api(TaskVerifier("sql", 1), TaskVerifier("sum", 1, mode=mode))
        api.verifiers.put("gone", "no such kind", {})
        api.tasks.put(Task("u", (TaskVerifier("gone", 1, mode=mode),)))
        await api.roster.refresh()
        for task, cause in (("t", "bad_args"), ("u", "broke")):
            api.log.episodes.clear()
            answer = await api.chat(task)
            assert answer.status == 200
            verdict = api.logged.attempts[0].verdicts[-1]
            assert (verdict.status, verdict.cause) == ("abstained", cause)


class TestAuditing:
    PINS = (TaskVerifier("sql", 1), TaskVerifier("hidden", 1, mode=AUDIT))

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "2+2?"}]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "2+2?"}], "stream": True}),
            ("/v1/responses", {"input": "2+2?"}),
            ("/v1/responses", {"input": "2+2?", "stream": True}),
            ("/v1/completions", {"prompt": "2+2?"}),
        ],
    )
    async def test_no_surface_shows_it(self, path, body):
        api = await open_api(*self.PINS)
        answer = await api.post(path, {"model": "t", **body})
        assert answer.status == 200
        assert b"sql@1" in answer.body
        assert b"hidden" not in answer.body
        assert b"audit" not in answer.body
        assert pins_of(api) == [("sql@1", "enforce"), ("hidden@1", "audit")]
        assert [one.verifier for one in api.logged.attempts[0].verdicts] == ["sql@1", "hidden@1"]

    @pytest.mark.parametrize(("script", "fields"), [
        (("7",), {"retry": {"on_failure": "error", "max_retries": 0}}),
        (("4",), {"verifiers": ["hidden@7"]}),
        (("4",), {"verifiers": [{"name": "sql", "args": {"x": 1}}]}),
    ])  # fmt: skip
    async def test_no_error_tells_of_it(self, script, fields):
        api = await open_api(*self.PINS, script=script)
        answer = await api.chat("t", **fields)
        assert answer.status in (400, 422)
        assert b"hidden@1" not in answer.body
        assert b"audit" not in answer.body

    async def test_a_task_shows_it_to_those_who_see_all(self):
        api = await open_api(*self.PINS)
        api.keys.put("mk-viewer", "viewer")
        for path in ("/v1/tasks/t", "/v1/tasks"):
            shown = await api.get(path)
            assert shown.status == 200
            assert b"hidden" not in shown.body
        # One task by itself also shows its progress, for which there is no database here: see test_rest.
        assert b"hidden" in (await api.get("/v1/tasks", key="mk-viewer")).body

    async def test_a_key_of_the_task_neither_sees_nor_uses_it(self):
        api = await open_api(*self.PINS)
        api.keys.put("mk-tenant", tasks=("t",))
        assert (await api.get("/v1/verifiers/sql", key="mk-tenant")).status == 200
        assert (await api.get("/v1/verifiers/hidden", key="mk-tenant")).status == 404
        listed = await api.get("/v1/verifiers", key="mk-tenant")
        assert [one["name"] for one in listed.json()["data"]] == ["sql"]
        refused = await api.chat("t", key="mk-tenant", verifiers=["hidden"])
        assert (refused.status, refused.error["code"]) == (400, "verifier_not_found")

    @pytest.mark.parametrize("mode", [OBSERVE, AUDIT])
    async def test_a_stream_that_is_only_watched_is_live(self, mode):
        api = await open_api(TaskVerifier("hidden", 1, mode=mode), script=("no number",))
        answer = await api.chat("t", stream=True)
        assert gather(answer.events)[0] == "no number"
        assert [call.streamed for call in api.engine.calls] == [True]
        assert api.logged.outcome == "unverified"


class TestWithdrawn:
    async def test_what_was_revoked_is_named_in_no_request(self):
        api = await open_api(TaskVerifier("sql", 1))
        api.verifiers.withdraw("sql", 2, revoked_at=1.0, revoked_reason="a secret reason")
        api.verifiers.withdraw("other", 1, archived_at=1.0)
        await api.roster.refresh()
        for name, code in (
            ("sql@2", "verifier_revoked"), ("other@1", "verifier_archived"), ("other", "verifier_archived"),
        ):  # fmt: skip
            refused = await api.chat("default", verifiers=[name])
            assert (refused.status, refused.error["code"], refused.error["param"]) == (400, code, "verifiers[0]")
            assert b"secret" not in refused.body
        assert verdicts_of(await api.chat("default", verifiers=["sql"])) == {"sql@1": "passed"}  # the latest that may

    async def test_a_pin_without_a_former_version_abstains(self):
        api = await open_api(TaskVerifier("hidden", 1), TaskVerifier("sql", 2, mode=OBSERVE))
        assert (await api.chat("t")).json()["mulligan"]["outcome"] == "exhausted"
        for name in ("hidden", "sql"):
            for version in (1, 2):
                api.verifiers.withdraw(name, version, revoked_at=1.0, revoked_reason="wrong")
        await api.roster.refresh()
        for fields in ({}, {"verifiers": ["hidden"]}):
            answer = await api.chat("t", **fields)
            assert answer.json()["mulligan"]["outcome"] == "unverified"
            (attempt,) = answer.json()["mulligan"]["attempts"]
            assert [(one["status"], one["cause"]) for one in attempt["verdicts"]] == [("abstained", "revoked")] * 2
        refused = await api.chat("t", verifiers=["hidden@1"])
        assert (refused.status, refused.error["code"]) == (400, "verifier_revoked")
        strict = await api.chat("t", retry={"on_abstain": "error"})
        assert (strict.status, strict.error["code"]) == (422, "verification_abstained")

    async def test_a_key_whose_pin_was_revoked_is_not_served_unverified_silently(self):
        api = await open_api(key_pins=[TaskVerifier("other", 1)])
        api.verifiers.withdraw("other", 1, revoked_at=1.0)
        await api.roster.refresh()
        answer = await api.chat("default", key=KEYED)
        assert verdicts_of(answer) == {"other@1": "abstained"}

    async def test_an_archived_version_that_is_pinned_goes_on(self):
        api = await open_api(TaskVerifier("sql", 1), verify=VerifyMode.ENFORCE)
        api.verifiers.withdraw("sql", 1, archived_at=1.0)
        await api.roster.refresh()
        assert verdicts_of(await api.chat("t")) == {"sql@1": "passed"}
        assert verdicts_of(await api.chat("t", verifiers=["sql@1"])) == {"sql@1": "passed"}

import asyncio
from unittest.mock import ANY

import pytest
from structlog.testing import capture_logs

from server.domain import Adapter, Outcome, RetryPolicy, Task, TaskVerifier, VerifyMode
from server.errors import EngineRefused, EngineUnavailable
from tests.fixtures.api import ADMIN, CLIENT, make_api
from tests.fixtures.engines import HANG, reply

FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]


async def test_an_answer_is_an_openai_completion_with_ours_beside_it():
    api = make_api("4")
    answer = await api.chat(verifiers=FOUR)
    assert answer.status == 200
    body = answer.json()
    episode_id = body["mulligan"]["episode_id"]
    assert body["object"] == "chat.completion"
    assert body["id"] == "chatcmpl-" + episode_id.removeprefix("ep_")
    assert body["model"] == "default"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "4"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    (attempt,) = body["mulligan"]["attempts"]
    assert (attempt["number"], attempt["status"], attempt["score"]) == (1, "passed", 1.0)
    assert [verdict["verifier"] for verdict in attempt["verdicts"]] == ["regex"]
    assert body["mulligan"]["outcome"] == answer.headers["x-mulligan-outcome"] == "passed"
    assert answer.headers["x-mulligan-episode"] == episode_id == api.logged.id
    assert answer.headers["x-mulligan-adapter"] == ""
    assert answer.headers["x-request-id"]


async def test_a_recovered_episode_answers_with_the_verified_attempt_and_sums_usage():
    api = make_api("5", "I miscounted.", "4")
    answer = await api.chat(verifiers=FOUR)
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == "4"
    assert body["usage"] == {"prompt_tokens": 30, "completion_tokens": 7, "total_tokens": 37}
    assert [attempt["status"] for attempt in body["mulligan"]["attempts"]] == ["failed", "passed"]
    assert body["mulligan"]["attempts"][0]["reason"] == "the pattern does not match"
    (reflection,) = body["mulligan"]["reflections"]
    assert (reflection["attempt"], reflection["text"]) == (1, "I miscounted.")
    assert reflection["usage"]["completion_tokens"] == 3
    assert api.logged.outcome is Outcome.RECOVERED
    assert list(api.logged.reflections[0].token_ids) == [100, 101, 102]


async def test_an_exhausted_episode_returns_its_last_answer_and_says_so():
    api = make_api("5", "Hm.", "6")
    answer = await api.chat(verifiers=FOUR)
    assert (answer.status, answer.headers["x-mulligan-outcome"]) == (200, "exhausted")
    assert answer.json()["choices"][0]["message"]["content"] == "6"


async def test_on_failure_error_is_a_422_with_the_verdicts():
    api = make_api("5", "Hm.", "6")
    answer = await api.chat(verifiers=FOUR, retry={"on_failure": "error"})
    assert answer.status == 422
    assert (answer.error["code"], answer.error["type"]) == ("verification_failed", "verification_error")
    assert [attempt["status"] for attempt in answer.error["mulligan"]["attempts"]] == ["failed", "failed"]
    assert answer.error["usage"]["total_tokens"] == 12 * 3
    assert answer.headers["x-mulligan-outcome"] == "exhausted"
    assert api.logged.outcome is Outcome.EXHAUSTED


async def test_on_abstain_error_is_a_422_too():
    broken = [{"kind": "regex", "config": {"pattern": "x{1000}"}}]
    api = make_api("4" * 150_000)  # too long for the pattern: the verifier abstains
    answer = await api.chat(verifiers=broken, retry={"on_abstain": "error"})
    assert (answer.status, answer.error["code"]) == (422, "verification_abstained")
    assert api.logged.outcome is Outcome.UNVERIFIED


async def test_a_skipped_verdict_is_no_error():
    skipped = [{**FOUR[0], "when": {"answer": "tool_call"}}]
    answer = await make_api("5").chat(verifiers=skipped, retry={"on_abstain": "error", "on_failure": "error"})
    assert (answer.status, answer.headers["x-mulligan-outcome"]) == (200, "unverified")


async def test_observing_never_refuses():
    answer = await make_api("5").chat(verifiers=FOUR, verify="observe", retry={"on_failure": "error"})
    assert (answer.status, answer.headers["x-mulligan-outcome"]) == (200, "exhausted")


async def test_tool_calls_and_logprobs_are_returned():
    logprobs = {"content": [{"token": "x", "logprob": -1.0, "bytes": None, "top_logprobs": []}], "refusal": None}
    call = {"name": "add", "arguments": '{"a": 1}'}
    api = make_api(reply(None, calls=[call], choice_logprobs=logprobs))
    choice = (await api.chat(logprobs=True)).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == call
    assert choice["logprobs"] == logprobs
    assert api.engine.calls[0].body["logprobs"] is True


class TestNames:
    async def test_the_base_id_serves_the_plain_base(self):
        api = make_api("4")
        api.tasks.put(Task("default", champion="default@1"))
        assert (await api.chat("base")).headers["x-mulligan-adapter"] == ""
        assert (api.engine.calls[0].adapter, api.logged.task) == ("", "default")

    async def test_the_base_id_with_a_task_serves_the_base_under_its_policy(self):
        api = make_api("5", "Hm.", "5", "Hm.", "4")
        api.tasks.put(Task("sums", champion="sums@1", retry=RetryPolicy(max_retries=2)))
        answer = await api.chat("base", task="sums", verifiers=FOUR)
        assert answer.headers["x-mulligan-outcome"] == "recovered"
        assert (api.engine.calls[0].adapter, api.logged.task) == ("", "sums")

    async def test_a_task_serves_its_champion(self):
        api = make_api("4")
        api.engine.adapters["sums@3"] = "/a"
        api.tasks.put(Task("sums", champion="sums@3"))
        answer = await api.chat("sums")
        assert answer.headers["x-mulligan-adapter"] == "sums@3"
        assert answer.json()["mulligan"]["adapter"] == "sums@3"
        assert answer.json()["model"] == "sums"
        assert api.engine.calls[0].adapter == "sums@3"

    async def test_an_adapter_is_pinned_for_admins_only(self):
        api = make_api("4")
        api.engine.adapters["sums@2"] = "/a"
        api.tasks.put(Task("sums", champion="sums@3"))
        api.adapters.put(Adapter("sums@2", "sums", "/a", {}))
        refused = await api.chat("sums@2")
        assert (refused.status, refused.error["type"]) == (403, "permission_error")
        assert (await api.chat("sums@9")).status == 403
        answer = await api.chat("sums@2", key=ADMIN)
        assert answer.headers["x-mulligan-adapter"] == "sums@2"
        assert api.logged.task == "sums"

    @pytest.mark.parametrize("model", ["nothing", "nothing@1", "base:sums@1", "DEFAULT"])
    async def test_an_unknown_model_is_a_404(self, model):
        answer = await make_api().chat(model, key=ADMIN)
        assert answer.status == 404
        assert (answer.error["code"], answer.error["param"]) == ("model_not_found", "model")

    async def test_task_and_model_may_not_disagree(self):
        api = make_api("4")
        api.tasks.put(Task("sums"))
        answer = await api.chat("sums", task="default")
        assert (answer.status, answer.error["param"]) == (400, "task")
        assert (await api.chat("sums", task="sums")).status == 200

    async def test_an_unknown_task_is_a_404(self):
        answer = await make_api().chat("base", task="nothing")
        assert (answer.status, answer.error["code"]) == (404, "task_not_found")

    async def test_a_task_of_another_process_is_found(self):
        api = make_api("4")
        await api.roster.refresh()
        api.tasks.put(Task("fresh"))
        assert (await api.chat("fresh")).status == 200

    async def test_a_missing_adapter_is_a_503_to_come_back_for(self):
        api = make_api("4")
        api.tasks.put(Task("sums", champion="sums@3"))
        answer = await api.chat("sums")
        assert (answer.status, answer.error["code"]) == (503, "adapter_missing")
        assert answer.headers["retry-after"] == "2"
        assert api.logged.outcome is Outcome.ERRORED


class TestVerifiers:
    @pytest.fixture
    def api(self):
        api = make_api("4")
        api.verifiers.put("four", "regex", {"pattern": "5"})
        api.verifiers.put("four", "regex", {"pattern": "4"})
        api.tasks.put(Task("sums", verifiers=(TaskVerifier("four", 1, {}, {"answer": "text"}),)))
        return api

    async def test_a_tasks_own_verifiers_check(self, api):
        answer = await api.chat("sums", retry={"max_retries": 0})
        assert answer.headers["x-mulligan-outcome"] == "exhausted"
        assert api.logged.bindings[0].pin == "four@1"

    async def test_a_bare_name_is_the_tasks_pin(self, api):
        await api.chat("sums", verifiers=["four"], retry={"max_retries": 0})
        (binding,) = api.logged.bindings
        assert (binding.pin, binding.when) == ("four@1", {"answer": "text"})

    async def test_a_bare_name_is_the_latest_where_the_task_pins_none(self, api):
        assert (await api.chat(verifiers=["four"])).headers["x-mulligan-outcome"] == "passed"
        assert api.logged.bindings[0].pin == "four@2"

    @pytest.mark.parametrize("entry", ["four@2", {"name": "four", "version": 2}])
    async def test_a_version_can_be_named(self, api, entry):
        assert (await api.chat("sums", verifiers=[entry])).headers["x-mulligan-outcome"] == "passed"
        assert api.logged.bindings[0].pin == "four@2"

    async def test_an_empty_list_checks_nothing(self, api):
        assert (await api.chat("sums", verifiers=[])).headers["x-mulligan-outcome"] == "unverified"

    async def test_a_verifier_registered_a_moment_ago_is_found(self, api):
        await api.roster.refresh()
        api.verifiers.put("fresh", "regex", {"pattern": "4"})
        assert (await api.chat(verifiers=["fresh"])).headers["x-mulligan-outcome"] == "passed"

    @pytest.mark.parametrize(
        ("entry", "param"),
        [
            ("nothing", "verifiers[1]"),
            ("four@9", "verifiers[1]"),
            ("four@x", "verifiers[1]"),
            ({}, "verifiers[1]"),
            ({"name": "four", "kind": "regex"}, "verifiers[1]"),
            ({"kind": "regex", "config": {"pattern": "4"}, "version": 1}, "verifiers[1].version"),
            ({"name": "four", "config": {}}, "verifiers[1].config"),
            ({"name": "four", "when": {"moon": "full"}}, "verifiers[1].when.moon"),
            ({"name": "four", "when": {"answer": ["text"]}}, "verifiers[1].when.answer"),
            ({"kind": "astrology"}, "verifiers[1].kind"),
            ({"kind": "regex", "config": {"pattern": "("}}, "verifiers[1].config.pattern"),
            ({"kind": "all_of"}, "verifiers[1].config"),
            ({"kind": "all_of", "config": {"verifiers": 3}}, "verifiers[1].config.verifiers"),
            ({"kind": "all_of", "config": {"verifiers": [{"kind": "all_of", "config": [1]}]}}, ANY),
            ({"kind": "all_of", "config": {"verifiers": ["four"]}}, "verifiers[1].config.verifiers[0]"),
            ({"kind": "countdown", "args": {"numbers": ["x"], "target": 3}}, "verifiers[1].args.numbers[0]"),
        ],
    )
    async def test_wrong_entries_are_named(self, api, entry, param):
        answer = await api.chat(verifiers=["four", entry])
        assert (answer.status, answer.error["param"]) == (400, param)
        assert api.engine.calls == []

    async def test_missing_args_are_told_their_place(self, api):
        answer = await api.chat(verifiers=[{"kind": "countdown"}])
        assert (answer.status, answer.error["param"]) == (400, "verifiers[0].args.numbers")
        assert answer.error["message"].endswith('Verifiers are given them as {"kind":"countdown","args":{}}.')

    async def test_inline_code_needs_a_scope_even_nested(self, api):
        code = {"kind": "python", "config": {"code": "def verify(request, answer, args):\n    return True\n"}}
        nested = {"kind": "all_of", "config": {"verifiers": [FOUR[0], code]}}
        for entry in (code, nested):
            answer = await api.chat(verifiers=[entry])
            assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")
            assert answer.error["message"].startswith("This needs the scope 'register_code'; the key ")

    async def test_a_task_whose_verifier_is_gone_is_refused(self, api):
        api.tasks.put(Task("broken", verifiers=(TaskVerifier("ghost", 1),)))
        answer = await api.chat("broken")
        assert (answer.status, answer.error["param"]) == (400, "task")

    async def test_the_pins_default_arguments_are_completed_by_the_requests(self, api):
        api.verifiers.put("count", "countdown", {})
        api.tasks.put(Task("numbers", verifiers=(TaskVerifier("count", 1, {"target": 4}),)))
        lacking = await api.chat("numbers")
        assert (lacking.status, lacking.error["param"]) == (400, "verifiers[0].args.numbers")
        entry = {"name": "count", "args": {"numbers": [4]}}
        assert (await api.chat("numbers", verifiers=[entry])).status == 200
        assert api.logged.bindings[0].args == {"target": 4, "numbers": [4]}


async def test_a_request_overrides_its_tasks_policy():
    api = make_api("5")
    api.tasks.put(Task("sums", verify=VerifyMode.OFF, retry=RetryPolicy(max_retries=3, show="reason")))
    await api.chat("sums", verifiers=FOUR, verify="enforce", retry={"max_retries": 0, "max_seconds": 9})
    assert api.logged.verify is VerifyMode.ENFORCE
    assert api.logged.retry == RetryPolicy(max_retries=0, max_seconds=9, show="reason")


async def test_the_episode_is_logged_before_the_answer_is_sent():
    api = make_api("4")
    connection = api.connect({"model": "default", "messages": [{"role": "user", "content": "q"}]})
    seen = []
    record = api.log.record

    async def note(episode):
        seen.append(connection.answer.status)
        await record(episode)

    api.log.record = note
    answer = await connection.run()
    assert (seen, answer.status, len(api.log.episodes)) == ([0], 200, 1)


async def test_an_answer_that_cannot_be_logged_is_not_given():
    api = make_api("4")
    await api.chat()
    api.log.away = True
    answer = await api.chat()
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "store_unavailable", "5")


async def test_the_log_has_the_request_as_it_was_and_who_asked():
    api = make_api("4")
    await api.chat(text="2+2?", verifiers=FOUR, temperature=0.5, user="u1")
    episode = api.logged
    assert episode.request == {
        "model": "default",
        "messages": [{"role": "user", "content": "2+2?"}],
        "temperature": 0.5,
        "user": "u1",
    }
    assert episode.key == f"key_{CLIENT}"
    assert episode.split in ("training", "held_out")
    assert episode.attempts[0].sampling["temperature"] == 0.5
    assert episode.attempts[0].sampling["top_p"] == 1.0
    assert episode.created_at > 1.7e9


async def test_store_false_keeps_the_row_without_content():
    api = make_api("5 secret", "secret thought", "4 secret")
    api.verifiers.put("four", "regex", {"pattern": "4"})
    stop = {"stop": ["secret stop"], "tools": [{"type": "function", "function": {"name": "secret"}}]}
    answer = await api.chat(text="secret?", verifiers=["four", *FOUR], store=False, **stop)
    assert answer.json()["choices"][0]["message"]["content"] == "4 secret"
    episode = api.logged
    assert "secret" not in repr(episode).replace(repr(episode.attempts[0].verdicts), "")
    assert (episode.store, episode.request, episode.outcome) == (False, None, Outcome.RECOVERED)
    assert episode.usage.total_tokens == answer.json()["usage"]["total_tokens"]
    assert list(episode.reflections[0].token_ids) == []
    assert [binding.pin for binding in episode.bindings] == ["four@1", "regex"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(EngineUnavailable("away"), 503, "engine_unavailable"), (EngineRefused("too long"), 400, "engine_refused")],
)
async def test_engine_errors_are_envelopes_and_are_logged(error, status, code):
    api = make_api(error)
    answer = await api.chat()
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.headers["x-mulligan-episode"] == api.logged.id
    assert api.logged.outcome is Outcome.ERRORED


async def test_a_bug_is_a_500_that_tells_nothing():
    api = make_api(ZeroDivisionError("secret"))
    with capture_logs() as lines:
        answer = await api.chat()
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert [line["event"] for line in lines] == ["request_broke"]
    assert api.logged.outcome is Outcome.ERRORED


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("verifiers", [[], FOUR])
async def test_a_client_that_leaves_cancels_the_engine_and_is_logged(stream, verifiers):
    api = make_api(HANG)
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": "q"}],
        "stream": stream,
        "verifiers": verifiers,
    }
    connection = api.connect(body)
    running = asyncio.create_task(connection.run())
    while not api.engine.running:
        await asyncio.sleep(0)
    assert api.traffic.in_flight() == {"": 1}
    connection.leave()
    answer = await asyncio.wait_for(running, 1)
    assert (answer.status, api.engine.cancelled) == (0, 1)
    assert api.logged.outcome is Outcome.CANCELLED
    assert api.traffic.in_flight() == {}


async def test_a_client_that_leaves_in_a_retry_leaves_its_first_attempt_in_the_log():
    api = make_api("5", HANG)
    body = {"model": "default", "messages": [{"role": "user", "content": "q"}], "verifiers": FOUR}
    connection = api.connect(body)
    running = asyncio.create_task(connection.run())
    while len(api.engine.calls) < 2:
        await asyncio.sleep(0)
    connection.leave()
    await asyncio.wait_for(running, 1)
    assert api.logged.outcome is Outcome.CANCELLED
    assert [attempt.status for attempt in api.logged.attempts] == ["failed"]


async def test_a_server_that_shuts_down_logs_what_it_cancels():
    api = make_api(HANG)
    running = asyncio.create_task(api.chat())
    while not api.engine.running:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (api.engine.cancelled, api.logged.outcome) == (1, Outcome.CANCELLED)


async def test_past_the_limit_of_concurrency_it_is_429():
    api = make_api(HANG, limits={"max_concurrent": 2, "max_queued": 0})
    running = [asyncio.create_task(api.chat()) for _ in range(2)]
    while api.engine.running < 2:
        await asyncio.sleep(0)
    answer = await api.chat()
    assert (answer.status, answer.error["type"], answer.headers["retry-after"]) == (429, "rate_limit_error", "1")
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    assert api.traffic.in_flight() == {}


async def test_an_episode_keeps_the_adapter_it_began_with():
    api = make_api("5", "Hm.", "4")
    api.engine.adapters |= {"sums@1": "/1", "sums@2": "/2"}
    api.tasks.put(Task("sums", champion="sums@1", generation=1))
    await api.roster.refresh()

    def flip(_body, adapter):
        api.tasks.flip("sums", "sums@2")
        return "5"

    api.engine.script[0] = flip
    answer = await api.chat("sums", verifiers=FOUR)
    assert [call.adapter for call in api.engine.calls] == ["sums@1"] * 3
    assert answer.headers["x-mulligan-adapter"] == "sums@1"
    await api.roster.refresh()
    assert (await api.chat("sums")).headers["x-mulligan-adapter"] == "sums@2"


@pytest.mark.parametrize("patience", ["0.06", "600", "nonsense", "nan", "-1", ""])
async def test_the_clients_own_timeout_is_the_deadline(patience):
    api = make_api(HANG if patience == "0.06" else "4")
    answer = await api.chat(headers={"x-stainless-read-timeout": patience})
    assert answer.status == (504 if patience == "0.06" else 200)


async def test_near_its_deadline_a_client_gets_what_there_is():
    api = make_api("5", HANG)
    answer = await api.chat(verifiers=FOUR, headers={"x-stainless-read-timeout": "0.06"})
    assert (answer.status, answer.headers["x-mulligan-outcome"]) == (200, "exhausted")


async def test_bodies_over_the_limit_are_413():
    api = make_api("4", limits={"body_max_bytes": 1024})
    announced = await api.chat(text="x" * 2000)
    assert (announced.status, announced.error["code"]) == (413, "request_too_large")
    lying = await api.chat(text="x" * 2000, headers={"content-length": "10"})
    assert lying.status == 413


async def test_inference_needs_its_scope():
    api = make_api("4")
    api.keys.put("mk-other", "viewer")
    answer = await api.chat(key="mk-other")
    assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")
    assert answer.error["message"].startswith("This needs the role 'client' or 'admin'; the key ")


async def test_a_request_brings_few_and_small_verifiers_along():
    many = await make_api("4").chat(verifiers=FOUR * 17)
    assert (many.status, many.error["param"]) == (400, "verifiers")
    large = await make_api("4").chat(verifiers=[{"kind": "regex", "config": {"pattern": "4" * 70_000}}])
    assert (large.status, large.error["param"]) == (400, "verifiers[0].config")
    costly = await make_api("4").chat(verifiers=[{"kind": "regex", "config": {"pattern": r"([\p{L}]{1,150})x0y"}}])
    assert (costly.status, costly.error["param"]) == (400, "verifiers[0].config.pattern")


@pytest.mark.parametrize("entry", ["rx@" + "9" * 5000, {"name": "rx@1", "version": 2}, "rx@x"])
async def test_a_version_that_cannot_be_is_the_clients_mistake(entry):
    answer = await make_api("4").chat(verifiers=[entry])
    assert (answer.status, answer.error["param"].startswith("verifiers[0]")) == (400, True)


class TestUnknownFields:
    """A task says what becomes of fields that nobody knows."""

    @pytest.fixture
    def api(self):
        api = make_api("4")
        api.tasks.put(Task("lax", unknown_fields="ignore"))
        api.tasks.put(Task("strict"))
        return api

    @pytest.mark.parametrize(("model", "more"), [("lax", {}), ("base", {"task": "lax"})])
    async def test_a_task_may_have_them_ignored(self, api, model, more):
        await api.roster.refresh()
        answer = await api.chat(model, colour="red", stream_options=None, retry={"tries": 3}, **more)
        assert answer.status == 200
        assert "colour" not in api.logged.request
        assert "colour" not in api.engine.calls[0].body

    async def test_else_they_are_refused(self, api):
        await api.roster.refresh()
        for model in ("strict", "default", "base", "nothing"):
            answer = await api.chat(model, colour="red")
            assert (answer.status, answer.error["param"], answer.error["code"]) == (400, "colour", "unknown_field")

    async def test_a_key_without_the_task_learns_nothing_of_it(self, api):
        await api.roster.refresh()
        api.keys.put("mk-narrow", tasks=["strict"])
        for more in ({}, {"messages": []}, {"task": "lax"}, {"n": 0}):
            answers = [await api.chat(model, colour="red", key="mk-narrow", **more) for model in ("lax", "nothing")]
            assert [(answer.status, answer.error) for answer in answers] == [(400, answers[1].error)] * 2

"""`/v1/completions` over memory: raw text in, raw text out, verified like any other answer."""

import json

import pytest
from openai.types import Completion
from openai.types.completion_create_params import CompletionCreateParamsBase

from server.api.fields import Use
from server.api.surfaces.completions import render_text_logprobs
from server.api.surfaces.completions_fields import COMPLETIONS_FIELDS
from server.api.surfaces.completions_request import CompletionsRequest
from server.domain import Outcome, Task, TaskVerifier
from server.errors import EngineBroken
from server.orchestration.reflection import RETRY
from tests.fixtures.api import make_api
from tests.fixtures.engines import HANG, reply

FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]
COLUMNS = {"tokens": ["2", "+2"], "token_logprobs": [-1.0, -0.5], "top_logprobs": [], "text_offset": [-1, -1]}
ROWS = {
    "content": [
        {"token": "4", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "5", "logprob": -1.0}]},
        {"token": " x", "logprob": -0.1, "bytes": None, "top_logprobs": []},
    ],
    "refusal": None,
}


async def complete(api, prompt="2+2=", *, key="mk-client", **fields):
    return await api.post("/v1/completions", {"model": "default", "prompt": prompt, **fields}, key=key)


def check(answer):
    """Check a completion against the SDK's own type, strictly."""
    assert answer.status == 200, answer.body
    completion = Completion.model_validate(answer.json(), strict=True)
    assert set(completion.model_extra or {}) <= {"mulligan"}
    return completion


def texts_of(events):
    """Put the text of each choice of a stream together."""
    texts = {}
    for event in events:
        assert event["object"] == "text_completion"
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


class TestFields:
    def test_every_field_of_the_sdk_is_in_the_table_and_no_other(self):
        openai = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
        extensions = {"top_k", "min_p", "repetition_penalty"}
        assert {name for name, field in COMPLETIONS_FIELDS.items() if not field.ours} == openai | extensions
        assert set(CompletionsRequest.__struct_fields__) == set(COMPLETIONS_FIELDS)

    async def test_what_is_asked_reaches_the_engine_and_nothing_else(self):
        api = make_api()
        asked = {
            "max_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "stop": ["x"],
            "seed": 3,
            "logprobs": 2,
            "frequency_penalty": 0.5,
            "presence_penalty": 0.25,
            "logit_bias": {"5": 1},
            "top_k": 4,
        }
        await complete(api, user="u", store=True, echo=None, suffix="", best_of=1, metadata={"a": "b"}, **asked)
        (call,) = api.engine.calls
        assert call.path == "text"
        assert {name: call.body[name] for name in asked} == asked
        assert set(call.body) == {*asked, "prompt", "min_p", "repetition_penalty"}

    async def test_a_silent_request_gets_sixteen_tokens(self):
        api = make_api()
        await complete(api)
        assert api.engine.calls[0].body["max_tokens"] == 16
        assert "logprobs" not in api.engine.calls[0].body

    async def test_no_logprobs_but_those_of_the_tokens_themselves(self):
        api = make_api(reply("2+2", choice_logprobs=COLUMNS))
        (choice,) = check(await complete(api, logprobs=0)).choices
        assert api.engine.calls[0].body["logprobs"] == 0
        assert (choice.logprobs.tokens, choice.logprobs.top_logprobs) == (["2", "+2"], None)
        assert choice.logprobs.text_offset == [0, 1]

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"foo": 1}, "foo"),
            ({"prompt": None}, "prompt"),
            ({"prompt": []}, "prompt"),
            ({"prompt": [1, "a"]}, "prompt"),
            ({"prompt": [[1], []]}, "prompt"),
            ({"prompt": [-1]}, "prompt"),
            ({"prompt": [True]}, "prompt"),
            ({"prompt": ["a"] * 17}, "prompt"),
            ({"prompt": ["a"] * 6, "n": 3}, "prompt"),
            ({"n": 17}, "n"),
            ({"n": 0}, "n"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"temperature": 3}, "temperature"),
            ({"logprobs": 6}, "logprobs"),
            ({"stop": ["a"] * 5}, "stop"),
            ({"suffix": "end"}, "suffix"),
            ({"best_of": 2}, "best_of"),
            ({"best_of": 1, "n": 2}, "best_of"),
            ({"echo": True, "logprobs": 1}, "echo"),
            ({"echo": True, "prompt": [1, 2]}, "echo"),
            ({"stream_options": {"include_usage": True}}, "stream_options"),
            ({"stream": True, "stream_options": {"include_attempts": True}}, "stream_options.include_attempts"),
            ({"retry": {"show": "all"}}, "retry.show"),
        ],
    )
    async def test_wrong_fields_are_named(self, fields, param):
        api = make_api()
        answer = await complete(api, **fields)
        assert (answer.status, answer.error["param"]) == (400, param)
        assert api.engine.calls == []

    @pytest.mark.parametrize("name", [name for name, field in COMPLETIONS_FIELDS.items() if field.use is Use.REFUSED])
    async def test_refused_fields_are_named_with_their_reason(self, name):
        answer = await complete(make_api(), **{name: "something"})
        assert (answer.error["param"], answer.error["code"]) == (name, "unsupported_field")
        assert COMPLETIONS_FIELDS[name].reason in answer.error["message"]

    async def test_a_task_may_ignore_unknown_fields(self):
        api = make_api()
        api.tasks.put(Task("lax", unknown_fields="ignore"))
        await api.get("/v1/models")  # the roster has read the tasks
        check(await api.post("/v1/completions", {"model": "lax", "prompt": "x", "foo": 1}))


class TestCompletion:
    async def test_an_answer_is_openais_completion_with_ours_beside_it(self):
        api = make_api("4")
        answer = await complete(api, verifiers=FOUR)
        completion = check(answer)
        assert completion.id == "cmpl-" + api.logged.id.removeprefix("ep_")
        assert (completion.choices[0].text, completion.choices[0].finish_reason) == ("4", "stop")
        assert completion.usage.total_tokens == 12
        assert answer.json()["mulligan"]["outcome"] == answer.headers["x-mulligan-outcome"] == "passed"
        assert answer.headers["x-mulligan-episode"] == api.logged.id

    async def test_it_is_logged_with_its_prompt_and_as_the_chat_that_a_retry_is(self):
        api = make_api("4")
        await complete(api, verifiers=FOUR, user="u")
        request = api.logged.request
        assert (request["prompt"], request["user"]) == ("2+2=", "u")
        assert request["messages"] == [{"role": "user", "content": "2+2="}]
        assert "verifiers" not in request

    async def test_several_prompts_times_n_are_so_many_choices(self):
        api = make_api(lambda body, _: f"{body['prompt']}:{body.get('seed')}")
        answer = await complete(api, ["a", "b"], n=2, seed=5)
        completion = check(answer)
        assert [(choice.index, choice.text) for choice in completion.choices] == [
            (0, "a:5"), (1, "a:6"), (2, "b:5"), (3, "b:6")
        ]  # fmt: skip
        assert completion.usage.total_tokens == 12 * 4
        assert len(answer.json()["mulligan"]["choices"]) == len(api.log.episodes) == 4
        assert sorted(episode.request["prompt"] for episode in api.log.episodes) == ["a", "a", "b", "b"]

    async def test_echo_goes_before_the_answer_and_not_into_the_log(self):
        api = make_api("4")
        completion = check(await complete(api, ["2+2=", "1+3="], echo=True, verifiers=FOUR))
        assert [choice.text for choice in completion.choices] == ["2+2=4", "1+3=4"]
        assert api.log.episodes[0].attempts[0].answer["content"] == "4"
        assert "echo" not in api.engine.calls[0].body

    @pytest.mark.parametrize(("prompt", "sent"), [([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]])])
    async def test_token_ids_are_continued_unverified(self, prompt, sent):
        api = make_api("4")
        completion = check(await complete(api, prompt))
        assert sorted(call.body["prompt"] for call in api.engine.calls) == sorted(sent)
        assert len(completion.choices) == len(sent)
        assert {episode.outcome for episode in api.log.episodes} == {Outcome.UNVERIFIED}

    @pytest.mark.parametrize("mode", ["enforce", "observe"])
    async def test_token_ids_are_refused_where_verifiers_apply(self, mode):
        api = make_api("4")
        answer = await complete(api, [1, 2], verifiers=FOUR, verify=mode)
        assert (answer.status, answer.error["param"], answer.error["code"]) == (400, "prompt", "unverifiable_prompt")
        assert api.engine.calls == []
        check(await complete(api, [1, 2], verifiers=FOUR, verify="off"))

    async def test_token_ids_are_refused_where_the_tasks_own_verifiers_apply(self):
        api = make_api("4")
        api.verifiers.put("four", "regex", {"pattern": "4"})
        api.tasks.put(Task("sums", verifiers=(TaskVerifier("four", 1),)))
        answer = await api.post("/v1/completions", {"model": "sums", "prompt": [1, 2]})
        assert (answer.status, answer.error["code"]) == (400, "unverifiable_prompt")

    async def test_an_unknown_model_is_a_404(self):
        answer = await make_api().post("/v1/completions", {"model": "gpt", "prompt": "x"})
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")


class TestVerification:
    async def test_a_failed_answer_is_reflected_on_and_retried_as_a_chat(self):
        api = make_api("5", "I miscounted.", reply("4 x", choice_logprobs=ROWS))
        answer = await complete(api, verifiers=FOUR, logprobs=1)
        completion = check(answer)
        assert answer.headers["x-mulligan-outcome"] == "recovered"
        assert completion.usage.total_tokens == 12 + 13 + 13
        assert [call.path for call in api.engine.calls] == ["text", "chat", "chat"]
        retried = api.engine.calls[2]
        assert [message["content"] for message in retried.messages[:2]] == ["2+2=", "5"]
        assert retried.messages[-1]["content"] == RETRY
        assert (retried.body["max_completion_tokens"], retried.body["top_logprobs"]) == (16, 1)
        assert not {"prompt", "echo"} & set(retried.body)
        logprobs = completion.choices[0].logprobs
        assert (logprobs.tokens, logprobs.token_logprobs) == (["4", " x"], [-0.5, -0.1])
        assert (logprobs.top_logprobs, logprobs.text_offset) == ([{"5": -1.0}, {}], [0, 1])

    async def test_each_choice_is_verified_by_itself(self):
        api = make_api(lambda body, _: "4" if "prompt" not in body or body["prompt"] == "a" else "5")
        answer = await complete(api, ["a", "b"], verifiers=FOUR)
        assert [choice.text for choice in check(answer).choices] == ["4", "4"]
        ours = answer.json()["mulligan"]
        assert [choice["outcome"] for choice in ours["choices"]] == ["passed", "recovered"]
        assert answer.headers["x-mulligan-outcome"] == ours["outcome"] == "recovered"

    async def test_on_failure_error_is_a_422_with_the_verdicts(self):
        api = make_api("5", "Hm.", "6")
        answer = await complete(api, verifiers=FOUR, retry={"on_failure": "error"})
        assert (answer.status, answer.error["code"]) == (422, "verification_failed")
        assert len(answer.error["mulligan"]["attempts"]) == 2

    async def test_observing_only_says_so(self):
        answer = await complete(make_api("5"), verifiers=FOUR, verify="observe")
        assert (check(answer).choices[0].text, answer.headers["x-mulligan-outcome"]) == ("5", "exhausted")


class TestStreams:
    async def test_live_text_passes_under_the_completions_own_id(self):
        api = make_api("one two three")
        answer = await complete(api, stream=True, echo=True)
        assert api.engine.calls[0].streamed
        assert answer.lines[-1] == "data: [DONE]"
        events = answer.events
        assert texts_of(events) == {0: "2+2=one two three"}
        assert {event["id"] for event in events} == {"cmpl-" + api.logged.id.removeprefix("ep_")}
        assert {event["model"] for event in events} == {"default"}
        assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "stop"]
        assert ["mulligan" in event for event in events] == [False, False, True]
        assert api.logged.attempts[0].answer["content"] == "one two three"
        assert api.logged.usage.total_tokens == 14

    async def test_the_usage_is_a_last_chunk_where_asked_for(self):
        events = (await complete(make_api("4"), stream=True, stream_options={"include_usage": True})).events
        assert (events[-1]["choices"], events[-1]["usage"]["total_tokens"]) == ([], 12)
        assert events[-1]["mulligan"]["outcome"] == "unverified"
        assert events[-2]["mulligan"] == events[-1]["mulligan"]  # some clients never look at the usage's chunk

    async def test_several_choices_share_a_stream(self):
        api = make_api(lambda body, _: f"{body['prompt']} end")
        options = {"include_usage": True}
        events = (await complete(api, ["a", "b"], stream=True, stream_options=options)).events
        assert texts_of(events) == {0: "a end", 1: "b end"}
        assert len({event["id"] for event in events}) == 1
        ends = [choice["index"] for event in events for choice in event["choices"] if choice["finish_reason"]]
        assert sorted(ends) == [0, 1]
        assert events[-1]["usage"]["total_tokens"] == 26

    async def test_a_held_answer_shows_only_what_was_verified(self):
        api = make_api("5", "I miscounted.", reply("4 x", choice_logprobs=ROWS))
        answer = await complete(api, verifiers=FOUR, stream=True, logprobs=1)
        assert texts_of(answer.events) == {0: "4 x"}
        assert answer.events[0]["choices"][0]["logprobs"]["tokens"] == ["4", " x"]
        assert answer.events[-1]["mulligan"]["outcome"] == answer.headers["x-mulligan-outcome"] == "recovered"
        assert [event["choices"][0]["finish_reason"] for event in answer.events] == [None, "stop"]

    async def test_unverified_text_goes_live_and_the_verdict_comes_last(self):
        events = (await complete(make_api("5 6"), verifiers=FOUR, stream=True, unverified_stream=True)).events
        assert texts_of(events) == {0: "5 6"}
        assert events[-1]["mulligan"]["outcome"] == "exhausted"

    async def test_logprobs_of_live_chunks_are_shown_in_place_and_logged_whole(self, monkeypatch):
        api = make_api("2+2")
        told = [("2", [-1.0]), ("+2", [-0.5])]

        async def stream_text(body, adapter):
            for text, values in told:
                logprobs = {"tokens": [text], "token_logprobs": values, "top_logprobs": None, "text_offset": [-1]}
                end = "stop" if text == "+2" else None
                yield render({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": end})

        monkeypatch.setattr(api.engine, "stream_text", stream_text)
        events = (await complete(api, stream=True, logprobs=0)).events
        assert [event["choices"][0]["logprobs"]["text_offset"] for event in events] == [[0], [1]]
        logged = api.logged.attempts[0].logprobs
        assert (logged["tokens"], logged["token_logprobs"]) == (["2", "+2"], [-1.0, -0.5])

    async def test_what_breaks_midway_is_an_error_event(self, monkeypatch):
        api = make_api("x")

        async def stream_text(body, adapter):
            yield render({"index": 0, "text": "one", "logprobs": None, "finish_reason": None})
            raise EngineBroken("It broke.")

        monkeypatch.setattr(api.engine, "stream_text", stream_text)
        answer = await complete(api, stream=True)
        assert answer.events[-1]["error"]["code"] == "engine_error"
        assert answer.lines[-1] != "data: [DONE]"
        assert api.logged.outcome is Outcome.ERRORED
        assert api.logged.attempts[0].answer["content"] == "one"

    async def test_who_hangs_is_cut_off_at_the_deadline(self):
        answer = await complete(make_api(HANG, limits={"deadline_s": 0.05}), stream=True)
        assert (answer.status, answer.error["code"]) == (504, "engine_timeout")


def render(choice):
    return json.dumps({"id": "e", "object": "text_completion", "choices": [choice]}).encode()


def test_no_logprobs_stay_none():
    assert render_text_logprobs(None) is None

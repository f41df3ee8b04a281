"""What OpenAI's fields mean where answers are verified: see `docs/openai-compatibility.md`, "Under verification"."""

import pytest

from server.orchestration.reflection import REFLECT, RETRY
from tests.component.api.test_streams import gather
from tests.fixtures.api import make_api
from tests.fixtures.engines import reply

FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
RIGHT = {"name": "add", "arguments": '{"a": 2, "b": 2}'}
WRONG = {"name": "add", "arguments": '{"a": 2}'}
MALFORMED = {"name": "add", "arguments": '{"a": 2, "b"'}
CHECK_CALL = [{"kind": "function_call", "args": {"reference": [{"name": "add", "arguments": {"a": 2, "b": 2}}]}}]


class TestTools:
    @pytest.mark.parametrize("wrong", [WRONG, MALFORMED])
    async def test_the_verdict_is_on_the_call(self, wrong):
        api = make_api(reply(None, calls=[wrong]), "I forgot b.", reply(None, calls=[RIGHT]))
        choice = {"type": "function", "function": {"name": "add"}}
        answer = await api.chat(tools=[ADD], tool_choice=choice, parallel_tool_calls=False, verifiers=CHECK_CALL)
        body = answer.json()
        assert body["mulligan"]["outcome"] == "recovered"
        assert body["choices"][0]["finish_reason"] == "tool_calls"
        assert [call["function"] for call in body["choices"][0]["message"]["tool_calls"]] == [RIGHT]
        first, reflection, retry = [call.body for call in api.engine.calls]
        assert first["tools"] == retry["tools"] == [ADD]
        assert first["tool_choice"] == retry["tool_choice"] == choice
        assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(reflection)
        assert wrong["arguments"] in reflection["messages"][-2]["content"]  # as text: engines refuse a malformed call
        assert "add(a: integer, b: integer) - Adds." in reflection["messages"][-1]["content"]

    async def test_parallel_calls_are_judged_together(self):
        both = [{"name": "add", "arguments": '{"a": 1, "b": 1}'}, RIGHT]
        expected = [{"name": "add", "arguments": {"a": 1, "b": 1}}, {"name": "add", "arguments": {"a": 2, "b": 2}}]
        api = make_api(reply(None, calls=both))
        check = [{"kind": "function_call", "args": {"reference": expected}}]
        assert (await api.chat(tools=[ADD], verifiers=check)).json()["mulligan"]["outcome"] == "passed"

    async def test_a_clarifying_question_is_skipped_where_the_binding_waits_for_a_call(self):
        api = make_api("Which numbers do you mean?")
        check = [{**CHECK_CALL[0], "when": {"answer": "tool_call"}}]
        answer = await api.chat(tools=[ADD], verifiers=check)
        body = answer.json()
        assert (body["mulligan"]["outcome"], answer.headers["x-mulligan-outcome"]) == ("unverified", "unverified")
        assert body["mulligan"]["attempts"][0]["status"] == "skipped"
        assert (body["choices"][0]["message"]["content"], len(api.engine.calls)) == ("Which numbers do you mean?", 1)

    async def test_without_that_condition_it_fails(self):
        api = make_api("Which numbers?", "I should have called.", reply(None, calls=[RIGHT]))
        assert (await api.chat(tools=[ADD], verifiers=CHECK_CALL)).json()["mulligan"]["outcome"] == "recovered"

    async def test_a_turn_after_tools_results_has_verifiers_of_its_own(self):
        call = {"id": "c", "type": "function", "function": RIGHT}
        messages = [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "4"},
        ]
        checks = [
            {**CHECK_CALL[0], "when": {"last_role": "user"}},
            {"kind": "regex", "config": {"pattern": "^It is 4"}, "when": {"last_role": "tool"}},
        ]
        api = make_api("It is five", "Hm.", "It is 4")
        answer = await api.chat(messages=messages, tools=[ADD], verifiers=checks)
        said = answer.json()["mulligan"]
        assert said["outcome"] == "recovered"
        assert [one["status"] for one in said["attempts"][0]["verdicts"]] == ["skipped", "failed"]
        assert api.engine.calls[0].messages == messages
        assert api.engine.calls[2].messages[:3] == messages

    async def test_in_a_held_stream_only_the_verified_call_is_seen(self):
        api = make_api(reply(None, calls=[WRONG]), "I forgot b.", reply(None, calls=[RIGHT]))
        answer = await api.chat(tools=[ADD], verifiers=CHECK_CALL, stream=True)
        assert gather(answer.events) == ("", [RIGHT], "tool_calls")


async def test_logprobs_are_those_of_the_attempt_that_is_returned():
    rows = [{"content": [{"token": text, "logprob": -1.0}], "refusal": None} for text in ("5", "4")]
    api = make_api(reply("5", choice_logprobs=rows[0]), "Hm.", reply("4", choice_logprobs=rows[1]))
    body = (await api.chat(verifiers=FOUR, logprobs=True, top_logprobs=2)).json()
    assert body["choices"][0]["logprobs"] == rows[1]
    first, reflection, retry = [call.body for call in api.engine.calls]
    assert [one.get("top_logprobs") for one in (first, reflection, retry)] == [2, None, 2]


async def test_what_shapes_an_answer_shapes_retries_but_never_reflections():
    shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    given = {
        "seed": 11,
        "stop": ["END"],
        "response_format": shape,
        "temperature": 0.25,
        "logit_bias": {"17": -100},
        "max_completion_tokens": 33,
    }
    api = make_api("5", "Hm.", "4")
    await api.chat(verifiers=FOUR, **given)
    first, reflection, retry = [call.body for call in api.engine.calls]
    for name, value in given.items():
        assert first[name] == retry[name] == value
    assert not {"seed", "stop", "response_format", "logit_bias"} & set(reflection)
    assert reflection["temperature"] == 1
    assert reflection["max_completion_tokens"] != 33


@pytest.mark.parametrize(("text", "outcome", "calls"), [("four is 4", "passed", 1), ("five is", "exhausted", 3)])
async def test_a_truncated_attempt_is_judged_as_it_is(text, outcome, calls):
    api = make_api(reply(text, finish_reason="length"), "Hm.", reply("still five", finish_reason="length"))
    answer = await api.chat(verifiers=FOUR, max_tokens=3)
    choice = answer.json()["choices"][0]
    assert (answer.headers["x-mulligan-outcome"], choice["finish_reason"]) == (outcome, "length")
    assert len(api.engine.calls) == calls
    assert answer.json()["mulligan"]["attempts"][0]["finish_reason"] == "length"


async def test_the_finish_reason_is_that_of_the_attempt_that_is_returned():
    api = make_api(reply("five is", finish_reason="length"), "Too long.", "4")
    body = (await api.chat(verifiers=FOUR)).json()
    assert body["choices"][0]["finish_reason"] == "stop"
    assert [one["finish_reason"] for one in body["mulligan"]["attempts"]] == ["length", "stop"]


async def test_a_conversation_is_shown_whole_with_only_the_latest_failure_behind_it():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2+2?"},
    ]
    api = make_api("5", "First thought.", "6", "Second thought.", "4")
    await api.chat(messages=messages, verifiers=FOUR, retry={"max_retries": 2})
    shown = [call.messages for call in api.engine.calls]
    assert all(one[:4] == messages for one in shown)
    assert [one["content"] for one in shown[3][4:]] == ["6", REFLECT]
    assert [one["content"] for one in shown[4][4:]] == ["6", REFLECT, "Second thought.", RETRY]


async def test_usage_is_the_sum_and_says_what_it_is_made_of():
    body = (await make_api("5", "I miscounted.", "4").chat(verifiers=FOUR)).json()
    parts = body["mulligan"]["usage"]
    assert [parts[name]["total_tokens"] for name in ("answer", "failed_attempts", "reflections")] == [12, 12, 13]
    assert body["usage"]["total_tokens"] == 37

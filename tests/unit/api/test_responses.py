"""`/v1/responses` over memory: what is read, what is rendered, and that both are what OpenAI's own types say."""

import typing

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from openai.types.responses.response_includable import ResponseIncludable
from pydantic import TypeAdapter

from server.api.fields import Use
from server.api.surfaces.responses_fields import RESPONSES_FIELDS
from server.api.surfaces.responses_request import INCLUDABLE, ResponsesRequest
from server.domain import Outcome, Task, TaskVerifier
from server.errors import EngineBroken
from tests.fixtures.api import ADMIN, make_api
from tests.fixtures.engines import reply

FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": True}
ALLOWED = {"type": "allowed_tools", "mode": "auto"}
CALL = {"name": "add", "arguments": '{"a": 1}'}
FILE = {"type": "input_file", "file_id": "f"}
IMAGE = {**FILE, "type": "input_image"}
EVENTS = TypeAdapter(ResponseStreamEvent)
LOGPROBS = {
    "content": [{"token": "4", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "5", "logprob": -1.0}]}],
    "refusal": None,
}


async def respond(api, given="2+2?", *, key="mk-client", **fields):
    return await api.post("/v1/responses", {"model": "default", "input": given, **fields}, key=key)


def check(body):
    """Check a response against the SDK's own type, strictly."""
    response = Response.model_validate(body, strict=True)
    assert set(response.model_extra or {}) <= {"mulligan"}
    assert [item.model_extra for item in response.output] == [{}] * len(response.output)
    return response


def read_events(answer):
    """Read named events, check each against the SDK's types, and that they are numbered without a gap."""
    events = []
    for line in answer.lines:
        if line.startswith(":"):
            continue
        name, _, data = line.partition("\n")
        event = EVENTS.validate_json(data.removeprefix("data: "), strict=True)
        assert name == f"event: {event.type}"
        assert event.type == "error" or not event.model_extra
        events.append(event)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


def kinds_of(events):
    return [event.type.removeprefix("response.") for event in events]


TEXT_EVENTS = ["output_item.added", "content_part.added", "output_text.delta"]
TEXT_ENDS = ["output_text.done", "content_part.done", "output_item.done"]


class TestFields:
    def test_every_field_of_the_sdk_is_in_the_table_and_no_other(self):
        openai = set(ResponseCreateParamsBase.__annotations__) | {"stream"}
        assert {name for name, field in RESPONSES_FIELDS.items() if not field.ours} == openai
        assert set(ResponsesRequest.__struct_fields__) == set(RESPONSES_FIELDS)
        assert set(typing.get_args(ResponseIncludable)) == INCLUDABLE

    @pytest.mark.parametrize("name", [name for name, field in RESPONSES_FIELDS.items() if field.use is Use.REFUSED])
    async def test_refused_fields_are_named_with_their_reason(self, name):
        answer = await respond(make_api(), **{name: {"some": "thing"}})
        assert (answer.status, answer.error["param"], answer.error["code"]) == (400, name, "unsupported_field")
        assert RESPONSES_FIELDS[name].reason in answer.error["message"]
        for harmless in (None, *RESPONSES_FIELDS[name].harmless):
            assert (await respond(make_api(), **{name: harmless})).status == 200

    @pytest.mark.parametrize("name", [name for name, field in RESPONSES_FIELDS.items() if field.use is Use.IGNORED])
    async def test_ignored_fields_never_reach_the_engine(self, name):
        api, plain = make_api(), make_api()
        await respond(plain)
        assert (await respond(api, **{name: "whatever"})).status == 200
        assert api.engine.calls[0].body == plain.engine.calls[0].body

    async def test_what_is_asked_reaches_the_engine_in_chats_words(self):
        api = make_api(reply("4", choice_logprobs=LOGPROBS))
        schema = {"type": "object", "properties": {}}
        await respond(
            api,
            [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
            instructions="You count.",
            tools=[TOOL],
            tool_choice={"type": "function", "name": "add"},
            parallel_tool_calls=False,
            text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}, "verbosity": "low"},
            max_output_tokens=5,
            temperature=0.5,
            top_p=0.9,
            top_logprobs=2,
        )
        (call,) = api.engine.calls
        assert call.messages == [
            {"role": "system", "content": "You count."},
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2+2?"},
        ]
        function = {"name": "add", "parameters": TOOL["parameters"], "strict": True}
        expected = {
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": "add"}},
            "parallel_tool_calls": False,
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
            "max_completion_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "logprobs": True,
            "top_logprobs": 2,
        }
        assert {name: call.body.get(name) for name in expected} == expected
        assert not {"model", "stream", "input", "instructions"} & set(call.body)

    async def test_only_allowed_tools_are_shown(self):
        api = make_api()
        other = {**TOOL, "name": "subtract"}
        choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]}
        answer = await respond(api, tools=[TOOL, other], tool_choice=choice)
        check(answer.json())
        body = api.engine.calls[0].body
        assert ([tool["function"]["name"] for tool in body["tools"]], body["tool_choice"]) == (["add"], "required")

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"foo": 1}, "foo"),
            ({"model": ""}, "model"),
            ({"input": 5}, "input"),
            ({"input": []}, "input"),
            ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
            ({"input": [{"role": "user", "content": "x", "foo": 1}]}, "input[0].foo"),
            ({"input": [{"role": "user", "content": [FILE]}]}, "input[0].content[0].type"),
            ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0].file_id"),
            ({"input": [{"type": "computer_call", "id": "c"}]}, "input[0].type"),
            ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
            ({"input": [{"type": "function_call_output", "call_id": "c", "output": "4"}]}, "input"),
            ({"input": [{"type": "item_reference", "id": 4}]}, "input[0].id"),
            ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
            ({"tools": [TOOL, {"type": "mcp", "server_label": "x"}]}, "tools[1].type"),
            ({"tools": [{**TOOL, "name": ""}]}, "tools[0].name"),
            ({"tools": [{**TOOL, "name": "no name"}]}, "tools[0].name"),
            ({"tools": [{**TOOL, "foo": 1}]}, "tools[0].foo"),
            ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
            ({"tool_choice": "perhaps"}, "tool_choice"),
            ({"tool_choice": {"type": "function", "name": "add"}}, "tool_choice.name"),
            ({"tool_choice": {"type": "function", "name": {}}}, "tool_choice.name"),
            ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
            ({"tools": [TOOL], "tool_choice": {**ALLOWED, "tools": [{"name": []}]}}, "tool_choice"),
            ({"input": [{"type": ["message"], "content": "x"}]}, "input[0].type"),
            ({"tools": [TOOL], "tool_choice": {**ALLOWED, "tools": []}}, "tool_choice"),
            ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
            ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
            ({"text": {"format": {"type": "json_schema", "name": "n n", "schema": {}}}}, "text.format.name"),
            ({"text": {"foo": 1}}, "text.foo"),
            ({"temperature": 3}, "temperature"),
            ({"max_output_tokens": 0}, "max_output_tokens"),
            ({"top_logprobs": 21}, "top_logprobs"),
            ({"include": ["everything"]}, "include[0]"),
            ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
            ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
            ({"verifiers": ["v", {"nam": "v"}]}, "verifiers[1].nam"),
            ({"retry": {"show": "all"}}, "retry.show"),
            ({"unverified_stream": True}, "unverified_stream"),
        ],
    )  # fmt: skip
    async def test_wrong_fields_are_named(self, fields, param):
        api = make_api()
        answer = await respond(api, **fields)
        assert (answer.status, answer.error["param"]) == (400, param)
        assert "messages[" not in answer.error["message"]
        assert api.engine.calls == []

    async def test_a_task_may_ignore_unknown_fields(self):
        api = make_api()
        api.tasks.put(Task("lax", unknown_fields="ignore"))
        await api.get("/v1/models")  # the roster has read the tasks
        assert (await api.post("/v1/responses", {"model": "lax", "input": "2+2?", "foo": 1})).status == 200
        api.keys.put("mk-other", tasks=("default",))
        refused = await api.post("/v1/responses", {"model": "lax", "input": "2+2?", "foo": 1}, key="mk-other")
        assert (refused.status, refused.error["param"]) == (400, "foo")


class TestResponse:
    async def test_an_answer_is_openais_response_with_ours_beside_it(self):
        api = make_api("4")
        answer = await respond(api, verifiers=FOUR, metadata={"a": "b"}, user="u", temperature=0.5)
        body = answer.json()
        response = check(body)
        assert answer.status == 200
        assert (response.status, response.output_text, response.model) == ("completed", "4", "default")
        assert response.id == "resp_" + api.logged.id.removeprefix("ep_")
        assert (response.metadata, response.user, response.temperature) == ({"a": "b"}, "u", 0.5)
        assert body["usage"] == {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 12,
        }
        assert body["mulligan"]["outcome"] == answer.headers["x-mulligan-outcome"] == "passed"
        assert answer.headers["x-mulligan-episode"] == body["mulligan"]["episode_id"] == api.logged.id

    async def test_it_is_logged_as_the_chat_that_it_amounts_to(self):
        api = make_api("4")
        await respond(api, instructions="Count.", tools=[TOOL], verifiers=FOUR)
        request = api.logged.request
        assert request["messages"] == [{"role": "system", "content": "Count."}, {"role": "user", "content": "2+2?"}]
        assert request["tools"][0]["function"]["name"] == "add"
        assert request["responses"]["instructions"] == "Count."
        assert not {"verifiers", "task", "input"} & set(request)

    async def test_calls_are_items_with_ids_of_their_own(self):
        answer = reply("Let me see.", calls=[CALL, {**CALL, "arguments": "{}"}])
        answer.message["tool_calls"][1]["id"] = None  # some engines give none
        api = make_api(answer)
        response = check((await respond(api, tools=[TOOL])).json())
        text, first, second = response.output
        assert (text.type, text.content[0].text) == ("message", "Let me see.")
        assert (first.name, first.arguments, first.call_id) == ("add", '{"a": 1}', "call_0")
        assert second.call_id
        assert len({text.id, first.id, second.id}) == 3

    async def test_what_the_engine_reasons_is_an_item_before_the_answer(self):
        engine_said = reply("4")
        engine_said.message["reasoning_content"] = "Two and two."
        response = check((await respond(make_api(engine_said))).json())
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.output[0].content[0].text == "Two and two."

    @pytest.mark.parametrize("asked", [{"include": ["message.output_text.logprobs"]}, {"top_logprobs": 1}])
    async def test_logprobs_are_those_of_the_answer_with_bytes(self, asked):
        api = make_api(reply("4", choice_logprobs=LOGPROBS))
        (part,) = check((await respond(api, **asked)).json()).output[0].content
        (token,) = part.logprobs
        assert (token.token, token.bytes, token.top_logprobs[0].bytes) == ("4", [52], [53])

    @pytest.mark.parametrize(
        ("reason", "told"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
    )
    async def test_a_cut_off_answer_is_incomplete(self, reason, told):
        response = check((await respond(make_api(reply("4", finish_reason=reason)))).json())
        assert (response.status, response.incomplete_details.reason) == ("incomplete", told)
        assert response.output[0].status == "incomplete"
        assert response.completed_at is None

    async def test_items_become_messages(self):
        api = make_api("done")
        image = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
        refusal = {"type": "refusal", "refusal": "add."}
        items = [
            {"role": "user", "content": [{"type": "input_text", "text": "add"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "id": "m", "role": "assistant", "status": "completed",
             "content": [{"type": "output_text", "text": "I ", "annotations": []}, refusal]},
            {"type": "function_call", "id": "f", "call_id": "c1", "name": "add", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "3"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "4"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, image]},
        ]  # fmt: skip
        api.settings.engine.images = True
        assert (await respond(api, items)).status == 200
        function = {"name": "add", "arguments": "{}"}
        assert api.engine.calls[0].messages == [
            {"role": "user", "content": "add"},
            {
                "role": "assistant",
                "content": "I add.",
                "tool_calls": [{"id": one, "type": "function", "function": function} for one in ("c1", "c2")],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {"role": "tool", "tool_call_id": "c2", "content": "4"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
                ],
            },
        ]

    async def test_images_are_refused_where_the_model_reads_none(self):
        part = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
        answer = await respond(make_api(), [{"role": "user", "content": [part]}])
        assert (answer.status, answer.error["param"], answer.error["code"]) == (400, "input", "unsupported_field")


class TestVerification:
    async def test_a_failed_answer_is_reflected_on_and_retried(self):
        api = make_api("5", "I miscounted.", "4")
        answer = await respond(api, verifiers=FOUR)
        body = answer.json()
        assert check(body).output_text == "4"
        assert answer.headers["x-mulligan-outcome"] == body["mulligan"]["outcome"] == "recovered"
        usage = body["usage"]
        assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (30, 7, 37)
        assert usage["output_tokens_details"] == {"reasoning_tokens": 5}  # the failed attempt and the reflection
        assert api.logged.outcome is Outcome.RECOVERED
        assert api.logged.reflections[0].token_ids

    async def test_on_failure_error_is_a_422_with_the_verdicts(self):
        api = make_api("5", "Hm.", "6")
        answer = await respond(api, verifiers=FOUR, retry={"on_failure": "error"})
        assert (answer.status, answer.error["code"]) == (422, "verification_failed")
        assert [attempt["status"] for attempt in answer.error["mulligan"]["attempts"]] == ["failed", "failed"]
        response = "resp_" + api.logged.id.removeprefix("ep_")
        shown = (await api.get(f"/v1/responses/{response}")).json()
        assert (check(shown).status, shown["output"], shown["error"]["type"]) == ("failed", [], "verification_error")
        refused = await respond(api, previous_response_id=response)
        assert (refused.status, refused.error["param"]) == (400, "previous_response_id")

    async def test_observing_only_says_so(self):
        api = make_api("5")
        body = (await respond(api, verifiers=FOUR, verify="observe")).json()
        assert (check(body).output_text, body["mulligan"]["outcome"]) == ("5", "exhausted")
        assert len(api.engine.calls) == 1

    async def test_a_tasks_own_verifiers_judge_the_call(self):
        api = make_api(reply(None, calls=[CALL]), "Hm.", "4")
        api.verifiers.put("four", "regex", {"pattern": "4"})
        api.tasks.put(Task("sums", verifiers=(TaskVerifier("four", 1),)))
        body = (await api.post("/v1/responses", {"model": "sums", "input": "2+2?", "tools": [TOOL]})).json()
        assert (body["mulligan"]["outcome"], check(body).output_text) == ("recovered", "4")


class TestStreams:
    async def test_a_live_answer_has_openais_events_in_order(self):
        api = make_api("one two three")
        answer = await respond(api, stream=True)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = read_events(answer)
        assert kinds_of(events) == [
            "created", "in_progress", *TEXT_EVENTS, "output_text.delta", "output_text.delta", *TEXT_ENDS, "completed"
        ]  # fmt: skip
        assert "".join(event.delta for event in events if event.type.endswith("text.delta")) == "one two three"
        assert (events[0].response.status, events[0].response.output) == ("in_progress", [])
        last = events[-1].response
        assert (last.output_text, last.usage.total_tokens) == ("one two three", 14)
        assert last.model_extra["mulligan"]["outcome"] == "unverified"
        assert last.id == events[0].response.id
        assert api.logged.attempts[0].answer["content"] == "one two three"

    async def test_live_calls_are_items_beside_the_text(self):
        said = reply("Adding.", calls=[CALL, CALL])
        said.message["reasoning_content"] = "Hm."
        events = read_events(await respond(make_api(said), tools=[TOOL], stream=True))
        kinds = kinds_of(events)
        assert kinds[2:6] == ["output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"]
        assert kinds[-5:] == [*["function_call_arguments.done", "output_item.done"] * 2, "completed"]
        done = [event.item for event in events if event.type == "response.output_item.done"]
        last = events[-1].response
        assert [item.type for item in last.output] == ["reasoning", "message", "function_call", "function_call"]
        assert [item.id for item in last.output] == [item.id for item in done]
        for at, item in enumerate(last.output[2:], 2):
            deltas = [
                one.delta
                for one in events
                if one.type == "response.function_call_arguments.delta" and one.output_index == at
            ]
            assert "".join(deltas) == item.arguments == CALL["arguments"]

    async def test_a_held_answer_is_verified_before_its_first_event(self):
        api = make_api("5", "I miscounted.", "4")
        answer = await respond(api, verifiers=FOUR, stream=True)
        events = read_events(answer)
        assert kinds_of(events) == ["created", "in_progress", *TEXT_EVENTS, *TEXT_ENDS, "completed"]
        assert answer.headers["x-mulligan-outcome"] == "recovered"
        assert b"miscounted" not in answer.body.partition(b"response.completed")[0]
        assert events[-1].response.output_text == "4"
        assert events[-1].response.usage.total_tokens == 37

    async def test_attempts_and_reflections_are_reasoning_items_where_asked_for(self):
        api = make_api("5", "I miscounted.", "4")
        options = {"include_attempts": True, "include_obfuscation": True}
        events = read_events(await respond(api, verifiers=FOUR, stream=True, stream_options=options))
        summary = [f"reasoning_summary_{what}" for what in ("part.added", "text.delta", "text.done", "part.done")]
        assert kinds_of(events) == [
            "created", "in_progress", "output_item.added", *summary, *summary, "output_item.done",
            *TEXT_EVENTS, *TEXT_ENDS, "completed",
        ]  # fmt: skip
        reasoning, message = events[-1].response.output
        assert "5" in reasoning.summary[0].text
        assert "I miscounted." in reasoning.summary[1].text
        assert message.content[0].text == "4"

    async def test_a_cut_off_answer_ends_incomplete(self):
        for verifiers in ([], FOUR):
            events = read_events(
                await respond(make_api(reply("4", finish_reason="length")), stream=True, verifiers=verifiers)
            )
            assert kinds_of(events)[-1] == "incomplete"
            assert events[-1].response.incomplete_details.reason == "max_output_tokens"

    async def test_an_answer_without_anything_is_an_empty_message(self):
        events = read_events(await respond(make_api(reply("")), stream=True))
        assert kinds_of(events) == [
            "created", "in_progress", "output_item.added", "content_part.added", *TEXT_ENDS, "completed"
        ]  # fmt: skip
        assert events[-1].response.output_text == ""

    async def test_unverified_tokens_go_live_and_the_verdict_comes_last(self):
        api = make_api("5 and 6")
        events = read_events(await respond(api, verifiers=FOUR, stream=True, unverified_stream=True))
        assert kinds_of(events).count("output_text.delta") == 3
        assert events[-1].response.model_extra["mulligan"]["outcome"] == "exhausted"

    async def test_logprobs_go_with_their_delta(self):
        api = make_api(reply("4", choice_logprobs=LOGPROBS))
        events = read_events(await respond(api, verifiers=FOUR, stream=True, top_logprobs=1))
        delta = next(event for event in events if event.type == "response.output_text.delta")
        assert (delta.logprobs[0].token, delta.logprobs[0].top_logprobs[0].token) == ("4", "5")
        assert events[-1].response.output[0].content[0].logprobs[0].bytes == [52]

    async def test_what_breaks_before_the_first_event_is_a_plain_error(self):
        answer = await respond(make_api(EngineBroken("It broke.")), stream=True)
        assert (answer.status, answer.error["code"]) == (502, "engine_error")

    async def test_what_breaks_midway_fails_the_response_and_raises_in_the_sdk(self, monkeypatch):
        api = make_api("one two")

        async def break_off(body, adapter):
            async for chunk in type(api.engine).stream(api.engine, body, adapter):
                yield chunk
                if b"one" in chunk:
                    raise EngineBroken("It broke.")

        monkeypatch.setattr(api.engine, "stream", break_off)
        events = read_events(await respond(api, stream=True))
        assert kinds_of(events) == ["created", "in_progress", *TEXT_EVENTS, "failed", "error"]
        failed, error = events[-2:]
        assert (failed.response.status, failed.response.error.code) == ("failed", "server_error")
        assert (error.code, error.model_extra["error"]["message"]) == ("engine_error", "It broke.")
        response = failed.response.id
        assert check((await api.get(f"/v1/responses/{response}")).json()).status == "failed"

    async def test_a_refusal_midway_has_the_verdicts(self):
        api = make_api("5", "Hm.", "6")
        options = {"include_attempts": True}
        retry = {"on_failure": "error"}
        events = read_events(await respond(api, verifiers=FOUR, stream=True, stream_options=options, retry=retry))
        assert kinds_of(events)[-2:] == ["failed", "error"]
        assert events[-1].code == "verification_failed"
        assert events[-1].model_extra["error"]["mulligan"]["outcome"] == "exhausted"
        assert events[-2].response.model_extra["mulligan"]["outcome"] == "exhausted"


class TestConversations:
    async def test_the_conversation_goes_on_without_the_old_instructions(self):
        api = make_api("4", "8", "16")
        first = check((await respond(api, "2+2?", instructions="Be brief.")).json())
        second = check((await respond(api, "twice?", previous_response_id=first.id, instructions="Shout.")).json())
        assert second.previous_response_id == first.id
        await respond(api, "twice?", previous_response_id=second.id)
        two = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
        again = {"role": "user", "content": "twice?"}
        assert api.engine.calls[1].messages == [{"role": "system", "content": "Shout."}, *two, again]
        assert api.engine.calls[2].messages == [*two, again, {"role": "assistant", "content": "8"}, again]

    async def test_calls_go_on_with_their_outputs(self):
        said = reply(None, calls=[CALL])
        said.message["tool_calls"][0]["id"] = None
        api = make_api(said, "3")
        first = check((await respond(api, tools=[TOOL])).json())
        output = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "3"}
        second = await respond(api, [output], previous_response_id=first.id)
        assert check(second.json()).output_text == "3"
        *_, answer, tool = api.engine.calls[1].messages
        assert answer["tool_calls"][0]["id"] == tool["tool_call_id"] == output["call_id"]
        unanswered = await respond(api, "hello", previous_response_id=first.id)
        assert (unanswered.status, unanswered.error["param"]) == (400, "input")

    async def test_a_retried_answer_goes_on_as_it_was_returned(self):
        api = make_api("5", "Hm.", "4", "8")
        first = (await respond(api, verifiers=FOUR)).json()["id"]
        await respond(api, "twice?", previous_response_id=first)
        assert [message["content"] for message in api.engine.calls[-1].messages] == ["2+2?", "4", "twice?"]

    @pytest.mark.parametrize("role", ["client", "admin"])
    async def test_nobody_goes_on_from_anothers(self, role):
        api = make_api("4")
        api.keys.put("mk-other", role)
        first = (await respond(api)).json()["id"]
        answer = await respond(api, previous_response_id=first, key="mk-other")
        assert (answer.status, answer.error["code"]) == (404, "previous_response_not_found")
        mine = (await respond(api, key=ADMIN)).json()["id"]
        assert (await respond(api, previous_response_id=mine)).status == 404
        for path in (first, f"{first}/input_items"):
            shown = await api.get(f"/v1/responses/{path}", key="mk-other")
            assert (shown.status, shown.error["code"]) == (404, "response_not_found")
        reference = [{"type": "item_reference", "id": first.replace("resp_", "msg_")}]
        refused = await respond(api, reference, key="mk-other")
        assert (refused.status, refused.error["code"]) == (404, "item_not_found")
        assert len(api.engine.calls) == 2

    async def test_a_key_loses_what_its_task_list_no_longer_has(self):
        api = make_api("4")
        first = (await respond(api)).json()["id"]
        api.keys.put("mk-client", tasks=("other",))
        api.context.keyring.forget(next(iter(api.keys.keys)))
        assert (await respond(api, previous_response_id=first)).status == 404

    async def test_what_was_not_stored_cannot_be_found(self):
        api = make_api("4")
        first = (await respond(api, store=False)).json()["id"]
        assert api.logged.request is None
        assert (await respond(api, previous_response_id=first)).status == 404
        assert (await api.get(f"/v1/responses/{first}")).status == 404

    @pytest.mark.parametrize("given", ["resp_x", "resp_\0", "ep_x", "", "chatcmpl-x"])
    async def test_a_chat_is_no_response(self, given):
        api = make_api("4")
        chat = await api.chat()
        ids = [given, "resp_" + chat.headers["x-mulligan-episode"].removeprefix("ep_")]
        for one in ids:
            answer = await respond(api, previous_response_id=one)
            assert answer.status == (404 if one else 400)
            assert answer.error["param"] == "previous_response_id"

    async def test_an_item_can_be_referred_to(self):
        api = make_api("4")
        first = check((await respond(api)).json())
        items = (await api.get(f"/v1/responses/{first.id}/input_items")).json()["data"]
        asked = [
            {"type": "item_reference", "id": items[0]["id"]},
            {"id": first.output[0].id},
            {"role": "user", "content": "so?"},
        ]
        assert (await respond(api, asked)).status == 200
        assert [message["content"] for message in api.engine.calls[-1].messages] == ["2+2?", "4", "so?"]
        missing = await respond(api, [{"type": "item_reference", "id": "msg_nothing"}])
        assert (missing.status, missing.error["param"]) == (404, "input[0].id")


class TestReading:
    async def test_a_stored_response_reads_as_it_was_answered(self):
        api = make_api("5", "Hm.", reply("4", calls=[CALL], choice_logprobs=LOGPROBS))
        asked = {"verifiers": FOUR, "tools": [TOOL], "instructions": "x", "metadata": {"a": "b"}, "top_logprobs": 1}
        answered = (await respond(api, **asked)).json()
        shown = (await api.get(f"/v1/responses/{answered['id']}")).json()
        check(shown)
        assert shown == answered
        refused = await api.get(f"/v1/responses/{answered['id']}?stream=true")
        assert (refused.status, refused.error["param"]) == (400, "stream")

    async def test_input_items_are_paged(self):
        api = make_api(reply(None, calls=[CALL]), "3")
        first = check((await respond(api, "add", tools=[TOOL])).json())
        output = {"type": "function_call_output", "call_id": "call_0", "output": "3"}
        second = (await respond(api, [output], previous_response_id=first.id)).json()["id"]
        path = f"/v1/responses/{second}/input_items"
        whole = (await api.get(f"{path}?order=asc")).json()
        assert [item["type"] for item in whole["data"]] == ["message", "function_call", "function_call_output"]
        assert whole["has_more"] is False
        page = (await api.get(f"{path}?limit=2")).json()
        assert ([item["type"] for item in page["data"]], page["has_more"]) == (
            ["function_call_output", "function_call"],
            True,
        )
        rest = (await api.get(f"{path}?limit=2&after={page['last_id']}")).json()
        assert rest["data"] == whole["data"][:1]
        assert (await api.get(f"{path}?after=nothing")).error["param"] == "after"

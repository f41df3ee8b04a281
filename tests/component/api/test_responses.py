"""`/v1/responses` over memory: what is read, what is rendered, what it means under verification."""

import typing

import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from openai.types.responses.response_includable import ResponseIncludable

from server.api.fields import Use
from server.api.surfaces.responses_fields import RESPONSES_FIELDS
from server.api.surfaces.responses_request import INCLUDABLE, ResponsesRequest
from server.domain import Outcome, Task, TaskVerifier
from tests.fixtures.api import make_api
from tests.fixtures.engines import reply
from tests.fixtures.responses import CALL, FOUR, LOGPROBS, TOOL, check_response, respond

ALLOWED = {"type": "allowed_tools", "mode": "auto"}
FILE = {"type": "input_file", "file_id": "f"}
IMAGE = {**FILE, "type": "input_image"}


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
        check_response(answer.json())
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
        response = check_response(body)
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
        response = check_response((await respond(api, tools=[TOOL])).json())
        text, first, second = response.output
        assert (text.type, text.content[0].text) == ("message", "Let me see.")
        assert (first.name, first.arguments, first.call_id) == ("add", '{"a": 1}', "call_0")
        assert second.call_id
        assert len({text.id, first.id, second.id}) == 3

    async def test_what_the_engine_reasons_is_an_item_before_the_answer(self):
        engine_said = reply("4")
        engine_said.message["reasoning_content"] = "Two and two."
        response = check_response((await respond(make_api(engine_said))).json())
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.output[0].content[0].text == "Two and two."

    @pytest.mark.parametrize("asked", [{"include": ["message.output_text.logprobs"]}, {"top_logprobs": 1}])
    async def test_logprobs_are_those_of_the_answer_with_bytes(self, asked):
        api = make_api(reply("4", choice_logprobs=LOGPROBS))
        (part,) = check_response((await respond(api, **asked)).json()).output[0].content
        (token,) = part.logprobs
        assert (token.token, token.bytes, token.top_logprobs[0].bytes) == ("4", [52], [53])

    @pytest.mark.parametrize(
        ("reason", "told"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
    )
    async def test_a_cut_off_answer_is_incomplete(self, reason, told):
        response = check_response((await respond(make_api(reply("4", finish_reason=reason)))).json())
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
        assert check_response(body).output_text == "4"
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
        assert (check_response(shown).status, shown["output"], shown["error"]["type"]) == (
            "failed",
            [],
            "verification_error",
        )
        refused = await respond(api, previous_response_id=response)
        assert (refused.status, refused.error["param"]) == (400, "previous_response_id")

    async def test_observing_only_says_so(self):
        api = make_api("5")
        body = (await respond(api, verifiers=FOUR, verify="observe")).json()
        assert (check_response(body).output_text, body["mulligan"]["outcome"]) == ("5", "exhausted")
        assert len(api.engine.calls) == 1

    async def test_a_tasks_own_verifiers_judge_the_call(self):
        api = make_api(reply(None, calls=[CALL]), "Hm.", "4")
        api.verifiers.put("four", "regex", {"pattern": "4"})
        api.tasks.put(Task("sums", verifiers=(TaskVerifier("four", 1),)))
        body = (await api.post("/v1/responses", {"model": "sums", "input": "2+2?", "tools": [TOOL]})).json()
        assert (body["mulligan"]["outcome"], check_response(body).output_text) == ("recovered", "4")

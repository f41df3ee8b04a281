"""Streams of `/v1/responses` over memory: OpenAI's events, in OpenAI's order."""

from server.errors import EngineBroken
from tests.fixtures.api import make_api
from tests.fixtures.engines import reply
from tests.fixtures.responses import CALL, FOUR, LOGPROBS, TOOL, check_response, kinds_of, read_events, respond

TEXT_EVENTS = ["output_item.added", "content_part.added", "output_text.delta"]
TEXT_ENDS = ["output_text.done", "content_part.done", "output_item.done"]


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
        assert check_response((await api.get(f"/v1/responses/{response}")).json()).status == "failed"

    async def test_a_refusal_midway_has_the_verdicts(self):
        api = make_api("5", "Hm.", "6")
        options = {"include_attempts": True}
        retry = {"on_failure": "error"}
        events = read_events(await respond(api, verifiers=FOUR, stream=True, stream_options=options, retry=retry))
        assert kinds_of(events)[-2:] == ["failed", "error"]
        assert events[-1].code == "verification_failed"
        assert events[-1].model_extra["error"]["mulligan"]["outcome"] == "exhausted"
        assert events[-2].response.model_extra["mulligan"]["outcome"] == "exhausted"

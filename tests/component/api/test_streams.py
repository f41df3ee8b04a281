import asyncio
import json

import pytest

from server.api import serve
from server.domain import Outcome
from server.errors import EngineBroken, EngineUnavailable
from tests.fixtures.api import make_api
from tests.fixtures.engines import HANG, chunks_of, reply

FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]
CALL = {"name": "add", "arguments": '{"a": 1, "b": 2}'}


def gather(events):
    """Put chunks together as a client does."""
    text, calls, finish = "", {}, None
    for event in events:
        for choice in event["choices"]:
            finish = choice["finish_reason"] or finish
            text += choice["delta"].get("content") or ""
            for part in choice["delta"].get("tool_calls") or ():
                call = calls.setdefault(part["index"], {"name": "", "arguments": ""})
                call["name"] += part["function"].get("name") or ""
                call["arguments"] += part["function"].get("arguments") or ""
    return text, [calls[index] for index in sorted(calls)], finish


class TestLive:
    async def test_the_engines_chunks_pass_untouched_but_for_the_last(self):
        api = make_api("one two three")
        answer = await api.chat(stream=True)
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        *engine, finish, _usage = [chunk.decode() for chunk in chunks_of(reply("one two three"))]
        lines = [line.removeprefix("data: ") for line in answer.lines]
        assert lines[: len(engine)] == engine
        assert lines[-1] == "[DONE]"
        assert lines[-2].startswith(finish[:-1])
        assert len(lines) == len(engine) + 2

    async def test_the_last_chunk_says_what_happened(self):
        api = make_api("one two")
        answer = await api.chat(stream=True)
        said = answer.events[-1]["mulligan"]
        assert (said["outcome"], said["episode_id"]) == ("unverified", api.logged.id)
        assert answer.headers["x-mulligan-episode"] == api.logged.id
        assert [event for event in answer.events[:-1] if "mulligan" in event] == []

    async def test_usage_comes_where_it_was_asked_for(self):
        with_usage = await make_api("one").chat(stream=True, stream_options={"include_usage": True})
        assert with_usage.events[-1]["choices"] == []
        assert with_usage.events[-1]["usage"]["total_tokens"] == 12
        assert with_usage.events[-1]["mulligan"] == with_usage.events[-2]["mulligan"]
        assert with_usage.events[-1]["mulligan"]["outcome"] == "unverified"
        assert with_usage.events[-2]["choices"][0]["finish_reason"] == "stop"
        without = await make_api("one").chat(stream=True)
        assert [event for event in without.events if "usage" in event] == []

    async def test_the_engine_is_asked_for_usage_so_that_the_log_has_it(self):
        api = make_api("one two")
        await api.chat(stream=True)
        assert api.engine.calls[0].body["stream_options"] == {"include_usage": True}
        (attempt,) = api.logged.attempts
        assert attempt.answer == {"role": "assistant", "content": "one two"}
        assert (attempt.usage.prompt_tokens, attempt.usage.completion_tokens) == (10, 3)
        assert (attempt.finish_reason, attempt.status) == ("stop", "skipped")
        assert "stream_options" not in attempt.sampling

    async def test_tool_calls_are_gathered_for_the_log(self):
        api = make_api(reply(None, calls=[CALL, {"name": "f", "arguments": "{}"}]))
        answer = await api.chat(stream=True)
        assert gather(answer.events) == ("", [CALL, {"name": "f", "arguments": "{}"}], "tool_calls")
        (attempt,) = api.logged.attempts
        assert [call["function"] for call in attempt.answer["tool_calls"]] == [CALL, {"name": "f", "arguments": "{}"}]
        assert attempt.answer["tool_calls"][0]["id"] == "call_0"
        assert attempt.answer["content"] is None

    async def test_observing_streams_live_and_judges_before_the_end(self):
        api = make_api("5")
        answer = await api.chat(stream=True, verifiers=FOUR, verify="observe")
        assert answer.events[-1]["mulligan"]["outcome"] == "exhausted"
        assert answer.events[-1]["mulligan"]["attempts"][0]["reason"] == "the pattern does not match"
        assert len(answer.events) == len(chunks_of(reply("5"))) - 1
        assert (len(api.engine.calls), api.logged.attempts[0].status) == (1, "failed")

    async def test_the_episode_is_logged_before_the_last_chunk(self):
        api = make_api("one two")
        connection = api.connect({"model": "default", "messages": [{"role": "user", "content": "q"}], "stream": True})
        seen = []
        record = api.log.record

        async def note(episode):
            seen.append(connection.answer.body)
            await record(episode)

        api.log.record = note
        answer = await connection.run()
        assert b'finish_reason": "stop' not in seen[0]
        assert b"two" in seen[0]
        assert answer.body.endswith(b"data: [DONE]\n\n")

    async def test_an_answer_that_cannot_be_logged_ends_in_an_error(self):
        api = make_api("one two")
        await api.chat()
        api.log.away = True
        answer = await api.chat(stream=True)
        assert answer.events[-1]["error"]["code"] == "store_unavailable"
        assert "[DONE]" not in answer.lines[-1]
        assert answer.whole

    async def test_an_engine_that_refuses_has_a_status(self):
        answer = await make_api(EngineUnavailable("away")).chat(stream=True)
        assert (answer.status, answer.error["code"]) == (503, "engine_unavailable")

    @pytest.mark.parametrize("broken", [b'{"error": {"message": "boom"}}', b"nonsense", None])
    async def test_an_engine_that_breaks_off_ends_in_an_error_event(self, broken):
        api = make_api("one two")

        async def stream(body, adapter):
            yield chunks_of(reply("one two"))[1]
            if broken is not None:
                yield broken

        api.engine.stream = stream
        answer = await api.chat(stream=True)
        assert answer.status == 200
        assert answer.events[-1]["error"]["code"] == "engine_error"
        assert answer.lines[-1] != "data: [DONE]"
        assert api.logged.outcome is Outcome.ERRORED
        assert api.logged.attempts[0].answer["content"] == "one "

    async def test_an_aborted_answer_is_an_error(self):
        api = make_api(reply("one", finish_reason="abort"))
        answer = await api.chat(stream=True)
        assert answer.events[-1]["error"]["code"] == "engine_error"

    async def test_a_client_that_leaves_midway_leaves_a_partial_answer_in_the_log(self):
        api = make_api("one two")
        closed = []

        async def stream(body, adapter):
            try:
                yield chunks_of(reply("one two"))[0]
                yield chunks_of(reply("one two"))[1]
                await asyncio.Event().wait()
            finally:
                closed.append(True)

        api.engine.stream = stream
        connection = api.connect({"model": "default", "messages": [{"role": "user", "content": "q"}], "stream": True})
        running = asyncio.create_task(connection.run())
        while b"one" not in connection.answer.body:
            await asyncio.sleep(0)
        connection.leave()
        await asyncio.wait_for(running, 1)
        assert api.logged.outcome is Outcome.CANCELLED
        assert api.logged.attempts[0].answer["content"] == "one "
        assert closed == [True]

    async def test_logprobs_are_gathered_for_the_log(self):
        api = make_api("x")
        rows = [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}]

        async def stream(body, adapter):
            for row in rows:
                choice = {"index": 0, "delta": {"content": row["token"]}, "logprobs": {"content": [row]}}
                yield json.dumps({"choices": [choice]}).encode()
            yield json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).encode()

        api.engine.stream = stream
        await api.chat(stream=True, logprobs=True)
        assert api.logged.attempts[0].logprobs == {"content": rows, "refusal": None}


class TestHeld:
    async def test_nothing_unverified_is_sent(self):
        api = make_api("five", "Hm.", "4 it is")
        answer = await api.chat(stream=True, verifiers=FOUR)
        assert b"five" not in answer.body.replace(b'"text":"five"', b"")
        assert gather(answer.events) == ("4 it is", [], "stop")
        assert answer.headers["x-mulligan-outcome"] == "recovered"
        last = answer.events[-1]
        assert last["choices"][0]["finish_reason"] == "stop"
        assert last["mulligan"]["outcome"] == "recovered"
        assert "usage" not in last
        assert answer.lines[-1] == "data: [DONE]"
        assert {event["id"] for event in answer.events} == {"chatcmpl-" + api.logged.id.removeprefix("ep_")}
        assert {event["object"] for event in answer.events} == {"chat.completion.chunk"}
        assert answer.events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}

    async def test_usage_counts_everything(self):
        api = make_api("5", "Hm.", "4")
        answer = await api.chat(stream=True, verifiers=FOUR, stream_options={"include_usage": True})
        last = answer.events[-1]
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == 36
        assert last["mulligan"]["outcome"] == "recovered"
        assert answer.events[-2]["choices"][0]["finish_reason"] == "stop"

    async def test_tool_calls_are_chunked_as_openai_does(self):
        api = make_api(reply(None, calls=[CALL, {"name": "f", "arguments": "{}"}]))
        call = [{"kind": "regex", "config": {"pattern": ""}}]
        answer = await api.chat(stream=True, verifiers=call)
        assert gather(answer.events) == ("", [CALL, {"name": "f", "arguments": "{}"}], "tool_calls")
        opening = answer.events[1]["choices"][0]["delta"]["tool_calls"][0]
        assert (opening["index"], opening["id"], opening["type"]) == (0, "call_0", "function")

    async def test_logprobs_travel_with_the_text(self):
        logprobs = {"content": [{"token": "4", "logprob": -1.0}], "refusal": None}
        api = make_api(reply("4", choice_logprobs=logprobs))
        answer = await api.chat(stream=True, verifiers=FOUR, logprobs=True)
        assert [event["choices"][0]["logprobs"] for event in answer.events] == [None, logprobs, None]

    async def test_a_failure_may_be_an_error_with_its_status(self):
        api = make_api("5")
        answer = await api.chat(stream=True, verifiers=FOUR, retry={"max_retries": 0, "on_failure": "error"})
        assert (answer.status, answer.error["code"]) == (422, "verification_failed")

    async def test_comments_keep_the_connection_alive(self, monkeypatch):
        monkeypatch.setattr(serve, "KEEP_ALIVE_S", 0.01)
        api = make_api("4")
        api.engine.delay_s = 0.25
        answer = await api.chat(stream=True, verifiers=FOUR)
        comments = [line for line in answer.lines if line.startswith(":")]
        assert len(comments) >= 2
        assert gather(answer.events) == ("4", [], "stop")
        assert answer.headers["x-mulligan-episode"] == api.logged.id

    async def test_an_impatient_client_gets_comments_sooner(self):
        api = make_api("4")
        api.engine.delay_s = 0.05
        answer = await api.chat(stream=True, verifiers=FOUR, headers={"x-stainless-read-timeout": "0.02"})
        assert answer.lines[0].startswith(":")

    @pytest.mark.parametrize(
        ("script", "code"), [(["5"], "verification_failed"), ([EngineBroken("boom")], "engine_error")]
    )
    async def test_after_a_comment_errors_are_events(self, script, code):
        api = make_api(*script)
        api.engine.delay_s = 0.05
        answer = await api.chat(
            stream=True,
            verifiers=FOUR,
            retry={"max_retries": 0, "on_failure": "error"},
            headers={"x-stainless-read-timeout": "0.02"},
        )
        assert (answer.status, answer.events[-1]["error"]["code"]) == (200, code)
        assert answer.lines[-1] != "data: [DONE]"
        assert answer.whole

    async def test_a_client_that_leaves_after_a_comment_cancels(self):
        api = make_api(HANG)
        connection = api.connect(
            {"model": "default", "messages": [{"role": "user", "content": "q"}], "stream": True, "verifiers": FOUR},
            headers={"x-stainless-read-timeout": "0.02"},
        )
        running = asyncio.create_task(connection.run())
        await asyncio.wait_for(connection.progress.wait(), 1)
        connection.leave()
        await asyncio.wait_for(running, 1)
        assert (api.engine.cancelled, api.logged.outcome) == (1, Outcome.CANCELLED)

    async def test_attempts_and_reflections_are_shown_where_asked_for(self):
        api = make_api("five", "I cannot count.", "6", "Still not.", "4 it is")
        answer = await api.chat(
            stream=True, verifiers=FOUR, retry={"max_retries": 2}, stream_options={"include_attempts": True}
        )
        deltas = [event["choices"][0]["delta"] for event in answer.events]
        assert [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta] == [
            "Attempt 1 failed:\nfive\n\n",
            "Reflection:\nI cannot count.\n\n",
            "Attempt 2 failed:\n6\n\n",
            "Reflection:\nStill not.\n\n",
        ]
        assert [delta["role"] for delta in deltas if "role" in delta] == ["assistant"]
        assert gather(answer.events) == ("4 it is", [], "stop")
        assert answer.events[-1]["mulligan"]["outcome"] == "recovered"

    async def test_an_answer_that_passes_at_once_has_nothing_to_show(self):
        answer = await make_api("4").chat(stream=True, verifiers=FOUR, stream_options={"include_attempts": True})
        assert b"reasoning_content" not in answer.body
        assert answer.headers["x-mulligan-outcome"] == "passed"


class TestUnverified:
    async def test_live_tokens_are_an_explicit_choice_with_the_verdict_at_the_end(self):
        api = make_api("five it is")
        answer = await api.chat(stream=True, verifiers=FOUR, unverified_stream=True)
        assert gather(answer.events) == ("five it is", [], "stop")
        assert len(answer.events) > 3
        assert answer.events[-1]["mulligan"]["outcome"] == "exhausted"
        assert (len(api.engine.calls), api.logged.verify) == (1, "observe")

    async def test_it_says_nothing_without_a_stream(self):
        answer = await make_api("4").chat(verifiers=FOUR, unverified_stream=True)
        assert (answer.status, answer.error["param"]) == (400, "unverified_stream")

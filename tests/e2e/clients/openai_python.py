"""openai-python: what Mulligan adds is there as extra attributes, and in the headers of the raw response.

A verdict that is an error is an `openai.UnprocessableEntityError`, which the SDK does not retry.
"""

import asyncio
import os

import openai
from pydantic import BaseModel

BASE_URL, API_KEY = os.environ["MULLIGAN_BASE_URL"], os.environ["MULLIGAN_API_KEY"]
SUM = {"role": "user", "content": "Use the numbers 10, 9 and 4 to make 31."}
CHECKED = {"verifiers": [{"name": "countdown", "args": {"numbers": [10, 9, 4], "target": 31}}]}
BOOKING = {"role": "user", "content": "Book a table with 14 people in Riko."}


class book_table(BaseModel):  # the class's name is the tool's  # noqa: N801
    city: str
    people: int


def ask(client: openai.OpenAI) -> None:
    """Ask, and read what the verifier said."""
    completion = client.chat.completions.create(model="sums", messages=[SUM], temperature=0, extra_body=CHECKED)
    assert completion.mulligan["outcome"] == "passed", completion
    print("sync:", completion.choices[0].message.content, "-", completion.mulligan["outcome"])

    raw = client.chat.completions.with_raw_response.create(
        model="sums", messages=[SUM], temperature=0, extra_body=CHECKED
    )
    assert raw.headers["x-mulligan-outcome"] == "passed", raw.headers
    assert raw.parse().choices[0].message.content == completion.choices[0].message.content


def see_failure(client: openai.OpenAI) -> None:
    """See why an answer failed: in the completion, or in the error where the task wants one."""
    completion = client.chat.completions.create(
        model="polite", messages=[SUM], temperature=0, extra_body={"retry": {"on_failure": "return_last"}}
    )
    assert completion.mulligan["outcome"] == "exhausted", completion
    first, last = completion.mulligan["attempts"]
    print(f"exhausted: attempt {first['number']} {first['verdict']}: {first['reason']}")
    assert completion.usage.total_tokens > first["usage"]["total_tokens"] + last["usage"]["total_tokens"]
    try:
        client.chat.completions.create(model="polite", messages=[SUM], temperature=0)
    except openai.UnprocessableEntityError as error:
        assert (error.code, error.type) == ("verification_failed", "verification_error"), error.body
        attempts = error.body["mulligan"]["attempts"]
        print(f"422 {error.code}: {attempts[-1]['verdicts'][0]['verifier']}: {attempts[-1]['reason']}")
        assert len(attempts) == 2, attempts
    else:
        raise AssertionError("no answer says please, and yet one passed")


def parse(client: openai.OpenAI) -> None:
    """Parse the arguments of a verified call into a class."""
    completion = client.chat.completions.parse(
        model="bookings", messages=[BOOKING], temperature=0, tools=[openai.pydantic_function_tool(book_table)]
    )
    (call,) = completion.choices[0].message.tool_calls
    assert call.function.parsed_arguments == book_table(city="Riko", people=14), call
    assert completion.mulligan["outcome"] == "passed", completion
    print("parse:", repr(call.function.parsed_arguments))


def stream(client: openai.OpenAI) -> None:
    """Stream: held until verified, with failed attempts shown meanwhile, and the verdict on the last two chunks."""
    chunks = list(
        client.chat.completions.create(
            model="polite", messages=[SUM], temperature=0, stream=True,
            extra_body={
                "retry": {"on_failure": "return_last"},
                "stream_options": {"include_usage": True, "include_attempts": True},
            },
        )
    )  # fmt: skip
    shown = "".join(
        getattr(choice.delta, "reasoning_content", None) or "" for chunk in chunks for choice in chunk.choices
    )
    assert shown.startswith("Attempt 1 failed:"), chunks
    assert "Reflection:" in shown, shown
    finishing, last = chunks[-2:]
    assert finishing.choices[0].finish_reason == "stop", finishing
    assert (last.choices, last.mulligan["outcome"]) == ([], "exhausted"), last
    assert finishing.mulligan == last.mulligan, (finishing, last)
    assert last.usage.total_tokens > 0, last
    print("stream:", last.mulligan["outcome"], "after", shown.splitlines()[:2])
    try:
        client.chat.completions.create(model="polite", messages=[SUM], temperature=0, stream=True)
    except (
        openai.UnprocessableEntityError
    ) as error:  # nothing was sent yet, so it is the same error as without a stream
        assert error.body["mulligan"]["outcome"] == "exhausted", error.body
    else:
        raise AssertionError("no answer says please, and yet one was streamed")


def use_stream_helper(client: openai.OpenAI) -> None:
    """Use the SDK's own helper, which adds the chunks up."""
    with client.chat.completions.stream(
        model="sums", messages=[SUM], temperature=0, extra_body=CHECKED, stream_options={"include_usage": True}
    ) as events:
        seen = list(events)
        completion = events.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= {event.type for event in seen}, seen
    last = [event.chunk for event in seen if event.type == "chunk"][-1]
    assert last.mulligan["outcome"] == "passed", last
    assert completion.choices[0].message.content == "answer: 10*4-9", completion
    assert completion.usage.total_tokens > 0, completion
    print(".stream():", completion.choices[0].message.content)
    with client.chat.completions.stream(
        model="bookings", messages=[BOOKING], temperature=0, tools=[openai.pydantic_function_tool(book_table)]
    ) as events:
        done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [book_table(city="Riko", people=14)], done


async def ask_asynchronously() -> None:
    """Ask three times at once."""
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY) as client:
        asked = [
            client.chat.completions.create(model="sums", messages=[SUM], temperature=0, extra_body=CHECKED)
            for _ in range(3)
        ]
        answers = await asyncio.gather(*asked)
    assert [answer.mulligan["outcome"] for answer in answers] == ["passed"] * 3, answers
    assert len({answer.mulligan["episode_id"] for answer in answers}) == 3, answers
    print("async:", [answer.choices[0].message.content for answer in answers])


with openai.OpenAI(base_url=BASE_URL, api_key=API_KEY) as opened:
    for show in (ask, see_failure, parse, stream, use_stream_helper):
        show(opened)
asyncio.run(ask_asynchronously())

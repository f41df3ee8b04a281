"""pydantic-ai: fields that it does not know go into `extra_body`; a hook of the HTTP client sees Mulligan's headers.

A verdict that is an error is a `ModelHTTPError` with `status_code` 422 and the verdicts in `body`. Failed attempts of a
stream are thinking parts.
"""

import asyncio
import os

import openai
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, ThinkingPart, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.providers.openai import OpenAIProvider

SUM = "Use the numbers 10, 9 and 4 to make 31."
BOOKING = "Book a table with 14 people in Riko."
CHECKED = {"verifiers": [{"name": "countdown", "args": {"numbers": [10, 9, 4], "target": 31}}]}
RETURN_LAST = {"retry": {"on_failure": "return_last"}}
seen = []


async def note(response) -> None:
    """Keep what Mulligan says in its headers."""
    seen.append({name: value for name, value in response.headers.items() if name.startswith("x-mulligan-")})


client = openai.AsyncOpenAI(
    base_url=os.environ["MULLIGAN_BASE_URL"], api_key=os.environ["MULLIGAN_API_KEY"],
    http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [note]}),
)  # fmt: skip
provider = OpenAIProvider(openai_client=client)


def make_agent(task: str, body: dict | None = None, **more) -> Agent:
    model = OpenAIChatModel(task, provider=provider)
    return Agent(model, model_settings=OpenAIChatModelSettings(temperature=0, extra_body=body or {}), **more)


class Booking(BaseModel):
    city: str
    people: int


async def ask() -> None:
    """Ask, and read what the verifier said."""
    result = await make_agent("sums", CHECKED).run(SUM)
    assert result.output == "answer: 10*4-9", result
    assert seen[-1]["x-mulligan-outcome"] == "passed", seen
    print("asked:", result.output, "-", seen[-1]["x-mulligan-outcome"])


async def see_failure() -> None:
    """See why an answer failed: by its episode, or in the error where the task wants one."""
    await make_agent("polite", RETURN_LAST).run(SUM)
    assert seen[-1]["x-mulligan-outcome"] == "exhausted", seen
    episode = await client.get(f"/episodes/{seen[-1]['x-mulligan-episode']}", cast_to=object)
    assert [attempt["status"] for attempt in episode["attempts"]] == ["failed", "failed"], episode
    print("exhausted:", episode["attempts"][0]["verdicts"][0]["verifier"], episode["attempts"][0]["reason"])
    try:
        await make_agent("polite").run(SUM)
    except ModelHTTPError as error:
        assert (error.status_code, error.body["code"]) == (422, "verification_failed"), error
        print(f"422 {error.body['code']}:", error.body["mulligan"]["attempts"][-1]["reason"])
    else:
        raise AssertionError("no answer says please, and yet one passed")


async def stream() -> None:
    """Stream: held until verified, with failed attempts shown meanwhile."""
    told = {**RETURN_LAST, "stream_options": {"include_usage": True, "include_attempts": True}}
    async with make_agent("polite", told).run_stream(SUM) as result:
        text = "".join([delta async for delta in result.stream_text(delta=True)])
        (thought,) = [part for part in result.response.parts if isinstance(part, ThinkingPart)]
    assert text.startswith("answer:"), text
    assert thought.content.startswith("Attempt 1 failed:"), thought
    assert "Reflection:" in thought.content, thought
    assert result.usage.output_tokens > 0, result.usage
    print("stream:", text, "after", thought.content.splitlines()[:2])


async def call_tools() -> None:
    """Let the agent run a tool, and go on after its result, where an answer in words is right."""
    agent = make_agent("bookings", {"verifiers": [{"name": "known-call", "when": {"answer": "tool_call"}}]})
    booked = []

    @agent.tool_plain
    def book_table(city: str, people: int) -> str:
        booked.append((city, people))
        return "booked"

    result = await agent.run(BOOKING)
    assert booked == [("Riko", 14)], booked
    assert [headers["x-mulligan-outcome"] for headers in seen[-2:]] == ["passed", "unverified"], seen
    assert result.usage.tool_calls == 1, result.usage
    print("tool:", booked)

    agent = make_agent("bookings", output_type=ToolOutput(Booking, name="book_table"))  # it forces a call
    result = await agent.run(BOOKING)
    assert result.output == Booking(city="Riko", people=14), result
    print("output:", repr(result.output))


async def main() -> None:
    async with client:
        for show in (ask, see_failure, stream, call_tools):
            await show()


asyncio.run(main())

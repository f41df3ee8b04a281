"""openai-python on `/v1/responses`: `mulligan` is an extra attribute of the response, as it is of a completion.

A conversation goes on by `previous_response_id`, within what the same key asked. A verdict that is an error is an
`openai.UnprocessableEntityError`, or a `response.failed` event where a stream has begun.
"""

import os

import openai
from pydantic import BaseModel

SUM = "Use the numbers 10, 9 and 4 to make 31."
BOOKING = "Book a table with 14 people in Riko."
CHECKED = {"verifiers": [{"name": "countdown", "args": {"numbers": [10, 9, 4], "target": 31}}]}
RETURN_LAST = {"retry": {"on_failure": "return_last"}}


class book_table(BaseModel):  # the class's name is the tool's  # noqa: N801
    city: str
    people: int


def ask(client: openai.OpenAI) -> None:
    """Ask, read what the verifier said, and go on from there."""
    response = client.responses.create(model="sums", input=SUM, temperature=0, extra_body=CHECKED)
    assert (response.status, response.mulligan["outcome"]) == ("completed", "passed"), response
    print("asked:", response.output_text, "-", response.mulligan["outcome"])
    unchecked = {"verifiers": []}
    later = client.responses.create(
        model="sums", input="And now?", previous_response_id=response.id, temperature=0, extra_body=unchecked
    )
    alone = client.responses.create(model="sums", input="And now?", temperature=0, extra_body=unchecked)
    assert later.previous_response_id == response.id, later
    assert later.usage.input_tokens > alone.usage.input_tokens + response.usage.output_tokens, (later, alone)
    print("gone on:", later.usage.input_tokens, "tokens of conversation, not", alone.usage.input_tokens)


def see_failure(client: openai.OpenAI) -> None:
    """See why an answer failed: in the response, or in the error where the task wants one."""
    response = client.responses.create(model="polite", input=SUM, temperature=0, extra_body=RETURN_LAST)
    assert response.mulligan["outcome"] == "exhausted", response
    print("exhausted:", response.mulligan["attempts"][0]["reason"])
    try:
        client.responses.create(model="polite", input=SUM, temperature=0)
    except openai.UnprocessableEntityError as error:
        assert error.code == "verification_failed", error.body
        print(f"422 {error.code}:", error.body["mulligan"]["attempts"][-1]["reason"])
    else:
        raise AssertionError("no answer says please, and yet one passed")


def stream(client: openai.OpenAI) -> None:
    """Stream: held until verified, with failed attempts shown meanwhile as a reasoning summary."""
    events = list(
        client.responses.create(
            model="polite", input=SUM, temperature=0, stream=True,
            extra_body={**RETURN_LAST, "stream_options": {"include_attempts": True}},
        )
    )  # fmt: skip
    shown = "".join(event.delta for event in events if event.type == "response.reasoning_summary_text.delta")
    assert shown.startswith("Attempt 1 failed:"), events
    assert "Reflection:" in shown, shown
    assert events[-1].type == "response.completed", events[-1]
    assert events[-1].response.mulligan["outcome"] == "exhausted", events[-1]
    print("stream:", events[-1].response.mulligan["outcome"], "after", shown.splitlines()[:2])

    with client.responses.stream(model="sums", input=SUM, temperature=0, extra_body=CHECKED) as helper:
        deltas = [event.delta for event in helper if event.type == "response.output_text.delta"]
        final = helper.get_final_response()
    assert "".join(deltas) == final.output_text == "answer: 10*4-9", final
    assert final.mulligan["outcome"] == "passed", final
    print(".stream():", final.output_text)


def call_tool(client: openai.OpenAI) -> None:
    """Parse a verified call, run it, and go on after its result."""
    tool = {
        "type": "function", "name": "book_table", "strict": True,
        "parameters": {**book_table.model_json_schema(), "additionalProperties": False},
    }  # fmt: skip
    response = client.responses.parse(model="bookings", input=BOOKING, temperature=0, tools=[tool])
    (call,) = response.output
    assert book_table.model_validate_json(call.arguments) == book_table(city="Riko", people=14), call
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "booked"}
    later = client.responses.create(
        model="bookings", input=[result], previous_response_id=response.id, temperature=0, tools=[tool],
        extra_body={"verifiers": [{"name": "known-call", "when": {"answer": "tool_call"}}]},
    )  # fmt: skip
    assert later.mulligan["outcome"] == "unverified", later  # an answer in words is right here: the verifier is skipped
    print("call:", call.arguments, "- then", later.mulligan["outcome"])


with openai.OpenAI(base_url=os.environ["MULLIGAN_BASE_URL"], api_key=os.environ["MULLIGAN_API_KEY"]) as opened:
    for show in (ask, see_failure, stream, call_tool):
        show(opened)

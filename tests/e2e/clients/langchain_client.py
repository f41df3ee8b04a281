"""langchain-openai: `include_response_headers=True` brings Mulligan's headers into a message's `response_metadata`.

LangChain keeps no unknown fields of a body, so the verdicts of an answer that came back are asked for by its episode's
id; those of an error are in the body of the openai SDK's own error, which LangChain lets through.
"""

import os

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.output_parsers import PydanticToolsParser
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

SUM = "Use the numbers 10, 9 and 4 to make 31."
BOOKING = "Book a table with 14 people in Riko."
CHECKED = {"verifiers": [{"name": "countdown", "args": {"numbers": [10, 9, 4], "target": 31}}]}


def make_chat(task: str, **body) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=os.environ["MULLIGAN_BASE_URL"], api_key=os.environ["MULLIGAN_API_KEY"],
        model=task, temperature=0, include_response_headers=True, extra_body=body,
    )  # fmt: skip


# Ask, and read what the verifier said.
message = make_chat("sums", **CHECKED).invoke(SUM)
assert message.response_metadata["headers"]["x-mulligan-outcome"] == "passed", message
print("asked:", message.content, "-", message.response_metadata["headers"]["x-mulligan-outcome"])

# See why an answer failed: by its episode ...
polite = make_chat("polite", retry={"on_failure": "return_last"})
headers = polite.invoke(SUM).response_metadata["headers"]
assert headers["x-mulligan-outcome"] == "exhausted", headers
episode = polite.root_client.get(f"/episodes/{headers['x-mulligan-episode']}", cast_to=object)
assert [attempt["status"] for attempt in episode["attempts"]] == ["failed", "failed"], episode
print("exhausted:", episode["attempts"][0]["verdicts"][0]["verifier"], episode["attempts"][0]["reason"])

# ... or in the error, where the task wants one.
try:
    make_chat("polite").invoke(SUM)
except openai.UnprocessableEntityError as error:
    assert error.code == "verification_failed", error.body
    print(f"422 {error.code}:", error.body["mulligan"]["attempts"][-1]["reason"])
else:
    raise AssertionError("no answer says please, and yet one passed")

# Stream: held until verified. The headers come with the first chunk, before there is an outcome.
whole = None
for chunk in polite.stream(SUM):
    whole = chunk if whole is None else whole + chunk
assert whole.content.startswith("answer:"), whole
assert whole.response_metadata["headers"]["x-mulligan-episode"].startswith("ep_"), whole
print("stream:", whole.content)


class book_table(BaseModel):  # the class's name is the tool's  # noqa: N801
    city: str
    people: int


# Parse the arguments of a verified call into a class.
chain = make_chat("bookings").bind_tools([book_table]) | PydanticToolsParser(tools=[book_table])
assert chain.invoke(BOOKING) == [book_table(city="Riko", people=14)]
print("parsed:", chain.invoke(BOOKING))


@tool("book_table")
def book(city: str, people: int) -> str:
    """Book a table."""
    return f"booked for {people} in {city}"


# Run the tool, and go on after its result, where an answer in words is right: there the verifier is skipped.
when_called = {"verifiers": [{"name": "known-call", "when": {"answer": "tool_call"}}]}
agent = make_chat("bookings", **when_called).bind_tools([book])
messages = [HumanMessage(BOOKING)]
messages.append(agent.invoke(messages))
messages.append(book.invoke(messages[-1].tool_calls[0]))
assert isinstance(messages[-1], ToolMessage), messages
assert messages[-1].content == "booked for 14 in Riko", messages
messages.append(agent.invoke(messages))
outcome = messages[-1].response_metadata["headers"]["x-mulligan-outcome"]
assert outcome == "unverified", messages
print("after the tool:", outcome)

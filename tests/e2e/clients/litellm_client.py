"""LiteLLM as a client: a task is `openai/<task>` with `api_base`. Fields that LiteLLM does not know are passed on.

What Mulligan adds is an attribute of the response. A verdict that is an error is a `litellm.BadRequestError` (LiteLLM's
class for 422 too) with `status_code` 422, Mulligan's `code`, and the verdicts in `body`.
"""

import asyncio
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no request to anywhere else when it is imported

import litellm

litellm.suppress_debug_info = True
SERVER = {"api_base": os.environ["MULLIGAN_BASE_URL"], "api_key": os.environ["MULLIGAN_API_KEY"], "temperature": 0}
SUM = [{"role": "user", "content": "Use the numbers 10, 9 and 4 to make 31."}]
CHECKED = {"verifiers": [{"name": "countdown", "args": {"numbers": [10, 9, 4], "target": 31}}]}
BOOK_TABLE = {
    "type": "function",
    "function": {
        "name": "book_table",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
            "required": ["city", "people"],
        },
    },
}

# Ask, and read what the verifier said.
response = litellm.completion(model="openai/sums", messages=SUM, **CHECKED, **SERVER)
assert response.mulligan["outcome"] == "passed", response
assert response._hidden_params["additional_headers"]["llm_provider-x-mulligan-outcome"] == "passed", response
print("asked:", response.choices[0].message.content, "-", response.mulligan["outcome"])

# See why an answer failed: in the response ...
response = litellm.completion(model="openai/polite", messages=SUM, retry={"on_failure": "return_last"}, **SERVER)
assert response.mulligan["outcome"] == "exhausted", response
first = response.mulligan["attempts"][0]
print("exhausted:", first["verdicts"][0]["verifier"], first["reason"])

# ... or in the error, where the task wants one.
try:
    litellm.completion(model="openai/polite", messages=SUM, **SERVER)
except litellm.BadRequestError as error:
    assert (error.status_code, error.code) == (422, "verification_failed"), error
    assert len(error.body["mulligan"]["attempts"]) == 2, error.body
    print(f"422 {error.code}:", error.body["mulligan"]["attempts"][-1]["reason"])
else:
    raise AssertionError("no answer says please, and yet one passed")

# Stream: held until verified, with failed attempts shown meanwhile, and the verdict on the chunk that ends it.
stream = litellm.completion(
    model="openai/polite", messages=SUM, stream=True, retry={"on_failure": "return_last"},
    stream_options={"include_usage": True, "include_attempts": True}, **SERVER,
)  # fmt: skip
chunks = list(stream)
shown = "".join(getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks)
assert shown.startswith("Attempt 1 failed:"), chunks
assert "Reflection:" in shown, shown
(ending,) = [chunk.mulligan for chunk in chunks if getattr(chunk, "mulligan", None)]
assert ending["outcome"] == "exhausted", ending
assert chunks[-1].usage.total_tokens > 0, chunks[-1]
print("stream:", ending["outcome"], "after", shown.splitlines()[:2])


async def call_tool() -> None:
    """Have a verified call made."""
    booking = [{"role": "user", "content": "Book a table with 14 people in Riko."}]
    response = await litellm.acompletion(model="openai/bookings", messages=booking, tools=[BOOK_TABLE], **SERVER)
    (call,) = response.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("book_table", '{"city": "Riko", "people": 14}'), call
    assert response.mulligan["outcome"] == "passed", response
    print("call:", call.function.name, call.function.arguments)


asyncio.run(call_tool())

"""instructor with a schema for the answer (`Mode.JSON_SCHEMA`), and what it does where no answer is ever valid.

Mulligan's engines force the shape by a grammar. What a grammar cannot say, instructor's own validation still does.
"""

import logging
import os
from typing import Literal

import instructor
import openai
from instructor.core import InstructorRetryException
from pydantic import BaseModel, Field, ValidationError, field_validator

logging.getLogger("instructor").setLevel(logging.CRITICAL)  # the failures below are wanted
BOOKING = [{"role": "user", "content": "Book a table with 14 people in Riko."}]
# A penalty keeps the demo model, which never saw such JSON, from filling the space between two values with blanks, as
# SGLang's grammar lets it.
SHAPED = {"temperature": 0, "max_tokens": 200, "frequency_penalty": 1}
client = instructor.from_openai(
    openai.OpenAI(base_url=os.environ["MULLIGAN_BASE_URL"], api_key=os.environ["MULLIGAN_API_KEY"]),
    mode=instructor.Mode.JSON_SCHEMA,
)
outcomes, asked, refused = [], [], []
client.on("completion:response", lambda completion: outcomes.append(completion.mulligan["outcome"]))
client.on("completion:kwargs", lambda **request: asked.append(list(request["messages"])))


class Table(BaseModel):  # a model this small ends no text of its own, so its grammar lists the cities
    people: int = Field(ge=1, le=99)
    city: Literal["Riko", "Wenko", "Tupe"]

    @field_validator("city")
    @classmethod
    def refuse_once(cls, city: str) -> str:
        if not refused:
            refused.append(city)
            raise ValueError("fully booked, choose another city")
        return city


CHECKED = {"verifiers": [{"kind": "json_schema", "config": {"schema": Table.model_json_schema()}}]}
table = client.chat.completions.create(
    model="default", messages=BOOKING, response_model=Table, max_retries=1, extra_body=CHECKED, **SHAPED
)
assert outcomes == ["passed", "passed"], outcomes
assert len(refused) == 1, refused
assert "fully booked" in str(asked[1]), asked
assert table._raw_response.mulligan["outcome"] == "passed", table
print(f"after {len(outcomes)} answers, which Mulligan passed: {table!r}")


class book_table(BaseModel):  # the class's name is the tool's  # noqa: N801
    city: str
    people: int

    @field_validator("city")
    @classmethod
    def refuse(cls, city: str) -> str:
        raise ValueError(f"{city} is fully booked")


# The default mode forces a call, and this class takes none. Every retry is used up: each answer was verified, and each
# failure went back to the model as the result of its call. SGLang's grammar lets the arguments be no object at all.
tools, asked_tools = instructor.from_openai(client.client), []
tools.on("completion:kwargs", lambda **request: asked_tools.append([said["role"] for said in request["messages"]]))
try:
    tools.chat.completions.create(
        model="polite", messages=BOOKING, response_model=book_table, max_retries=2, temperature=0, max_tokens=200,
        extra_body={"retry": {"max_retries": 0, "on_failure": "return_last"}},
    )  # fmt: skip
except InstructorRetryException as error:
    assert error.n_attempts == 3, error
    assert all(isinstance(attempt.exception, ValidationError) for attempt in error.failed_attempts), error
    assert asked_tools[-1] == ["user", "assistant", "tool", "assistant", "tool"], asked_tools
    verdicts = [attempt.completion.mulligan["attempts"][-1] for attempt in error.failed_attempts]
    assert [verdict["verdict"] for verdict in verdicts] == ["failed"] * 3, verdicts
    print("never valid:", error.failed_attempts[-1].exception.errors()[0]["msg"])
else:
    raise AssertionError("no booking is valid, and yet one was made")

try:
    client.chat.completions.create(
        model="polite", messages=BOOKING, response_model=Table, max_retries=0, **SHAPED,
        extra_body={"retry": {"max_retries": 0}},
    )  # fmt: skip
except InstructorRetryException as error:
    cause = error.__cause__
    assert isinstance(cause, openai.UnprocessableEntityError), cause
    print(f"422 {cause.code}:", cause.body["mulligan"]["attempts"][-1]["reason"])
else:
    raise AssertionError("no answer says please, and yet one passed")

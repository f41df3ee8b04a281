"""instructor: its validation retries work as ever; Mulligan verifies each answer before instructor validates it.

The completion that an object was made from is in `_raw_response`. A verdict that is an error is the cause, like every
error of the API, of instructor's own `InstructorRetryException`.
"""

import logging
import os

import instructor
import openai
from instructor.core import InstructorRetryException
from pydantic import BaseModel, field_validator

logging.getLogger("instructor").setLevel(logging.CRITICAL)  # the failures below are wanted
client = instructor.from_openai(
    openai.OpenAI(base_url=os.environ["MULLIGAN_BASE_URL"], api_key=os.environ["MULLIGAN_API_KEY"])
)
BOOKING = [{"role": "user", "content": "Book a table with 14 people in Riko."}]
asked = []
client.on("completion:kwargs", lambda **request: asked.append(list(request["messages"])))


class book_table(BaseModel):  # the class's name is the tool's  # noqa: N801
    # A forced call has its arguments in this order, and the demo model reads this request best from its number on.
    people: int
    city: str

    @field_validator("city")
    @classmethod
    def refuse_riko(cls, city: str) -> str:
        if city == "Riko":
            raise ValueError("Riko is fully booked, choose another city")
        return city


# The first call is what was asked for and passes its verifier; instructor refuses it, and asks again with the reason.
table = client.chat.completions.create(
    model="bookings", messages=BOOKING, response_model=book_table, max_retries=1, temperature=0
)
assert len(asked) == 2, asked
assert [message["role"] for message in asked[1]] == ["user", "assistant", "tool"], asked
assert "Riko is fully booked" in asked[1][2]["content"], asked
assert table.city != "Riko", table
assert table._raw_response.mulligan["outcome"] == "passed", table._raw_response
print(f"after {len(asked)} answers: {table!r}, {table._raw_response.mulligan['outcome']}")

# When its retries are used up, each failed attempt has the completion, and so what the verifier said of it.
try:
    client.chat.completions.create(
        model="bookings", messages=BOOKING, response_model=book_table, max_retries=0, temperature=0
    )
except InstructorRetryException as error:
    (attempt,) = error.failed_attempts
    assert "Riko is fully booked" in str(attempt.exception), attempt
    assert error.last_completion.mulligan["outcome"] == "passed", error.last_completion
    print("not valid, though its verifier passed it:", attempt.exception.errors()[0]["msg"])
else:
    raise AssertionError("a table in Riko is not valid, and yet one was made")

# No answer says please, and this task wants that to be an error.
try:
    client.chat.completions.create(
        model="polite", messages=BOOKING, response_model=book_table, max_retries=0, temperature=0
    )
except InstructorRetryException as error:
    cause = error.__cause__
    assert isinstance(cause, openai.UnprocessableEntityError), cause
    assert cause.code == "verification_failed", cause.body
    print(f"422 {cause.code}:", cause.body["mulligan"]["attempts"][-1]["reason"])
else:
    raise AssertionError("no answer says please, and yet one passed")

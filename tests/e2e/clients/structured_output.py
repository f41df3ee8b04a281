"""Structured output as the clients ask for it by default: a schema for the answer, or a call that is forced.

Mulligan's engines force both by a grammar. The demo model has never seen JSON outside of a call: what it says has the
right shape only. A penalty keeps it from filling the space between two values with blanks, as SGLang's grammar lets it.
"""

import asyncio
import os
from typing import Literal

import openai
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

SERVER = {"base_url": os.environ["MULLIGAN_BASE_URL"], "api_key": os.environ["MULLIGAN_API_KEY"]}
BOOKING = "Book a table with 14 people in Riko."
SHAPED = {"temperature": 0, "max_tokens": 200, "frequency_penalty": 1}


class Table(BaseModel):  # a model this small ends no text of its own, so its grammar lists the cities
    people: int = Field(ge=1, le=99)
    city: Literal["Riko", "Wenko", "Tupe"]


class book_table(BaseModel):  # the class's name is the tool's  # noqa: N801
    city: str
    people: int


# The same schema, once more as a verifier: an engine's grammar ends where its answer is cut off, a verdict does not.
CHECKED = {"verifiers": [{"kind": "json_schema", "config": {"schema": Table.model_json_schema()}}]}


def parse() -> None:
    """openai-python: `.parse()` with a class, and a call that is forced by name."""
    with openai.OpenAI(**SERVER) as client:
        messages = [{"role": "user", "content": BOOKING}]
        completion = client.chat.completions.parse(
            model="default", messages=messages, response_format=Table, extra_body=CHECKED, **SHAPED
        )
        assert completion.choices[0].message.parsed.people == 14, completion
        assert completion.mulligan["outcome"] == "passed", completion
        print("openai .parse():", completion.choices[0].message.parsed.people, completion.mulligan["outcome"])
        try:
            client.chat.completions.parse(
                model="polite", messages=messages, response_format=Table, **SHAPED,
                extra_body=CHECKED | {"retry": {"max_retries": 0, "on_failure": "error"}}, max_completion_tokens=3,
            )  # fmt: skip
        except openai.UnprocessableEntityError as error:
            print(f"422 {error.code}, of an answer that was cut off:", error.body["mulligan"]["attempts"][0]["reason"])
        else:
            raise AssertionError("three tokens are no whole answer, and yet one passed")
        completion = client.chat.completions.parse(
            model="bookings", messages=messages, temperature=0, tools=[openai.pydantic_function_tool(book_table)],
            tool_choice={"type": "function", "function": {"name": "book_table"}},
        )  # fmt: skip
        (call,) = completion.choices[0].message.tool_calls
        assert call.function.parsed_arguments == book_table(city="Riko", people=14), call
        print("openai, forced:", repr(call.function.parsed_arguments))


def ask_langchain() -> None:
    """langchain-openai: `with_structured_output()`, by a schema and by a forced call."""
    shaped = ChatOpenAI(model="default", extra_body=CHECKED, **SHAPED, **SERVER).with_structured_output(Table)
    assert shaped.invoke(BOOKING).people == 14
    forced = ChatOpenAI(model="bookings", temperature=0, **SERVER).with_structured_output(
        book_table, method="function_calling", strict=True
    )
    assert forced.invoke(BOOKING) == book_table(city="Riko", people=14)
    print("langchain:", repr(forced.invoke(BOOKING)))


async def ask_pydantic_ai() -> None:
    """pydantic-ai: `output_type`, which forces a call to a tool of its own, here one that the demo model never saw."""
    async with openai.AsyncOpenAI(**SERVER) as client:
        model = OpenAIChatModel("bookings", provider=OpenAIProvider(openai_client=client))
        result = await Agent(model, output_type=Table, model_settings={"temperature": 0}).run(BOOKING)
    assert result.output.people == 14, result
    print("pydantic-ai:", repr(result.output))


parse()
ask_langchain()
asyncio.run(ask_pydantic_ai())

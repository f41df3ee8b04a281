"""Owns what an example of the corpus is, and how it is rendered.

An example is a conversation and which of its assistant turns carry the loss. A turn may begin with words that are
given: they carry none. So the model can be taught to finish written work well without being taught to begin it often,
and reinforcement learning has something to find.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.orchestration.reflection import REFLECT, RETRY, Prompts, render_tool

Message = dict[str, Any]

SERVED = Prompts()
SERVED_SHARE = 0.75
REFLECTS = (
    REFLECT,
    "That is not right. Reflect on what went wrong.",
    "Your answer failed. Think about the mistake and how to avoid it.",
    "The answer is wrong. Reflect on the error before you try again.",
    "Your last answer did not pass. What went wrong? Reflect briefly.",
)
RETRIES = (
    RETRY,
    "Try again.",
    "Answer the question again.",
    "Now give a better answer.",
    "Please answer the original question again.",
)


@dataclass(frozen=True)
class Example:
    """A conversation to learn from. `learned` maps the index of an assistant message to its given opening words."""

    messages: list[Message]
    learned: Mapping[int, str]
    tools: Sequence[Mapping[str, Any]] = field(default_factory=list)


def draw_prompts(rng: random.Random) -> Prompts:
    """Return the served wording most of the time, else another one, so that a task may word its own."""
    if rng.random() < SERVED_SHARE:
        return SERVED
    return Prompts(reflect=rng.choice(REFLECTS), retry=rng.choice(RETRIES))


def render_turns(example: Example) -> list[tuple[str, str]]:
    """Render an example as (role, text) turns, exactly as the chat template does."""
    turns = [(message["role"], message["content"]) for message in example.messages]
    if example.tools:
        listed = "\n".join(["Tools:", *(render_tool(tool) for tool in example.tools)])
        if turns[0][0] == "system":
            listed = f"{listed}\n\n{turns.pop(0)[1]}"
        turns.insert(0, ("system", listed))
    return turns

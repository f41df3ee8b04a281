"""Function calling: pick the right one of a few tools and fill in its arguments from a one-sentence request.

Owns the problems, the hasty mistakes an author would make (the first tool with the right noun, "3 weeks" taken as 3,
a number where the schema says string), and the written work that avoids them.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from demo.problem import Problem
from demo.splits import Split, split_of
from server.orchestration.reflection import render_tool

VERBS = ("get", "book", "find", "send", "set", "create", "cancel", "order", "rent", "update", "list", "check")
NOUNS = (
    "weather", "flight", "table", "ticket", "alarm", "meeting", "car", "room", "taxi",
    "parcel", "report", "playlist", "course", "loan", "bike", "recipe", "task", "event",
)  # fmt: skip
SYLLABLES = (
    "ba", "ko", "li", "ma", "ter", "no", "ra", "vel", "sun", "dor",
    "mi", "pe", "lan", "gar", "os", "tu", "ri", "hel", "wen", "sa",
)  # fmt: skip
SAME_NOUN_SHARE = 0.3
EASY_QUANTITY_SHARE = 0.55
STRING_QUANTITY_SHARE = 0.3

Call = dict[str, Any]


class Slot(NamedTuple):
    """What a request can mention: the parameter names it goes by, and how a sentence says it."""

    aliases: tuple[str, ...]
    phrases: tuple[str, ...]


class Unit(NamedTuple):
    """A unit that needs no conversion, the one that does, and the factor between them."""

    plain: str
    plain_range: range
    converted: str
    converted_range: range
    factor: int


class Value(NamedTuple):
    """What a request says about one slot: the phrase, the true value, the hasty one, and the sum between them."""

    phrase: str
    true: str | int
    hasty: str | int
    sum: str


SLOTS = {
    "place": Slot(("city", "place"), ("in {}", "near {}")),
    "person": Slot(("person", "guest"), ("for {}", "under the name {}")),
    "duration": Slot(("days", "length"), ("lasting {}", "over {}")),
    "count": Slot(("people", "amount"), ("with {} people", "for a group of {}")),
    "wait": Slot(("minutes", "delay"), ("starting after {}", "with a delay of {}")),
}
UNITS = {
    "duration": Unit(" days", range(2, 10), " weeks", range(2, 7), 7),
    "wait": Unit(" minutes", range(5, 60), " hours", range(2, 5), 60),
    "count": Unit("", range(2, 31), " dozen", range(2, 6), 12),
}


@dataclass(frozen=True)
class Signature:
    """One tool: its name and, for each slot it takes, the parameter's name and type."""

    verb: str
    noun: str
    parameters: tuple[tuple[str, str, str], ...]

    @property
    def name(self) -> str:
        """Return the tool's name."""
        return f"{self.verb}_{self.noun}"

    def to_tool(self) -> dict[str, Any]:
        """Return the OpenAI tool of this signature."""
        schema = {
            "type": "object",
            "properties": {name: {"type": kind} for _, name, kind in self.parameters},
            "required": [name for _, name, _ in self.parameters],
        }
        return {"type": "function", "function": {"name": self.name, "parameters": schema}}


@dataclass(frozen=True)
class Request:
    """A request as its author knows it: the tools in the order shown, the one meant, and what was said."""

    text: str
    wanted: Signature
    offered: tuple[Signature, ...]
    values: dict[str, Value]


@cache
def tool_names(split: Split) -> tuple[tuple[str, str], ...]:
    """List the (verb, noun) pairs whose tools belong to a split."""
    return tuple((verb, noun) for verb in VERBS for noun in NOUNS if split_of(f"tool {verb}_{noun}") == split)


@cache
def proper_names(split: Split) -> tuple[str, ...]:
    """List the names of places and people that belong to a split."""
    every = ((first + second).capitalize() for first in SYLLABLES for second in SYLLABLES)
    return tuple(sorted({name for name in every if split_of(f"name {name}") == split}))


def _draw_value(rng: random.Random, slot: str, split: Split) -> Value:
    if slot not in UNITS:
        name = rng.choice(proper_names(split))
        return Value(name, name, name, "")
    unit = UNITS[slot]
    if rng.random() < EASY_QUANTITY_SHARE:
        number = rng.choice(unit.plain_range)
        return Value(f"{number}{unit.plain}", number, number, "")
    number = rng.choice(unit.converted_range)
    total = number * unit.factor
    phrase = f"{number}{unit.converted}"
    return Value(phrase, total, number, f"{phrase} is {number}*{unit.factor}={total}")


def _draw_parameter(rng: random.Random, slot: str) -> tuple[str, str, str]:
    kind = "string" if slot not in UNITS or rng.random() < STRING_QUANTITY_SHARE else "integer"
    return slot, rng.choice(SLOTS[slot].aliases), kind


def _draw_signature(
    rng: random.Random, verb: str, noun: str, slots: list[str], named: dict[str, tuple[str, str, str]]
) -> Signature:
    shuffled = rng.sample(slots, len(slots))
    return Signature(verb, noun, tuple(named.get(slot) or _draw_parameter(rng, slot) for slot in shuffled))


def draw_request(rng: random.Random, split: Split, *, consistent: bool = True) -> Request:
    """Draw a request and the tools offered with it, all of one split.

    Consistent tools name and type what they share alike: if one says `city: string`, no other says `place`.
    """
    named = {slot: _draw_parameter(rng, slot) for slot in SLOTS} if consistent else {}
    pool = tool_names(split)
    verb, noun = rng.choice(pool)
    slots = rng.sample(list(SLOTS), rng.choice((1, 2, 2)))
    wanted = _draw_signature(rng, verb, noun, slots, named)
    offered = [wanted]
    rivals = [pair for pair in pool if pair[1] == noun and pair != (verb, noun)]
    if rivals and rng.random() < SAME_NOUN_SHARE:
        offered.append(_draw_signature(rng, *rng.choice(rivals), slots, named))
    size = rng.choice((2, 2, 3))
    while len(offered) < size:
        pair = rng.choice([pair for pair in pool if all(pair[1] != tool.noun for tool in offered)])
        offered.append(_draw_signature(rng, *pair, rng.sample(list(SLOTS), rng.choice((1, 2, 2))), named))
    values = {slot: _draw_value(rng, slot, split) for slot in slots}
    phrases = [rng.choice(SLOTS[slot].phrases).format(values[slot].phrase) for slot in rng.sample(slots, len(slots))]
    article = "an" if noun[0] in "ae" else "a"
    text = f"{verb.capitalize()} {article} {noun} {' '.join(phrases)}."
    return Request(text, wanted, tuple(rng.sample(offered, len(offered))), values)


def _typed(value: str | int, kind: str) -> str | int:
    return str(value) if kind == "string" else value


def true_call(request: Request) -> Call:
    """Return the one call that answers the request."""
    arguments = {name: _typed(request.values[slot].true, kind) for slot, name, kind in request.wanted.parameters}
    return {"name": request.wanted.name, "arguments": arguments}


def hasty_call(rng: random.Random, request: Request, care: float, tool: Signature | None = None) -> Call:
    """Return the call of a hasty author, who avoids each kind of mistake with probability `care`."""
    if tool is None:
        first = next(tool for tool in request.offered if tool.noun == request.wanted.noun)
        tool = request.wanted if rng.random() < care else first
    converts, quotes = rng.random() < care, rng.random() < care
    arguments: dict[str, str | int] = {}
    for slot, name, kind in tool.parameters:
        if slot in request.values:
            value = request.values[slot].true if converts else request.values[slot].hasty
            arguments[name] = _typed(value, kind) if quotes else value
    return {"name": tool.name, "arguments": arguments}


def work_out(request: Request) -> str:
    """Return the written work: the signature read out, each conversion, each argument as it must be written."""
    parts = [render_tool(request.wanted.to_tool())]
    for slot, name, kind in request.wanted.parameters:
        value = request.values[slot]
        if value.sum:
            parts.append(value.sum)
        parts.append(f"{name} is {json.dumps(_typed(value.true, kind))}")
    return f"work: {'; '.join(parts)}"


def make_problem(request: Request) -> Problem:
    """Turn a request into a problem with its reference call."""
    reference = true_call(request)
    tools = [tool.to_tool() for tool in request.offered]
    content = {"call": reference, "tools": sorted(render_tool(tool) for tool in tools)}
    return Problem(
        task="function_call",
        messages=[{"role": "user", "content": request.text}],
        verifier="function_call",
        args={"reference": reference},
        key=f"function_call {json.dumps(content, sort_keys=True)}",
        tools=tools,
    )


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """Yield problems for ever, none twice."""
    rng = random.Random(f"function_call {split} {seed}")
    seen: set[str] = set()
    while True:
        problem = make_problem(draw_request(rng, split))
        if problem.key not in seen:
            seen.add(problem.key)
            yield problem

"""One case for each kind: a configuration as users write it, and an answer that passes. Add a kind's case to CASES."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SERVICE = "http://service"
"""Stands for the address of `bench.verifiers.service`, wherever it is in a configuration."""

_ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "customer": {"type": "string", "minLength": 1},
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "sku": {"type": "string", "pattern": "^[A-Z]-[0-9]{4}$"},
                    "count": {"type": "integer", "minimum": 1},
                },
                "required": ["sku", "count"],
                "additionalProperties": False,
            },
        },
        "note": {"type": "string"},
    },
    "required": ["customer", "items"],
    "additionalProperties": False,
}
_ORDERED = (
    '{"customer": "Ada Lovelace", "items": [{"sku": "A-1001", "count": 2}, {"sku": "B-2002", "count": 1}, '
    '{"sku": "C-3003", "count": 12}], "note": "Leave it with the neighbour at number twelve."}'
)
_LETTER = "Dear Ada, please find the order attached. It is on its way. Many thanks and kind regards."
_TOOL = {
    "type": "function",
    "function": {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 1},
                "class": {"type": "string", "enum": ["economy", "business"]},
            },
            "required": ["city", "days"],
        },
    },
}
_BOOKED = {"city": "Ulm", "days": 3, "class": "economy"}
_CODE = """
def verify(request, answer, args):
    words = answer["content"].lower().split()
    missing = [word for word in args["words"] if word not in words]
    return {"passed": not missing, "reason": "missing: " + ", ".join(missing)}
"""
_SHOP = "CREATE TABLE orders (id INTEGER PRIMARY KEY, city TEXT); INSERT INTO orders VALUES (1, 'Ulm'), (2, 'Bonn');"
_FUNCTION = "```python\ndef add(a, b):\n    return a + b\n```"


def text(content: str) -> dict[str, Any]:
    """Make an answer of text."""
    return {"role": "assistant", "content": content}


@dataclass(frozen=True)
class Case:
    """What is measured of one kind. `at_once` verdicts run at the same time; `goal_us` is the goal of p50, if any."""

    kind: str
    answer: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)
    goal_us: float | None = None
    at_once: int = 1
    note: str = ""


REQUEST: Mapping[str, Any] = {"messages": [{"role": "user", "content": "Answer as you were told."}], "tools": [_TOOL]}
_CALL = {"name": "book", "arguments": '{"city": "Ulm", "days": 3, "class": "economy"}'}
_PAIR = [{"kind": "regex", "config": {"pattern": "(?i)answer:"}}, {"kind": "countdown"}]

CASES: tuple[Case, ...] = (
    Case("json_schema", text(_ORDERED), {"schema": _ORDER}, goal_us=20),
    Case("regex", text(_LETTER), {"pattern": r"(?i)\bplease\b.*\bthanks\b"}, goal_us=20),
    Case("exact", text("Paris"), args={"reference": "Paris"}, goal_us=20),
    Case("one_of", text("It is her capital.\nParis"), {"references": ["Paris", "paris"], "last_line": True}),
    Case("numeric", text("That makes 42.5 km."), {"units": ["km"]}, {"reference": 42.5}),
    Case("countdown", text("answer: (25-3)*7+1"), args={"numbers": [25, 3, 7, 1], "target": 155}, goal_us=20),
    Case(
        "function_call",
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": _CALL}]},
        args={"reference": {"name": "book", "arguments": _BOOKED}},
        goal_us=60,
    ),
    Case("all_of", text("answer: (25-3)*7+1"), {"verifiers": _PAIR}, {"numbers": [25, 3, 7, 1], "target": 155}),
    Case("any_of", text("answer: (25-3)*7+1"), {"verifiers": _PAIR}, {"numbers": [25, 3, 7, 1], "target": 155}),
    Case(
        "weighted",
        text("answer: (25-3)*7+1"),
        {"verifiers": _PAIR, "threshold": 0.5},
        {"numbers": [25, 3, 7, 1], "target": 155},
    ),
    Case("not", text(_LETTER), {"verifier": {"kind": "regex", "config": {"pattern": "(?i)sorry"}}}),
    Case(
        "python", text(_LETTER), {"code": _CODE}, {"words": ["please", "thanks"]}, goal_us=500, note="alone: one worker"
    ),
    Case(
        "python", text(_LETTER), {"code": _CODE}, {"words": ["please", "thanks"]}, goal_us=500, at_once=2,
        note="two workers busy",
    ),
    Case("math", text("so \\boxed{0.5}"), args={"reference": "\\frac{1}{2}"}, note="its own process"),
    Case(
        "sql", text("SELECT count(*) FROM orders WHERE city = 'Ulm'"), {"fixture": _SHOP}, {"rows": [[1]]},
        note="a SQLite fixture",
    ),
    Case(
        "code_tests", text(_FUNCTION), {"tests": "assert add(2, 3) == 5\nassert add(-1, 1) == 0"},
        note="throw-away processes",
    ),
    Case("webhook", text("22"), {"url": f"{SERVICE}/hook", "unsigned": True}, note="a service on loopback"),
    Case("judge", text("22"), {"url": f"{SERVICE}/v1", "model": "j", "rubric": "It is 22."}, note="likewise"),
)  # fmt: skip
"""The table of the benchmark: a row each. A kind that is not registered is left out."""

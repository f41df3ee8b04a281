"""The independent checks of the evidence: right answers, and answers that only look right."""

from dataclasses import replace

import pytest

from bench.evidence.checks import is_right
from demo.problem import Problem

SUM = Problem("countdown", [], "countdown", {"numbers": [3, 5, 2], "target": 21}, "sum")
CALL = {"name": "book_table", "arguments": {"city": "Bako", "people": 4}}
BOOKING = Problem("function_call", [], "function_call", {"reference": CALL}, "booking")


def said(text):
    return {"role": "assistant", "content": text}


def called(*calls):
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": one} for one in functions]}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("answer: 3*(5+2)", True),
        ("work: 7*3 yes; so answer: (2+5)*3", True),
        ("answer: 1\nanswer: 3*(5+2)", True),
        ("3*(5+2)", False),
        ("answer: 3*(5+2)*1", False),
        ("answer: 3*7", False),
        ("answer: 3*(5-2)", False),
        ("answer: 3*(5+2) answer: 20", False),
        ("answer: 3**(5+2)", False),
        ("answer: __import__('os')", False),
        ("answer: 3*(5+2", False),
        ("answer: 2/(5-5)+3", False),
        ("answer: \uff13*(5+2)", False),
        ("answer:", False),
        ("", False),
    ],
)
def test_sums(text, right):
    assert is_right(SUM, said(text)) is right


@pytest.mark.parametrize(
    ("calls", "right"),
    [
        ([("book_table", '{"city": "Bako", "people": 4}')], True),
        ([("book_table", '{"people": 4, "city": "Bako"}')], True),
        ([("book_table", '{"city": "Bako", "people": "4"}')], False),
        ([("book_table", '{"city": "Bako", "people": 4.0}')], False),
        ([("book_table", '{"city": "Bako", "people": true}')], False),
        ([("book_table", '{"city": "Bako"}')], False),
        ([("book_table", '{"city": "Bako", "people": 4, "days": 1}')], False),
        ([("book_table", '{"city": "Tubo", "city": "Bako", "people": 4}')], False),
        ([("book_taxi", '{"city": "Bako", "people": 4}')], False),
        ([("book_table", "{")], False),
        ([], False),
        ([("book_table", '{"city": "Bako", "people": 4}')] * 2, False),
    ],
)
def test_calls(calls, right):
    assert is_right(BOOKING, called(*calls)) is right


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="no check"):
        is_right(replace(SUM, task="chess"), said("e4"))

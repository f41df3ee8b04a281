"""The expression parser, against Python's own grammar as the reference."""

import ast
import operator
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.arithmetic import MAX_CHARS, MAX_DEPTH, MAX_DIGITS, BadExpression, evaluate

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def reference(text: str) -> tuple[Fraction, list[int]] | None:
    """Evaluate by Python's parser, or return None for what is not in our grammar or divides by zero."""
    if re.search(r"\b0[0-9]", text):  # Python reads 00 as 0
        return None
    numbers: list[int] = []

    def walk(node: ast.AST) -> Fraction:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            left = walk(node.left)
            return OPERATORS[type(node.op)](left, walk(node.right))
        if isinstance(node, ast.Constant):
            numbers.append(node.value)
            return Fraction(node.value)
        raise SyntaxError

    try:
        return walk(ast.parse(text.strip(), mode="eval").body), numbers
    except (SyntaxError, ZeroDivisionError):
        return None


def ours(text: str) -> tuple[Fraction, list[int]] | None:
    try:
        value, numbers = evaluate(text)
    except BadExpression:
        return None
    return value, list(numbers)


expressions = st.recursive(
    st.integers(0, 999).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        st.tuples(inner, st.sampled_from([" + ", " -", "* ", " / "]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=12,
)


@given(expressions)
def test_evaluates_as_python_does(text):
    assert ours(text) == reference(text)


@given(st.text("0123456789+-*/() ", max_size=14))
def test_accepts_what_python_accepts(text):
    assert ours(text) == reference(text)


@given(st.text("0123456789+-*/() \t\xd7\u0663\ud800.=ex", max_size=20))
def test_any_text_is_an_expression_or_a_bad_one(text):
    if ours(text) is not None:
        assert text.isascii()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a number is missing at the end"),
        ("1+", "a number is missing at the end"),
        ("1++2", "a number is missing before +"),
        ("-1+2", "a number is missing before -"),
        ("2**3", "a number is missing before *"),
        ("(1+2", "a bracket is not closed at the end"),
        ("1+2)", "a bracket is not opened"),
        ("1 2", "an operator is missing before 2"),
        ("2(3)", "an operator is missing before ("),
        ("1/(2-2)", "it divides by zero"),
        ("07", "07 starts with a zero"),
        ("1\xd72", "'\\xd7' at position 2 is no digit, operator or bracket"),
        ("٣+1", "'\\u0663' at position 1 is no digit, operator or bracket"),
        ("1.5", "'.' at position 2 is no digit, operator or bracket"),
        ("1" * (MAX_DIGITS + 1), f"a number has more than {MAX_DIGITS} digits"),
        ("1+" * MAX_CHARS + "1", f"the expression is longer than {MAX_CHARS} characters"),
        ("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} brackets inside each other"),
    ],
)  # fmt: skip
def test_says_what_is_wrong(text, says):
    with pytest.raises(BadExpression) as caught:
        evaluate(text)
    assert str(caught.value) == says


def test_allows_as_many_brackets_as_it_says():
    assert evaluate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH).value == 1


def test_is_exact():
    assert evaluate("1/3+1/3+1/3").value == 1

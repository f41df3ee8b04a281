"""Evaluates one arithmetic expression exactly. Called by the countdown kind; never runs code and never rounds.

The grammar, in ASCII alone, with spaces anywhere between tokens:
    expression = term (("+" | "-") term)*
    term       = factor (("*" | "/") factor)*
    factor     = number | "(" expression ")"
    number     = "0" | [1-9][0-9]*
There is no sign: a negative number can only be made by subtracting.
"""

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 1_000
MAX_DEPTH = 50
MAX_DIGITS = 15

_TOKEN = re.compile(r"([0-9]+)|([-+*/()])|[ \t\r\n]+|(.)", re.ASCII | re.DOTALL)


class BadExpression(ValueError):
    """The text is no expression, or one without a value; the message says why and where."""


class Evaluated(NamedTuple):
    """The exact value of an expression and the numbers it uses, in their order."""

    value: Fraction
    numbers: tuple[int, ...]


def evaluate(text: str) -> Evaluated:
    """Evaluate an expression.

    Raises: BadExpression for anything else, for more than MAX_CHARS characters, MAX_DEPTH brackets inside each other
    or MAX_DIGITS digits in a number, and for a division by zero.
    """
    if len(text) > MAX_CHARS:
        raise BadExpression(f"the expression is longer than {MAX_CHARS} characters")
    parser = _Parser(_tokenize(text))
    value = parser.expression(0)
    parser.expect_end()
    return Evaluated(Fraction(value), tuple(parser.numbers))


def _tokenize(text: str) -> list[str | int]:
    """Split into numbers and operator characters, with "" at the end."""
    tokens: list[str | int] = []
    for match in _TOKEN.finditer(text):
        digits, operator, other = match.groups()
        if digits:
            tokens.append(_read_number(digits))
        elif operator:
            tokens.append(operator)
        elif other:
            raise BadExpression(f"{other!a} at position {match.start() + 1} is no digit, operator or bracket")
    tokens.append("")
    return tokens


def _read_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise BadExpression(f"a number has more than {MAX_DIGITS} digits")
    if digits[0] == "0" and digits != "0":
        raise BadExpression(f"{digits} starts with a zero")
    return int(digits)


class _Parser:
    """Recursive descent over the tokens; evaluates as it goes, in integers where they do: fractions cost ten times."""

    def __init__(self, tokens: list[str | int]) -> None:
        self._tokens = tokens
        self._next = 0
        self.numbers: list[int] = []

    def expression(self, depth: int) -> int | Fraction:
        value = self._term(depth)
        while self._tokens[self._next] in ("+", "-"):
            operator = self._take()
            right = self._term(depth)
            value = value + right if operator == "+" else value - right
        return value

    def _term(self, depth: int) -> int | Fraction:
        value = self._factor(depth)
        while self._tokens[self._next] in ("*", "/"):
            operator = self._take()
            right = self._factor(depth)
            if operator == "/" and not right:
                raise BadExpression("it divides by zero")
            value = value * right if operator == "*" else _divide(value, right)
        return value

    def _factor(self, depth: int) -> int | Fraction:
        symbol = self._take()
        if isinstance(symbol, int):
            self.numbers.append(symbol)
            return symbol
        if symbol != "(":
            raise BadExpression(f"a number is missing {_place(symbol)}")
        if depth >= MAX_DEPTH:
            raise BadExpression(f"more than {MAX_DEPTH} brackets inside each other")
        value = self.expression(depth + 1)
        if self._tokens[self._next] != ")":
            raise BadExpression(f"a bracket is not closed {_place(self._tokens[self._next])}")
        self._take()
        return value

    def expect_end(self) -> None:
        symbol = self._tokens[self._next]
        if symbol == ")":
            raise BadExpression("a bracket is not opened")
        if symbol != "":
            raise BadExpression(f"an operator is missing before {symbol}")

    def _take(self) -> str | int:
        symbol = self._tokens[self._next]
        self._next += symbol != ""
        return symbol


def _divide(left: int | Fraction, right: int | Fraction) -> int | Fraction:
    if isinstance(left, int) and isinstance(right, int):
        whole, rest = divmod(left, right)
        return Fraction(left, right) if rest else whole
    return Fraction(left) / right


def _place(symbol: str | int) -> str:
    return "at the end" if symbol == "" else f"before {symbol}"

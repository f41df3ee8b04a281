"""`countdown` beside an exact calculator of another make, over 100,000 random expressions, hostile ones among them.

The calculator shares no code with ours and works in another way: whole numbers as numerator and denominator, on two
stacks (shunting-yard), after a table of what may follow what. docs/verifier-fidelity.md tells the figures.
"""

import random
from collections import Counter
from math import gcd

import pytest

from verifiers.arithmetic import MAX_CHARS, MAX_DEPTH, MAX_DIGITS, BadExpression, evaluate
from verifiers.countdown import find_flaw

N = 25_000
SEEDS = (1, 2, 3, 4)
BINDS = {"+": 1, "-": 1, "*": 2, "/": 2}
DIGITS, SPACE = frozenset("0123456789"), frozenset(" \t\r\n")


class NoValueError(Exception):
    pass


def split(text):
    """Split into numbers and symbols, character by character."""
    if len(text) > MAX_CHARS:
        raise NoValueError
    found, number = [], ""
    for char in f"{text} ":
        if char in DIGITS:
            number += char
            continue
        if number:
            if len(number) > MAX_DIGITS or (len(number) > 1 and number[0] == "0"):
                raise NoValueError
            found.append(int(number))
            number = ""
        if char in BINDS or char in ("(", ")"):
            found.append(char)
        elif char not in SPACE:
            raise NoValueError
    return found


def check_order(tokens):
    """Check what stands beside what, and that brackets pair up."""
    wants_value, depth = True, 0
    for token in tokens:
        opens_value = token == "(" or isinstance(token, int)
        if opens_value != wants_value:
            raise NoValueError
        depth += (token == "(") - (token == ")")
        if not 0 <= depth <= MAX_DEPTH:
            raise NoValueError
        wants_value = token == "(" or token in BINDS
    if depth or wants_value:
        raise NoValueError


def apply(values, symbol):
    (a, b), (c, d) = values[-2:]
    if symbol == "+":
        top, bottom = a * d + c * b, b * d
    elif symbol == "-":
        top, bottom = a * d - c * b, b * d
    elif symbol == "*":
        top, bottom = a * c, b * d
    else:
        top, bottom = a * d, b * c
    if not bottom:
        raise NoValueError
    shared = gcd(top, bottom) * (-1 if bottom < 0 else 1)
    values[-2:] = [(top // shared, bottom // shared)]


def calculate(text):
    """Calculate the value, as numerator and denominator, and the numbers used."""
    tokens = split(text)
    check_order(tokens)
    values, symbols = [], []
    for token in tokens:
        if isinstance(token, int):
            values.append((token, 1))
        elif token == "(":
            symbols.append(token)
        elif token == ")":
            while (symbol := symbols.pop()) != "(":
                apply(values, symbol)
        else:
            while symbols and symbols[-1] != "(" and BINDS[symbols[-1]] >= BINDS[token]:
                apply(values, symbols.pop())
            symbols.append(token)
    while symbols:
        apply(values, symbols.pop())
    ((top, bottom),) = values
    return top, bottom, sorted(token for token in tokens if isinstance(token, int))


HOSTILE = (
    "\u0663", "\uff11", "\u00b2", "\u2460", "\u0967", "\U0001d7d8",  # digits of other scripts, and what isdigit() takes
    "\xd7", "\xf7", "\u2212", "\u2215", "\u2217", "\uff0b", "\u2044", "\xbd",  # look like operators
    "\u200b", "\u200d", "\ufeff", "\u2060", "\u00ad", "\u202e", "\0", "\x1f",  # nothing to be seen
    "\xa0", "\u2003", "\u2028", "\x0b", "\x0c", "\x85", "\u3000",  # white space that is not ours
    "007", "00", "0", "0x1f", "0b11", "0o7", "1e3", "1E0", "1_000", "1.5", ".5", "5.", "1j", "\u06f0x1",
    "**", "//", "%", "^", "@", "<<", "~", "!", "--", "+-", "-", "+", "*/", "( )", "()", ")(", "[3]", "{3}", "<3>",
    "#3", "/*3*/", '"3"', "f'{3}'", "`3`", "$3", "\\frac{3}{7}", "\\times", "x", "int(3)", "__import__('os')",
    "lambda:3", "3if 1else 7", "3,7", "3;7", "3\\\n", "True", "inf", "nan", "9" * 15, "9" * 16, "9" * 400,
    "1/0", "/(3-3)", "=", "=22",
)  # fmt: skip


def make_expression(rng, numbers, depth=0):
    """Make a well-formed expression of just these numbers."""
    if len(numbers) == 1:
        text = str(numbers[0])
    else:
        cut = rng.randrange(1, len(numbers))
        left, right = (make_expression(rng, part, depth + 1) for part in (numbers[:cut], numbers[cut:]))
        space = rng.choice(("", "", " ", "  ", "\t"))
        text = f"{left}{space}{rng.choice('+-*/')}{space}{right}"
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        text = f"({text})"
    return text


def draw_numbers(rng):
    most = rng.choice((9, 25, 100, 10**6, 10**12))
    return [rng.randrange(rng.choice((0, 1)), most + 1) for _ in range(rng.choice((1, 2, 3, 3, 4, 4, 5, 6, 8, 12)))]


def draw(rng):
    """Draw a text, the numbers given, and the kind of text."""
    numbers = draw_numbers(rng)
    text = make_expression(rng, numbers)
    kind = rng.choice(("fair", "fair", "fair", "hostile", "hostile", "edited", "soup", "deep"))
    if kind == "hostile":
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(HOSTILE) + text[at + rng.choice((0, 0, 1)) :]
    elif kind == "edited":
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(("", *"0123456789+-*/() ")) + text[at + 1 :]
    elif kind == "soup":
        text = "".join(
            rng.choice(("0", "1", "7", "12", "+", "-", "*", "/", "(", ")", " ")) for _ in range(rng.randrange(12))
        )
    elif kind == "deep":
        levels = rng.choice((10, MAX_DEPTH - 2, MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 200))
        text = "(" * levels + text + ")" * (levels + rng.choice((0, 0, 0, -1, 1)))
    return text, numbers, kind


def value_of(text, how):
    try:
        found = how(text)
    except (NoValueError, BadExpression):
        return None
    if how is evaluate:
        return found.value.numerator, found.value.denominator, sorted(found.numbers)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_values_are_the_other_calculators(seed):
    rng = random.Random(seed)
    kinds, valued, judged = Counter(), Counter(), Counter()
    for _ in range(N):
        text, numbers, kind = draw(rng)
        theirs = value_of(text, calculate)
        assert value_of(text, evaluate) == theirs, text
        kinds[kind] += 1
        valued[kind] += theirs is not None
        # The kind itself takes white space of all kinds, Markdown, a full stop and a claim (`= 22`) off the answer.
        text = text.strip()
        if "=" not in text and len(text.splitlines()) == 1 and {text[:1], text[-1:]}.isdisjoint(".*`$"):
            theirs = value_of(text, calculate)
            whole = theirs is not None and theirs[1] == 1 and abs(theirs[0]) <= 10**12
            target = theirs[0] + rng.choice((0, 0, 0, 1, -1)) if whole else rng.randrange(100)
            right = whole and theirs[0] == target and theirs[2] == sorted(numbers)
            assert (find_flaw(f"answer: {text}", numbers, target) == "") == right, text
            judged[right] += 1
    assert 0.8 < valued["fair"] / kinds["fair"] < 1, "divisions by zero, and little else"
    assert 0.005 < valued["hostile"] / kinds["hostile"] < 0.2
    assert 0.1 < valued["edited"] / kinds["edited"] < 0.9
    assert valued["soup"]
    assert valued["deep"]
    assert judged[True] > 2_000
    assert judged[False] > 5_000
    print(f"{valued.total():,} of {N:,} have a value; {judged[True]:,} of {judged.total():,} verdicts passed")


def test_there_are_a_hundred_thousand():
    assert N * len(SEEDS) == 100_000


@pytest.mark.parametrize("piece", HOSTILE)
def test_every_hostile_piece_is_judged_alike(piece):
    for text in (piece, f"3{piece}7", f"3+{piece}", f"{piece}+3", f"({piece})", f"3 {piece} 7", f"{piece}{piece}"):
        assert value_of(text, evaluate) == value_of(text, calculate), text

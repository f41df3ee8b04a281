"""Compares two result sets. Called by `verifiers.sql_job`; pure.

Rows are a multiset: duplicates count, and their order only where the caller says so. Two numbers are equal where both
are whole and the same, or where one is not whole and they lie within the tolerance; all else is equal as text.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from verifiers.sql_statement import clip

Cell = None | int | float | str
Row = tuple[Cell, ...]

MAX_LEFT_OVER = 1_000
MAX_ARRANGEMENTS = 2_000  # of columns, begun ones too
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d.*)")


class TooManyWays(Exception):
    """There are too many ways in which the two could be the same."""


@dataclass(frozen=True)
class Result:
    """A result set: the names of its columns and its rows. `keys` are what the rows were ordered by, if known."""

    columns: tuple[str, ...]
    rows: list[Row]
    keys: list[Row] | None = None


@dataclass(frozen=True)
class Rules:
    """How two result sets are compared."""

    ordered: bool = False
    columns: str = "ordered"  # or "any": columns may come in another order
    column_names: bool = False
    tolerance: float = 1e-9


def read_cell(value: Any) -> Cell:
    """Read a value of a database, or of JSON, as what is compared: None, a number or a text."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        return _MOMENT.sub(r"\1 \2", value) if len(value) < 40 else value
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True)
    return value


def explain_difference(got: Result, want: Result, rules: Rules) -> str:
    """Say how a result differs from the right one; "" where it does not.

    Raises: TooManyWays.
    """
    if len(got.columns) != len(want.columns):
        return f"it returns {len(got.columns)} columns, not {len(want.columns)}"
    if rules.column_names and _names(got, rules) != _names(want, rules):
        return f"its columns are called {_say(got.columns)}, not {_say(want.columns)}"
    if len(got.rows) != len(want.rows):
        return f"it returns {_count(got.rows)}, not {len(want.rows)}"
    said = ""
    for order in _arrange(got, want, rules):
        rows = [tuple(row[index] for index in order) for row in got.rows]
        flaw = _compare_rows(rows, want, rules)
        if not flaw:
            return ""
        said = said or flaw
    return said or "its columns hold other values than the right ones"


def _names(result: Result, rules: Rules) -> list[str]:
    names = [name.lower() for name in result.columns]
    return sorted(names) if rules.columns == "any" else names


def _arrange(got: Result, want: Result, rules: Rules) -> Iterator[tuple[int, ...]]:
    """List the ways in which the columns of `got` may stand for those of `want`.

    Raises: TooManyWays.
    """
    width = range(len(want.columns))
    if rules.columns != "any":
        yield tuple(width)
        return
    fitting = [[other for other in width if _fits(got, other, want, index, rules)] for index in width]
    begun: list[tuple[int, ...]] = [()]
    for _ in range(MAX_ARRANGEMENTS):
        if not begun:
            return
        way = begun.pop()
        if len(way) == len(fitting):
            yield way
        else:
            begun += [(*way, other) for other in reversed(fitting[len(way)]) if other not in way]
    raise TooManyWays("there are too many ways to arrange the columns")


def _fits(got: Result, other: int, want: Result, index: int, rules: Rules) -> bool:
    if rules.column_names and got.columns[other].lower() != want.columns[index].lower():
        return False
    left = [(row[other],) for row in got.rows]
    right = [(row[index],) for row in want.rows]
    return _find_stray(left, right, _same_row(rules.tolerance)) is None


def _compare_rows(rows: list[Row], want: Result, rules: Rules) -> str:
    close = _same_row(rules.tolerance)
    stray = _find_stray(rows, want.rows, close)
    if stray is not None:
        return f"it returns the row {_say(stray)}, which is wrong or there too often"
    if not rules.ordered:
        return ""
    for first, after in _find_ties(want):
        if _find_stray(rows[first:after], want.rows[first:after], close) is not None:
            return f"the rows are right, but in another order from row {first + 1} on"
    return ""


def _find_ties(want: Result) -> Iterator[tuple[int, int]]:
    """List the stretches of rows that were ordered by equal keys: inside of one, any order is right."""
    numbers = range(len(want.rows))
    keys = want.keys
    for _, stretch in groupby(numbers, key=lambda number: number if keys is None else keys[number]):
        found = list(stretch)
        yield found[0], found[-1] + 1


def _find_stray(rows: Sequence[Row], wanted: Sequence[Row], close: Callable[[Row, Row], bool]) -> Row | None:
    """Find a row that has no partner of its own among those wanted; None where all have. Both are equally many.

    Raises: TooManyWays.
    """
    left, right = Counter(rows), Counter(wanted)
    strays, partners = list((left - right).elements()), list((right - left).elements())
    if not strays:
        return None
    if not any(isinstance(cell, float) for row in (*strays, *partners) for cell in row):
        return strays[0]
    if len(strays) > MAX_LEFT_OVER:
        raise TooManyWays(f"{len(strays):,} rows differ a little")
    for stray in strays:
        index = next((index for index, partner in enumerate(partners) if close(stray, partner)), None)
        if index is None:
            return stray
        partners.pop(index)
    return None


def _same_row(tolerance: float) -> Callable[[Row, Row], bool]:
    """Make the comparison of two rows of equal length."""

    def is_close(one: Cell, other: Cell) -> bool:
        if one == other:
            return True
        if not isinstance(one, int | float) or not isinstance(other, int | float):
            return False
        if isinstance(one, int) and isinstance(other, int):
            return False
        try:
            return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:  # a whole number beyond every float
            return False

    return lambda one, other: all(map(is_close, one, other))


def _count(rows: Sequence[Row]) -> str:
    return "no rows" if not rows else "1 row" if len(rows) == 1 else f"{len(rows)} rows"


def _say(cells: Sequence[Cell]) -> str:
    return clip(f"({', '.join('NULL' if cell is None else clip(repr(cell), 60) for cell in cells)})", 300)

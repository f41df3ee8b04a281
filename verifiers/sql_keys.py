"""Finds what a query's rows were ordered by, so that rows with equal keys may stand in any order. Called by the job.

A key is often no column of the result, so it is added behind them; the caller sees to it that the rows stay the same.
"""

from sqlglot import exp

from verifiers.sql_rows import Result
from verifiers.sql_statement import Statement, render

_KEY = "mulligan_key_"


def add_keys(statement: Statement, dialect: str) -> tuple[str | None, list[int]]:
    """Write a query with the keys that it is ordered by as columns behind its own.

    Returns it, or None where that cannot be done, and which of its columns are keys: one that was a column before is
    named by its number from 0, one that was added by its number from the end, -1 being the last.

    Raises: TooComplex.
    """
    tree = statement.tree
    order = tree.args.get("order")
    if order is None or not isinstance(tree, exp.Query):
        return None, []
    names = [one.alias_or_name.lower() for one in tree.selects]
    starred = any(one.is_star for one in tree.selects)
    keys: list[int | None] = []
    added: list[exp.Expr] = []
    for ordered in order.expressions:
        term = ordered.this
        if isinstance(term, exp.Literal) and not term.is_string and term.name.isdecimal():
            keys.append(int(term.name) - 1)
        elif isinstance(term, exp.Column) and not term.table and not starred and names.count(term.name.lower()) == 1:
            keys.append(names.index(term.name.lower()))
        else:
            keys.append(None)
            added.append(term.copy())
    if added and (not isinstance(tree, exp.Select) or tree.args.get("distinct")):
        return None, []
    wide = tree.copy()
    if added and isinstance(wide, exp.Select):
        wide = wide.select(*(term.as_(f"{_KEY}{number}") for number, term in enumerate(added)), append=True, copy=False)
    behind = iter(range(-len(added), 0))
    numbers = [next(behind) if key is None else key for key in keys]
    return render(wide, dialect), numbers


def split_keys(wide: Result, keys: list[int]) -> Result:
    """Take the keys that were added out of a result, and keep all keys beside it."""
    added = sum(key < 0 for key in keys)
    width = len(wide.columns) - added
    if any(key >= width for key in keys):
        return wide
    return Result(
        wide.columns[:width], [row[:width] for row in wide.rows], [tuple(row[key] for key in keys) for row in wide.rows]
    )

"""The part of a verdict on SQL that needs a worker of its own: parsing, SQLite, comparing rows.

`judge` is a pure function of its argument, called by `verifiers.sql` through an isolated worker, because neither
sqlglot's nor SQLite's time and memory are bounded for what a model may write. It never raises for what an answer, a
reference or a fixture contains. What it keeps from call to call are fixtures and the results of references.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from verifiers.sql_fixture import Failed, Fixture, TooMuch, missing_tables
from verifiers.sql_keys import add_keys, split_keys
from verifiers.sql_limits import LENIENCY, MAX_ROWS, TIMEOUT_S, TOLERANCE
from verifiers.sql_names import check_names, refuse_catalogs
from verifiers.sql_rows import Result, Row, Rules, TooManyWays, explain_difference, read_cell
from verifiers.sql_statement import (
    Refused,
    Statement,
    TooComplex,
    clip,
    find_statement,
    read_statement,
)

_KEPT_FIXTURES = 4
_KEPT_RESULTS = 64

Outcome = dict[str, Any]

_fixtures: OrderedDict[str, Fixture] = OrderedDict()
_results: OrderedDict[tuple[str, str], Result] = OrderedDict()


def judge(argument: Mapping[str, Any]) -> Outcome:
    """Do one step of a verdict, or of a registration.

    `step` is `register` (gives `message` and `where`, both None where all is well), `judge` (gives a verdict),
    `read` (gives the statements to run, or a verdict) or `compare` (gives a verdict on rows that were read elsewhere).
    A verdict has `status`, `reason`, `safe` (for the model) and `cause`.
    """
    return _STEPS[argument["step"]](argument)


class BadReference(Exception):
    """The reference cannot be used: not the answer's fault."""


def _register(argument: Mapping[str, Any]) -> Outcome:
    config = argument["config"]
    reference = config.get("reference")
    where = "/fixture"
    try:
        fixture = _open_fixture(config) if "fixture" in config else None
        where = "/schema"
        absent = missing_tables(fixture, config.get("schema", {})) if fixture else []
        if absent:
            return {"message": f"the fixture has no table {absent[0]!r}", "where": where}
        where = "/reference"
        if reference is not None:
            statement = _read(reference, config)
            if fixture:
                _run_reference(fixture, statement, config)
    except (Refused, Failed, TooMuch) as error:
        return {"message": error.reason, "where": where}
    except (TooComplex, BadReference) as error:
        return {"message": str(error), "where": where}
    return {"message": None, "where": None}


def _judge(argument: Mapping[str, Any]) -> Outcome:
    """Judge an answer without a database, or with a fixture."""
    config = argument["config"]
    try:
        statement = _read(find_statement(argument["text"], config["dialect"]), config)
        if "fixture" not in config:
            return _passed()
        return _judge_by_fixture(statement, config, argument.get("reference"), argument.get("rows"))
    except Refused as error:
        return _failed(error.reason, safe=True)
    except TooComplex as error:
        return _abstained(str(error), error.cause)
    except (Failed, TooMuch) as error:  # of the fixture, which was built before: registration saw to it
        return _abstained(str(error), "broke")


def _judge_by_fixture(statement: Statement, config: Mapping[str, Any], reference: str | None, rows: Any) -> Outcome:
    fixture = _open_fixture(config)
    try:
        want, rules = _find_wanted(fixture, config, reference, rows)
    except BadReference as error:
        return _abstained(f"the reference cannot be used: {error}", "bad_args")
    sql = statement.translate("sqlite")
    try:
        if not config.get("execute", True) and want is None:
            fixture.explain(sql)
            return _passed()
        got = fixture.run(sql, max_rows=_most_rows(config), timeout_s=_most_s(config))
    except Failed as error:
        if statement.dialect != "sqlite":
            return _abstained(f"SQLite cannot run what it was translated to: {error.reason}", "undecided")
        return _failed(error.reason, safe=True)
    except TooMuch as error:
        return _blame(error, config, want)
    return _passed() if want is None else _compare(got, want, rules)


def _find_wanted(
    fixture: Fixture, config: Mapping[str, Any], reference: str | None, rows: Any
) -> tuple[Result | None, Rules]:
    """Find the right result, and how it is compared.

    Raises: BadReference.
    """
    if rows is not None:
        return _read_given(rows), _read_rules(config, ordered=False, named=False)
    if reference is None:
        return None, Rules()
    try:
        statement = _read(reference, config)
        return _run_reference(fixture, statement, config), _read_rules(config, ordered=statement.is_ordered)
    except (Refused, Failed, TooMuch) as error:
        raise BadReference(error.reason) from None
    except TooComplex as error:
        raise BadReference(str(error)) from None


def _read_statements(argument: Mapping[str, Any]) -> Outcome:
    """Read an answer, and the reference, that are to be run elsewhere."""
    config, reference = argument["config"], argument.get("reference")
    told: Outcome = {"reference": None, "keyed": None, "key_columns": []}
    if reference is not None:
        try:
            right = _read(reference, config)
            keyed, keys = add_keys(right, config["dialect"])
        except (Refused, TooComplex) as error:
            return _abstained(f"the reference cannot be used: {error}", "bad_args")
        told = {
            "reference": right.text, "keyed": keyed, "key_columns": keys, "ordered": right.is_ordered,
        }  # fmt: skip
    try:
        statement = _read(find_statement(argument["text"], config["dialect"]), config)
        refuse_catalogs(statement)
    except Refused as error:
        return _failed(error.reason, safe=True)
    except TooComplex as error:
        return _abstained(str(error), error.cause)
    return {"status": "", "sql": statement.text, **told}


def _compare_given(argument: Mapping[str, Any]) -> Outcome:
    """Compare rows that were read elsewhere: each is a JSON object as text, whose keys may be there twice."""
    config = argument["config"]
    got = Result(tuple(argument["columns"]), _read_objects(argument["got"]))
    if argument.get("rows") is not None:
        return _compare(got, _read_given(argument["rows"]), _read_rules(config, ordered=False, named=False))
    want = Result(tuple(argument["reference_columns"]), _read_objects(argument["want"]))
    if argument.get("key_columns"):
        want = split_keys(want, argument["key_columns"])
    return _compare(got, want, _read_rules(config, ordered=argument["ordered"]))


def _read_objects(texts: list[str]) -> list[Row]:
    return [
        tuple(read_cell(value) for _, value in json.loads(text, object_pairs_hook=list, parse_int=_read_whole))
        for text in texts
    ]


def _read_whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 300 else float(digits)


def _read_given(rows: list[list[Any]]) -> Result:
    width = len(rows[0]) if rows else 0
    return Result(("",) * width, [tuple(map(read_cell, row)) for row in rows])


def _compare(got: Result, want: Result, rules: Rules) -> Outcome:
    if not want.rows and not want.columns:  # rows were given, and none
        want = Result(got.columns, [])
    try:
        flaw = explain_difference(got, want, rules)
    except TooManyWays as error:
        return _abstained(f"the rows cannot be compared: {error}", "too_costly")
    return _failed(flaw) if flaw else _passed()


def _read(text: str, config: Mapping[str, Any]) -> Statement:
    """Read a statement and look its names up.

    Raises: Refused, TooComplex.
    """
    statement = read_statement(text, config["dialect"])
    schema = config.get("schema")
    if schema is None and "fixture" in config and config["dialect"] != "sqlite":
        schema = _open_fixture(config).read_schema()  # in its own dialect SQLite looks names up better
    if schema is not None:
        check_names(statement, schema, qualifiers=_find_qualifiers(config))
    return statement


def _find_qualifiers(config: Mapping[str, Any]) -> tuple[str, ...]:
    usual = {"sqlite": ("main",), "postgres": ("public",)}
    return tuple(config.get("search_path") or usual.get(config["dialect"], ()))


def _read_rules(config: Mapping[str, Any], *, ordered: bool, named: bool = True) -> Rules:
    said = config.get("ordered", "auto")
    return Rules(
        ordered=said if isinstance(said, bool) else ordered,
        columns=config.get("columns", "ordered"),
        column_names=named and config.get("column_names", False),
        tolerance=float(config.get("tolerance", TOLERANCE)),
    )


def _run_reference(fixture: Fixture, statement: Statement, config: Mapping[str, Any]) -> Result:
    """Run the reference, or find its result again.

    Raises: Failed, TooMuch, TooComplex.
    """
    key = (_name_fixture(config), f"{config['dialect']} {_most_rows(config)} {statement.text}")
    if key in _results:
        _results.move_to_end(key)
        return _results[key]
    limits = {"max_rows": _most_rows(config), "timeout_s": LENIENCY * _most_s(config)}
    plain = fixture.run(statement.translate("sqlite"), **limits)
    keyed, keys = add_keys(statement, "sqlite")
    if keyed is not None:
        try:
            widened = split_keys(fixture.run(keyed, **limits), keys)
            plain = widened if widened.rows == plain.rows else plain
        except (Failed, TooMuch):  # then its order has to be met exactly
            pass
    _keep(_results, key, plain, _KEPT_RESULTS)
    return plain


def _blame(error: TooMuch, config: Mapping[str, Any], want: Result | None) -> Outcome:
    """Blame the answer for wanting too much where it can have known, or where it is wrong in any case."""
    if error.rows and want is not None and len(want.rows) <= _most_rows(config):
        return _failed(f"{error.reason}, and {len(want.rows)} are right")
    if "max_rows" in config if error.rows else "timeout_s" in config:
        return _failed(error.reason, safe=True)
    return _abstained(error.reason, "too_costly")


def _most_rows(config: Mapping[str, Any]) -> int:
    return int(config.get("max_rows", MAX_ROWS))


def _most_s(config: Mapping[str, Any]) -> float:
    return float(config.get("timeout_s", TIMEOUT_S))


def _name_fixture(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(config["fixture"].encode()).hexdigest()


def _open_fixture(config: Mapping[str, Any]) -> Fixture:
    """Build the fixture, or find it again.

    Raises: Failed, TooMuch.
    """
    name = _name_fixture(config)
    if name not in _fixtures:
        _keep(_fixtures, name, Fixture(config["fixture"]), _KEPT_FIXTURES, Fixture.close)
    _fixtures.move_to_end(name)
    return _fixtures[name]


def _keep(
    kept: OrderedDict[Any, Any], key: Any, value: Any, most: int, drop: Callable[[Any], None] | None = None
) -> None:
    kept[key] = value
    while len(kept) > most:
        _, oldest = kept.popitem(last=False)
        if drop is not None:
            drop(oldest)


def _passed() -> Outcome:
    return {"status": "passed", "reason": "", "safe": False, "cause": None}


def _failed(reason: str, *, safe: bool = False) -> Outcome:
    return {"status": "failed", "reason": clip(reason, 1000), "safe": safe, "cause": None}


def _abstained(reason: str, cause: str) -> Outcome:
    return {"status": "abstained", "reason": clip(reason, 1000), "safe": False, "cause": cause}


_STEPS: Mapping[str, Callable[[Mapping[str, Any]], Outcome]] = {
    "register": _register, "judge": _judge, "read": _read_statements, "compare": _compare_given,
}  # fmt: skip

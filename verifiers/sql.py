"""The kind `sql`: the answer is one query that only reads, that runs, and that returns what the reference does.

Owns the configuration and the arguments; `verifiers.sql_verifier` judges.
"""

from collections.abc import Mapping
from typing import Any

from verifiers.base import InvalidArgs, InvalidVerifier
from verifiers.kind import NETWORK, Args, Config, Kind
from verifiers.sql_limits import MAX_ROWS, TIMEOUT_S, TOLERANCE
from verifiers.sql_verifier import SqlVerifier

MAX_TIMEOUT_S = 10.0
MAX_FIXTURE_CHARS = 262_144
MAX_REFERENCE_CHARS = 20_000
DIALECTS = (
    "athena", "bigquery", "clickhouse", "databricks", "doris", "drill", "duckdb", "hive", "mysql", "oracle", "postgres",
    "presto", "redshift", "snowflake", "spark", "sqlite", "starrocks", "teradata", "trino", "tsql",
)  # fmt: skip


def _compile(config: Config) -> SqlVerifier:
    """Compile a configuration.

    Raises: InvalidVerifier.
    """
    config = {"dialect": "postgres" if "database" in config else "sqlite", **config}
    _require_sense(config)
    return SqlVerifier(config)


def _find_needs(config: Any) -> frozenset[str]:
    """Say that naming a database reaches out; `config` may be anything."""
    return frozenset({NETWORK}) if isinstance(config, Mapping) and "database" in config else frozenset()


def _require_sense(config: Config) -> None:
    """Refuse what a schema cannot.

    Raises: InvalidVerifier.
    """
    if "fixture" in config and "database" in config:
        raise InvalidVerifier("sql: it runs on a fixture or on a database, not on both", "/database")
    if "database" in config and config["dialect"] != "postgres":
        raise InvalidVerifier("sql: a database speaks the dialect postgres", "/dialect")
    if "search_path" in config and "database" not in config:
        raise InvalidVerifier("sql: a search_path is a database's", "/search_path")
    if "reference" in config and not _runs(config):
        raise InvalidVerifier("sql: a reference needs a fixture or a database to run on", "/reference")


def _runs(config: Config) -> bool:
    return "fixture" in config or "database" in config


def _accept_args(config: Config, args: Args) -> None:
    """Refuse arguments that cannot be used.

    Raises: InvalidArgs.
    """
    given = [name for name in ("reference", "rows") if name in args]
    if len(given) > 1:
        raise InvalidArgs("sql: there is a reference or there are rows, not both", "/rows")
    if given and not _runs(config):
        raise InvalidArgs(f"sql: {given[0]} needs a verifier with a fixture or a database", f"/{given[0]}")
    rows = args.get("rows", [])
    odd = next((index for index, row in enumerate(rows) if len(row) != len(rows[0])), None)
    if odd is not None:
        raise InvalidArgs("sql: the rows are not equally long", f"/rows/{odd}")
    if len(rows) > (most := config.get("max_rows", MAX_ROWS)):
        raise InvalidArgs(f"sql: there are more than {most} rows", "/rows")


_NAME = {"type": "string", "minLength": 1, "maxLength": 128}
_REFERENCE = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_REFERENCE_CHARS,
    "description": "A query that returns the right rows. Without it, and without rows, the answer only has to run.",
}

KIND = Kind(
    name="sql",
    summary="The answer is one SQL query that only reads, that runs, and that returns what a reference query does.",
    config_schema={
        "type": "object",
        "properties": {
            "dialect": {
                "enum": list(DIALECTS),
                "description": "Of answers and references. Else sqlite, or postgres where a database is named.",
            },
            "schema": {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 500,
                "propertyNames": _NAME,
                "additionalProperties": {
                    "type": "object",
                    "maxProperties": 500,
                    "propertyNames": _NAME,
                    "additionalProperties": {"type": "string", "maxLength": 128},
                },
                "description": "The tables, their columns and types that an answer may name. Else all that are there.",
            },
            "fixture": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_FIXTURE_CHARS,
                "description": (
                    "SQL in SQLite's dialect that builds a small database; answers run on it. Those of another dialect "
                    "are translated for it."
                ),
            },
            "database": {
                **_NAME,
                "description": "The operator's name for a PostgreSQL database; answers run on it and only read.",
            },
            "search_path": {
                "type": "array",
                "items": _NAME,
                "minItems": 1,
                "maxItems": 16,
                "description": "The schemas of the database in which tables are looked up.",
            },
            "reference": _REFERENCE,
            "ordered": {
                "enum": ["auto", True, False],
                "default": "auto",
                "description": (
                    "Whether the order of rows counts; auto: where the reference ends in ORDER BY. Rows that are equal "
                    "in what it orders by may change places."
                ),
            },
            "columns": {
                "enum": ["ordered", "any"],
                "default": "ordered",
                "description": "any: the columns may come in another order than the reference's.",
            },
            "column_names": {
                "type": "boolean",
                "default": False,
                "description": "Whether columns have to be called as the reference's are.",
            },
            "tolerance": {
                "type": "number",
                "minimum": 0,
                "default": TOLERANCE,
                "description": "How far two numbers may lie apart, absolutely or relatively, unless both are whole.",
            },
            "execute": {
                "type": "boolean",
                "default": True,
                "description": "False: without a reference an answer is only planned, not run.",
            },
            "timeout_s": {
                "type": "number",
                "minimum": 0.05,
                "maximum": MAX_TIMEOUT_S,
                "default": TIMEOUT_S,
                "description": "Where it is given, an answer that takes longer fails; else its verdict is abstained.",
            },
            "max_rows": {
                "type": "integer",
                "minimum": 1,
                "maximum": 10_000,
                "default": MAX_ROWS,
                "description": "Where it is given, an answer that returns more fails; else its verdict is abstained.",
            },
        },
        "additionalProperties": False,
    },
    args_schema={
        "type": "object",
        "properties": {
            "reference": _REFERENCE,
            "rows": {
                "type": "array",
                "items": {
                    "type": "array",
                    "items": {"type": ["null", "boolean", "number", "string"]},
                    "minItems": 1,
                    "maxItems": 100,
                },
                "maxItems": 10_000,
                "description": "The right rows themselves, in any order unless the configuration says `ordered`.",
            },
        },
        "additionalProperties": False,
    },
    compile=_compile,
    accept_args=_accept_args,
    find_needs=lambda config: (
        frozenset({NETWORK}) if isinstance(config, Mapping) and "database" in config else frozenset()
    ),
)

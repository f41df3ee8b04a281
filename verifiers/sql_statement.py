"""Reads one SQL statement and says whether it only reads. Called by `verifiers.sql_job`.

Owns where the statement stands in an answer, and what counts as reading. Runs in a worker that may be killed: sqlglot's
time and memory are not bounded for every text, only its length and depth are.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, ParseError, SqlglotError
from sqlglot.expressions.dml import DML
from sqlglot.tokenizer_core import TokenType

MAX_STATEMENT_CHARS = 20_000
MAX_DEPTH = 10_000  # Python calls, of which a level of SQL takes a dozen
MAX_NAME_CHARS = 80

_LANGUAGES = frozenset({"", "sql", "sqlite", "postgres", "postgresql", "pgsql", "psql", "mysql", "tsql"})
_FENCE = re.compile(r"[ \t]*(```|~~~)[ \t]*(\S*)[ \t]*")
_WRITES = (
    DML, exp.DDL, exp.Command, exp.Into, exp.Pragma, exp.Attach, exp.Detach, exp.Copy, exp.Set, exp.Use, exp.Drop,
)  # fmt: skip
_FOREIGN = re.compile(r"""\bu&['"]""", re.IGNORECASE)  # PostgreSQL's escapes, which sqlglot reads as an operator
_ESCAPING = frozenset({"postgres", "redshift"})
_HARMLESS = frozenset({"pg_typeof", "pg_column_size", "pg_size_pretty"})
_BARRED = frozenset({
    "benchmark", "current_setting", "edit", "executable", "file", "fts3_tokenizer", "get_lock", "hdfs",
    "load_extension", "load_file", "nextval", "openquery", "opendatasource", "openrowset", "readfile", "release_lock",
    "remote", "s3", "set_config", "setval", "sleep", "sniff_csv", "ts_rewrite", "ts_stat", "url", "writefile",
})  # fmt: skip
_BARRED_STARTS = (
    "pg_", "lo_", "dblink", "database_to_xml", "schema_to_xml", "table_to_xml", "query_to_", "cursor_to_xml",
    "crosstab", "connectby", "dbms_", "http", "read_", "utl_", "xp_", "sys_",
)  # fmt: skip

logging.getLogger("sqlglot").setLevel(logging.CRITICAL)  # it warns of what we refuse anyway


class Refused(Exception):
    """The statement is wrong, whatever its rows would be. The reason tells of it and of the schema alone."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TooComplex(Exception):
    """The statement is too long or too deep to be judged, or beyond what sqlglot can. `cause` is a `base.Cause`."""

    def __init__(self, reason: str, cause: str = "too_costly") -> None:
        super().__init__(reason)
        self.cause = cause


@dataclass(frozen=True)
class Statement:
    """One statement that only reads. `text` is as written, without what ends it; `tree` is sqlglot's."""

    text: str
    tree: exp.Expr
    dialect: str

    def translate(self, dialect: str) -> str:
        """Write it in another dialect; in its own it stays as written.

        Raises: TooComplex where the other dialect has no word for something.
        """
        return self.text if dialect == self.dialect else render(self.tree, dialect)

    @property
    def is_ordered(self) -> bool:
        """Whether it says at its top in which order its rows come."""
        return bool(self.tree.args.get("order"))


def render(tree: exp.Expr, dialect: str) -> str:
    """Write a tree as SQL.

    Raises: TooComplex where the dialect has no word for something.
    """
    with guarded():
        try:
            return tree.sql(dialect, unsupported_level=ErrorLevel.RAISE, comments=False)
        except SqlglotError as error:
            raise TooComplex(f"it cannot be said in {dialect}: {clip(str(error), 200)}", "undecided") from None


def find_statement(text: str, dialect: str) -> str:
    """Find the SQL of an answer: the inside of its last fenced block of SQL; the whole text where there is none."""
    found: str | None = None
    inside: list[str] | None = None
    opened = language = ""
    for line in text.splitlines():
        fence = _FENCE.fullmatch(line)
        if inside is None and fence:
            opened, language, inside = fence[1], fence[2].lower(), []
        elif inside is not None and fence and fence[1] == opened and not fence[2]:
            found = "\n".join(inside) if language in _LANGUAGES or language == dialect else found
            inside = None
        elif inside is not None:
            inside.append(line)
    if inside is not None and (language in _LANGUAGES or language == dialect):  # a block without an end
        found = "\n".join(inside)
    return (text if found is None else found).strip()


def read_statement(text: str, dialect: str) -> Statement:
    """Parse the text, which has to be one statement that only reads.

    Raises: Refused, TooComplex.
    """
    if not text.strip():
        raise Refused("there is no SQL in the answer")
    if len(text) > MAX_STATEMENT_CHARS:
        raise TooComplex(f"the statement is longer than {MAX_STATEMENT_CHARS:,} characters")
    if dialect in _ESCAPING and _FOREIGN.search(text):
        raise TooComplex('texts and names of the form U&"..." are not read', "undecided")
    with guarded():
        try:
            parsed = sqlglot.parse(text, dialect=dialect)
            trees = [tree for tree in parsed if tree is not None and not isinstance(tree, exp.Semicolon)]
            if len(trees) != 1:
                raise Refused("there is no SQL in the answer" if not trees else "there is more than one statement")
            _require_reading(trees[0], dialect)
        except ParseError as error:
            raise Refused(f"it is not valid SQL ({dialect}): {_place(error)}") from None
        except SqlglotError:  # of the tokenizer, which names no place
            raise Refused(f"it is not valid SQL ({dialect}): a quotation or a comment has no end") from None
        return Statement(_trim(text, dialect), trees[0], dialect)


def quote(name: str) -> str:
    """Quote a name from an answer, shortened."""
    return repr(clip(name, MAX_NAME_CHARS))


def clip(text: str, limit: int) -> str:
    """Shorten a text, and make it one that every database can keep."""
    text = text.replace("\0", "\ufffd")
    return text if len(text) <= limit else f"{text[:limit]}..."


def _require_reading(tree: exp.Expr, dialect: str) -> None:
    """Refuse what is no query, and a query with anything in it that writes, locks or reaches outside.

    Raises: Refused.
    """
    if not isinstance(tree, exp.Query | exp.Values):
        raise Refused("only one SELECT is allowed")
    for node in tree.walk():
        if isinstance(node, _WRITES):
            raise Refused("the statement does not only read")
        if isinstance(node, exp.Lock):
            raise Refused("the statement locks rows")
        if isinstance(node, exp.Placeholder | exp.Parameter | exp.SessionParameter):
            raise Refused("the statement has a placeholder or a variable in it")
        if isinstance(node, exp.Func) and bars(name := _name_function(node)):
            raise Refused(f"the function {quote(name)} is not allowed")
    if dialect in _ESCAPING:
        _refuse_called_fields(tree)


def _refuse_called_fields(tree: exp.Expr) -> None:
    """Refuse functions that are called like fields, as PostgreSQL allows: `(x).f` is `f(x)` where no column is f.

    `x.f` is that as well where x is what a function in FROM returns; a row of a table or of a query has its columns.

    Raises: Refused.
    """
    tables = {node.alias_or_name.lower() for node in tree.find_all(exp.Table, exp.Subquery, exp.CTE) if _has_rows(node)}
    returned = [node for node in tree.find_all(exp.TableAlias) if not _has_rows(node.parent)]
    for node in tree.find_all(exp.Dot, exp.Column):
        if not bars(name := node.name):
            continue
        if isinstance(node, exp.Column):
            table = node.table.lower()
            alike = [_list_columns(one) for one in returned if one.name.lower() == table]
            if not table or (all(name.lower() in columns for columns in alike) and (alike or table in tables)):
                continue
        raise Refused(f"the function {quote(name)} is not allowed")


def _has_rows(node: exp.Expr | None) -> bool:
    """Say whether what stands in FROM has rows with columns, and is not what a function returns."""
    if isinstance(node, exp.Table):
        return isinstance(node.this, exp.Identifier)
    return isinstance(node, exp.Subquery | exp.CTE)


def _list_columns(alias: exp.TableAlias) -> set[str]:
    return {column.name.lower() for column in alias.args.get("columns") or ()}


def bars(name: str) -> bool:
    """Say whether a function of this name waits, locks, or reaches files, settings or other machines."""
    name = name.lower()
    return name not in _HARMLESS and (name in _BARRED or name.startswith(_BARRED_STARTS))


def _name_function(node: exp.Func) -> str:
    named = isinstance(node, exp.Anonymous | exp.AnonymousAggFunc)
    return (node.name if named else node.sql_name()).lower()


def _trim(text: str, dialect: str) -> str:
    """Cut off what stands before the first and after the last word: comments, and the semicolon."""
    tokens = [token for token in sqlglot.tokenize(text, dialect=dialect) if token.token_type is not TokenType.SEMICOLON]
    return text[tokens[0].start : tokens[-1].end + 1]


def _place(error: ParseError) -> str:
    first = error.errors[0] if error.errors else {}
    near = first.get("highlight") or ""
    column = max(1, (first.get("col") or 0) - len(near) + 1)  # sqlglot gives a word's last
    where = f" at line {first['line']}, column {column}" if first.get("line") else ""
    said = str(first.get("description") or error).partition("\n")[0].rstrip(".")
    return clip(said, 200) + where + (f", near {quote(near)}" if near else "")


@contextmanager
def guarded() -> Iterator[None]:
    """Allow sqlglot the calls that it needs for nested SQL, and take whatever else it raises for its own limits.

    Raises: TooComplex.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, MAX_DEPTH))
    try:
        yield
    except RecursionError:
        raise TooComplex("the statement is nested too deeply") from None
    except (SqlglotError, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise TooComplex(f"sqlglot cannot read it: {clip(repr(error), 200)}", "undecided") from None
    finally:
        sys.setrecursionlimit(before)

"""Looks the tables and columns of a statement up in a schema. Called by `verifiers.sql_job`, in a worker."""

import re
from collections.abc import Collection, Mapping

from sqlglot import exp
from sqlglot.dialects.dialect import Dialect, NormalizationStrategy
from sqlglot.errors import OptimizeError
from sqlglot.optimizer.normalize_identifiers import normalize_identifiers
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import traverse_scope
from sqlglot.schema import MappingSchema

from verifiers.sql_statement import Refused, Statement, clip, guarded, quote

Schema = Mapping[str, Mapping[str, str]]
"""Tables, their columns and the columns' types."""

_CATALOGS = frozenset({"information_schema", "pg_catalog", "pg_toast"})


def check_names(statement: Statement, schema: Schema, *, qualifiers: Collection[str] = ()) -> None:
    """Look every table and column up in a schema. `qualifiers` may stand before a table; none given: anything may.

    Raises: Refused, TooComplex.
    """
    with guarded():
        try:
            tree = normalize_identifiers(statement.tree.copy(), dialect=statement.dialect)
            known = normalize_schema(schema, statement.dialect)
            for table in list_tables(tree):
                if table.name not in known or (qualifiers and table.db and table.db not in qualifiers) or table.catalog:
                    raise Refused(f"there is no table {quote(table.sql(statement.dialect, comments=False))}")
            if statement.dialect == "sqlite":
                tree = tree.transform(lambda node: _read_as_text(node, known))
            types: dict[str, object] = {name: dict.fromkeys(columns, "text") for name, columns in known.items()}
            qualify(tree, schema=MappingSchema(types, dialect=statement.dialect, normalize=False),
                    dialect=statement.dialect)  # fmt: skip
        except OptimizeError as error:
            raise Refused(_explain_name(str(error), schema)) from None


def refuse_catalogs(statement: Statement) -> None:
    """Refuse a statement that reads PostgreSQL's own tables.

    Raises: Refused, TooComplex.
    """
    with guarded():
        tables = list_tables(normalize_identifiers(statement.tree.copy(), dialect=statement.dialect))
    for table in tables:
        if table.db in _CATALOGS or table.name.startswith("pg_"):
            raise Refused(f"the table {quote(table.name)} is the database's own")


def normalize_schema(schema: Schema, dialect: str) -> dict[str, dict[str, str]]:
    """Write a schema's names as sqlglot writes those of a statement, by the dialect's rules of case."""
    rules = Dialect.get_or_raise(dialect)
    folds = rules.normalization_strategy is NormalizationStrategy.LOWERCASE

    def normalize(name: str) -> str:
        return rules.normalize_identifier(exp.to_identifier(name, quoted=folds and name != name.lower())).name

    return {
        normalize(table): {normalize(column): kind for column, kind in columns.items()}
        for table, columns in schema.items()
    }


def list_tables(tree: exp.Expr) -> list[exp.Table]:
    """List the tables that are read: neither a WITH's, nor what a function returns."""
    return [
        source
        for scope in traverse_scope(tree)
        for source in scope.sources.values()
        if isinstance(source, exp.Table) and isinstance(source.this, exp.Identifier)
    ]


def _read_as_text(node: exp.Expr, schema: Schema) -> exp.Expr:
    """Read "x" as SQLite does: as a text where no column is called that."""
    if not isinstance(node, exp.Column) or node.table or not isinstance(node.this, exp.Identifier):
        return node
    known = any(node.name in columns for columns in schema.values())
    return exp.Literal.string(node.name) if node.this.quoted and not known and not _is_alias(node) else node


def _is_alias(node: exp.Column) -> bool:
    root = node.root()
    named = (*root.find_all(exp.Alias), *root.find_all(exp.TableAlias))
    return any(
        node.name in (alias.alias, *(column.name for column in alias.args.get("columns") or ())) for alias in named
    )


def _explain_name(message: str, schema: Schema) -> str:
    """Say in our words what sqlglot says of a name."""
    names = re.findall(r"'([^']*)'|: (\w+)$", message.partition(". Line")[0])
    found = [one or other for one, other in names]
    if message.startswith("Unknown table") and found:
        return f"there is no table {quote(found[0])} in this part of the statement"
    if len(found) > 1:
        return f"there is no column {quote(found[0])} in {quote(found[1])}"
    if not found:
        return clip(message, 200)
    known = any(found[0].lower() == column.lower() for columns in schema.values() for column in columns)
    name = quote(found[0])
    return f"the column {name} is in none or in several of the tables there" if known else f"there is no column {name}"

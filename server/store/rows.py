"""Prepares values for the tables and fetches rows.

Called by every store; only the episode log makes its rows elsewhere, for speed.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Executable
from sqlalchemy.ext.asyncio import AsyncConnection

from server.store.cleaning import clean_text

Row = dict[str, Any]


async def fetch_rows(connection: AsyncConnection, statement: Executable) -> list[Row]:
    """Run a statement that returns rows; each one as a dict by column."""
    result = await connection.execute(statement)
    columns = tuple(result.keys())
    return [dict(zip(columns, row, strict=True)) for row in result]


async def fetch_row(connection: AsyncConnection, statement: Executable) -> Row | None:
    """Run a statement that returns at most one row."""
    rows = await fetch_rows(connection, statement)
    return rows[0] if rows else None


async def fetch_one(connection: AsyncConnection, statement: Executable) -> Row:
    """Run a statement that returns one row."""
    (row,) = await fetch_rows(connection, statement)
    return row


def clean_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make the text among the values fit for both databases; JSON is cleaned as it is encoded."""
    return {name: clean_text(value) if isinstance(value, str) else value for name, value in values.items()}


def to_json(value: Any) -> Any:
    """Turn dataclasses, and what is in them, into dicts and lists for a JSON column."""
    return msgspec.to_builtins(value, enc_hook=dict)

"""Orders what is sought in the log by one column so that the index beginning with that column is used. Pure."""

from typing import Any

from sqlalchemy import Column, Select

from server.store.tables import episodes


def newest_first(statement: Select, column: Column[Any], value: str, *, oldest: bool = False) -> Select:
    """Leave what has `value` in `column`, the newest first (or the oldest).

    Said as a range and ordered by the column as well: of an equality PostgreSQL knows that its column need not be
    ordered by, and so may walk through the primary key instead until it has met enough. It expects them evenly spread:
    for a task, a key or an adapter that has not been logged lately it walks through all that came since.
    """
    order = (column.asc(), episodes.c.id.asc()) if oldest else (column.desc(), episodes.c.id.desc())
    return statement.where(column.between(value, value)).order_by(*order)

"""Tells a database that is away from one that refuses what it was given. Called by `database` and by the episode log.

The difference decides what becomes of an episode: kept in the spool until the database is back, or set aside for good.
"""

import sqlite3
import struct

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from server.errors import StoreUnavailable

# PostgreSQL's classes: data exception, integrity violation, program limit exceeded (a value that is too big or deep).
_REFUSALS = ("22", "23", "54")
_MISSING = ("42P01", "42703")


def is_refusal(error: BaseException) -> bool:
    """Whether the database, or its driver, will refuse the same values every time."""
    original = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(original, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_REFUSALS)
    if isinstance(original, sqlite3.IntegrityError | sqlite3.DataError):
        return True
    if isinstance(error, DBAPIError):
        # asyncpg refuses a value of the wrong type itself, with a ValueError as a base and without a state.
        return original is not None and isinstance(original.__cause__, ValueError)
    return isinstance(error, ValueError | TypeError | OverflowError | struct.error)


def is_unmigrated(error: BaseException) -> bool:
    """Whether a table or column is missing."""
    if not isinstance(error, DBAPIError):
        return False
    return getattr(error.orig, "sqlstate", None) in _MISSING or "no such table" in str(error.orig)


def first_line(error: BaseException) -> str:
    """Say in one line what went wrong, for our own logs: the driver's words, not those meant for clients.

    Of what the database refused only the class: drivers quote the value.
    """
    cause = error.__cause__ if isinstance(error, StoreUnavailable) and error.__cause__ else error
    if is_refusal(cause):
        return type(cause).__name__
    return (str(cause) or type(cause).__name__).splitlines()[0]


def is_outage(error: BaseException) -> bool:
    """Whether the same write may well succeed later: no connection, locked, read-only, full, not migrated yet."""
    return isinstance(error, SQLAlchemyError | OSError) and not is_refusal(error)

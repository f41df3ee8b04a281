"""The database's own clock, in SQL.

Leases, heartbeats and presence are compared by it alone, so that machines whose clocks disagree still agree on who is
late. Called by the stores of those.
"""

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class UnixNow(FunctionElement[float]):
    """Unix seconds at the moment of the statement."""

    name = "unix_now"
    type = Double()
    inherit_cache = True


@compiles(UnixNow, "postgresql")
def _on_postgresql(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "extract(epoch FROM clock_timestamp())::float8"


@compiles(UnixNow, "sqlite")
def _on_sqlite(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"

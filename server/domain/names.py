"""How things are named: ids, and the names that are always there."""

import os
import time

BASE_ADAPTER = ""
"""The name of no adapter: the plain base model."""

DEFAULT_TASK = "default"
"""The task that always exists: requests that name none are its."""

DEFAULT_POOL = "default"
"""The pool whose workers train where nothing else is said."""


def new_id(prefix: str) -> str:
    """Make an id that sorts by time of making, to a quarter of a microsecond.

    `<prefix>_<12 hex of milliseconds><3 hex of 1/4096 milliseconds><13 random hex>`.
    """
    ms, ns = divmod(time.time_ns(), 1_000_000)
    return f"{prefix}_{ms:012x}{ns * 4096 // 1_000_000:03x}{os.urandom(7).hex()[1:]}"

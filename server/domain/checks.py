"""What a preflight finds."""

from dataclasses import dataclass
from enum import StrEnum


class CheckState(StrEnum):
    """What came of a check."""

    OK = "ok"
    WARNED = "warned"  # it runs, and worse than it could
    FAILED = "failed"
    SKIPPED = "skipped"  # it could not be looked at


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a preflight looked at. `remedy` is the flag, setting or mount to change; "" where all is well.

    `where` says whose view it is: "" ours, else the worker's that looked.
    """

    name: str
    state: CheckState
    says: str
    remedy: str = ""
    where: str = ""

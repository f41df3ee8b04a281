"""The audit log."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the audit log."""

    kind: str
    subject: str
    actor: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0

"""A task's frozen panel, and what adapters make of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Panel:
    """One version of a task's frozen panel: held-out problems that never change. `sha256` is of all of them."""

    task: str
    version: int
    size: int
    sha256: str
    reason: str = ""
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class PanelResult:
    """What came of one problem of a panel under one adapter ("" = the base model).

    `conditions` is the fingerprint of what answered beside the adapter; results compare where they are equal. `judged`
    is false where the verifiers could not judge.
    """

    adapter: str
    number: int
    conditions: str
    judged: bool
    first_passed: bool
    second_passed: bool
    tokens: int

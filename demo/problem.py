"""Owns what a demo problem is. Free of torch and transformers, as all that the `mulligan demo` client imports."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing to be answered, with what its verifier needs to judge an answer.

    `key` is the canonical content: two problems that differ only in order or wording share it.
    """

    task: str
    messages: list[dict[str, Any]]
    verifier: str
    args: dict[str, Any]
    key: str
    tools: list[dict[str, Any]] = field(default_factory=list)

"""The kind `not`: another verifier must not pass.

    the member failed          passed
    the member passed          failed
    the member abstained       abstained

The score is 1 less the member's, 0 where it abstains. The model may be shown the reason only where it may be shown the
member's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from verifiers.base import Status, Verdict
from verifiers.kind import Kind
from verifiers.members import MEMBER, Said, compose, join

_CONFIG: dict[str, Any] = {
    "type": "object",
    "properties": {"verifier": MEMBER},
    "required": ["verifier"],
    "additionalProperties": False,
}


def combine(said: Sequence[Said]) -> Verdict:
    """Turn the verdict of the one member round."""
    ((name, verdict),) = said
    if verdict.status is Status.ABSTAINED:
        return join(Status.ABSTAINED, 0.0, said, said)
    if verdict.status is Status.FAILED:
        return join(Status.PASSED, 1 - verdict.score, said, said)
    reason = f"it passes: {verdict.reason}" if verdict.reason else "it passes"
    passes = Said(name, replace(verdict, reason=reason))
    return join(Status.FAILED, 1 - verdict.score, said, [passes])


def make_kind(kinds: Mapping[str, Kind]) -> Kind:
    """Make the kind, whose member is of `kinds`."""
    return compose("not", "Another verifier, which must not pass.", kinds, lambda _config: combine, _CONFIG)

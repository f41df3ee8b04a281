"""The kind `any_of`: several checks of one answer, one of which has to pass.

    any member passed          passed
    else any abstained         abstained
    else (all failed)          failed

The score is the highest of the members', 0 where it abstains.
"""

from collections.abc import Mapping, Sequence

from verifiers.base import Status, Verdict
from verifiers.kind import Kind
from verifiers.members import Said, compose, join, with_status


def combine(said: Sequence[Said]) -> Verdict:
    """Combine the verdicts of the members; those that decide give the reason."""
    statuses = {verdict.status for _, verdict in said}
    best = next((status for status in (Status.PASSED, Status.ABSTAINED) if status in statuses), Status.FAILED)
    deciding = with_status(said, best)
    return join(best, max(verdict.score for _, verdict in deciding), said, deciding)


def make_kind(kinds: Mapping[str, Kind]) -> Kind:
    """Make the kind, whose members are of `kinds`."""
    return compose("any_of", "Several verifiers, one of which has to pass.", kinds, lambda _config: combine)

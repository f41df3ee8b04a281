"""The kind `all_of`: several checks of one answer, all of which have to pass.

    any member failed          failed
    else any abstained         abstained
    else (all passed)          passed

The score is the lowest of the members', 0 for one that abstained.
"""

from collections.abc import Mapping, Sequence

from verifiers.base import Status, Verdict
from verifiers.kind import Kind
from verifiers.members import Said, compose, join, with_status


def combine(said: Sequence[Said]) -> Verdict:
    """Combine the verdicts of the members; those that decide give the reason."""
    statuses = {verdict.status for _, verdict in said}
    worst = next((status for status in (Status.FAILED, Status.ABSTAINED) if status in statuses), Status.PASSED)
    return join(worst, min(verdict.score for _, verdict in said), said, with_status(said, worst))


def make_kind(kinds: Mapping[str, Kind]) -> Kind:
    """Make the kind, whose members are of `kinds`."""
    return compose("all_of", "Several verifiers, all of which have to pass.", kinds, lambda _config: combine)

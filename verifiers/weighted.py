"""The kind `weighted`: the weighted mean of the members' scores has to reach a threshold.

A member that abstained might have scored anything from 0 to 1, so the mean lies between two ends:

    the lower end reaches the threshold        passed
    the upper end does not reach it            failed
    else                                       abstained: the abstaining members could change the result

The score is the lower end: it counts who abstained as 0. It is 0 where the whole abstains. A member's own `passed` or
`failed` does not matter, only its score. Means are compared to nine digits, so 0.1 + 0.2 reaches 0.3.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from verifiers.base import Status, Verdict
from verifiers.kind import Config, Kind
from verifiers.members import MEMBER, Combine, Said, compose, join, list_members, with_status

_DIGITS = 1e-9
_WEIGHT = {"type": "number", "minimum": 0.001, "maximum": 1000, "default": 1}
_LIST = list_members({**MEMBER, "properties": {**MEMBER["properties"], "weight": _WEIGHT}})
_CONFIG: dict[str, Any] = {
    **_LIST,
    "properties": {
        **_LIST["properties"],
        "threshold": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "description": "Passed where the weighted mean of the scores is at least this.",
        },
    },
    "required": ["verifiers", "threshold"],
}


def combine(said: Sequence[Said], weights: Sequence[float], threshold: float) -> Verdict:
    """Combine the verdicts of the members; all that did not pass give the reason."""
    total = math.fsum(weights)
    weighed = list(zip(said, weights, strict=True))
    silent = [weight for one, weight in weighed if one.verdict.status is Status.ABSTAINED]
    heard = [weight * one.verdict.score for one, weight in weighed if one.verdict.status is not Status.ABSTAINED]
    lowest = min(1.0, math.fsum(heard) / total)
    highest = math.fsum([*heard, *silent]) / total
    if lowest >= threshold - _DIGITS:
        return join(Status.PASSED, lowest, said, with_status(said, Status.PASSED))
    if highest >= threshold - _DIGITS:
        return join(Status.ABSTAINED, 0.0, said, with_status(said, Status.ABSTAINED))
    low = Said("score", Verdict.failed(f"{lowest:.3g}, less than {threshold:.3g}", safe_for_model=True))
    return join(Status.FAILED, lowest, said, [low, *with_status(said, Status.FAILED, Status.ABSTAINED)])


def _read_combine(config: Config) -> Combine:
    weights = [float(entry.get("weight", 1)) for entry in config["verifiers"]]
    threshold = float(config["threshold"])
    return lambda said: combine(said, weights, threshold)


def make_kind(kinds: Mapping[str, Kind]) -> Kind:
    """Make the kind, whose members are of `kinds`."""
    summary = "Several verifiers; the weighted mean of their scores has to reach a threshold."
    return compose("weighted", summary, kinds, _read_combine, _CONFIG)

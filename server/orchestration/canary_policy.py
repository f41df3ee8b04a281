"""Reads a task's canary policy from what an admin gives, over the API or on the command line."""

import itertools
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from server.domain import CanaryPolicy
from server.errors import InvalidRequest

NAMES = tuple(field.name for field in fields(CanaryPolicy))


def read_canary_policy(given: Mapping[str, Any], before: CanaryPolicy | None, param: str) -> CanaryPolicy:
    """Lay what is given over the policy before, or over the defaults. `param` is what an error names.

    Raises: InvalidRequest for a field that there is not, or that cannot be.
    """
    if unknown := [name for name in given if name not in NAMES]:
        raise InvalidRequest(f"A canary has no {unknown[0]!r}: it has {', '.join(NAMES)}.", param=param)
    policy = before or CanaryPolicy()
    widen = given.get("widen", policy.widen)
    if not isinstance(widen, list | tuple):
        raise InvalidRequest("widen is a list of shares, as [0.5, 1].", param=param)
    bound = {"latency_ratio"} if given.get("latency_ratio", 0) is None else set()  # null takes the bound away
    numbers = [*widen, *(given[name] for name in given if name not in {"widen", *bound})]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
        raise InvalidRequest("What a canary is given are numbers.", param=param)
    policy = replace(policy, **{**given, "widen": tuple(float(one) for one in widen)})
    _check(policy, param)
    return policy


def _check(policy: CanaryPolicy, param: str) -> None:
    shares = (policy.share, *policy.widen)
    steps = all(before < after for before, after in itertools.pairwise(shares))
    told = {
        "share and widen rise from above 0 to 1, as 0.1 and [0.5, 1]": policy.share > 0 and steps and shares[-1] == 1,
        "min_episodes is a whole number, 1 or more": policy.min_episodes >= 1 and policy.min_episodes % 1 == 0,
        "max_hours is above 0 and at most 720": 0 < policy.max_hours <= 720,
        "margin is at least 0 and below 1": 0 <= policy.margin < 1,
        "latency_ratio is above 1, or null": policy.latency_ratio is None or policy.latency_ratio > 1,
    }
    for says, holds in told.items():
        if not holds:
            raise InvalidRequest(f"Of a canary, {says}.", param=param)


def describe_canary_policy(policy: CanaryPolicy | None) -> str:
    """Say a policy in words."""
    if policy is None:
        return "no canary"
    shares = ", then ".join(f"{100 * share:g} %" for share in (policy.share, *policy.widen[:-1]))
    most = f"for {policy.max_hours:g} h at most"
    return f"a canary on {shares} of conversations, {most}, {policy.min_episodes} verified episodes at each"

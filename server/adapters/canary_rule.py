"""Decides what becomes of a canary, from what it and its champion did meanwhile. Pure: it reads and writes nothing.

Called by `server.adapters.canary`, at every look. The question may be asked as often as one likes, and the canary may
be ended by the answer: the tests are always valid (e-processes: nonnegative, of expectation at most 1 at every stopping
time while the canary is not worse; so one passes 1/alpha ever with probability alpha at most, by Ville's inequality).

How. A conversation, of which only the first episode counts, is assigned by chance: it begins with the canary with
probability `share`. Take the episodes and their outcomes as they are, and guess of each which of the two answered it.
If the canary is no worse, a failure is the canary's with probability `share` at most and a success with `share` at
least; if it is worse by odds ratio r, a failure is more often its own. Bet on that, and multiply: the likelihood
ratio of the assignments, given the outcomes, averaged over several r (a mixture, as in Robbins's and Wald's mixture
sequential probability ratio test). Under "no worse" it is a test martingale (or less) whatever the success rate is,
however it drifts from hour to hour, and whatever share each step has. The champion's rate enters only as a guess made
before an hour from the hours before it: a wrong guess costs power, not validity.

Sources: Robbins, "Statistical methods related to the law of the iterated logarithm" (1970); Johari, Koomen, Pekelis and
Walsh, "Always valid inference" (Operations Research, 2022); Ramdas, Gruenwald, Vovk and Shafer, "Game-theoretic
statistics and safe anytime-valid inference" (2023), of which "testing by betting" this is a case; Turner, Ly and
Gruenwald, "Generic E-variables for exact sequential k-sample tests" (2024), who condition on assignments instead.

One thing is weaker. The non-inferiority test compares with the champion's rate plus a margin, and that rate is
estimated: it is valid up to the error of that estimate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from server.domain import Canary, CanaryCell

NEEDED = {"worse": 1 / 0.025, "broken": 1 / 0.0125, "slow": 1 / 0.0125, "as_good": 1 / 0.05}
"""How much evidence each finding takes: one by the chance of ever finding it where it is not so.

The first three roll back: a canary that is no worse than its champion is rolled back in 5 % of cases at most.
"""

LOG_ODDS = tuple(0.1 * 2 ** (power / 2) for power in range(11))
"""The effects that are bet on, as log odds ratios: 0.1 (2.4 points at 60 %) to 3.2; equal parts of the stake."""

MOST_EPISODES = 20_000
"""Of the canary's: past so many the canary is at its end as if its hours were over. What is read stays bounded."""

MORE_BROKEN = 0.01
"""A canary that breaks more often than the champion by less than this is let be."""

SLOW_SHARE = 0.05
"""More than this share of a canary's episodes has to be slower than the bound: its 95th percentile is over it."""

WORTH_BEFORE = 200
"""What the champion did before counts like so many episodes at most, when its rate is guessed."""

HOUR_S = 3600.0


class Move(StrEnum):
    """What is to be done with a canary."""

    STAY = "stay"
    WIDEN = "widen"
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True)
class Decision:
    """A move, why, in words for people, and the figures behind it."""

    move: Move
    reason: str
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stratum:
    """Assignments of one hour of one step: bad and good outcomes of the canary and of the champion, and the share."""

    share: float
    bad: int
    good: int
    other_bad: int
    other_good: int


Pick = Callable[[CanaryCell], tuple[int, int]]
"""Takes the bad and the good outcomes out of a cell."""


def _solved(cell: CanaryCell) -> tuple[int, int]:
    return cell.failed, cell.passed


def _whole(cell: CanaryCell) -> tuple[int, int]:
    return cell.broken, cell.episodes - cell.broken


def _quick(cell: CanaryCell) -> tuple[int, int]:
    return cell.slow, cell.episodes - cell.broken - cell.slow


def decide(canary: Canary, cells: Sequence[CanaryCell], now: float) -> Decision:
    """Decide what to do with a running canary. `cells` are all since it began; `now` is in Unix seconds."""
    report = _describe(canary, cells, now)
    evidence = _weigh(canary, cells)
    report |= {"evidence": evidence, "needed": dict(NEEDED)}
    move, reason = _find_harm(report, evidence) or _find_end(canary, report, evidence, now)
    return Decision(move, reason, {**report, "move": move.value, "says": reason})


def _weigh(canary: Canary, cells: Sequence[CanaryCell]) -> dict[str, float]:
    """Measure the evidence for everything that is asked of a canary."""
    before = canary.baseline
    failed, judged = before.get("failed", 0), before.get("failed", 0) + before.get("passed", 0)
    solved = _layers(canary, cells, _solved)
    return {
        "worse": measure_harm(solved, failed, judged),
        "as_good": measure_non_inferiority(solved, failed, judged, canary.policy.margin),
        "broken": measure_harm(_layers(canary, cells, _whole), before.get("broken", 0), before.get("episodes", 0)),
        "slow": measure_harm(_layers(canary, cells, _quick), SLOW_SHARE / 2 * WORTH_BEFORE, WORTH_BEFORE),
    }


def _find_harm(report: Mapping[str, Any], evidence: Mapping[str, float]) -> tuple[Move, str] | None:
    """Find why a canary has to be rolled back; None where nothing speaks against it."""
    ours, theirs = report["canary"], report["champion"]
    if evidence["broken"] >= NEEDED["broken"] and ours["broken_share"] > theirs["broken_share"] + MORE_BROKEN:
        shares = [_percent(one["broken_share"]) for one in (ours, theirs)]
        return Move.ROLL_BACK, f"{shares[0]} of its episodes broke, {shares[1]} of the champion's"
    if evidence["slow"] >= NEEDED["slow"] and ours["slow_share"] > SLOW_SHARE:
        shares = [_percent(one["slow_share"]) for one in (ours, theirs)]
        bound = f"{report['slow_ms']:.0f} ms"
        return Move.ROLL_BACK, f"{shares[0]} of its episodes took longer than {bound}, {shares[1]} of the champion's"
    if evidence["worse"] >= NEEDED["worse"]:
        return Move.ROLL_BACK, f"it is worse: {_compare(report)}"
    return None


def _find_end(canary: Canary, report: Mapping[str, Any], evidence: Mapping[str, float], now: float) -> tuple[Move, str]:
    """Say whether a canary that does no harm is widened, promoted, or stays as it is."""
    policy, compared = canary.policy, _compare(report)
    if report["in_step"] >= policy.min_episodes and evidence["as_good"] >= NEEDED["as_good"]:
        last = len(canary.steps) >= len(policy.widen)
        reason = f"it is not worse by {100 * policy.margin:g} points: {compared}"
        return (Move.PROMOTE if last else Move.WIDEN), reason
    many = report["canary"]["episodes"] >= MOST_EPISODES
    if many or now >= canary.started_at + policy.max_hours * HOUR_S:
        over = f"{MOST_EPISODES} episodes are enough" if many else f"its {policy.max_hours:g} hours are over"
        if canary.forced:
            reason = f"{over}, it did not prove itself, and the gate had not passed it: {compared}"
            return Move.ROLL_BACK, reason
        return Move.PROMOTE, f"{over}, the gate had passed it, and nothing speaks against it: {compared}"
    seen = f"{report['in_step']} of {policy.min_episodes} verified episodes at this share"
    proof = f"evidence that it is as good: {evidence['as_good']:.2g} of {NEEDED['as_good']:g}"
    return Move.STAY, f"{seen}; {proof}; {compared}"


def _compare(report: Mapping[str, Any]) -> str:
    return f"{_percent(report['canary']['solved'])} solved, the champion {_percent(report['champion']['solved'])}"


def measure_harm(layers: Sequence[Stratum], bad_before: float, before: float) -> float:
    """Measure the evidence that the canary's outcomes are bad more often than the champion's: an e-process.

    The layers are in the order of time; `bad_before` of `before` is what the champion did earlier.
    """
    stakes = [0.0] * len(LOG_ODDS)
    for layer, rate in _guess(layers, bad_before, before):
        no_worse = _likelihood(layer, rate, rate)
        for index, log_odds in enumerate(LOG_ODDS):
            stakes[index] += _likelihood(layer, rate, _shift(rate, log_odds)) - no_worse
    return _average(stakes)


def measure_non_inferiority(layers: Sequence[Stratum], bad_before: float, before: float, margin: float) -> float:
    """Measure the evidence that the canary is bad less often than the champion's rate plus `margin`.

    Where the champion succeeds so seldom that the margin would be more than half of that, half of it is the margin.
    """
    stakes = [0.0] * len(LOG_ODDS)
    for layer, rate in _guess(layers, bad_before, before):
        border = rate + min(margin, (1 - rate) / 2)
        inferior = _likelihood(layer, rate, border)
        for index, log_odds in enumerate(LOG_ODDS):
            stakes[index] += _likelihood(layer, rate, _shift(border, -log_odds)) - inferior
    return _average(stakes)


def _guess(layers: Sequence[Stratum], bad_before: float, before: float) -> list[tuple[Stratum, float]]:
    """Guess the champion's rate of bad outcomes for each layer from what was before that layer alone."""
    weight = min(1.0, WORTH_BEFORE / before) if before else 0.0
    bad, count = bad_before * weight + 0.5, before * weight + 1.0
    guessed = []
    for layer in layers:
        guessed.append((layer, min(max(bad / count, 0.001), 0.999)))
        bad += layer.other_bad
        count += layer.other_bad + layer.other_good
    return guessed


def _likelihood(layer: Stratum, rate: float, ours: float) -> float:
    """Compute the log-likelihood of the assignments, given the outcomes: ours bad at rate `ours`, theirs at `rate`."""
    of_bad = _assign(layer.share, ours / rate)
    of_good = _assign(layer.share, (1 - ours) / (1 - rate))
    return (
        layer.bad * math.log(of_bad)
        + layer.other_bad * math.log1p(-of_bad)
        + layer.good * math.log(of_good)
        + layer.other_good * math.log1p(-of_good)
    )


def _assign(share: float, ratio: float) -> float:
    """Compute how probably an outcome is the canary's, if such outcomes are `ratio` times as frequent with it."""
    return share * ratio / (1 - share + share * ratio)


def _shift(rate: float, log_odds: float) -> float:
    odds = rate / (1 - rate) * math.exp(log_odds)
    return min(max(odds / (1 + odds), 1e-6), 1 - 1e-6)


def _average(stakes: Sequence[float]) -> float:
    """Average likelihood ratios, given as logarithms; bounded so that it stays a number in JSON."""
    most = max(stakes)
    total = most + math.log(sum(math.exp(stake - most) for stake in stakes) / len(stakes))
    return math.exp(min(total, 500.0))


def _layers(canary: Canary, cells: Sequence[CanaryCell], pick: Pick) -> list[Stratum]:
    """Put the two cells of each hour of each step together, in the order of time."""
    found: dict[tuple[int, int], dict[bool, tuple[int, int]]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.step, cell.hour)):
        if cell.step < len(canary.steps):
            found.setdefault((cell.step, cell.hour), {})[cell.canary] = pick(cell)
    return [
        Stratum(canary.steps[step].share, *both.get(True, (0, 0)), *both.get(False, (0, 0)))
        for (step, _), both in found.items()
    ]


def _describe(canary: Canary, cells: Sequence[CanaryCell], now: float) -> dict[str, Any]:
    """Say in figures what both did."""
    step = len(canary.steps) - 1
    slow_ms = slow_bound_ms(canary)
    return {
        "canary": _sum(cell for cell in cells if cell.canary),
        "champion": _sum(cell for cell in cells if not cell.canary),
        "in_step": sum(cell.passed + cell.failed for cell in cells if cell.canary and cell.step == step),
        "slow_ms": slow_ms,
        "hours": max(0.0, now - canary.started_at) / HOUR_S,
    }


def _sum(cells: Any) -> dict[str, Any]:
    cells = list(cells)
    count = {name: sum(getattr(cell, name) for cell in cells) for name in ("episodes", "broken", "passed", "failed")}
    slow, judged = sum(cell.slow for cell in cells), count["passed"] + count["failed"]
    whole = count["episodes"] - count["broken"]
    return {
        **count,
        "solved": count["passed"] / judged if judged else None,
        "broken_share": count["broken"] / count["episodes"] if count["episodes"] else 0.0,
        "slow_share": slow / whole if whole else 0.0,
    }


def slow_bound_ms(canary: Canary) -> float | None:
    """How long an episode may take before it counts as slow; None where nothing says so."""
    ratio, usual = canary.policy.latency_ratio, canary.baseline.get("p95_ms")
    return None if ratio is None or not usual else ratio * usual


def _percent(share: float | None) -> str:
    return "nothing yet" if share is None else f"{100 * share:.1f} %"

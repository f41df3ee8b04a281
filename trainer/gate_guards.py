"""What a candidate must not lose while it wins: first tries, other tasks, plain problems, length, latency.

Called by trainer.gate_weighing once the candidate has won on the second try; pure figures. A guard holds where the
whole one-sided 95 % interval is within its margin (non-inferiority), so that what is truly beyond a margin passes it
once in twenty times at most. All have to hold, which needs no correction for their number (intersection-union test:
Berger, Technometrics 24, 1982). A guard can only hold a candidate back.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from trainer.gate_tally import CANDIDATE, CHAMPION
from trainer.settings import TrainerSettings
from trainer.weighing import Interval, measure_difference

BOTH_SIDES = 0.9
"""The level of the two-sided interval whose one end is that of the one-sided interval of 95 %."""

TOO_HARD = 0.05
"""Below so much of them solved, problems can hardly show that something was lost; the report says so."""


class State(StrEnum):
    """What a guard says."""

    HELD = "held"
    BROKEN = "broken"  # the estimate itself is beyond the margin
    UNCLEAR = "unclear"  # the estimate is within it, the interval is not
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class Guard:
    """One guard's figures. For shares `change` is their difference, for length and latency the growth of their ratio.

    `bound` is the end of the one-sided 95 % interval of `change` that counts: the lower one of a share, else the upper.
    """

    name: str
    measure: str
    setting: str
    margin: float | None
    state: State
    says: str
    before: float = 0.0
    after: float = 0.0
    change: float = 0.0
    bound: float = 0.0
    n: int = 0
    samples: int = 0

    def describe(self) -> dict[str, Any]:
        """Say it in figures and words."""
        return {**asdict(self), "state": self.state.value}


@dataclass(frozen=True, slots=True)
class Topic:
    """What a guard looks at: its name, the setting of its margin, and words for a report."""

    name: str
    setting: str
    words: str
    measure: str

    def not_asked(self, margin: float | None, why: str) -> Guard:
        """Say why there is nothing to say."""
        return Guard(self.name, self.measure, self.setting, margin, State.NOT_ASKED, f"{self.words}: not asked, {why}")


FIRST_TRY = Topic("first_try", "first_try_margin", "the first try", "share of held-out problems solved at first")
OTHER_TASKS = Topic(
    "other_tasks", "other_tasks_margin", "other tasks", "share of other tasks' held-out problems solved at first"
)
PROBES = Topic("probes", "probes_margin", "plain problems", "share of plain problems solved at first")
LENGTH = Topic("length", "length_margin", "the length of answers", "mean tokens of first answers")
LATENCY = Topic("latency", "latency_margin", "the time of an episode", "mean seconds of an episode, retry included")
TOPICS: Sequence[Topic] = (FIRST_TRY, OTHER_TASKS, PROBES, LENGTH, LATENCY)


def guard_share(topic: Topic, shares: np.ndarray, samples: int, settings: TrainerSettings) -> Guard:
    """Guard a share of solved problems (n, 2) against falling by more than its margin."""
    margin: float | None = getattr(settings, topic.setting)
    if margin is None:
        return topic.not_asked(None, f"{topic.setting} is off")
    before, after = shares[:, CHAMPION], shares[:, CANDIDATE]
    interval = measure_difference(before, after, settings, level=BOTH_SIDES, flip=1 / max(samples, 1))
    state = _judge(-interval.difference, -interval.low, margin)
    said = (
        f"{interval.difference * 100:+.1f} points on {len(shares)} problems x {samples}, "
        f"at worst {interval.low * 100:+.1f}, and {margin * 100:.1f} may be lost"
    )
    words = {
        State.HELD: f"{topic.words} held: {said}",
        State.BROKEN: f"{topic.words} fell by over {margin * 100:.1f} points: {said}",
        State.UNCLEAR: f"{topic.words} may have fallen by over {margin * 100:.1f} points: {said}",
    }[state]
    if topic is not FIRST_TRY and _mean(before) < TOO_HARD:
        words += f" (but the champion solves only {_mean(before) * 100:.1f} % of them: they can show no loss)"
    return Guard(
        topic.name, topic.measure, topic.setting, margin, state, words,
        _mean(before), _mean(after), interval.difference, interval.low, len(shares), samples,
    )  # fmt: skip


def guard_ratio(topic: Topic, amounts: np.ndarray, samples: int, settings: TrainerSettings) -> Guard:
    """Guard an amount (n, 2), of which less is better, against growing by more than its margin."""
    margin: float | None = getattr(settings, topic.setting)
    if margin is None:
        return topic.not_asked(None, f"{topic.setting} is off")
    before, after = amounts[:, CHAMPION], amounts[:, CANDIDATE]
    interval = _measure_growth(before, after, settings)
    state = _judge(interval.difference, interval.high, margin)
    said = (
        f"{interval.difference * 100:+.0f} % on {len(amounts)} problems x {samples}, "
        f"at worst {interval.high * 100:+.0f} %, and {margin * 100:.0f} % are allowed"
    )
    words = {
        State.HELD: f"{topic.words} held: {said}",
        State.BROKEN: f"{topic.words} grew by over {margin * 100:.0f} %: {said}",
        State.UNCLEAR: f"{topic.words} may have grown by over {margin * 100:.0f} %: {said}",
    }[state]
    return Guard(
        topic.name, topic.measure, topic.setting, margin, state, words,
        _mean(before), _mean(after), interval.difference, interval.high, len(amounts), samples,
    )  # fmt: skip


def _mean(side: np.ndarray) -> float:
    return float(side.mean()) if len(side) else 0.0


def _judge(loss: float, at_worst: float, margin: float) -> State:
    if loss > margin:
        return State.BROKEN
    return State.HELD if at_worst <= margin else State.UNCLEAR


def _measure_growth(before: np.ndarray, after: np.ndarray, settings: TrainerSettings) -> Interval:
    """Estimate the growth of a ratio of means by resampling problems; linearised around the estimate (delta method)."""
    if len(before) < 2 or not before.mean():
        return Interval(0.0, -1.0, np.inf, 1.0)
    ratio = float(after.mean() / before.mean())
    left = (after - ratio * before) / before.mean()  # of mean zero; its mean's spread is the ratio's
    interval = measure_difference(np.zeros(len(left)), left, settings, level=BOTH_SIDES)
    return Interval(ratio - 1, ratio - 1 + interval.low, ratio - 1 + interval.high, interval.error)


def object_to(guards: Sequence[Guard]) -> str:
    """Say which guards hold a candidate back, the gravest first; "" for none."""
    against = [one for state in (State.BROKEN, State.UNCLEAR) for one in guards if one.state is state]
    return "; ".join(one.says for one in against)

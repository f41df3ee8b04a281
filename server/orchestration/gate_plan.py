"""Plans a gate: how many held-out problems and samples it takes to see a difference, and how surely it would be seen.

Called by the trainer's gate, which plans again once it has seen how much answers vary, and by `mulligan gate plan`,
which says it beforehand. Figures in, figures out: it must never read a store or ask an engine.

A problem's difference is the share of its samples that the candidate solves less the share that the champion does.
Its variance has two parts: problems really differ (`between`), and the same adapter answers the same problem now
rightly, now wrongly (`within`, the mean of p(1-p)). More samples only help with the second part; more problems help
with both, so that they are used first. With k samples each a gate on n problems has the standard error
sqrt((between + 2 within / k) / n), and sees a true difference d with probability Phi(d / error - 1.96).

Known deviation: looks before the last one cost a little of that (under one point of power with three looks).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from server.settings import RoundSizes

NORMAL = NormalDist()
CONFIDENCE = 0.95
MOST_PROBLEMS = 1_000_000
"""What is said where no number of problems would be enough within reason."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How much answers vary: `between` problems and `within` one of them, as variances; `source` says who saw it."""

    between: float
    within: float
    source: str = ""

    @property
    def discordance(self) -> float:
        """The share of problems on which single samples of both adapters would differ, without a true difference."""
        return min(1.0, self.between + 2 * self.within)

    def error(self, problems: int, samples: int) -> float:
        """Return the standard error of the mean difference."""
        return math.sqrt((self.between + 2 * self.within / samples) / problems)


ASSUMED = Spread(0.0, 0.15, "assumed, before the task's first gate")
"""30 % discordant single samples: what is planned with where nothing was seen yet."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many problems and samples a gate takes, and what it can see with them.

    `power` is the probability to promote where the candidate is better by `effect`; `needed` is how many problems it
    would take for `power_wanted` with so many samples, and `visible` the difference that is seen so surely with these.
    """

    problems: int
    samples: int
    effect: float
    power: float
    power_wanted: float
    needed: int
    visible: float
    available: int
    spread: Spread

    @property
    def enough(self) -> bool:
        """Whether the gate can do what is asked of it."""
        return self.power >= self.power_wanted

    def describe(self) -> dict[str, Any]:
        """Say it in figures and words."""
        figures = {name: value for name, value in asdict(self).items() if name != "spread"}
        spread = {**asdict(self.spread), "discordance": self.spread.discordance}
        return {**figures, **spread, "enough": self.enough, "says": self.say()}

    def say(self) -> str:
        """Say it in words."""
        if not self.problems:
            return "there is no held-out problem yet"
        seen = f"{self.spread.discordance * 100:.0f} % discordant, {self.spread.source}"
        said = (
            f"{self.problems} problems x {self.samples} samples see a gain of {self.effect * 100:.1f} points "
            f"{self.power * 100:.0f} times in 100 ({seen})"
        )
        if self.enough:
            return said
        needed = f"{self.needed} problems" if self.needed < MOST_PROBLEMS else "no number of problems"
        return (
            f"{said}: too rarely, {needed} would make it {self.power_wanted * 100:.0f}; "
            f"a gain of {self.visible * 100:.1f} points is seen so surely with these {self.problems}"
        )


def foretell_power(effect: float, error: float) -> float:
    """Return the probability that the 95 % interval of a difference lies above zero where it truly is `effect`."""
    return NORMAL.cdf(effect / error - NORMAL.inv_cdf((1 + CONFIDENCE) / 2)) if error > 0 else 1.0


def count_needed(spread: Spread, samples: int, effect: float, power: float) -> int:
    """Count the problems that it takes to see `effect` with probability `power`."""
    error = _find_error(effect, power)
    return max(1, min(MOST_PROBLEMS, math.ceil(spread.error(1, samples) ** 2 / error**2 - 1e-9)))


def _find_error(effect: float, power: float) -> float:
    return effect / (NORMAL.inv_cdf((1 + CONFIDENCE) / 2) + NORMAL.inv_cdf(power))


def plan_gate(available: int, spread: Spread, sizes: RoundSizes) -> Plan:
    """Choose the fewest problems and then the fewest samples that reach the power; else as many as there may be."""
    effect, wanted, samples = sizes.gate_effect, sizes.gate_power, sizes.gate_samples
    most = max(samples, sizes.gate_max_samples)
    available = min(available, sizes.gate_problems)
    problems = min(available, max(sizes.gate_min_problems, count_needed(spread, samples, effect, wanted)))
    while problems and samples < most and foretell_power(effect, spread.error(problems, samples)) < wanted:
        samples += 1
    error = spread.error(problems, samples) if problems else 1.0
    return Plan(
        problems=problems,
        samples=samples,
        effect=effect,
        power=foretell_power(effect, error) if problems else 0.0,
        power_wanted=wanted,
        needed=count_needed(spread, samples, effect, wanted),
        visible=effect * error / _find_error(effect, wanted),
        available=available,
        spread=spread,
    )


def choose_guard_samples(problems: int, spread: Spread, margin: float, *, least: int, most: int) -> int:
    """Choose how often problems are asked so that a guard holds 98 times in 100 where truly nothing fell."""
    if margin <= 0 or not problems:
        return least
    error = margin / (NORMAL.inv_cdf(0.95) + NORMAL.inv_cdf(0.98))
    return next((k for k in range(least, most + 1) if spread.error(problems, k) <= error), max(least, most))


def read_spread(reports: Iterable[tuple[int, Mapping[str, Any]]]) -> Spread | None:
    """Read what the newest gate saw, from reports by their rounds' numbers, newest first; None where none did."""
    for number, report in reports:
        plan = report.get("plan") or {}
        if plan.get("seen"):
            return Spread(plan["between"], plan["within"], f"seen by the gate of round {number}")
    return None


def read_sizes(options: Mapping[str, Any], sizes: RoundSizes) -> RoundSizes:
    """Lay a task's training options over the sizes, as the trainer would; options of other names are passed over."""
    own = {name: value for name, value in options.items() if name in type(sizes).model_fields}
    return sizes.model_validate({**sizes.model_dump(), **own})

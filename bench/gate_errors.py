"""Shows how often the gate errs: simulated rounds go through the very code that weighs a candidate.

    python -m bench.gate_errors [--rounds 1000] [--problems 200] [--seed 0] [--effects 0 0.05] [--json]

Nothing is simulated but the answers: how often each problem is solved is drawn as it was measured (WORLDS below has the
figures and where they come from), and plan, looks, guards and decision are trainer.gate_weighing's own. With no true
difference every promotion is an error. In the last rows the candidate is better by far, but one guarded thing is truly
worse by just its margin, and every promotion is one that this guard let through. `gained` is the true gain (where it
would be beyond all or nothing it is cut off), `won` counts the rounds in which the second try was better beyond doubt,
`early` those that were decided before the last look, `episodes` those of the candidate's.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from server.orchestration.gate_plan import Spread
from trainer.gate_tally import CANDIDATE, Tally
from trainer.gate_weighing import weigh
from trainer.settings import TrainerSettings


@dataclass(frozen=True, slots=True)
class World:
    """How answers vary: means of first and second tries, what each varies within a problem, and between the adapters.

    `within` is the mean of p(1-p); `between` the variance of a problem's true differences, where their mean is zero.
    """

    first: float
    second: float
    within_first: float
    within_second: float
    between: float


# Measured on rounds of the demo (seed 11): the gate's own held-out problems, asked again and again at temperature 1 of
# the base and of what the rounds made. Countdown: 128 problems x 8 samples; function calling: 148 x 4. Single samples
# of two adapters differ on 26 to 42 % of these problems where there is no true difference.
WORLDS = {
    "countdown, base": World(0.164, 0.323, 0.125, 0.204, 0.014),
    "countdown, champion": World(0.159, 0.840, 0.122, 0.129, 0.014),
    "function calling, base": World(0.309, 0.390, 0.103, 0.128, 0.016),
    "function calling, trained": World(0.289, 0.529, 0.097, 0.162, 0.041),
}


class SimulatedAsker:
    """Draws answers in place of an engine. The candidate is better by `effect`; `falls` is what it loses elsewhere."""

    def __init__(
        self, world: World, effect: float, problems: int, rng: np.random.Generator, *, falls: str = "", by: float = 0.0
    ) -> None:
        self.problems, self.others, self.probes = problems, 100, 64
        self._rng = rng
        fallen = {falls: by}
        rate, twice = _draw_rates(world.first, world.within_first, problems, rng), world.second - world.first
        # The retry mends the same share of what failed, plus what this problem has of its own under each adapter.
        mends = twice / (1 - world.first)
        spread = rng.normal(0, np.sqrt(world.between / 2), (problems, 2)) if world.between else np.zeros((problems, 2))
        left = np.array([1.0, 1 - fallen.get("first_try", 0.0) / float(rate.mean())])
        self._first = rate[:, None] * left
        solved = rate + (1 - rate) * mends
        gained = (1 - solved) * effect / float((1 - solved).mean())  # the effect on the mean, and nowhere beyond one
        second = solved[:, None] + gained[:, None] * np.array([0.0, 1.0]) + spread
        self._second = np.clip(second, self._first, 1)
        self.gain = float((self._second[:, 1] - self._second[:, 0]).mean())  # truly, at the ends of the scale too
        self._other = self._draw_elsewhere(self.others, fallen.get("other_tasks", 0.0))
        self._plain = self._draw_elsewhere(self.probes, fallen.get("probes", 0.0))
        self._longer = np.array([1.0, 1 + fallen.get("length", 0.0)])
        self._slower = np.array([1.0, 1 + fallen.get("latency", 0.0)])
        self._usual_s = rng.lognormal(0, 0.3, (problems, 1))

    def _draw_elsewhere(self, count: int, lost: float) -> np.ndarray:
        rate = _draw_rates(0.6, 0.15, count, self._rng)
        return rate[:, None] * np.array([1.0, 1 - lost / float(rate.mean())])

    async def loop(self, numbers: Sequence[int], samples: int) -> Tally:
        """Draw loops."""
        counts = np.zeros((self.problems, 1), dtype=int)
        counts[list(numbers)] = samples
        tally = self._draw_first(self._first, counts)
        rescued = (self._second - self._first) / np.maximum(1 - self._first, 1e-9)
        mended = self._rng.binomial((counts - tally.first).astype(int), np.clip(rescued, 0, 1))
        seconds = self._usual_s * self._slower * self._rng.gamma(2 * np.maximum(counts, 1), 0.5, (self.problems, 2))
        loops = np.broadcast_to(counts, (self.problems, 2)).astype(float)
        return replace(tally, loops=loops, second=tally.first + mended, seconds=seconds * (counts > 0))

    async def ask_first(self, samples: np.ndarray) -> Tally:
        """Draw first tries."""
        return self._draw_first(self._first, samples[:, None])

    async def ask_others(self, samples: int) -> Tally:
        """Draw first tries of other tasks."""
        return self._draw_first(self._other, np.full((self.others, 1), samples))

    async def ask_probes(self, samples: int) -> Tally:
        """Draw first tries of plain problems."""
        return self._draw_first(self._plain, np.full((self.probes, 1), samples))

    def _draw_first(self, rates: np.ndarray, counts: np.ndarray) -> Tally:
        passed = self._rng.binomial(np.broadcast_to(counts, rates.shape), rates).astype(float)
        tokens = 20 * self._longer * self._rng.gamma(4 * np.maximum(counts, 1), 0.25, rates.shape) * (counts > 0)
        asked = np.broadcast_to(counts, rates.shape).astype(float)
        return replace(Tally.start(len(rates)), judged=asked, first=passed, tokens=tokens)


def _draw_rates(mean: float, within: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw how often each problem is solved: beta, with this mean and this mean of p(1-p)."""
    spread = within / (mean * (1 - mean))  # 1: every problem alike
    size = spread / max(1e-6, 1 - spread)
    return rng.beta(mean * size, (1 - mean) * size, count) if spread < 1 else np.full(count, mean)


async def simulate(
    world: World,
    effect: float,
    settings: TrainerSettings,
    *,
    rounds: int,
    problems: int,
    seed: int,
    falls: str = "",
    by: float = 0.0,
) -> dict[str, Any]:
    """Weigh candidates of so many rounds, and count how they end."""
    rng = np.random.default_rng(seed)
    ends = {"promoted": 0, "inconclusive": 0, "regressed": 0}
    won = early = asked = samples = enough = gained = 0.0
    known = Spread(world.between, world.within_second, "measured")
    for number in range(rounds):
        asker = SimulatedAsker(world, effect, problems, rng, falls=falls, by=by)
        report, tally = await weigh(
            asker, settings.model_copy(update={"seed": seed + number, "gate_problems": problems}), known=known
        )
        ends[report["decision"]] += 1
        gained += asker.gain
        won += report["ci95"][0] > 0
        early += report["looks"][-1]["information"] < 1
        asked += report["n"]
        samples += float(tally.loops[:, CANDIDATE].sum())
        enough += report["plan"]["enough"]
    told = {name: count / rounds for name, count in ends.items()}
    return {
        **told,
        "gained": gained / rounds,
        "won": won / rounds,
        "early": early / rounds,
        "problems": asked / rounds,
        "episodes": samples / rounds,
        "planned_enough": enough / rounds,
    }


FALLS = (
    ("first_try", "first_try_margin"),
    ("other_tasks", "other_tasks_margin"),
    ("probes", "probes_margin"),
    ("length", "length_margin"),
    ("latency", "latency_margin"),
)


async def measure(rounds: int, problems: int, seed: int, effects: Sequence[float]) -> list[dict[str, Any]]:
    """Simulate every world: without and with a true gain, and with one thing lost."""
    settings = TrainerSettings(bootstrap_draws=1000)
    rows: list[dict[str, Any]] = []
    for name, world in WORLDS.items():
        for effect in effects:
            began = time.perf_counter()
            told = await simulate(world, effect, settings, rounds=rounds, problems=problems, seed=seed)
            took = time.perf_counter() - began
            rows.append({"world": name, "gain": effect, "lost": "", "rounds": rounds, **told, "seconds": took})
    for guard, setting in FALLS:
        by = getattr(settings, setting)
        world = WORLDS["countdown, base"]
        told = await simulate(world, 0.3, settings, rounds=rounds, problems=problems, seed=seed, falls=guard, by=by)
        rows.append({"world": "countdown, base", "gain": 0.3, "lost": f"{guard} by {by:g}", "rounds": rounds, **told})
    return rows


def main() -> None:
    """Simulate, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000, help="simulated rounds of each row (default: 1000)")
    parser.add_argument("--problems", type=int, default=200, help="held-out problems that there are (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--effects", type=float, nargs="*", default=[0.0, 0.053], help="true gains of the second try")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rows = asyncio.run(measure(given.rounds, given.problems, given.seed, given.effects))
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    titles = ("gained", "promoted", "won", "early", "problems", "episodes")
    print(f"{'world':26} {'gain':>6} {'truly lost':>20} " + " ".join(f"{title:>8}" for title in titles))
    for row in rows:
        print(
            f"{row['world']:26} {row['gain']:+6.2f} {row['lost']:>20} {row['gained']:8.3f} {row['promoted']:8.1%} "
            f"{row['won']:8.1%} {row['early']:8.1%} {row['problems']:8.0f} {row['episodes']:8.0f}"
        )


if __name__ == "__main__":
    main()

"""How often the gate errs, by simulated rounds through the very code that decides; the long version is nightly.

How much answers vary was measured on real rounds: bench/gate_errors.py has the figures and where they come from.
"""

import pytest

from bench.gate_errors import FALLS, WORLDS, simulate
from trainer.settings import TrainerSettings

SETTINGS = TrainerSettings(bootstrap_draws=200)
BASE = WORLDS["countdown, base"]


async def count(world, gain, rounds, *, problems=200, seed=0, **lost):
    return await simulate(world, gain, SETTINGS, rounds=rounds, problems=problems, seed=seed, **lost)


async def test_of_a_thousand_rounds_without_a_true_difference_at_most_one_in_twenty_promotes():
    told = await count(BASE, 0.0, 1000)
    assert told["promoted"] <= 0.05
    assert told["regressed"] <= 0.05
    assert told["promoted"] + told["regressed"] + told["inconclusive"] == pytest.approx(1)


async def test_a_large_gain_is_promoted_early():
    told = await count(BASE, 0.45, 15)
    assert told["promoted"] >= 12 / 15
    assert told["early"] >= 13 / 15
    assert told["problems"] < 120


async def test_what_is_lost_keeps_a_winner_from_promotion():
    told = await count(BASE, 0.3, 15, falls="probes", by=0.1)
    assert told["won"] == 1.0
    assert told["promoted"] <= 2 / 15


@pytest.mark.nightly
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("problems", [40, 200, 500])
async def test_at_most_one_round_in_twenty_promotes_without_a_true_difference(name, problems):
    told = await count(WORLDS[name], 0.0, 1000, problems=problems)
    assert told["promoted"] <= 0.05
    assert told["regressed"] <= 0.05


@pytest.mark.nightly
@pytest.mark.parametrize("name", WORLDS)
async def test_five_points_are_seen_as_surely_as_the_plan_says(name):
    """With problems enough: four times in five, less three standard errors of 500 rounds and two points for the looks.

    It is 0.053, as what would be beyond all or nothing is cut off.
    """
    told = await count(WORLDS[name], 0.053, 500, problems=500)
    assert told["gained"] == pytest.approx(0.05, abs=0.003)
    assert told["planned_enough"] > 0.9
    assert told["won"] >= 0.8 - 0.02 - 3 * 0.018


@pytest.mark.nightly
@pytest.mark.parametrize(("guard", "setting"), FALLS)
async def test_what_is_truly_beyond_a_margin_passes_its_guard_once_in_twenty_at_most(guard, setting):
    told = await count(BASE, 0.3, 500, falls=guard, by=getattr(SETTINGS, setting))
    assert told["won"] > 0.99
    assert told["promoted"] <= 0.05 + 3 * 0.01

"""What ends a round's training early, and what it leaves alone."""

import pytest

from trainer.guards import NORMS_NEEDED, Guards
from trainer.settings import TrainerSettings


def watch(options: dict, steps: list[dict]) -> tuple[int, str] | None:
    """Show the guards a round's steps, from 1; give the step and guard that stopped it."""
    guards = Guards(TrainerSettings().override(options))
    for number, figures in enumerate(steps, start=1):
        guards.look_at_step(number, figures)
    return (guards.stopped.step, guards.stopped.guard) if guards.stopped else None


def test_a_gradient_far_over_the_median_is_left_out_and_several_stop():
    guards = Guards(TrainerSettings(skip_gradient_over=10, max_skipped_updates=3))
    assert all(guards.admit_gradient(1, norm) for norm in [1.0, 2.0] * (NORMS_NEEDED // 2))
    assert guards.admit_gradient(2, 14.9)  # the median is 1.5
    assert [guards.admit_gradient(3, 50.0) for _ in range(2)] == [False, False]
    assert guards.admit_gradient(4, 1.0)  # one that passes begins the count anew
    assert [guards.admit_gradient(5, 50.0) for _ in range(2)] == [False, False]
    assert guards.stopped is None
    assert not guards.admit_gradient(6, 50.0)
    assert guards.stopped is not None
    assert (guards.stopped.step, guards.stopped.guard) == (6, "gradient")
    assert guards.stopped.words.startswith("3 updates running had a gradient more than 10 times the usual norm (50")
    assert "lower learning_rate" in guards.stopped.words


def test_gradients_left_out_do_not_become_usual():
    guards = Guards(TrainerSettings(max_skipped_updates=1000))
    for norm in [1.0] * NORMS_NEEDED:
        guards.admit_gradient(1, norm)
    assert not any(guards.admit_gradient(2, 11.0) for _ in range(100))


def test_the_first_gradients_are_admitted_whatever_they_are():
    guards = Guards(TrainerSettings())
    assert all(guards.admit_gradient(1, 10.0**power) for power in range(NORMS_NEEDED))


def test_zero_admits_every_gradient():
    guards = Guards(TrainerSettings(skip_gradient_over=0))
    assert all(guards.admit_gradient(1, norm) for norm in [1.0] * NORMS_NEEDED + [1e9])


@pytest.mark.parametrize(
    ("options", "entropies", "stop"),
    [
        ({}, [2.0, 0.5, 0.11, 0.3], None),
        ({}, [2.0, 0.5, 0.09, 0.3], (3, "entropy")),
        ({"min_entropy_share": 0.5}, [2.0, 1.1, 0.9], (3, "entropy")),
        ({"min_entropy_share": 0}, [2.0, 0.0], None),
        ({}, [0.1, 0.09], None),  # low from the start is no collapse
    ],
)
def test_entropy_that_collapses_stops(options, entropies, stop):
    assert watch(options, [{"reward": 0.0}, *({"entropy": one} for one in entropies)][1:]) == stop


def test_a_step_without_an_update_says_nothing_of_entropy():
    assert watch({}, [{"reward": 1.0}, {"entropy": 1.0}, {"reward": 1.0}, {"entropy": 0.01}]) == (4, "entropy")


@pytest.mark.parametrize(
    ("mismatches", "stop"),
    [
        ([0.03, 0.03, 0.01, 0.03, 0.03], None),
        ([0.001, 0.03, 0.03, 0.03, 0.0], (4, "mismatch")),
        ([0.03, 0.03, None, 0.03], (4, "mismatch")),  # a step without an update measured nothing
        ([0.02, 0.02, 0.02, 0.02], None),
    ],
)
def test_an_engine_apart_for_several_steps_stops(mismatches, stop):
    steps = [{} if one is None else {"mismatch_kl": one} for one in mismatches]
    assert watch({"max_mismatch_kl": 0.02, "mismatch_steps": 3}, steps) == stop


@pytest.mark.parametrize(
    ("patience", "rewards", "stop"),
    [
        (0, [0.9] + [0.1] * 30, None),
        (2, [0.1, 0.1, 0.2, 0.1, 0.3, 0.2, 0.3], None),
        (2, [0.1, 0.1, 0.2, 0.3, 0.2, 0.2, 0.9], (6, "reward")),
        (2, [0.9, 0.9, 0.1], None),  # too early to say
    ],
)
def test_a_reward_without_gain_stops_where_patience_is_set(patience, rewards, stop):
    assert watch({"patience": patience}, [{"reward": one} for one in rewards]) == stop


def test_what_stopped_first_stays():
    assert watch({"patience": 1}, [{"reward": 1, "entropy": 1.0}, {"reward": 2, "entropy": 0.0}, {"reward": 0}]) == (
        2,
        "entropy",
    )

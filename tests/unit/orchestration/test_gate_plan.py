"""What a gate can see with so many problems and samples."""

import pytest

from server.orchestration.gate_plan import (
    ASSUMED,
    Spread,
    choose_guard_samples,
    count_needed,
    foretell_power,
    plan_gate,
    read_sizes,
    read_spread,
)
from server.settings import RoundSizes

SIZES = RoundSizes()


def test_thirty_percent_discordant_single_samples_of_500_problems_see_five_points_half_the_time():
    assert ASSUMED.discordance == pytest.approx(0.3)
    assert foretell_power(0.05, ASSUMED.error(500, 1)) == pytest.approx(0.53, abs=0.01)
    assert count_needed(ASSUMED, 1, 0.05, 0.8) == pytest.approx(942, abs=1)


def test_problems_come_first_and_then_samples():
    planned = plan_gate(200, ASSUMED, SIZES)
    assert (planned.problems, planned.samples, planned.enough) == (200, 5, True)
    assert plan_gate(199, ASSUMED, SIZES).samples == 5
    easy = plan_gate(200, Spread(0.0, 0.02), SIZES)
    assert (easy.samples, easy.problems) == (SIZES.gate_samples, 63)


def test_what_cannot_be_seen_is_said_with_what_it_would_take():
    planned = plan_gate(60, ASSUMED, SIZES)
    assert (planned.problems, planned.samples, planned.enough) == (60, SIZES.gate_max_samples, False)
    assert planned.needed == 118
    assert planned.visible == pytest.approx(0.07, abs=0.001)
    assert "too rarely, 118 problems would make it 80" in planned.say()
    assert foretell_power(planned.visible, planned.spread.error(60, planned.samples)) == pytest.approx(0.8)


def test_more_samples_do_not_help_where_problems_really_differ():
    assert count_needed(Spread(0.3, 0.0), 8, 0.05, 0.8) == count_needed(Spread(0.3, 0.0), 1, 0.05, 0.8)


def test_no_problem_is_said():
    planned = plan_gate(0, ASSUMED, SIZES)
    assert (planned.problems, planned.power, planned.say()) == (0, 0.0, "there is no held-out problem yet")
    assert planned.describe()["enough"] is False


def test_a_guard_asks_as_often_as_its_margin_wants():
    few = choose_guard_samples(200, Spread(0, 0.1), 0.05, least=2, most=32)
    many = choose_guard_samples(200, Spread(0, 0.1), 0.02, least=2, most=32)
    assert (few, many) == (6, 32)
    assert choose_guard_samples(200, Spread(0, 0.1), 0.0, least=2, most=32) == 2


def test_the_newest_gate_that_saw_anything_is_planned_with():
    seen = {"plan": {"seen": True, "between": 0.01, "within": 0.1}}
    reports = [(7, {}), (6, {"plan": {"seen": False, "between": 1, "within": 1}}), (5, seen), (4, {"plan": None})]
    assert read_spread(reports) == Spread(0.01, 0.1, "seen by the gate of round 5")
    assert read_spread([(1, {})]) is None


def test_a_tasks_own_sizes_win():
    sizes = read_sizes({"gate_problems": 50, "steps": 3}, SIZES)
    assert (sizes.gate_problems, sizes.gate_min_problems) == (50, SIZES.gate_min_problems)

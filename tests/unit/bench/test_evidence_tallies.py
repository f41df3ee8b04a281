"""What the evidence counts: accuracies, paired differences, kinds, tries, examples, and verdicts that differ."""

import hashlib

import numpy as np
import pytest

from bench.evidence.controls import deal_reflections
from bench.evidence.run import Pace
from bench.evidence.tallies import (
    compare,
    count_checks,
    count_kinds,
    cut_tries,
    decompose,
    describe_arm,
    fit_tries,
    pick_examples,
    resample,
)


def row(number, first, second, kind="", reflection="", generated=10):
    told = {"prompt": 5, "generated": generated, "reflections": 4 if kind else 0}
    made = {
        "key": f"problem {number}",
        "first": first,
        "second": second,
        "checked": second,
        "tokens": told,
        "seconds": 1.0,
    }
    return {**made, "kind": kind, "reflection": reflection or f"about {number}"} if kind else made


def rows_of(*seconds):
    return [row(number, False, second) for number, second in enumerate(seconds)]


def test_an_arm_is_the_mean_of_its_seeds():
    arm = describe_arm(
        {0: [row(0, True, True), row(1, False, True, "vague")], 1: [row(0, False, False, "vague", generated=30)] * 2}
    )
    assert (arm["first"], arm["second"]) == (0.25, 0.5)
    assert [one["second"] for one in arm["seeds"]] == [1.0, 0.0]
    assert arm["generated_tokens"] == 20
    assert arm["reflection_tokens"] == 4


def test_differences_are_paired_by_problem_whatever_the_order():
    early = {0: rows_of(*[False] * 40 + [True] * 10)}
    late = {0: list(reversed(rows_of(*[True] * 50)))}
    told = compare(early, late, "second")
    assert told["gain"] == pytest.approx(0.8)
    low, high = told["ci95"]
    assert 0.65 < low < 0.75 < 0.85 < high < 0.95
    assert told["seeds"][0]["ci95"][0] == pytest.approx(low, abs=0.03)


def test_seeds_that_disagree_widen_the_interval():
    early = {seed: rows_of(*[False] * 200) for seed in (0, 1, 2)}
    same = {seed: rows_of(*[True, False] * 100) for seed in (0, 1, 2)}
    apart = {0: rows_of(*[True] * 200), 1: rows_of(*[True, False] * 100), 2: rows_of(*[False] * 200)}
    widths = [np.diff(compare(early, late, "second")["ci95"])[0] for late in (same, apart)]
    assert widths[1] > 3 * widths[0]


def test_only_arms_on_the_same_problems_are_compared():
    with pytest.raises(ValueError, match="other problems"):
        compare({0: rows_of(True)}, {0: rows_of(True, False)}, "first")
    with pytest.raises(ValueError, match="no seed"):
        compare({0: rows_of(True)}, {1: rows_of(True)}, "first")


def test_an_interval_without_spread_is_a_point():
    assert resample(np.ones((3, 50))) == pytest.approx((1.0, 1.0))


def test_kinds_and_what_their_mixture_explains():
    before = [row(n, False, n == 0, "worked" if n < 1 else "vague") for n in range(10)]
    after = [row(n, False, n < 8, "worked" if n < 8 else "vague") for n in range(10)]
    assert count_kinds(before)["worked"] == {"count": 1, "share": 0.1, "solved": 1.0}
    assert count_kinds(before)["plan"] == {"count": 0, "share": 0.0, "solved": None}
    assert decompose(before, after) == pytest.approx({"mended": 0.7, "mixture": 0.7, "within": 0.0})
    better = [row(n, False, n < 5, "worked" if n < 1 else "vague") for n in range(10)]
    assert decompose(before, better) == pytest.approx({"mended": 0.4, "mixture": 0.0, "within": 0.4})


def tried(number, *passed):
    tokens = {"prompt": 5, "generated": 10, "reflections": 0}
    tries = [{"passed": one, "checked": one, "tokens": tokens} for one in passed]
    return {**row(number, passed[0], any(passed[:2])), "tries": tries}


def test_tries_are_cut_and_fitted_into_tokens():
    rows = [tried(0, True), tried(1, False, False, True), tried(2, False, False, False)]
    assert [one["second"] for one in cut_tries(rows, 1)] == [True, False, False]
    assert [one["second"] for one in cut_tries(rows, 3)] == [True, True, False]
    assert [one["tokens"]["generated"] for one in cut_tries(rows, 2)] == [10, 20, 20]
    assert [fit_tries({0: rows}, tokens, 3) for tokens in (1, 10, 17, 100)] == [1, 1, 2, 3]


def test_examples_are_picked_by_hash_and_failures_are_among_them():
    before = [row(n, n == 3, n == 3, "" if n == 3 else "vague") for n in range(30)]
    after = [row(n, n == 4, True, "" if n == 4 else "worked") for n in range(30)]
    picked = [pair[0]["key"] for pair in pick_examples(before, after)]
    allowed = [f"problem {n}" for n in range(30) if n not in (3, 4)]
    assert picked == sorted(allowed, key=lambda key: hashlib.sha256(key.encode()).hexdigest())[:10]
    assert not any(pair[0]["second"] for pair in pick_examples(before, after))


def test_verdicts_that_differ_are_counted():
    doubtful = {**row(0, False, True), "checked": False}
    broken = tried(1, False, True)
    broken["tries"][0]["checked"] = True
    assert count_checks([row(2, True, True), doubtful, broken]) == (4, 2)


def test_nobody_gets_the_reflection_on_the_own_problem():
    rows = [row(n, False, False, "vague") for n in range(5)]
    dealt = deal_reflections([f"problem {n}" for n in range(5)] + ["another"], rows)
    assert len(dealt) == 6
    assert all(reflection != f"about {key.split()[-1]}" for key, reflection in dealt.items())
    assert len(set(dealt.values())) > 2
    assert deal_reflections(["problem 0"], rows[:1]) == {}


def test_the_pace_says_how_long_it_will_take():
    pace = Pace(total=100, parts=4)
    assert pace.describe() == "part 1 of 4"
    pace.note(25, 3600)
    assert pace.describe() == "part 2 of 4, about 3 h 00 min left"

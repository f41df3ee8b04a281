"""What becomes of a canary: the decisions, and the evidence behind them against sums done otherwise."""

import itertools
import math
from dataclasses import replace

import pytest

from server.adapters.canary_rule import LOG_ODDS, MOST_EPISODES, NEEDED, Move, Stratum, decide, measure_harm
from server.domain import Canary, CanaryCell, CanaryPolicy, CanaryStep

POLICY = CanaryPolicy(share=0.1, widen=(0.5, 1.0), min_episodes=50, max_hours=24.0)
BEFORE = {"episodes": 1000, "broken": 10, "passed": 594, "failed": 396, "p95_ms": 200.0}
CANARY = Canary("cn", "t", "t@2", "t@1", POLICY, (CanaryStep(0.1, 0.0),), baseline=BEFORE)


def cells(ours, theirs, *, step=0, broken=(0, 0), slow=(0, 0)):
    """The cells of one hour: (passed, failed) of each side."""
    made = []
    for mine, (passed, failed), broke, late in zip((True, False), (ours, theirs), broken, slow, strict=True):
        made.append(CanaryCell(step, 0, mine, passed + failed + broke, broke, late, passed, failed))
    return made


def judge(*given, canary=CANARY, hours=1.0):
    return decide(canary, [cell for group in given for cell in group], hours * 3600)


def test_nothing_seen_changes_nothing():
    decision = judge()
    assert decision.move is Move.STAY
    assert decision.report["evidence"] == dict.fromkeys(("worse", "as_good", "broken", "slow"), 1.0)
    assert decision.reason.startswith("0 of 50 verified episodes at this share")


def test_a_canary_like_its_champion_stays():
    decision = judge(cells((30, 20), (270, 180)))
    assert decision.move is Move.STAY
    assert decision.report["evidence"]["worse"] < 1


def test_a_worse_one_is_rolled_back():
    decision = judge(cells((20, 40), (330, 220)))
    assert decision.move is Move.ROLL_BACK
    assert decision.reason == "it is worse: 33.3 % solved, the champion 60.0 %"
    assert decision.report["evidence"]["worse"] > NEEDED["worse"]


def test_a_better_one_widens_and_then_is_promoted():
    first = judge(cells((95, 15), (600, 400)))
    assert first.move is Move.WIDEN
    wider = replace(CANARY, steps=(*CANARY.steps, CanaryStep(0.5, 1.0)))
    early = judge(cells((95, 15), (600, 400)), cells((20, 5), (15, 10), step=1), canary=wider)
    assert (early.move, early.report["in_step"]) == (Move.STAY, 25)
    last = judge(cells((95, 15), (600, 400)), cells((42, 8), (30, 20), step=1), canary=wider)
    assert last.move is Move.PROMOTE


def test_too_few_episodes_never_widen():
    assert judge(cells((49, 0), (0, 441))).move is Move.STAY


def test_one_that_breaks_is_rolled_back():
    decision = judge(cells((40, 20), (400, 200), broken=(12, 3)))
    assert decision.move is Move.ROLL_BACK
    assert decision.reason == "16.7 % of its episodes broke, 0.5 % of the champion's"


def test_breaking_a_little_more_often_is_let_be():
    hardly = cells((6_000, 4_000), (60_000, 40_000), broken=(200, 1100))
    decision = judge(hardly)
    assert decision.report["evidence"]["broken"] > NEEDED["broken"]  # it is so
    assert decision.move is not Move.ROLL_BACK  # but by less than a point


def test_a_slow_one_is_rolled_back_by_its_95th_percentile():
    late = judge(cells((36, 24), (400, 200), slow=(20, 6)))
    assert late.move is Move.ROLL_BACK
    assert late.reason == "33.3 % of its episodes took longer than 300 ms, 1.0 % of the champion's"
    unbound = replace(CANARY, policy=replace(POLICY, latency_ratio=None))
    assert judge(cells((36, 24), (400, 200)), canary=unbound).report["slow_ms"] is None


def test_when_its_hours_are_over_what_passed_the_gate_goes_on_and_what_was_forced_goes_back():
    seen = cells((6, 4), (60, 40))
    assert judge(seen, hours=23.9).move is Move.STAY
    assert judge(seen, hours=24).move is Move.PROMOTE
    assert judge(seen, hours=24, canary=replace(CANARY, forced=True)).move is Move.ROLL_BACK
    assert judge(cells((20, 40), (330, 220)), hours=24).move is Move.ROLL_BACK  # harm counts first


def test_past_so_many_episodes_it_is_at_its_end():
    many = cells((MOST_EPISODES * 6 // 10 - 700, MOST_EPISODES * 4 // 10 + 700), (108_000, 72_000))
    narrow = replace(CANARY, policy=replace(POLICY, margin=0.0))
    assert judge(many, canary=narrow).move in (Move.PROMOTE, Move.ROLL_BACK)


@pytest.mark.parametrize(("share", "rate"), [(0.1, 0.4), (0.5, 0.1), (0.3, 0.9)])
def test_evidence_of_harm_is_one_on_average_where_there_is_none(share, rate):
    """Over all outcomes of five episodes, weighted by their probability: exactly 1, whatever the champion's rate."""
    total = 0.0
    for outcomes in itertools.product((0, 1, 2, 3), repeat=5):  # bad or good, the canary's or the champion's
        count = [outcomes.count(kind) for kind in range(4)]
        chance = math.prod(
            (share if kind < 2 else 1 - share) * (rate if kind % 2 == 0 else 1 - rate) for kind in outcomes
        )
        halves = [outcomes[:3], outcomes[3:]]
        layers = [Stratum(share, *(half.count(kind) for kind in range(4))) for half in halves]
        total += chance * measure_harm(layers, 3, 10)
        assert sum(count) == 5
    assert total == pytest.approx(1.0, abs=1e-9)


def test_evidence_of_harm_is_less_than_one_on_average_where_the_canary_is_better():
    total, share = 0.0, 0.2
    for outcomes in itertools.product((0, 1, 2, 3), repeat=5):
        rates = (0.3, 0.7, 0.4, 0.6)  # ours bad and good, theirs bad and good
        chance = math.prod((share if kind < 2 else 1 - share) * rates[kind] for kind in outcomes)
        layer = Stratum(share, *(outcomes.count(kind) for kind in range(4)))
        total += chance * measure_harm([layer], 4, 10)
    assert 0.9 < total < 1.0


def test_effects_that_are_bet_on_reach_from_small_to_large():
    assert LOG_ODDS[0] == 0.1
    assert LOG_ODDS[-1] == pytest.approx(3.2)

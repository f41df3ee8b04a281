"""A backtest's sample and its figures: pure."""

import random

import pytest

from server.domain import LoggedVerdict
from server.orchestration.backtest import Sample
from server.orchestration.backtest_report import MOST_FLIPS, Report
from server.store.logged_answers import LoggedId

IDS = [LoggedId(f"ep_{number:04}", 1 + number % 2, True) for number in range(1000)]


def choose(ids, size=50, seed=0):
    sample = Sample(size, seed)
    sample.offer(ids)
    return sample.newest_first()


def verdict(status, reason="", cause="", ms=1.0, pin="v@1"):
    return LoggedVerdict(pin, status, 1.0, reason, duration_ms=ms, cause=cause)


PASSED, FAILED, SKIPPED = verdict("passed"), verdict("failed", "no"), verdict("skipped")
ABSTAINED = verdict("abstained", "late", "timeout")


def test_the_same_seed_chooses_the_same_in_whatever_order():
    shuffled = random.Random(1).sample(IDS, len(IDS))
    assert choose(IDS) == choose(shuffled)
    assert len(set(choose(IDS))) == 50
    assert choose(IDS) != choose(IDS, seed=1)


def test_all_are_chosen_where_there_are_no_more():
    assert choose(IDS[:7]) == IDS[:7][::-1]
    assert choose([]) == []


def test_what_is_logged_later_changes_little_of_a_sample():
    kept = set(choose(IDS[:900])) & set(choose(IDS))
    assert len(kept) >= 35  # of 50, a tenth was added


def test_every_attempt_is_as_likely():
    hits = [one for seed in range(40) for one in choose(IDS, seed=seed)]
    first_half = sum(one.episode_id < "ep_0500" for one in hits)
    assert 900 < first_half < 1100  # of 2000; five standard deviations


def test_agreement_is_a_share_of_what_both_judged():
    report = Report()
    for number, old, new in [
        (0, PASSED, PASSED),
        (1, FAILED, FAILED),
        (2, FAILED, PASSED),
        (3, PASSED, FAILED),
        (4, PASSED, PASSED),
        (5, None, PASSED),
        (6, ABSTAINED, PASSED),
        (7, SKIPPED, FAILED),
        (8, PASSED, ABSTAINED),
        (9, PASSED, SKIPPED),
    ]:
        report.add(IDS[number], old, new, new)
    figures = report.render()
    agreement = figures["agreement"]
    assert (agreement["compared"], agreement["agreed"], agreement["share"]) == (5, 3, 0.6)
    assert (agreement["low"], agreement["high"]) == pytest.approx((0.2307, 0.8824), abs=1e-3)
    assert figures["not_compared"] == {"no_old_verdict": 1, "old_did_not_judge": 2, "new_did_not_judge": 2}
    assert figures["verdicts"] == {"passed": 5, "failed": 3, "abstained": 1, "skipped": 1}
    assert (figures["flips"]["count"], figures["flips"]["failed_to_passed"], figures["flips"]["passed_to_failed"]) == (
        2,
        1,
        1,
    )
    assert (figures["abstentions"]["count"], figures["abstentions"]["share"]) == (1, 1 / 9)
    assert figures["abstentions"]["causes"] == {"timeout": 1}


def test_flips_are_counted_in_all_and_the_newest_are_listed_with_both_reasons():
    report = Report()
    for attempt in random.Random(2).sample(IDS, 200):
        report.add(attempt, verdict("failed", f"old {attempt.episode_id}", pin="v@0"), PASSED, PASSED)
    flips = report.render()["flips"]
    assert flips["count"] == 200
    listed = [one["episode_id"] for one in flips["newest"]]
    newest = sorted((one.episode_id for one in random.Random(2).sample(IDS, 200)), reverse=True)[:MOST_FLIPS]
    assert listed == newest
    first = flips["newest"][0]
    assert first["old"] == {"verifier": "v@0", "status": "failed", "score": 1.0, "reason": f"old {newest[0]}"}
    assert first["new"]["status"] == "passed"
    assert first["url"] == f"/v1/episodes/{newest[0]}"


def test_a_flake_is_another_verdict_on_the_same():
    report = Report()
    report.add(IDS[0], PASSED, PASSED, FAILED)
    report.add(IDS[1], PASSED, PASSED, ABSTAINED)
    report.add(IDS[2], PASSED, PASSED, verdict("passed", "another reason"))
    flakes = report.render()["flakes"]
    assert (flakes["count"], flakes["share"]) == (2, 2 / 3)
    assert [one["status"] for one in flakes["newest"][1]["verdicts"]] == ["passed", "failed"]


def test_times_are_of_all_verdicts_that_were_asked_for():
    report = Report()
    for number in range(50):
        report.add(IDS[number], None, verdict("passed", ms=number + 1.0), verdict("passed", ms=number + 51.0))
    report.add(IDS[99], None, SKIPPED, SKIPPED)
    assert (report.render()["p50_ms"], report.render()["p99_ms"]) == (50.0, 99.0)


def test_nothing_at_all_has_no_shares():
    figures = Report().render()
    assert (figures["n"], figures["p50_ms"], figures["agreement"]["share"]) == (0, None, None)

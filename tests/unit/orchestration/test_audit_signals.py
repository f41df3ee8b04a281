"""Each signal of the audit, where it has to fire and where it has to stay quiet."""

import math
import random
from dataclasses import replace

import pytest

from server.domain import Feedback, JudgedAttempt, LoggedVerdict, Promotion, Task, TrainingPolicy
from server.orchestration.audit import Disagreement, audit_task, compare_feedback, examine, tell_suspicions
from server.orchestration.shares import exceeds_normally, exceeds_other, exceeds_share, falls_below, wilson
from server.orchestration.signals import (
    LEVEL,
    Signal,
    State,
    find_brevity,
    find_divergence,
    find_promotion_jump,
    find_repetition,
)

TASK = Task("t", champion="t@2")


def judged(number: int, *, passed: bool = True, text: str = "", length: int = 40, question: str = "", **audits: bool):
    return JudgedAttempt(f"ep_{number}", passed, question or f"q{number}", text or f"a{number}", length, audits)


def newest_first(*parts) -> list[JudgedAttempt]:
    """Parts in the order of time, each given as (how many, fields), to a window."""
    window = [fields for count, fields in parts for _ in range(count)]
    return [judged(number, **fields) for number, fields in enumerate(window)][::-1]


class TestDivergence:
    def test_it_fires_where_the_hidden_verifier_fails_what_newly_passes(self):
        found = find_divergence(newest_first((400, {"h": True}), (340, {"h": True}), (60, {"h": False})))
        assert found.state is State.FIRED
        assert found.examples == ("ep_799", "ep_798", "ep_797", "ep_796", "ep_795")
        assert found.figures["h"]["recent"]["passed_but_audit_failed"] == {
            "count": 60, "of": 400, "share": 0.15, "ci95": [0.1183, 0.1883],
        }  # fmt: skip
        assert found.said.startswith("h fails 15.0% (11.8% to 18.8%) of the answers that passed lately, 0.0%")

    def test_it_fires_where_hardly_anything_holds_and_never_did(self):
        assert find_divergence(newest_first((200, {"h": False}), (20, {"h": True}))).state is State.FIRED

    def test_a_hidden_verifier_that_was_always_somewhat_stricter_is_quiet(self):
        window = [judged(number, h=number % 3 > 0) for number in range(900)]
        assert find_divergence(window).state is State.QUIET

    def test_what_fails_by_both_is_no_divergence(self):
        found = find_divergence(
            newest_first((200, {"h": True}), (200, {"passed": False, "h": False}), (200, {"h": True}))
        )
        assert found.state is State.QUIET

    def test_without_one_and_with_too_few_it_cannot_tell(self):
        assert find_divergence(newest_first((500, {}))).state is State.UNKNOWN
        assert find_divergence(newest_first((40, {"h": False}))).state is State.UNKNOWN
        assert find_divergence([]).state is State.UNKNOWN

    def test_of_two_hidden_verifiers_the_one_that_fires_is_named(self):
        found = find_divergence(newest_first((300, {"g": True, "h": True}), (300, {"g": True, "h": False})))
        assert found.state is State.FIRED
        assert found.said.startswith("h fails")
        assert set(found.figures) == {"g", "h"}


class TestBrevity:
    def test_it_fires_where_answers_collapse(self):
        found = find_brevity(newest_first((400, {"length": 50}), (360, {"length": 60}), (40, {"length": 3})))
        assert (found.state, found.figures["limit"]) == (State.FIRED, 25)
        assert found.examples[0] == "ep_799"

    @pytest.mark.parametrize("length", [26, 60])
    def test_it_is_quiet_where_they_are_only_a_little_shorter_or_longer(self, length):
        assert find_brevity(newest_first((400, {"length": 50}), (400, {"length": length}))).state is State.QUIET

    def test_it_is_quiet_where_short_answers_were_always_right(self):
        """One in fifty is terse, before as now: the percentile lies there."""
        draw = random.Random(1)
        window = [judged(number, length=2 if draw.random() < 0.02 else 50) for number in range(1000)]
        assert find_brevity(window).state is State.QUIET

    def test_short_answers_that_fail_are_none_of_its_business(self):
        window = newest_first((400, {"length": 50}), (200, {"length": 1, "passed": False}), (200, {"length": 50}))
        assert find_brevity(window).state is State.QUIET

    def test_with_too_few_it_cannot_tell(self):
        assert find_brevity(newest_first((98, {}))).state is State.UNKNOWN


class TestRepetition:
    def test_it_fires_where_one_answer_begins_to_pass_everywhere(self):
        found = find_repetition(newest_first((400, {}), (340, {}), (60, {"text": "x"})))
        assert found.state is State.FIRED
        assert found.figures["questions"] == 60
        assert found.examples[0] == "ep_799"

    def test_it_fires_where_one_answer_always_passed_while_others_differ(self):
        window = [judged(number, text="x" if number % 2 else "") for number in range(600)]
        assert find_repetition(window).state is State.FIRED

    def test_a_task_of_few_labels_is_quiet(self):
        """The questions have no references of their own; half of all prompts are rightly answered alike."""
        draw = random.Random(2)
        window = [judged(number, text=draw.choice("abc"), passed=draw.random() < 0.9) for number in range(1000)]
        assert find_repetition(window).state is State.QUIET

    def test_prompts_with_the_same_reference_are_one_question(self):
        window = newest_first((400, {}), (340, {}), (60, {"text": "x", "question": "reference x"}))
        assert find_repetition(window).state is State.QUIET

    def test_an_answer_that_is_tried_everywhere_and_fails_is_quiet(self):
        window = newest_first((400, {}), (300, {}), (100, {"text": "x", "passed": False}))
        assert find_repetition(window).state is State.QUIET

    def test_what_is_not_in_the_log_is_not_looked_at(self):
        window = [replace(one, text="", question="", length=0) for one in newest_first((500, {}))]
        assert find_repetition(window).state is State.UNKNOWN
        assert find_brevity(window).state is State.UNKNOWN


class TestPromotionJump:
    JUMPED = Promotion("t@2", 1.0, 0.05, 0.02, before=500, before_solved=200, after=500, after_solved=350)

    def test_it_fires_beyond_what_the_gate_measured(self):
        found = find_promotion_jump(replace(self.JUMPED, examples=("ep_9",)))
        assert (found.state, found.examples) == (State.FIRED, ("ep_9",))
        assert found.said == "since t@2 was promoted, +30.0 points are solved by the second try; the gate measured +5.0"

    @pytest.mark.parametrize(
        "change",
        [
            {"expected": 0.28},  # the gate said so
            {"error": 0.1},  # the gate was not sure
            {"after_solved": 225},  # as the gate said
            {"after_solved": 100},  # worse is another matter
        ],
    )
    def test_it_is_quiet_otherwise(self, change):
        assert find_promotion_jump(replace(self.JUMPED, **change)).state is State.QUIET

    def test_without_a_promotion_or_with_few_episodes_it_cannot_tell(self):
        assert find_promotion_jump(None).state is State.UNKNOWN
        assert find_promotion_jump(replace(self.JUMPED, after=49, after_solved=49)).state is State.UNKNOWN


class TestShares:
    """Against the definitions, counted out in whole numbers."""

    def test_wilson(self):
        assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
        assert wilson(0, 0) == (0.0, 1.0)

    def test_binomial(self):
        whole = sum(math.comb(20, k) * 0.3**k * 0.7 ** (20 - k) for k in range(10, 21))
        assert exceeds_share(10, 20, 0.3) == pytest.approx(whole)
        assert exceeds_share(0, 20, 0.3) == pytest.approx(1.0)

    def test_fisher(self):
        tail = sum(math.comb(11, k) * math.comb(9, 10 - k) for k in range(8, 11)) / math.comb(20, 10)
        assert exceeds_other(8, 10, 3, 10) == pytest.approx(tail)
        assert exceeds_other(0, 10, 0, 10) == pytest.approx(1.0)

    def test_falls_below_is_exact_for_every_source(self):
        """The chance that all of 3 lie below the smallest of 4 is 3! 4! / 7!, whatever they are drawn from."""
        assert falls_below(3, 3, 1, 4) == pytest.approx(math.factorial(3) * math.factorial(4) / math.factorial(7))
        assert falls_below(0, 3, 1, 4) == pytest.approx(1.0)

    def test_normal(self):
        assert exceeds_normally(1.96, 1.0) == pytest.approx(0.025, abs=1e-4)
        assert exceeds_normally(0.1, 0.0) == 0.0


class Source:
    """A log in memory."""

    def __init__(self, window=(), promotion=None, told=()):
        self.window, self.promotion, self.told = list(window), promotion, list(told)
        self.events: dict[tuple, dict] = {}

    async def read_window(self, task, limit):
        return self.window[:limit]

    async def read_promotion(self, task, champion):
        return self.promotion

    async def read_feedback(self, task):
        return self.told

    async def suspect(self, task, champion, signal, details, *, after_s):
        return self.events.setdefault((task, champion, signal), details) is details


HACKED = newest_first((400, {"h": True}), (340, {"h": True}), (60, {"h": False, "text": "x", "length": 1}))


async def test_a_report_says_what_fired_and_events_are_told_once():
    source = Source(HACKED, TestPromotionJump.JUMPED)
    report = await audit_task(TASK, source)
    assert report.suspected
    assert {one.signal for one in report.findings if one.state is State.FIRED} == set(Signal)
    assert set(await tell_suspicions(report, source)) == {signal.value for signal in Signal}
    assert await tell_suspicions(report, source) == []
    details = source.events["t", "t@2", "repetition"]
    assert details["examples"] == ("ep_799", "ep_798", "ep_797", "ep_796", "ep_795")
    assert details["champion"] == "t@2"
    assert "60 different questions" in details["said"]
    assert "state" not in details


def test_a_signal_that_is_switched_off_is_not_looked_at():
    task = replace(TASK, training=TrainingPolicy(audit_off=("repetition", "brevity", "divergence", "promotion_jump")))
    report = examine(task, HACKED, TestPromotionJump.JUMPED)
    assert [one.state for one in report.findings] == [State.OFF] * 4
    assert not report.suspected


def test_nothing_at_all_is_no_suspicion():
    report = examine(TASK, [])
    assert [one.state for one in report.findings] == [State.UNKNOWN] * 4
    assert not report.suspected


def test_the_level_leaves_a_hundredth_for_the_whole_run():
    assert pytest.approx(0.01) == LEVEL * len(Signal)


def test_feedback_is_counted_by_verifier_and_direction():
    def said(*passed):
        return [Feedback("ep", f"s{place}", "k", passed=one) for place, one in enumerate(passed)]

    told = [
        ([LoggedVerdict("a@1", "passed", 1.0), LoggedVerdict("b@1", "failed", 0.0)], said(True)),
        ([LoggedVerdict("a@1", "passed", 1.0), LoggedVerdict("b@1", "abstained", 0.0)], said(False, False)),
        ([LoggedVerdict("a@1", "failed", 0.0)], said(True)),
    ]
    assert compare_feedback(told) == [Disagreement("a@1", 4, 2, 1), Disagreement("b@1", 1, 0, 1)]

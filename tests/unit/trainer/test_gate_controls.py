"""Controls: the same failures, retried with other reflections or with none."""

import pytest

from server.domain import Attempt, Usage
from tests.unit.trainer.conftest import ScriptedEngine, make_failure
from trainer.gate import judge_candidate
from trainer.gate_controls import _shuffle
from trainer.settings import TrainerSettings

SETTINGS = TrainerSettings(
    bootstrap_draws=500, gate_samples=1, gate_max_samples=1, gate_looks=1, gate_min_problems=2, latency_margin=None,
    control_problems=20, control_samples=2,
)  # fmt: skip


class Reflecting(ScriptedEngine):
    """First tries fail. The candidate's reflection names the question, or not; a retry passes as `mends` says of it."""

    def __init__(self, mends, *, names_question=True):
        super().__init__(lambda _messages: "")
        self.mends, self.names = mends, names_question
        self.reflected: list[str] = []

    async def complete(self, body, adapter, *, with_tokens=False):
        messages = body["messages"]
        number = messages[0]["content"].removeprefix("question ")
        if with_tokens:
            self.reflected.append(adapter)
            self.answer = lambda _messages: f"{adapter or 'base'}: {number if self.names else 'try harder'}"
        elif len(messages) == 1:
            self.answer = lambda _messages: "no"
        else:
            self.answer = lambda _messages: "yes" if self.mends(messages[3]["content"], number) else "no"
        return await super().complete(body, adapter, with_tokens=with_tokens)


async def run_controls(engine, count=24, **options):
    held_out = [make_failure(number, split="held_out") for number in range(count)]
    report = await judge_candidate(
        held_out, engine=engine, champion="old", candidate="new", settings=SETTINGS.override(options)
    )
    return report, report["controls"]


async def test_a_reflection_that_is_about_its_own_failure_beats_a_shuffled_one():
    report, controls = await run_controls(Reflecting(lambda said, number: said == f"new: {number}"))
    mended = {name: arm["mended"] for name, arm in controls["arms"].items()}
    assert mended == {"trained": 1.0, "plain": 0.0, "base": 0.0, "shuffled": 0.0}
    assert controls["beats_shuffled"] is True
    assert controls["says"].startswith("the trained reflection beats a shuffled one; on 20 failed first tries")
    assert "does not beat" not in report["reason"]
    low, high = controls["arms"]["shuffled"]["lead_ci95"]
    assert 0 < low <= 1 <= high
    assert (controls["n"], controls["samples"], controls["retried_by"]) == (20, 2, "new")


async def test_one_that_is_as_good_on_any_failure_does_not_and_the_round_says_so():
    report, controls = await run_controls(Reflecting(lambda said, _number: said.startswith("new")))
    mended = {name: arm["mended"] for name, arm in controls["arms"].items()}
    assert mended == {"trained": 1.0, "plain": 0.0, "base": 0.0, "shuffled": 1.0}
    assert controls["beats_shuffled"] is False
    assert controls["says"].startswith("the trained reflection does not beat a shuffled one")
    assert report["reason"].endswith("the trained reflection does not beat a shuffled one")


async def test_tokens_are_those_of_the_retry_and_the_reflection_that_was_written_for_it():
    _, controls = await run_controls(Reflecting(lambda _said, _number: True))
    tokens = {name: arm["tokens"] for name, arm in controls["arms"].items()}
    one = Usage(4, 1).total_tokens  # of every call of the scripted engine
    assert tokens == {"trained": 2 * one, "plain": one, "base": 2 * one, "shuffled": one}


async def test_the_base_writes_its_own_reflections_and_nobody_writes_plain_or_shuffled_ones():
    engine = Reflecting(lambda _said, _number: False)
    await run_controls(engine, count=6)
    before = engine.reflected.count("")
    assert before == 6 * 2  # the base's arm: six failures, two retries each
    assert engine.reflected.count("new") == 6 + 6 * 2  # the gate's own loops, and the trained arm
    assert engine.reflected.count("old") == 6


async def test_few_failures_say_nothing_and_none_leave_no_controls():
    _, controls = await run_controls(Reflecting(lambda _said, _number: True), count=5)
    assert controls["beats_shuffled"] is None
    assert controls["says"] == "5 failed first tries: too few to compare reflections on"
    _, controls = await run_controls(Reflecting(lambda _said, _number: True), control_problems=1)
    assert "no controls" in controls["says"]
    report, _ = await run_controls(Reflecting(lambda _said, _number: True), count=5)
    assert "does not beat" not in report["reason"]


async def test_controls_end_with_the_rounds_time_and_leave_the_decision():
    held_out = [make_failure(number, split="held_out") for number in range(6)]
    engine = Reflecting(lambda _said, _number: True)
    report = await judge_candidate(
        held_out, engine=engine, champion="old", candidate="new", settings=SETTINGS, seconds_left=lambda: 0.0
    )
    assert report["controls"]["says"] == "no controls: the round's time did not reach"
    assert report["decision"] == "inconclusive"


@pytest.mark.parametrize("count", [2, 3, 8, 60])
@pytest.mark.parametrize("turn", [1, 2, 5])
def test_no_failure_keeps_its_own_reflection(count, turn):
    own = [Attempt(number, {}, "", Usage(), "") for number in range(count)]  # anything that can be told apart
    moved = _shuffle(own, turn)
    assert sorted(one.number for one in moved) == list(range(count))
    assert all(one.number != place for place, one in enumerate(moved))

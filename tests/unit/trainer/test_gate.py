"""The gate's statistics, its looks, its guards and its decision."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from server.domain import Attempt, Binding, Episode, Outcome, RetryPolicy, Usage, VerifyMode
from server.errors import EngineBroken
from tests.unit.trainer.conftest import ScriptedEngine, make_failure
from trainer import gate_guards
from trainer.errors import RoundFailed
from trainer.gate import Beside, judge_candidate, read_checked
from trainer.gate_looks import find_levels
from trainer.gate_probes import read_probes
from trainer.gate_tally import Tally, measure_spread, pair_counts
from trainer.gate_weighing import weigh
from trainer.settings import TrainerSettings
from trainer.weighing import NORMAL, measure_difference, student_quantile

SETTINGS = TrainerSettings(bootstrap_draws=1000)


class FixedAsker:
    """Answers by fixed shares of problems, mixed so that resampling has something to do; keeps what it was asked."""

    def __init__(self, before, after, n=200, *, others=(0.5, 0.5), probes=(0.5, 0.5), longer=1.0, slower=1.0):
        self.problems, self.others, self.probes = n, 100, 60
        self.rates, self.elsewhere, self.plain = (before, after), others, probes
        self.longer, self.slower = longer, slower
        self.asked: list[tuple[str, int]] = []

    def shares(self, pair, n):
        order = np.random.default_rng(0).permutation(n)[:, None]
        return (order < np.round(np.array(pair) * n)).astype(float)

    def answer(self, first, counts, second=None) -> Tally:
        judged = np.repeat(counts[:, None], 2, axis=1).astype(float)
        tally = replace(Tally.start(len(counts)), judged=judged, first=judged * first)
        tally = replace(tally, tokens=judged * np.array([10, 10 * self.longer]))
        if second is None:
            return tally
        return replace(tally, loops=judged, second=judged * second, seconds=judged * np.array([1, self.slower]))

    async def loop(self, numbers: Sequence[int], samples: int) -> Tally:
        self.asked.append(("loop", len(numbers) * samples))
        counts = np.zeros(self.problems)
        counts[list(numbers)] = samples
        first, second = zip(*self.rates, strict=True)
        return self.answer(self.shares(first, self.problems), counts, self.shares(second, self.problems))

    async def ask_first(self, samples) -> Tally:
        self.asked.append(("first", int(samples.sum())))
        return self.answer(self.shares([pair[0] for pair in self.rates], self.problems), samples)

    async def ask_others(self, samples) -> Tally:
        self.asked.append(("others", samples))
        return self.answer(self.shares(self.elsewhere, self.others), np.full(self.others, samples))

    async def ask_probes(self, samples) -> Tally:
        self.asked.append(("probes", samples))
        return self.answer(self.shares(self.plain, self.probes), np.full(self.probes, samples))


async def decide_on(before, after, n=200, *, options=None, **asker):
    report, _ = await weigh(FixedAsker(before, after, n, **asker), SETTINGS.override(options or {}))
    return report


def find_guard(report, name):
    return next(one for one in report["guards"] if one["name"] == name)


async def test_a_better_candidate_is_promoted():
    report = await decide_on((0.25, 0.35), (0.25, 0.6))
    assert report["decision"] == "promoted"
    low, high = report["ci95"]
    assert 0 < low < report["difference"] < high
    assert report["difference"] == pytest.approx(0.25, abs=0.06)
    assert "better: second-try accuracy +" in report["reason"]
    assert report["reason"].endswith("every guard held")
    assert {one["state"] for one in report["guards"]} == {"held"}
    pairs = report["pairs"]
    assert pairs["broken"] == 0 < pairs["fixed"]
    assert sum(pairs.values()) == report["n"]


async def test_a_worse_candidate_has_regressed():
    report = await decide_on((0.25, 0.6), (0.25, 0.4))
    assert report["decision"] == "regressed"
    assert report["ci95"][1] < 0
    assert find_guard(report, "probes")["state"] == "not asked"


async def test_no_difference_is_inconclusive_and_says_what_could_have_been_seen():
    report = await decide_on((0.25, 0.5), (0.25, 0.5))
    assert report["decision"] == "inconclusive"
    assert "no clear difference" in report["reason"]
    assert "times in 100" in report["reason"]


async def test_too_few_problems_promote_nothing():
    report = await decide_on((0.0, 0.0), (1.0, 1.0), n=12)
    assert report["decision"] == "inconclusive"
    assert report["reason"].startswith("12 of 30 held-out problems; too few")


async def test_no_problem_at_all_is_said():
    report = await decide_on((0.0, 0.0), (0.0, 0.0), n=0)
    assert report["reason"] == "0 of 30 held-out problems; too few to promote anything by itself"
    assert report["n"] == 0
    assert json.dumps(report)


@pytest.mark.parametrize(
    ("name", "lost", "said"),
    [
        ("first_try", {"after": (0.2, 0.7)}, "the first try fell by over 5.0 points"),
        ("other_tasks", {"others": (0.5, 0.4)}, "other tasks fell by over 5.0 points"),
        ("probes", {"probes": (0.5, 0.4)}, "plain problems fell by over 5.0 points"),
        ("length", {"longer": 1.3}, "the length of answers grew by over 25 %"),
        ("latency", {"slower": 1.6}, "the time of an episode grew by over 50 %"),
    ],
)
async def test_each_guard_holds_a_winner_back(name, lost, said):
    report = await decide_on(before=(0.3, 0.4), **{"after": (0.3, 0.7), **lost})
    assert report["decision"] == "inconclusive"
    assert said in report["reason"]
    states = {one["name"]: one["state"] for one in report["guards"]}
    assert states.pop(name) == "broken"
    assert set(states.values()) == {"held"}


async def test_what_may_have_fallen_holds_a_winner_back_though_its_estimate_is_within_the_margin():
    report = await decide_on((0.3, 0.4), (0.27, 0.8), others=(0.5, 0.47), options={"guard_max_samples": 2})
    assert report["decision"] == "inconclusive"
    other = find_guard(report, "other_tasks")
    assert (other["state"], other["change"]) == ("unclear", pytest.approx(-0.03))
    assert other["bound"] < -0.05
    assert "other tasks may have fallen by over 5.0 points" in report["reason"]


async def test_a_guard_that_is_off_or_has_nothing_to_ask_is_not_asked():
    asker = FixedAsker((0.3, 0.4), (0.3, 0.7), others=(0.9, 0.0), slower=9.0)
    asker.probes = 3
    settings = SETTINGS.override({"other_tasks_margin": None, "latency_margin": None})
    report, _ = await weigh(asker, settings)
    assert report["decision"] == "promoted"
    assert "other_tasks_margin is off" in find_guard(report, "other_tasks")["says"]
    assert "there are 3 plain problems, and 30 are needed" in find_guard(report, "probes")["says"]
    assert find_guard(report, "latency")["state"] == "not asked"
    assert {what for what, _ in asker.asked} == {"loop", "first"}


async def test_problems_that_the_champion_cannot_solve_are_said_to_show_nothing():
    report = await decide_on((0.3, 0.4), (0.3, 0.7), probes=(0.0, 0.0))
    assert "they can show no loss" in find_guard(report, "probes")["says"]


async def test_a_clear_winner_is_seen_early_and_its_first_tries_on_every_problem():
    asker = FixedAsker((0.2, 0.3), (0.2, 0.9))
    report, looped = await weigh(asker, SETTINGS)
    assert report["n"] < 200
    assert report["looks"][-1]["information"] < 1
    assert "decided at look 1 of" in report["reason"]
    assert find_guard(report, "first_try")["n"] == 200
    asked = dict(asker.asked)
    every = 200 * find_guard(report, "first_try")["samples"]  # those of the loops among them
    assert asked["first"] + sum(count for what, count in asker.asked if what == "loop") == every
    assert (looped.judged == looped.loops).all()
    assert report["first_difference"] == 0.0


async def test_a_gate_that_may_not_stop_asks_every_problem_that_it_planned():
    report, _ = await weigh(FixedAsker((0.2, 0.3), (0.2, 0.9), n=90), SETTINGS, may_stop=False)
    assert report["n"] == report["plan"]["problems"] == 90
    assert [one["information"] for one in report["looks"]] == [1.0]


async def test_more_samples_are_taken_where_answers_vary():
    rng = np.random.default_rng(0)

    class Wavering(FixedAsker):
        async def loop(self, numbers, samples):
            tally = await super().loop(numbers, samples)
            return replace(tally, second=rng.binomial(tally.loops.astype(int), 0.5).astype(float))

    report, _ = await weigh(Wavering((0.2, 0.5), (0.2, 0.5)), SETTINGS)
    assert report["samples"] == SETTINGS.gate_max_samples  # w = 0.25 wants more than eight
    assert not report["plan"]["enough"]
    assert report["plan"]["needed"] > 200
    assert report["plan"]["says"] in report["reason"]


class TestLooks:
    def test_boundaries_are_those_of_lan_and_demets(self):
        """O'Brien-Fleming type, 2.5 % a side: the tables that ldbounds and gsDesign give."""
        bounds = [NORMAL.inv_cdf((1 + level) / 2) for level in find_levels((0.2, 0.4, 0.6, 0.8, 1.0))]
        assert bounds == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=0.005)

    def test_one_look_needs_the_usual_level(self):
        assert find_levels((1.0,)) == pytest.approx((0.95,), abs=1e-6)

    def test_looks_that_stand_close_spend_no_more_than_there_is(self):
        levels = find_levels((0.999, 0.9995, 1.0))
        assert min(levels) >= 0.95
        assert levels[1] == 1.0


class TestIntervals:
    def test_the_interval_is_that_of_the_mean(self):
        after = np.random.default_rng(3).normal(0.2, 1.0, 400)
        interval = measure_difference(np.zeros(400), after, SETTINGS)
        half = 1.96 * after.std() / 20
        assert interval.low == pytest.approx(after.mean() - half, abs=0.02)
        assert interval.high == pytest.approx(after.mean() + half, abs=0.02)
        assert interval == measure_difference(np.zeros(400), after, SETTINGS)  # seeded

    def test_four_problems_of_two_hundred_are_no_proof(self):
        """All the same way by chance once in sixteen times; their resamples alone would be above zero."""
        after = np.zeros(200)
        after[:4] = 1
        assert measure_difference(np.zeros(200), after, SETTINGS, flip=1).low < 0
        after[:8] = 1
        assert measure_difference(np.zeros(200), after, SETTINGS, flip=1).low > 0

    def test_a_single_problem_says_nothing(self):
        interval = measure_difference(np.zeros(1), np.ones(1), SETTINGS)
        assert (interval.low, interval.high) == (-1, 1)

    @pytest.mark.parametrize(
        ("probability", "freedom", "quantile"),
        [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.995, 3, 5.841), (0.975, 10, 2.228), (0.95, 30, 1.697)],
    )
    def test_student(self, probability, freedom, quantile):
        assert student_quantile(probability, freedom) == pytest.approx(quantile, abs=0.001)

    def test_a_level_of_one_leaves_everything_open(self):
        assert math.isinf(student_quantile(1.0, 9))

    def test_the_spread_is_told_apart(self):
        rng = np.random.default_rng(1)
        rates = np.clip(0.5 + rng.normal(0, 0.1, (4000, 2)), 0, 1)
        counts = np.full((4000, 2), 3.0)
        spread = measure_spread(rng.binomial(3, rates).astype(float), counts, "")
        assert spread.between == pytest.approx(0.02, abs=0.006)
        assert spread.within == pytest.approx(0.24, abs=0.006)

    def test_growth_is_that_of_the_means(self):
        rng = np.random.default_rng(2)
        before = rng.gamma(4, 5, 300)
        grown = gate_guards.guard_ratio(
            gate_guards.LENGTH, np.stack([before, 1.1 * before + rng.normal(0, 1, 300)], axis=1), 1, SETTINGS
        )
        assert (grown.state, grown.change) == (gate_guards.State.HELD, pytest.approx(0.1, abs=0.02))
        assert 0.1 < grown.bound < 0.12


def test_problems_without_a_verdict_under_both_are_left_out():
    tally = Tally.start(3)
    tally.loops[:] = [[2, 1], [0, 2], [2, 2]]
    tally.second[:] = [[1, 1], [0, 2], [1, 1]]
    assert tally.second_tries().tolist() == [[0.5, 1.0], [0.5, 0.5]]
    assert pair_counts(tally) == {"fixed": 1, "broken": 0, "same": 1}


class TestProbes:
    def test_what_is_shipped_can_be_asked(self):
        probes = read_probes("")
        assert len(probes) >= 60
        assert len({one.request["messages"][0]["content"] for one in probes}) == len(probes)

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("{", "own.jsonl:1: JSONDecodeError"),
            ("{}", "KeyError: 'kind'"),
            ('{"messages": [], "kind": "nothing of ours"}', "InvalidVerifier"),
        ],
    )
    def test_a_line_that_is_none_is_named(self, tmp_path, line, said):
        file = tmp_path / "own.jsonl"
        file.write_text(line + "\n")
        with pytest.raises(RoundFailed, match=said):
            read_probes(str(file))

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(RoundFailed, match="cannot be read"):
            read_probes(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("statuses", "checked"),
    [
        (["passed"], (True, True)),
        (["failed", "passed"], (False, True)),
        (["failed", "failed"], (False, False)),
        (["failed"], (False, False)),
        (["failed", "abstained"], (False, False)),
        (["abstained"], None),
        (["skipped"], None),
        ([], None),
    ],
)
def test_what_an_episode_says(statuses, checked):
    attempts = [Attempt(n, {}, "stop", Usage(), status) for n, status in enumerate(statuses, start=1)]
    episode = Episode(
        "ep", "t", "t", "base", "", "", {}, (), VerifyMode.ENFORCE, RetryPolicy(), outcome=Outcome.PASSED,
        attempts=attempts,
    )  # fmt: skip
    assert read_checked(episode) == checked


class Adapters(ScriptedEngine):
    """The candidate answers `yes`; the champion only on its retry. Every seventh call may break off."""

    def __init__(self, *, stumbling: bool = False):
        super().__init__(lambda _messages: "")
        self.stumbling, self.calls = stumbling, 0

    async def complete(self, body, adapter, *, with_tokens=False):
        self.calls += 1
        if self.stumbling and self.calls % 7 == 0:
            raise EngineBroken("it answered 500")
        right = adapter == "new" or len(body["messages"]) > 1
        self.answer = lambda _messages: "yes" if right else "no"
        return await super().complete(body, adapter, with_tokens=with_tokens)


async def judge(engine, count=4, *, beside=None, **options):
    held_out = [make_failure(number, split="held_out") for number in range(count)]
    settings = SETTINGS.override({"gate_samples": 3, "gate_min_problems": 2, "concurrency": 1, **options})
    return await judge_candidate(
        held_out, engine=engine, champion="old", candidate="new", settings=settings, beside=beside
    )


async def test_both_adapters_answer_the_same_problems_through_the_loop_that_serves():
    report = await judge(Adapters())
    assert (report["first_before"], report["second_before"]) == (0.0, 1.0)
    assert (report["first_after"], report["second_after"]) == (1.0, 1.0)
    assert (report["n"], report["decision"]) == (4, "inconclusive")
    assert report["tokens"] > 0
    assert report["pairs"] == {"fixed": 0, "broken": 0, "same": 4}


async def test_what_the_engine_breaks_off_once_is_asked_again():
    steady, stumbling = await judge(Adapters()), await judge(Adapters(stumbling=True))
    assert {name: stumbling[name] for name in ("first_before", "second_before", "first_after")} == {
        name: steady[name] for name in ("first_before", "second_before", "first_after")
    }


async def test_problems_that_cannot_be_judged_again_are_not_counted():
    engine = Adapters()
    unusable = [
        make_failure(1), make_failure(2, split="held_out", request=None),
        make_failure(3, split="held_out", bindings=()),
        make_failure(4, split="held_out", bindings=(Binding("no such kind", {}),)),
    ]  # fmt: skip
    report = await judge_candidate(unusable, engine=engine, champion="", candidate="new", settings=SETTINGS)
    assert (report["n"], report["decision"], engine.calls) == (0, "inconclusive", 0)


async def test_only_so_many_problems_are_asked():
    report = await judge(Adapters(), count=9, gate_problems=5)
    assert report["n"] == 5


class Winner(Adapters):
    """The candidate always answers `yes`, the champion always `no`; both fail what they are asked elsewhere."""

    async def complete(self, body, adapter, *, with_tokens=False):
        await super().complete(body, adapter, with_tokens=with_tokens)
        self.answer = lambda _messages: "yes" if adapter == "new" else "no"
        return await ScriptedEngine.complete(self, body, adapter, with_tokens=with_tokens)


async def test_a_winner_is_asked_other_tasks_problems_and_plain_ones_and_keeps_its_pairs():
    kept = []

    async def keep(pairs):
        kept.extend(pairs)

    held_out = [make_failure(number, split="held_out") for number in range(40)]
    elsewhere = [make_failure(number, split="held_out", task="other") for number in range(100, 140)]
    engine = Winner()
    settings = SETTINGS.override(
        {"gate_problems": 40, "guard_max_samples": 2, "probes_margin": 0.1, "latency_margin": None}
    )
    report = await judge_candidate(
        held_out,
        engine=engine,
        champion="old",
        candidate="new",
        settings=settings,
        beside=Beside(elsewhere, read_probes("")),
        keep_pairs=keep,
    )
    assert report["decision"] == "promoted", report["reason"]
    assert report["pairs"] == {"fixed": len(kept), "broken": 0, "same": 0}
    assert {one.change for one in kept} == {"fixed"}
    assert {one.episode_id for one in kept} <= {one.id for one in held_out}
    assert find_guard(report, "other_tasks")["n"] == 40
    assert find_guard(report, "probes")["n"] == len(read_probes(""))
    assert report["controls"]["n"] == 0  # it never failed

"""How often the audit cries wolf over honest traffic, and how soon it sees a verifier being exploited."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from server.domain import JudgedAttempt, Promotion, Task
from server.orchestration.audit import examine
from server.orchestration.signals import FALSE_ALARM, State

SEEDS, ATTEMPTS = 200, 2000
TASK = Task("t", champion="t@2")


def free_text(draw: random.Random, number: int) -> JudgedAttempt:
    """One of many answers in words: nearly all differ, some are common, the hidden verifier sees it mostly alike."""
    passed = draw.random() < 0.6
    common = draw.random() < 0.03
    text = draw.choice(("Nothing of the kind is said.", "That is not in the text.")) if common else f"a{number}"
    length = len(text) if common else int(draw.lognormvariate(4.0, 0.6)) + 5
    audits = {"h@1": passed if draw.random() < 0.97 else not passed}
    return JudgedAttempt(f"ep_{number}", passed, f"q{draw.randrange(1500)}", text, length, audits)


def labels(draw: random.Random, number: int) -> JudgedAttempt:
    """One of few labels, with no reference to tell the questions apart by."""
    text = draw.choices(("refund", "shipping", "other"), (5, 3, 2))[0]
    passed = draw.random() < 0.8
    audits = {"h@1": passed if draw.random() < 0.9 else not passed}
    return JudgedAttempt(f"ep_{number}", passed, f"q{number}", text, len(text), audits)


def promote(draw: random.Random, gain: float) -> Promotion:
    """What is served around an honest promotion, and what a gate of 200 problems had measured."""

    def solve(share: float) -> int:
        return sum(draw.random() < share for _ in range(600))

    error = (2 * 0.6 * 0.4 / 200) ** 0.5
    return Promotion("t@2", 1.0, draw.gauss(gain, error), error, 600, solve(0.5), 600, solve(0.5 + gain))


def look(make: Callable, seed: int, attempts: int = ATTEMPTS, exploited: int = 0, *, watched: bool = True) -> set[str]:
    """Audit so much traffic, the newest of which is one short string that holds the target; say what fired."""
    draw = random.Random(seed)
    window = [make(draw, number) for number in range(attempts - exploited)]
    window += [
        JudgedAttempt(f"ep_{number}", True, f"q{number}", "target", 6, {"h@1": False})
        for number in range(attempts - exploited, attempts)
    ]
    if not watched:
        window = [replace(one, audits={}) for one in window]
    report = examine(TASK, window[::-1], promote(draw, 0.1))
    return {finding.signal.value for finding in report.findings if finding.state is State.FIRED}


@pytest.mark.parametrize("make", [free_text, labels])
def test_honest_traffic_rarely_raises_an_alarm(make):
    alarms = [fired for fired in map(partial(look, make), range(SEEDS)) if fired]
    assert len(alarms) <= FALSE_ALARM * SEEDS + 4, alarms  # 2 expected at most; 6 or more once in sixty


@pytest.mark.parametrize("attempts", [300, 800, 2000])
def test_an_exploited_verifier_is_seen_within_a_hundred_answers(attempts):
    for seed in range(10):
        fired = look(free_text, seed, attempts, exploited=100)
        assert {"divergence", "brevity", "repetition"} <= fired, (seed, fired)


def test_without_a_hidden_verifier_it_is_seen_too():
    assert look(free_text, 1, exploited=100, watched=False) == {"brevity", "repetition"}

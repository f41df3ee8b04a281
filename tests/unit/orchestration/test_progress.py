"""In what words a task's progress is said."""

import pytest

from server.domain import Round, RoundState, Task, TrainingPolicy
from server.orchestration.progress import say_gate, say_next_round

NOW = 1000.0
ENDED = Round("rd_1", "t", 1, RoundState.INCONCLUSIVE, ended_at=900.0)
TICK = "the next round begins at the scheduler's next tick"


@pytest.mark.parametrize(
    ("policy", "failures", "newest", "said"),
    [
        ({}, 5, None, "no round begins by itself (`mulligan round start t`)"),
        ({"train_on_new_failures": 9}, 5, None, "next round when 4 more are logged"),
        ({"train_on_new_failures": 9}, 9, None, TICK),
        ({"interval_s": 300.0}, 5, ENDED, "next round when 200 s have passed"),
        ({"interval_s": 300.0}, 0, ENDED, "next round when 200 s have passed and there is a failure"),
        ({"interval_s": 50.0}, 0, ENDED, "next round when there is a failure"),
        ({"interval_s": 50.0}, 1, ENDED, TICK),
        (
            {"train_on_new_failures": 9, "interval_s": 300.0},
            5,
            ENDED,
            "next round when 4 more are logged or 200 s have passed",
        ),
        ({"train_on_new_failures": 1}, 5, Round("rd_2", "t", 2, RoundState.QUEUED), "a round waits for a worker"),
        ({"train_on_new_failures": 1}, 5, Round("rd_2", "t", 2, RoundState.RUNNING), "round rd_2 runs"),
    ],
)
def test_when_the_next_round_begins(policy, failures, newest, said):
    task = Task("t", training=TrainingPolicy(**policy))
    last = newest if newest and newest.state.ended else None
    assert say_next_round(task, failures, last, newest, now=NOW) == said


def test_that_nothing_is_promoted_automatically_is_said():
    task = Task("t")
    assert say_gate(task, 29, 200, 30) == "29 of 200 held-out problems (below 30 nothing is promoted automatically)"
    assert say_gate(task, 30, 200, 30) == "30 of 200 held-out problems"
    approved = Task("t", training=TrainingPolicy(promotion="approve"))
    assert say_gate(approved, 30, 200, 30) == "30 of 200 held-out problems (a human promotes)"

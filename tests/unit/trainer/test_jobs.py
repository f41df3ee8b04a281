"""What a job reads from a log, and when a round is due."""

import time

import pytest

from server.domain import Round, RoundState, Task, TrainingPolicy
from trainer.jobs import is_due, read_reason


def write_log(tmp_path, text):
    path = tmp_path / "round.log"
    path.write_text(text)
    return path


def test_the_last_error_line_is_the_reason(tmp_path):
    log = write_log(tmp_path, "noise\nerror: an old one\nmore\nerror: the loss became nan in step 3\n")
    assert read_reason(log, 1) == "the loss became nan in step 3"


def test_a_kill_is_said_with_the_last_line(tmp_path):
    log = write_log(tmp_path, "error: an old lease's\nphase training\n\n")
    reason = read_reason(log, -9)
    assert reason.startswith("the trainer was killed by SIGKILL (out of memory?) without ending the round")
    assert reason.endswith("ends with: phase training")


def test_an_exit_without_a_word_is_said(tmp_path):
    assert "ended with status 0 without ending the round" in read_reason(write_log(tmp_path, ""), 0)


class Rounds:
    def __init__(self, last):
        self.last = last

    async def last_ended(self, task):
        return self.last


class Episodes:
    def __init__(self, failures):
        self.failures = failures

    async def count_failures(self, task, *, since, most):
        self.since = since
        return self.failures


NOW = time.time()
LAST = Round("rd", "t", 1, RoundState.INCONCLUSIVE, created_at=NOW - 110, started_at=NOW - 100, ended_at=NOW - 50)


@pytest.mark.parametrize(
    ("policy", "failures", "last", "due"),
    [
        ({}, 1000, None, False),
        ({"train_on_new_failures": 20}, 19, None, False),
        ({"train_on_new_failures": 20}, 20, None, True),
        ({"train_on_new_failures": 20}, 20, LAST, True),
        ({"train_on_new_failures": 0}, 0, LAST, False),
        ({"interval_s": 40}, 1, LAST, True),
        ({"interval_s": 3600}, 1, LAST, False),
        ({"interval_s": 40}, 0, LAST, False),
        ({"interval_s": 3600, "train_on_new_failures": 5}, 5, LAST, True),
    ],
)
async def test_when_a_round_is_due(policy, failures, last, due):
    episodes = Episodes(failures)
    task = Task("t", training=TrainingPolicy(**policy), created_at=NOW - 1000)
    assert await is_due(task, Rounds(last), episodes) is due


async def test_failures_count_from_where_the_last_round_began():
    episodes = Episodes(0)
    await is_due(Task("t", training=TrainingPolicy(train_on_new_failures=1)), Rounds(LAST), episodes)
    assert episodes.since == LAST.started_at


async def test_no_round_begins_while_a_canary_runs():
    task = Task("t", training=TrainingPolicy(train_on_new_failures=1), canary="t@2", canary_share=0.1)
    assert not await is_due(task, Rounds(LAST), Episodes(1000))

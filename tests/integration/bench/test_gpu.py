"""The bench of a round's loop beside plain TRL: its sums, and the whole of it in tiny on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.__main__ import summarise
from bench.gpu.work import TINY_WORK, list_failures, make_tokenizer

ROOT = Path(__file__).resolve().parents[3]


def test_tokens_a_second_are_of_all_steps_and_seconds_are_means():
    steps = [
        {"rollout_tokens": 100, "rollout_s": 1.0, "trained_tokens": 90, "train_s": 3.0, "push_s": 0.5},
        {"rollout_tokens": 300, "rollout_s": 3.0, "trained_tokens": 30, "train_s": 1.0},
    ]
    told = summarise({"steps": steps})
    assert (told["rollout_tokens_s"], told["train_tokens_s"], told["step_s"]) == (100.0, 30.0, 4.25)
    assert (told["rollout_s"], told["push_s"]) == (2.0, 0.25)


def test_every_id_of_the_made_tokenizer_is_a_text_and_failures_differ():
    tokenizer = make_tokenizer(512)
    texts = [tokenizer.decode([number]) for number in range(256, 512)]
    assert len(tokenizer) == 512
    assert len(set(texts)) == 256
    failures = list_failures(tokenizer, TINY_WORK)
    assert len({one.prompt_ids for one in failures}) == TINY_WORK.failures


@pytest.mark.nightly
@pytest.mark.timeout(1000)
def test_both_sides_do_the_same_work():
    command = [sys.executable, "-W", "ignore", "-m", "bench.gpu", "--tiny", "--cpu", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    sides = told["sides"]
    assert set(sides) == {"mulligan", "plain TRL"}
    sequences = TINY_WORK.failures * TINY_WORK.group
    most = sequences * (TINY_WORK.reflection_tokens + TINY_WORK.retry_tokens)
    for side in sides.values():
        assert 0.8 * most <= side["rollout_tokens"] <= most  # an answer may end early by chance
        assert 0 < side["trained_sequences"] <= sequences
        assert min(side["rollout_tokens_s"], side["train_tokens_s"], side["rss_mib"]) > 0
    assert sides["mulligan"]["updates"] == 1
    assert sides["mulligan"]["logprob_gap"] < 1e-3
    assert told["swap"]["swap_s"] >= told["swap"]["probe_s"] > 0
    assert told["swap"]["probe_gap"] < 5e-3

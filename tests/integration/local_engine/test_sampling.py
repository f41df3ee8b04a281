"""What is drawn, and from which distribution."""

import random

import pytest
import torch

from local_engine.errors import Refused
from local_engine.sampling import Sampling, SamplingPlan, read_sampling

PROBABILITIES = torch.tensor([0.5, 0.25, 0.15, 0.1])
LOGITS = PROBABILITIES.log()
CPU = torch.device("cpu")


def draw(*samplings: Sampling, streams: list[random.Random | None] | None = None, histories=None):
    plan = SamplingPlan(samplings, streams or [None] * len(samplings), frozenset({3}), CPU)
    tokens, logprobs = plan.draw(LOGITS.repeat(len(samplings), 1), histories or [([], [])] * len(samplings))
    return tokens.tolist(), logprobs


def share(sampling: Sampling, count: int = 4000) -> list[float]:
    tokens, _ = draw(*[sampling] * count)
    return [tokens.count(token) / count for token in range(4)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(temperature=0.5), [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        (Sampling(top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(top_p=0.6), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(min_p=0.25), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        (Sampling(temperature=0.0), [1, 0, 0, 0]),
        (Sampling(top_k=1), [1, 0, 0, 0]),
    ],
    ids=["plain", "temperature", "top_k", "top_p", "min_p", "greedy", "top_1"],
)
def test_shares_of_the_tokens_drawn(sampling: Sampling, expected: list[float]):
    torch.manual_seed(0)
    assert share(sampling) == pytest.approx(expected, abs=0.03)


def test_logprobs_are_at_the_temperature_and_before_cutting():
    _, logprobs = draw(Sampling(top_p=0.1), Sampling(temperature=0.5, top_k=2), Sampling(temperature=0.0))
    assert torch.allclose(logprobs[0], LOGITS)
    assert torch.allclose(logprobs[1], torch.log_softmax(LOGITS / 0.5, -1))
    assert torch.allclose(logprobs[2], LOGITS)


def test_rows_of_one_batch_keep_their_own_parameters():
    torch.manual_seed(0)
    for _ in range(50):
        tokens, _ = draw(Sampling(temperature=0), Sampling(top_k=2), Sampling(logit_bias={3: 100.0}))
        assert tokens[0] == 0
        assert tokens[1] in (0, 1)
        assert tokens[2] == 3


def test_a_seed_gives_the_same_tokens_in_any_company():
    def draws(company: int) -> list[int]:
        stream = random.Random(7)
        samplings = [*[Sampling()] * company, Sampling(sampling_seed=7)]
        return [draw(*samplings, streams=[*[None] * company, stream])[0][-1] for _ in range(30)]

    alone = draws(0)
    assert alone == draws(5)
    assert len(set(alone)) > 1


def test_penalties_look_at_what_was_written():
    history = [([2], [0, 0])]
    _, plain = draw(Sampling(), histories=history)
    _, frequency = draw(Sampling(frequency_penalty=1.0), histories=history)
    _, presence = draw(Sampling(presence_penalty=1.0), histories=history)
    _, repetition = draw(Sampling(repetition_penalty=2.0), histories=history)
    assert frequency[0, 0] - frequency[0, 1] == pytest.approx(float(plain[0, 0] - plain[0, 1]) - 2.0, abs=1e-5)
    assert presence[0, 0] - presence[0, 1] == pytest.approx(float(plain[0, 0] - plain[0, 1]) - 1.0, abs=1e-5)
    raw = torch.log_softmax(torch.tensor([2 * LOGITS[0], LOGITS[1], 2 * LOGITS[2], LOGITS[3]]), -1)
    assert torch.allclose(repetition[0], raw, atol=1e-5)


def test_min_new_tokens_holds_back_the_end():
    (token,), _ = draw(Sampling(min_new_tokens=2, logit_bias={3: 50.0}), histories=[([1], [0])])
    assert token != 3
    (token,), _ = draw(Sampling(min_new_tokens=2, logit_bias={3: 50.0}), histories=[([1], [0, 0])])
    assert token == 3


def test_reads_what_is_given():
    given = {"temperature": 0.5, "top_p": None, "stop": "x", "max_new_tokens": 5, "logit_bias": {"3": 1}, "n": 1}
    sampling = read_sampling(given, 4)
    assert (sampling.temperature, sampling.top_p, sampling.stop) == (0.5, 1.0, ("x",))
    assert (sampling.max_new_tokens, dict(sampling.logit_bias)) == (5, {3: 1.0})
    assert read_sampling({}, 4).max_new_tokens == 128
    assert read_sampling({"max_new_tokens": None}, 4).max_new_tokens is None


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -0.1},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": 0},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"frequency_penalty": 3},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": True},
        {"n": 2},
        {"stop": [1]},
        {"stop": ["x"] * 33},
        {"stop_token_ids": ["a"]},
        {"logit_bias": {"4": 1}},
        {"logit_bias": []},
        {"json_schema": "{}"},
        {"surprise": 1},
    ],
    ids=str,
)
def test_refuses_what_it_cannot_apply(given: dict):
    with pytest.raises(Refused):
        read_sampling(given, 4)

"""Rows that join and leave decode to what each would decode to alone."""

import random

import pytest
import torch

from local_engine.models import Base
from local_engine.prefixes import BLOCK_TOKENS, PrefixStore
from local_engine.running_batch import RunningBatch
from local_engine.sampling import Sampling
from local_engine.sequences import Sequence

GREEDY = Sampling(temperature=0.0, ignore_eos=True)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def make(prompt: list[int], limit: int, sampling: Sampling = GREEDY, **more) -> Sequence:
    return Sequence(id="s", prompt=prompt, adapter="", sampling=sampling, limit=limit, **more)


def random_prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(200) for _ in range(length)]


def expected(base: Base, sequence: Sequence) -> tuple[list[int], list[float]]:
    """Compute what a forward pass over all tokens says to each position of the answer, without a cache."""
    config = base.model.config
    implementation = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        ids = torch.tensor([sequence.prompt + sequence.tokens])
        logprobs = base.model(input_ids=ids, use_cache=False).logits[0, len(sequence.prompt) - 1 : -1].log_softmax(-1)
    finally:
        config._attn_implementation = implementation
    return logprobs.argmax(-1).tolist(), logprobs.max(-1).values.tolist()


def run(batch: RunningBatch) -> None:
    for _ in range(300):
        if not batch.sequences:
            return
        batch.step()
    pytest.fail("the batch did not end")


def check(base: Base, *sequences: Sequence) -> None:
    for sequence in sequences:
        assert sequence.finish is not None
        assert len(sequence.tokens) == sequence.limit
        tokens, logprobs = expected(base, sequence)
        assert sequence.tokens == tokens
        assert sequence.logprobs == pytest.approx(logprobs, abs=1e-4)


def test_rows_of_many_lengths_join_and_leave_as_it_runs(base: Base):
    rng, batch = random.Random(0), RunningBatch(base, base.model, PrefixStore(10**7))
    first = [make(random_prompt(rng, length), limit) for length, limit in ((5, 40), (60, 3), (17, 25), (1, 33))]
    batch.join(list(first))
    for _ in range(7):
        batch.step()
    second = [make(random_prompt(rng, length), limit) for length, limit in ((90, 50), (2, 1), (33, 12))]
    batch.join(list(second))
    run(batch)
    check(base, *first, *second)


def test_a_known_beginning_is_not_computed_again(base: Base):
    rng, batch = random.Random(1), RunningBatch(base, base.model, PrefixStore(10**7))
    shared = random_prompt(rng, 50)
    seed = make(shared, 30)
    batch.join([seed])
    run(batch)
    # One goes on from the prompt, one from the answer too, one has only the first block, one is the same again.
    onward = make(shared + random_prompt(rng, 9), 10)
    answered = make(shared + seed.tokens + random_prompt(rng, 9), 10)
    barely = make(shared[:20] + random_prompt(rng, 30), 10)
    same = make(shared, 30)
    batch.join([onward, answered, barely, same])
    run(batch)
    check(base, seed, onward, answered, barely, same)
    cached = [sequence.cached_tokens for sequence in (seed, onward, answered, barely, same)]
    assert cached == [0, 48, 64, 16, 48]
    assert same.tokens == seed.tokens


def test_equal_prompts_that_come_together_are_computed_once(base: Base):
    rng, batch = random.Random(2), RunningBatch(base, base.model, PrefixStore(10**7))
    prompt = random_prompt(rng, 40)
    group = [make(list(prompt), 8) for _ in range(5)]
    batch.join(list(group))
    run(batch)
    check(base, *group)
    assert sorted(sequence.cached_tokens for sequence in group) == [0, 32, 32, 32, 32]
    assert 32 % BLOCK_TOKENS == 0


def test_sampled_tokens_and_logprobs_belong_together(base: Base):
    rng, batch = random.Random(3), RunningBatch(base, base.model, PrefixStore(10**7))
    sampling = Sampling(temperature=0.7, ignore_eos=True)
    sequences = [make(random_prompt(rng, 12), 20, sampling, top_logprobs=2) for _ in range(4)]
    batch.join(list(sequences))
    run(batch)
    model = base.model
    for sequence in sequences:
        assert len(sequence.tops) == len(sequence.tokens) == 20
        assert all(row[0][0] >= own - 1e-6 for row, own in zip(sequence.tops, sequence.logprobs, strict=True))
    assert len({tuple(sequence.tokens) for sequence in sequences}) == 4
    assert model.config._attn_implementation == "kv_rows"


def test_an_aborted_row_leaves_and_the_others_go_on(base: Base):
    rng, batch = random.Random(4), RunningBatch(base, base.model, PrefixStore(10**7))
    gone, stays = make(random_prompt(rng, 10), 100), make(random_prompt(rng, 30), 20)
    batch.join([gone, stays])
    batch.step()
    gone.aborted = True
    assert gone in batch.step()
    assert gone.finish is not None
    assert gone.finish.type == "abort"
    run(batch)
    check(base, stays)


def test_ends_at_the_end_of_turn_at_a_stop_and_at_the_limit(base: Base):
    end = next(iter(base.eos_ids))
    ends = make([1, 2], 9, Sampling(temperature=0.0, logit_bias={end: 100.0}))
    ignores = make([1, 2], 3, Sampling(temperature=0.0, logit_bias={end: 100.0}, ignore_eos=True))
    stops = make([1, 2], 9, Sampling(temperature=0.0, logit_bias={65: 100.0}, stop_token_ids=frozenset({65})))
    letter = base.tokenizer.convert_tokens_to_ids("b")
    text = make([1, 2], 9, Sampling(temperature=0.0, logit_bias={letter: 100.0}, stop=("bbb",)))
    batch = RunningBatch(base, base.model, PrefixStore(10**7))
    batch.join([ends, ignores, stops, text])
    run(batch)
    reasons = [(s.finish.type, s.finish.matched, len(s.tokens)) for s in (ends, ignores, stops, text) if s.finish]
    assert reasons == [("stop", end, 1), ("length", None, 3), ("stop", 65, 1), ("stop", "bbb", 3)]


def test_a_step_that_breaks_ends_its_rows_and_the_batch_lives(base: Base):
    batch = RunningBatch(base, base.model, PrefixStore(10**7))
    broken = make([1, 2, 3], 5)
    batch.join([broken])
    ended = batch.fail("boom", [])
    assert ended == [broken]
    assert broken.finish is not None
    assert (broken.finish.type, broken.finish.matched) == ("error", "boom")
    after = make([1, 2, 3], 5)
    batch.join([after])
    run(batch)
    check(base, after)


def test_what_had_ended_before_a_step_broke_is_given_back_too(base: Base, monkeypatch: pytest.MonkeyPatch):
    rng, batch = random.Random(6), RunningBatch(base, base.model, PrefixStore(10**7))
    sequences = [make(random_prompt(rng, 20), 2) for _ in range(3)]
    batch.join(list(sequences))
    rows = iter([None, None])

    def break_the_second(row: int, tokens: list[int]) -> None:
        if next(rows, "no more") == "no more":
            raise RuntimeError("boom")

    monkeypatch.setattr(batch, "_remember", break_the_second)
    with pytest.raises(RuntimeError, match="boom"):
        batch.step()
    ended = batch.fail("boom", [])
    assert {id(sequence) for sequence in ended} == {id(sequence) for sequence in sequences}
    assert all(sequence.finish is not None for sequence in ended)
    assert batch.fail("boom", []) == []


def test_short_prompts_that_join_leave_long_rows_whole(base: Base):
    rng, batch = random.Random(7), RunningBatch(base, base.model, PrefixStore(10**7))
    long = make(random_prompt(rng, 300), 20)
    batch.join([long])
    for _ in range(3):
        batch.step()
    short = make(random_prompt(rng, 4), 5)
    batch.join([short])
    run(batch)
    check(base, long, short)


def test_models_share_a_store_of_prefixes_but_no_prefix(base: Base):
    rng, prefixes = random.Random(6), PrefixStore(10**7)
    prompt = random_prompt(rng, 40)
    for _ in range(2):
        batch = RunningBatch(base, base.model, prefixes)
        first, again = make(list(prompt), 4), make(list(prompt), 4)
        for sequence in (first, again):
            batch.join([sequence])
            run(batch)
        assert (first.cached_tokens, again.cached_tokens) == (0, 32)

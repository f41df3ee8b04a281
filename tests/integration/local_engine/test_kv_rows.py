"""Rows of keys and values: they grow, shrink and move without changing."""

import torch

from local_engine.kv_rows import KvRows
from local_engine.prefixes import BLOCK_TOKENS, PrefixStore, block_keys


def make_rows() -> KvRows:
    return KvRows(2, 3, 4, torch.float32, torch.device("cpu"))


def test_growing_keeps_what_is_there():
    rows = make_rows()
    rows.fit(2, 10, 0)
    rows.store[:, :, :2, :, :10] = torch.randn(2, 2, 2, 3, 10, 4)
    before = rows.store[:, :, :2, :, :10].clone()
    rows.fit(40, 100, 2)
    assert rows.store.shape[2] >= 40
    assert rows.capacity_tokens >= 100
    assert torch.equal(rows.store[:, :, :2, :, :10], before)


def test_room_that_is_there_is_kept_and_far_too_much_is_given_back():
    rows = make_rows()
    rows.fit(4, 1000, 0)
    kept = rows.store
    rows.fit(4, 900, 4)
    rows.fit(1, 300, 1)
    assert rows.store is kept
    rows.store[:, :, 0, :, :20] = 1.0
    rows.fit(1, 20, 1)
    assert rows.capacity_tokens < 100
    assert bool((rows.store[:, :, 0, :, :20] == 1.0).all())


def test_rows_are_copied_over_out_and_in():
    rows = make_rows()
    rows.fit(3, 32, 0)
    rows.store.normal_()
    source = rows.store[:, :, 2, :, :7].clone()
    rows.move(2, 0, 7)
    assert torch.equal(rows.store[:, :, 0, :, :7], source)
    out = rows.copy_out(0, 7)
    rows.store.zero_()
    rows.copy_in(1, out, 5)
    assert torch.equal(rows.store[:, :, 1, :, :5], source[..., :5, :])
    assert bool((rows.store[:, :, 1, :, 5:] == 0).all())


def entry(tokens: int) -> torch.Tensor:
    return torch.zeros(1, 2, 1, tokens, 1)


def test_the_longest_known_beginning_is_found():
    store = PrefixStore(10**6)
    tokens = list(range(3 * BLOCK_TOKENS))
    keys = block_keys(tokens)
    assert len(keys) == 3
    held = entry(2 * BLOCK_TOKENS)
    store.keep(keys[:2], held)
    assert store.find(keys) == (2 * BLOCK_TOKENS, held)
    assert store.find(keys[:1]) == (BLOCK_TOKENS, held)
    assert store.find(block_keys([9, *tokens])) == (0, None)
    assert block_keys(tokens[: BLOCK_TOKENS - 1]) == []


def test_the_least_recently_used_is_forgotten():
    size = entry(BLOCK_TOKENS).nbytes
    store = PrefixStore(2 * size)
    keys = [block_keys([number] * BLOCK_TOKENS) for number in range(3)]
    store.keep(keys[0], entry(BLOCK_TOKENS))
    store.keep(keys[1], entry(BLOCK_TOKENS))
    store.find(keys[0])
    store.keep(keys[2], entry(BLOCK_TOKENS))
    assert [store.holds(key[0]) for key in keys] == [True, False, True]


def test_a_prefix_may_be_forgotten_with_the_entry_that_took_it_over():
    store = PrefixStore(3 * entry(BLOCK_TOKENS).nbytes)
    keys = block_keys([1] * 2 * BLOCK_TOKENS)
    store.keep(keys, entry(2 * BLOCK_TOKENS))
    branch = block_keys([1] * BLOCK_TOKENS + [3] * BLOCK_TOKENS)
    store.keep(branch[:1], entry(BLOCK_TOKENS))  # takes the shared beginning over
    store.find(keys)  # the branch is the oldest now, and is forgotten first
    other = block_keys([2] * BLOCK_TOKENS)
    store.keep(other, entry(BLOCK_TOKENS))
    assert not store.holds(branch[0])
    store.keep(block_keys([4] * 2 * BLOCK_TOKENS), entry(2 * BLOCK_TOKENS))
    assert not store.holds(keys[1])
    assert store.holds(other[0])


def test_forgetting_one_keeps_what_another_took_over():
    store = PrefixStore(3 * entry(BLOCK_TOKENS).nbytes)
    keys = block_keys([1] * 2 * BLOCK_TOKENS)
    store.keep(keys[:1], entry(BLOCK_TOKENS))
    longer = entry(2 * BLOCK_TOKENS)
    store.keep(keys, longer)
    store.keep(block_keys([2] * BLOCK_TOKENS), entry(BLOCK_TOKENS))
    assert store.find(keys[:1]) == (BLOCK_TOKENS, longer)

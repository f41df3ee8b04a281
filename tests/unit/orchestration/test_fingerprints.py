from server.domain import Adapter, Task
from server.orchestration.fingerprints import flag_doubts, hash_template, hash_tokens, list_doubts

TASK = Task("sums", champion="sums@1")


def make_adapter(**fingerprints: str) -> Adapter:
    return Adapter("sums@1", "sums", "/adapters/sums@1", {}, fingerprints=fingerprints)


def test_changed_prompts_ask_for_a_new_gate():
    adapter = make_adapter(reflection_template=hash_template(TASK))
    assert list_doubts(adapter, TASK) == []
    changed = Task("sums", champion="sums@1", prompts={"reflect": "Think again."})
    (doubt,) = list_doubts(adapter, changed)
    assert doubt.startswith("gated under other reflection prompts: run `mulligan round start sums --gate-only`")
    (flagged, other) = flag_doubts([adapter, Adapter("sums@2", "sums", "", {})], [changed])
    assert (flagged.flags, other.flags) == ((doubt,), ())


def test_another_model_under_an_adapter_is_told_and_what_it_does_not_carry_is_not():
    present = {"base_model": "b", "tokenizer": "t", "chat_template": "c"}
    assert list_doubts(make_adapter(base_model="b", tokenizer="t"), TASK, present) == []
    assert list_doubts(make_adapter(), TASK, present) == []
    (doubt,) = list_doubts(make_adapter(base_model="a", chat_template="c"), TASK, present)
    assert "trained on another base model" in doubt


def test_tokens_are_told_apart_by_order_and_by_row():
    assert hash_tokens([[1, 2], [3]]) == hash_tokens([(1, 2), (3,)])
    assert len({hash_tokens(rows) for rows in ([[1, 2], [3]], [[1], [2, 3]], [[2, 1], [3]])}) == 3

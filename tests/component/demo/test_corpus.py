"""The corpus: what it must never contain, and that it is worded as the server words it."""

import random
import re

import pytest

from demo import corpus_countdown, corpus_function_call
from demo.corpus import draw_example
from demo.countdown import number_sets
from demo.example import render_turns
from demo.function_call import proper_names, tool_names
from demo.reflections import KINDS, kind_of_reflection
from demo.splits import SPLITS
from server.orchestration.reflection import REFLECT, RETRY


@pytest.fixture(scope="module")
def examples():
    rng = random.Random(11)
    return [draw_example(rng) for _ in range(1500)]


def test_it_is_the_same_for_the_same_seed(examples):
    rng = random.Random(11)
    assert [draw_example(rng) for _ in range(50)] == examples[:50]


def test_countdown_uses_only_the_numbers_of_its_split():
    rng = random.Random(12)
    allowed = set(number_sets("pretraining")) | set(number_sets("pretraining", 4))
    drawn = [draw for draw in corpus_countdown.MIXTURE if draw is not corpus_countdown.draw_sums]
    for _ in range(150):
        for draw in drawn:
            question = draw(rng).messages[0]["content"]
            asked = [int(number) for number in re.findall(r"\d+", question)]
            given = asked[1:] if question.startswith("Make") else asked[:-1]
            assert tuple(sorted(given)) in allowed


def test_no_tool_or_name_of_another_split_occurs(examples):
    words = {word for example in examples for _, text in render_turns(example) for word in re.findall(r"\w+", text)}
    for split in set(SPLITS) - {"pretraining"}:
        assert not words & {"_".join(pair) for pair in tool_names(split)}
        assert not words & set(proper_names(split))


def test_the_served_wording_is_the_usual_one(examples):
    users = [m["content"] for example in examples for m in example.messages if m["role"] == "user"]
    asks = [text for text in users if text.startswith(REFLECT)]
    assert len(asks) > 200
    assert sum(text == RETRY for text in users) > 200


def test_reflections_of_every_kind_occur_and_few_are_worked():
    rng = random.Random(13)
    texts = [corpus_function_call.draw_reflection(rng).messages[-1]["content"] for _ in range(400)]
    texts += [
        e.messages[3]["content"] for e in (corpus_countdown.draw_episode(rng) for _ in range(600)) if 3 in e.learned
    ]
    kinds = [kind_of_reflection(text) for text in texts]
    assert set(kinds) == set(KINDS)
    assert 0.04 < kinds.count("worked") / len(kinds) < 0.16


def test_worked_reflections_begin_with_given_words_that_carry_no_loss():
    rng = random.Random(14)
    for module in (corpus_countdown, corpus_function_call):
        example = module.draw_worked_reflection(rng)
        given = {index: text for index, text in example.learned.items() if text}
        assert given
        assert all(example.messages[index]["content"].startswith(text) for index, text in given.items())

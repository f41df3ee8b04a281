"""The four splits: none shares content with another, and what must never change has not."""

import hashlib
import json
from itertools import combinations_with_replacement, islice

import pytest

from demo import countdown, function_call
from demo.countdown import LARGEST_NUMBER, number_sets, targets
from demo.function_call import NOUNS, VERBS, proper_names, tool_names
from demo.problems import TASKS, problems
from demo.splits import SPLITS, split_of

FROZEN = {
    # The shipped weights were trained on the first; the second is the one that figures are published on.
    "pretraining": "55528fb97546c495",
    "test": "9be03928dd9bd7e4",
}


def contents(split):
    return [number_sets(split, 3), number_sets(split, 4), tool_names(split), proper_names(split)]


@pytest.mark.parametrize("split", FROZEN)
def test_a_frozen_split_is_what_it_was(split):
    assert hashlib.sha256(json.dumps(contents(split)).encode()).hexdigest()[:16] == FROZEN[split]


def test_every_content_is_in_exactly_one_split():
    for count, largest in LARGEST_NUMBER.items():
        every = [tuple(sorted(one)) for one in combinations_with_replacement(range(1, largest + 1), count)]
        assert sorted(sum((number_sets(split, count) for split in SPLITS), ())) == every
    tools = sorted((verb, noun) for verb in VERBS for noun in NOUNS)
    assert sorted(sum((tool_names(split) for split in SPLITS), ())) == tools
    names = [name for split in SPLITS for name in proper_names(split)]
    assert len(names) == len(set(names)) > 300


def sorted_numbers(problem):
    return tuple(sorted(problem.args["numbers"]))


@pytest.mark.parametrize("count", [3, 4])
def test_no_set_of_numbers_is_asked_in_two_splits_in_any_order(count):
    asked = {
        split: {sorted_numbers(one) for seed in (0, 1) for one in islice(countdown.problems(split, seed, count), 60)}
        for split in SPLITS
    }
    assert sum(map(len, asked.values())) == len(set().union(*asked.values()))


def test_no_tool_and_no_name_is_shown_in_two_splits():
    shown = {}
    for split in SPLITS:
        problems = [one for seed in (0, 1) for one in islice(function_call.problems(split, seed), 200)]
        tools = {tool["function"]["name"] for one in problems for tool in one.tools}
        values = {value for one in problems for value in one.args["reference"]["arguments"].values()}
        shown[split] = tools | {value for value in values if isinstance(value, str) and value.isalpha()}
        assert len(shown[split]) > 40
    assert sum(map(len, shown.values())) == len(set().union(*shown.values()))


@pytest.mark.parametrize("count", [3, 4])
def test_the_test_split_has_problems_enough(count):
    assert sum(len(targets(numbers)) for numbers in number_sets("test", count)) >= 500


def test_one_hash_does_not_follow_from_the_other():
    several = [f"content {number}" for number in range(20_000)]
    shares = {split: sum(split_of(one) == split for one in several) / len(several) for split in SPLITS}
    assert shares == pytest.approx({"pretraining": 0.6, "training": 0.1, "development": 0.2, "test": 0.1}, abs=0.01)


@pytest.mark.parametrize(("task", "split"), [*((task, "held_out") for task in TASKS), ("sums", "test")])
def test_an_unknown_task_or_split_is_named(task, split):
    with pytest.raises(ValueError, match=r"unknown (task|split|demo task) '(held_out|sums)'"):
        problems(task, split, 0)

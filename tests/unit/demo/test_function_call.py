"""Function calling's problems: splits, determinism, and references that fit the tool's own schema."""

import random
from dataclasses import replace
from itertools import islice

import pytest

from demo.function_call import draw_request, hasty_call, make_problem, problems, proper_names, tool_names, true_call
from demo.splits import SPLITS


def offered(problem):
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in problem.tools}


def test_splits_share_no_tool_and_no_name():
    for contents in (tool_names, proper_names):
        sets = [set(contents(split)) for split in SPLITS]
        assert all(sets)
        assert sum(map(len, sets)) == len(set().union(*sets))


@pytest.mark.parametrize("split", SPLITS)
def test_no_tool_or_name_of_another_split_is_ever_shown(split):
    others = [other for other in SPLITS if other != split]
    foreign_tools = {"_".join(pair) for other in others for pair in tool_names(other)}
    foreign_names = {name for other in others for name in proper_names(other)}
    for problem in islice(problems(split, seed=1), 400):
        assert not foreign_tools & set(offered(problem))
        words = problem.messages[0]["content"].rstrip(".").split()
        assert not foreign_names & set(words)


def test_references_fit_the_schema_of_an_offered_tool():
    kinds = {"string": str, "integer": int}
    for problem in islice(problems("development", seed=2), 300):
        reference = problem.args["reference"]
        schema = offered(problem)[reference["name"]]
        assert set(reference["arguments"]) == set(schema["required"]) == set(schema["properties"])
        for name, value in reference["arguments"].items():
            assert type(value) is kinds[schema["properties"][name]["type"]]


def test_the_same_seed_gives_the_same_problems_and_none_twice():
    first, again = (list(islice(problems("training", 7), 300)) for _ in range(2))
    assert first == again
    assert len({problem.key for problem in first}) == 300


def test_the_key_ignores_the_order_of_tools_and_phrases():
    rng = random.Random(3)
    request = draw_request(rng, "development")
    turned = replace(request, offered=tuple(reversed(request.offered)))
    assert make_problem(turned).key == make_problem(request).key


def test_a_careful_author_is_right_and_a_hasty_one_often_wrong():
    rng = random.Random(4)
    requests = [draw_request(rng, "pretraining") for _ in range(300)]
    assert all(hasty_call(rng, request, care=1.0) == true_call(request) for request in requests)
    right = sum(hasty_call(rng, request, care=0.2) == true_call(request) for request in requests) / 300
    assert 0.3 < right < 0.65

"""Right calls that allow for more than one value, and the rules by which values are compared."""

import json

import pytest

from verifiers.base import Cause, InvalidArgs, InvalidVerifier, Status
from verifiers.function_call import KIND

PARAMETERS = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "whole": {"type": "integer"},
        "part": {"type": "number"},
        "unit": {"type": "string", "default": "km"},
        "list": {"type": "array"},
        "any": {},
        "who": {"$ref": "#/$defs/Person"},
        "maybe": {"anyOf": [{"$ref": "#/$defs/Person"}, {"type": "null"}]},
        "crowd": {"type": "array", "items": {"$ref": "#/$defs/Person"}},
        "pet": {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]},
        "open": {"$ref": "#/$defs/Open"},
    },
    "$defs": {
        "Person": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "height": {"type": "number"}, "old": {"default": False}},
            "required": ["name"],
        },
        "Cat": {"type": "object", "properties": {"meows": {"type": "boolean"}}, "required": ["meows"]},
        "Dog": {"type": "object", "properties": {"barks": {"type": "boolean"}}, "required": ["barks"]},
        "Open": {"type": "object"},
    },
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("f", "g")]


def calling(*arguments, name="f"):
    return [{"function": {"name": name, "arguments": json.dumps(one)}} for one in arguments]


async def judge(calls, reference, **config):
    verifier = KIND.compile_checked(config)
    args = {} if reference is ... else {"reference": reference}
    KIND.check_args(config, args)
    return await verifier.verify({"tools": TOOLS}, {"tool_calls": calls}, args)


async def passes(given, wanted, **config):
    reference = {"name": "f", "arguments": wanted}
    return (await judge(calling(given), reference, **config)).status is Status.PASSED


ANY = {"$any_of": ["Ulm", "Bonn"]}
MAYBE = {**ANY, "$optional": True}


@pytest.mark.parametrize(
    ("wanted", "right", "wrong"),
    [
        ({"text": ANY}, [{"text": "Ulm"}, {"text": "Bonn"}], [{"text": "Kiel"}, {}]),
        ({"text": MAYBE}, [{"text": "Ulm"}, {}], [{"text": "Kiel"}]),
        (
            {"any": {"$any_of": [None, {"$any_of": [1, 2]}]}},
            [{"any": None}, {"any": 2}],
            [{"any": 3}, {"any": [1]}, {}],
        ),
        ({"text": {"$anything": True}}, [{"text": ""}, {"text": "x"}], [{}]),
        ({"text": {"$anything": True, "$optional": True}}, [{"text": "x"}, {}], []),
        ({"any": {"a": ANY, "b": MAYBE}}, [{"any": {"a": "Ulm"}}, {"any": {"a": "Ulm", "b": "Ulm"}}], [{"any": {}}]),
        ({"any": [ANY, 1]}, [{"any": ["Bonn", 1]}], [{"any": [1, "Bonn"]}, {"any": ["Bonn"]}]),
        ({"list": {"$any_order": [1, 2, 2]}}, [{"list": [2, 1, 2]}], [{"list": [1, 1, 2]}, {"list": [1, 2]}]),
        # a pairing that has to be found: the first value would take what only the second can use
        ({"list": {"$any_order": [{"$any_of": [1, 2]}, 1]}}, [{"list": [1, 2]}, {"list": [2, 1]}], [{"list": [2, 2]}]),
        ({"list": {"$any_order": []}}, [{"list": []}], [{"list": [1]}]),
        ({"any": {"any_of": [1]}}, [{"any": {"any_of": [1]}}], [{"any": 1}]),
    ],
)
async def test_several_values_may_be_right(wanted, right, wrong):
    assert [await passes(given, wanted) for given in right] == [True] * len(right)
    assert [await passes(given, wanted) for given in wrong] == [False] * len(wrong)


@pytest.mark.parametrize(
    ("pattern", "where"),
    [
        ({"$any_of": []}, "/text"),
        ({"$any_of": "Ulm"}, "/text"),
        ({"$any_of": [1], "x": 1}, "/text"),
        ({"$any_of": [1], "$optional": "yes"}, "/text"),
        ({"$optional": True}, "/text"),
        ({"$anything": False}, "/text"),
        ({"$any_order": [1] * 65}, "/text"),
        ([{"a/b": {"$any_of": 5}}], "/text/0/a~1b"),
    ],
)
async def test_what_stands_for_no_value_is_refused_and_abstains(pattern, where):
    reference = {"name": "f", "arguments": {"text": pattern}}
    with pytest.raises(InvalidArgs) as caught:
        KIND.check_args({}, {"reference": reference})
    assert caught.value.where == f"/reference/arguments{where}"
    with pytest.raises(InvalidVerifier):
        KIND.compile_checked({"reference": reference})
    plain = {"name": "f", "arguments": {"any": pattern}}
    given = calling({"any": [{"a/b": 1}]})
    verdict = await KIND.compile_checked({}).verify({"tools": TOOLS}, {"tool_calls": given}, {"reference": plain})
    assert (verdict.status, verdict.cause) == (Status.ABSTAINED, Cause.BAD_ARGS)


ONE, TWO = {"name": "f", "arguments": {"whole": 1}}, {"name": "f", "arguments": {"whole": 2}}


async def test_one_of_several_lists_of_calls_may_be_right():
    reference = {"$any_of": [ONE, [TWO, TWO], None]}
    for right in (calling({"whole": 1}), calling({"whole": 2}, {"whole": 2}), None, []):
        assert (await judge(right, reference)).status is Status.PASSED
    for wrong in (calling({"whole": 2}), calling({"whole": 1}, {"whole": 2})):
        verdict = await judge(wrong, reference)
        assert (verdict.reason, verdict.safe_for_model) == (
            "makes none of the 3 lists of calls that are right",
            False,
        )
    assert (await judge(None, {"$any_of": [ONE, TWO]})).reason == "there is no tool call"


@pytest.mark.parametrize("reference", [{"$any_of": []}, {"$any_of": [5]}, {"$any_of": [{"$any_of": [None]}]}])
def test_lists_of_lists_are_refused(reference):
    with pytest.raises(InvalidArgs):
        KIND.check_args({}, {"reference": reference})


@pytest.mark.parametrize(
    ("texts", "same"),
    [
        ("exact", []),
        ("case", ["new york, NY", " New  York,\tNY "]),
        ("punctuation", ["new york, NY", "newyork NY", "New-York_N.Y.", "N*E^W/york,ny"]),
    ],
)
async def test_texts_are_compared_as_the_rule_says(texts, same):
    every = ["new york, NY", " New  York,\tNY ", "newyork NY", "New-York_N.Y.", "N*E^W/york,ny", "New York", "York, NY"]
    found = [text for text in every if await passes({"text": text}, {"text": "New York, NY"}, texts=texts)]
    assert found == [text for text in every if text in same or (texts == "punctuation" and text.startswith(" "))]
    assert await passes({"text": "New York, NY"}, {"text": "New York, NY"}, texts=texts)


async def test_padding_without_end_is_another_text():
    assert not await passes({"text": "Ulm" + " " * 100_000}, {"text": "Ulm"}, texts="case")


@pytest.mark.parametrize(
    ("given", "wanted", "config", "right"),
    [
        ({"part": 1}, {"part": 1.0}, {}, True),
        ({"whole": 1.0}, {"whole": 1}, {}, False),
        ({"whole": 1.0}, {"whole": 1}, {"numbers": "value"}, True),
        ({"whole": 1.0}, {"whole": 1}, {"strict": False}, True),
        ({"whole": 1.0}, {"whole": 1}, {"strict": False, "numbers": "typed"}, False),
        ({"any": True}, {"any": 1}, {"numbers": "value"}, False),
        ({"any": 0}, {"any": False}, {"numbers": "value"}, False),
        ({"part": 3.33}, {"part": 3.3333}, {}, False),
        ({"part": 3.33}, {"part": 3.3333}, {"tolerance": 0.01}, True),
        ({"part": -3.33}, {"part": 3.3333}, {"tolerance": 0.01}, False),
        ({"part": 0.001}, {"part": 0}, {"tolerance": 1}, False),
        ({"part": 10**400}, {"part": 1.5}, {"tolerance": 0.5}, False),
        ({"part": 10**400}, {"part": 10**400}, {"tolerance": 0.5}, True),
        ({"who": {"name": "A", "height": 2}}, {"who": {"name": "A", "height": 2.0}}, {}, True),
        ({"crowd": [{"name": "A", "height": 2}]}, {"crowd": [{"name": "A", "height": 2.0}]}, {}, True),
        ({"maybe": {"name": "A", "height": 2}}, {"maybe": {"name": "A", "height": 2.0}}, {}, True),
    ],
)
async def test_numbers_are_compared_as_the_rule_says(given, wanted, config, right):
    assert await passes(given, wanted, **config) is right


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"unit": "km"}),
        ({"unit": "km"}, {}),
        ({"who": {"name": "A", "old": False}}, {"who": {"name": "A"}}),
        ({"who": {"name": "A"}}, {"who": {"name": "A", "old": False}}),
        ({}, {"unit": {"$any_of": ["m", "km"]}}),
    ],
)
async def test_what_is_left_out_is_the_default(given, wanted):
    assert await passes(given, wanted)
    assert not await passes(given, wanted, defaults=False)


async def test_what_is_left_out_is_not_another_value():
    assert not await passes({}, {"unit": "m"})
    assert not await passes({"unit": "m"}, {})
    assert not await passes({}, {"text": "km"})


async def test_calls_may_have_to_come_in_order():
    reference, turned = [ONE, TWO], calling({"whole": 2}, {"whole": 1})
    assert (await judge(turned, reference)).status is Status.PASSED
    verdict = await judge(turned, reference, ordered=True)
    assert (verdict.status, verdict.reason) == (Status.FAILED, "makes the right calls in another order")
    assert (await judge(calling({"whole": 1}, {"whole": 2}), reference, ordered=True)).status is Status.PASSED


async def test_overlapping_calls_are_paired():
    """The greedy pairing fails: whichever comes first takes the call that only the other can use."""
    either = {"name": "f", "arguments": {"whole": {"$any_of": [1, 2, 3]}}}
    reference = [either, {"name": "f", "arguments": {"whole": {"$any_of": [1, 2]}}}, ONE]
    assert (await judge(calling({"whole": 1}, {"whole": 2}, {"whole": 3}), reference)).status is Status.PASSED
    verdict = await judge(calling({"whole": 3}, {"whole": 3}, {"whole": 1}), reference)
    assert (verdict.status, verdict.reason) == (Status.FAILED, "makes the same call more than once")


async def test_a_long_chain_of_overlapping_calls_is_paired():
    chain = [{"name": "f", "arguments": {"whole": {"$any_of": [at, at + 1]}}} for at in range(63)] + [ONE]
    assert (await judge(calling(*({"whole": at} for at in range(64))), chain)).status is Status.PASSED
    twice_zero = [{"whole": 0}, *({"whole": at} for at in range(63))]
    assert (await judge(calling(*twice_zero), chain)).status is Status.FAILED


@pytest.mark.parametrize(
    ("given", "valid"),
    [
        ({"who": {"name": "A"}}, True),
        ({"who": {"name": "A", "shoe": 46}}, False),
        ({"maybe": {"name": "A", "shoe": 46}}, False),
        ({"maybe": None}, True),
        ({"crowd": [{"name": "A"}, {"name": "B", "shoe": 46}]}, False),
        ({"pet": {"meows": True}}, True),
        ({"pet": {"meows": True, "flies": True}}, False),
        ({"open": {"whatever": 1}}, True),
    ],
)
async def test_unknown_arguments_are_found_in_parts_that_are_referred_to(given, valid):
    assert (await judge(calling(given), ...)).status is (Status.PASSED if valid else Status.FAILED)


async def test_all_arguments_together_are_bounded():
    calls = calling(*({"text": "x" * 300_000} for _ in range(2)))
    assert (await judge(calls[:1], ...)).status is Status.PASSED
    assert (await judge(calls, ...)).reason == "the arguments of all calls are longer than 400,000 characters"

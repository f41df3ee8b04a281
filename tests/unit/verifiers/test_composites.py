"""The composites: their truth tables, nesting, arguments, what they tell, and that members run side by side."""

import asyncio
import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import all_of, any_of, not_, registry, weighted
from verifiers.base import Cause, InvalidArgs, InvalidVerifier, Status, Verdict
from verifiers.kind import CODE, NETWORK, Kind
from verifiers.members import MAX_JOINED_CHARS, Said

P, F, A = Status.PASSED, Status.FAILED, Status.ABSTAINED
LETTERS = {"P": P, "F": F, "A": A}


def says(status, score=None, **more):
    return Verdict(
        status, float(status is P) if score is None else score, cause=Cause.BROKE if status is A else None, **more
    )


def said(letters):
    return [Said(f"m{index}", says(LETTERS[letter])) for index, letter in enumerate(letters)]


class FixedVerifier:
    """Says what its configuration says."""

    def __init__(self, config):
        self.config = config
        self.never_waits = not config.get("waits")

    async def verify(self, request, answer, args):
        if self.config.get("waits"):
            await request["barrier"].wait()
        if self.config.get("raises"):
            raise ValueError("no")
        return says(LETTERS[self.config["says"]], reason=self.config.get("reason", ""), **self.config.get("more", {}))


def make_kinds():
    kinds = {}
    anything = {"type": "object"}
    needs = lambda config: frozenset(config.get("needs", ()))  # noqa: E731
    kinds["fixed"] = Kind(
        "fixed", "", anything, {**anything, "additionalProperties": False}, FixedVerifier, find_needs=needs
    )
    for module in (all_of, any_of, weighted, not_):
        kind = module.make_kind(kinds)
        kinds[kind.name] = kind
    return kinds


KINDS = make_kinds()


def fixed(letter, **config):
    return {"kind": "fixed", "name": config.pop("name", f"{letter}{len(config)}"), "config": {"says": letter, **config}}


def nest(depth, config=None):
    inner = {"verifiers": [config or {"kind": "fixed", "config": {"says": "P"}}]}
    for _ in range(depth - 1):
        inner = {"verifiers": [{"kind": "all_of", "config": inner}]}
    return inner


# Each of the members' verdicts, then the verdict of all_of and that of any_of.
TABLE = """
PP P P   PF F P   PA A P   FP F P   FF F F   FA F A   AP A P   AF F A   AA A A
PPP P P  PPF F P  PPA A P  PFP F P  PFF F P  PFA F P  PAP A P  PAF F P  PAA A P
FPP F P  FPF F P  FPA F P  FFP F P  FFF F F  FFA F A  FAP F P  FAF F A  FAA F A
APP A P  APF F P  APA A P  AFP F P  AFF F A  AFA F A  AAP A P  AAF F A  AAA A A
"""
ROWS = re.findall(r"(\w+) (\w) (\w)", TABLE)


def test_the_table_is_whole():
    every = {"".join(letters) for size in (2, 3) for letters in product("PFA", repeat=size)}
    assert {letters for letters, _, _ in ROWS} == every
    assert len(ROWS) == len(every)


@pytest.mark.parametrize(("letters", "of_all", "of_any"), ROWS)
def test_all_of_and_any_of(letters, of_all, of_any):
    both, either = all_of.combine(said(letters)), any_of.combine(said(letters))
    assert (both.status, either.status) == (LETTERS[of_all], LETTERS[of_any])
    assert (both.score, either.score) == (float(of_all == "P"), float(of_any == "P"))
    for verdict in (both, either):
        assert (verdict.cause is Cause.BROKE) == (verdict.status is A)


@pytest.mark.parametrize(("letter", "turned", "score"), [("P", F, 0.0), ("F", P, 1.0), ("A", A, 0.0)])
def test_not(letter, turned, score):
    verdict = not_.combine(said(letter))
    assert (verdict.status, verdict.score) == (turned, score)
    assert (verdict.cause is Cause.BROKE) == (turned is A)


def test_not_of_a_score_is_the_rest_of_it():
    assert not_.combine([Said("m", says(F, 0.25))]).score == 0.75


# With weights 3, 2 and 1 and the threshold 0.5: the mean's lower and upper end, in sixths.
@pytest.mark.parametrize("letters", ["".join(letters) for size in (2, 3) for letters in product("PFA", repeat=size)])
def test_weighted(letters):
    weights = [3, 2, 1][: len(letters)]
    lowest = sum(weight for weight, letter in zip(weights, letters, strict=True) if letter == "P")
    highest = lowest + sum(weight for weight, letter in zip(weights, letters, strict=True) if letter == "A")
    half = sum(weights) / 2
    expected = P if lowest >= half else A if highest >= half else F
    verdict = weighted.combine(said(letters), weights, 0.5)
    assert verdict.status is expected
    assert verdict.score == pytest.approx(0 if expected is A else lowest / sum(weights))


@pytest.mark.parametrize(
    ("letters", "expected"), [("PFA", P), ("PAF", P), ("FPA", A), ("FAP", A), ("AFF", A), ("FAA", A), ("FFA", F)]
)
def test_weighted_abstains_only_where_it_matters(letters, expected):
    assert weighted.combine(said(letters), [3, 2, 1], 0.5).status is expected


def test_weighted_counts_scores_and_not_statuses():
    votes = [Said("a", says(P, 0.6)), Said("b", says(F, 0.4))]
    assert weighted.combine(votes, [1, 1], 0.5) == Verdict.passed("", 0.5)
    low = weighted.combine(votes, [1, 3], 0.5)
    assert (low.status, low.score, low.reason) == (F, pytest.approx(0.45), "score: 0.45, less than 0.5")
    assert low.safe_for_model


def test_weighted_compares_as_people_do():
    votes = [Said(name, says(P, 0.1)) for name in "abc"]
    assert weighted.combine(votes, [1, 1, 1], 0.1).status is P
    thirds = [Said("a", says(P, 1.0)), Said("b", says(F, 0.1))]
    assert weighted.combine(thirds, [0.1, 0.2], 0.4).status is P


scores = st.floats(0, 1)
verdicts = st.one_of(st.builds(says, st.just(P), scores), st.builds(says, st.just(F), scores), st.just(says(A)))
parts = st.lists(st.tuples(verdicts, st.floats(0.001, 1000)), min_size=1, max_size=8)


@given(parts=parts, threshold=st.floats(0.001, 1), filling=scores)
def test_weighted_stands_by_its_word(parts, threshold, filling):
    """Whatever the abstaining members would have scored, a verdict that was given stays."""
    votes = [Said(str(index), verdict) for index, (verdict, _) in enumerate(parts)]
    weights = [weight for _, weight in parts]
    given_verdict = weighted.combine(votes, weights, threshold)
    filled = [Said(name, says(P, filling) if verdict.status is A else verdict) for name, verdict in votes]
    then = weighted.combine(filled, weights, threshold)
    assert then.status is not A
    assert 0 <= given_verdict.score <= 1
    if given_verdict.status is not A:
        assert then.status is given_verdict.status


@given(
    votes=st.lists(verdicts, min_size=1, max_size=6).map(lambda found: [Said(str(i), v) for i, v in enumerate(found)])
)
def test_de_morgan(votes):
    """Not all is the same as any not, for the status."""
    turned = [Said(name, not_.combine([Said(name, verdict)])) for name, verdict in votes]
    assert not_.combine([Said("all", all_of.combine(votes))]).status is any_of.combine(turned).status
    assert not_.combine([Said("any", any_of.combine(votes))]).status is all_of.combine(turned).status


async def ask(kind, config, request=None, args=None):
    return await KINDS[kind].compile_checked(config).verify(request or {}, {}, args or {})


async def test_those_that_decide_give_the_reason():
    members = [
        fixed("P", reason="fine"),
        fixed("F", reason="short", more={"safe_for_model": True}),
        fixed("A", reason="?"),
    ]
    found = await ask("all_of", {"verifiers": members})
    assert (found.reason, found.safe_for_model) == ("F2: short", True)
    found = await ask("any_of", {"verifiers": members})
    assert (found.reason, found.safe_for_model) == ("P1: fine", False)
    found = await ask("weighted", {"verifiers": members, "threshold": 1})
    assert (found.reason, found.safe_for_model) == ("score: 0.333, less than 1; F2: short; A1: ?", False)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("letter", "PFA")
async def test_nots_reason_is_as_safe_as_its_members(letter, safe):
    member = fixed(letter, name="m", reason="it is 5", more={"safe_for_model": safe})
    found = await ask("not", {"verifier": member})
    assert found.safe_for_model is safe
    assert found.reason == ("m: it passes: it is 5" if letter == "P" else "m: it is 5")


async def test_not_of_a_plain_pass_says_so():
    found = await ask("not", {"verifier": fixed("P", name="m")})
    assert (found.status, found.reason, found.safe_for_model) == (F, "m: it passes", False)


async def test_what_members_printed_is_kept_and_bounded():
    members = [fixed("P", name=str(index), reason="r" * 999, more={"stdout": "o" * 999}) for index in range(8)]
    found = await ask("any_of", {"verifiers": members})
    assert found.stdout.startswith("ooo")
    assert len(found.stdout) == len(found.reason) == MAX_JOINED_CHARS + 3


def test_a_cause_that_means_broken_goes_first():
    unsure = Said("a", Verdict.abstained("?", Cause.UNDECIDED))
    late = Said("b", Verdict.abstained("late", Cause.TIMEOUT))
    assert all_of.combine([unsure, late]).cause is Cause.TIMEOUT
    assert all_of.combine([unsure]).cause is Cause.UNDECIDED


@pytest.mark.parametrize(("kind", "status"), [("all_of", A), ("any_of", P)])
async def test_a_member_that_raises_abstains(kind, status):
    members = [fixed("P"), fixed("P", raises=True)]
    found = await ask(kind, {"verifiers": members})
    assert found.status is status
    assert found.cause is (Cause.BROKE if status is A else None)


async def test_members_that_wait_run_side_by_side():
    members = [fixed("P", waits=True, name="a"), fixed("F", name="b"), fixed("P", waits=True, name="c")]
    inner = {"kind": "any_of", "config": {"verifiers": [fixed("P", waits=True)]}}
    barrier = asyncio.Barrier(3)  # none goes on before all three are there
    found = await asyncio.wait_for(ask("all_of", {"verifiers": [*members, inner]}, {"barrier": barrier}), 20)
    assert found.status is F


def test_who_has_members_that_never_wait_never_waits():
    quick = KINDS["all_of"].compile_checked(nest(3))
    slow = KINDS["all_of"].compile_checked(nest(3, fixed("P", waits=True)))
    assert (quick.never_waits, slow.never_waits) == (True, False)


def test_composites_nest_to_a_depth():
    assert KINDS["all_of"].compile_checked(nest(4))
    with pytest.raises(InvalidVerifier, match="more than 4 composites") as caught:
        KINDS["all_of"].compile_checked(nest(5))
    assert caught.value.where == "/verifiers/0/config/verifiers/0/config/verifiers/0/config/verifiers/0/config"
    with pytest.raises(InvalidVerifier, match="more than 4 composites"):
        KINDS["all_of"].compile_checked(nest(30))


@pytest.mark.parametrize(("size", "fits"), [(14, True), (15, True), (16, False)])
def test_composites_have_so_many_members_in_all(size, fits):
    many = {"verifiers": [fixed("P", name=str(index)) for index in range(size)]}
    both = {"verifiers": [{"kind": "any_of", "name": name, "config": many} for name in "ab"]}
    if fits:
        assert KINDS["all_of"].compile_checked(both)
        return
    with pytest.raises(InvalidVerifier, match="more than 32 members in all"):
        KINDS["all_of"].compile_checked(both)


def test_a_wide_tree_is_refused_before_any_of_it_is_compiled():
    compiled = []
    counting = Kind("fixed", "", {"type": "object"}, {"type": "object"}, compiled.append)
    kinds = {"fixed": counting}
    kinds["any_of"] = any_of.make_kind(kinds)
    tree = {"kind": "fixed"}
    for _ in range(3):
        tree = {"kind": "any_of", "config": {"verifiers": [{**tree, "name": str(index)} for index in range(16)]}}
    with pytest.raises(InvalidVerifier):
        kinds["any_of"].compile_checked(tree["config"])
    assert compiled == []


@pytest.mark.parametrize(
    ("kind", "config", "where"),
    [
        ("any_of", {"verifiers": []}, "/verifiers"),
        ("any_of", {"verifiers": [{"kind": "vibes"}]}, "/verifiers/0/kind"),
        (
            "any_of",
            {"verifiers": [{"kind": "regex", "config": {"pattern": "a("}}]},
            "/verifiers/0/config/pattern column 1",
        ),
        ("any_of", {"verifiers": [{"kind": "countdown"}, {"kind": "countdown"}]}, "/verifiers/1/name"),
        ("not", {}, "(root)"),
        ("not", {"verifier": []}, "/verifier"),
        ("not", {"verifier": {"kind": "regex"}}, "/verifier/config"),
        ("not", {"verifier": {"kind": "not", "config": {"verifier": {"kind": "x"}}}}, "/verifier/config/verifier/kind"),
        ("weighted", {"verifiers": [{"kind": "countdown"}]}, "(root)"),
        ("weighted", {"verifiers": [{"kind": "countdown", "weight": 0}], "threshold": 1}, "/verifiers/0/weight"),
        ("weighted", {"verifiers": [{"kind": "countdown"}], "threshold": 0}, "/threshold"),
        ("weighted", {"verifiers": [{"kind": "countdown"}], "threshold": 1.5}, "/threshold"),
    ],
)
def test_composites_say_where_a_member_is_bad(kind, config, where):
    with pytest.raises(InvalidVerifier) as caught:
        registry.compile_verifier(kind, config)
    assert caught.value.where == where


NESTED = {
    "verifiers": [
        {
            "kind": "all_of",
            "name": "game",
            "config": {"verifiers": [{"kind": "countdown"}, {"kind": "countdown", "name": "2"}]},
        },
        {"kind": "not", "config": {"verifier": {"kind": "function_call"}}},
    ]
}


@pytest.mark.parametrize(
    "args",
    [
        {"numbers": [1, 2], "target": 3, "reference": None},
        {"game": {"numbers": [1, 2], "target": 3}},
        {"numbers": [1, 2], "2": {"target": 3}, "game": {"countdown": {"target": 3}}},
        {"game": {"2": {"target": 3}, "countdown": {"numbers": [1, 2], "target": 3}, "numbers": [1, 2]}},
    ],
)
async def test_arguments_reach_nested_members(args):
    registry.check_args("any_of", NESTED, args)
    verdict = await registry.compile_verifier("any_of", NESTED).verify({}, {"content": "1+2"}, args)
    assert verdict.status is P


@pytest.mark.parametrize(
    ("args", "where"),
    [
        ({"numbers": [1, 2]}, "/game/countdown/target"),
        ({"numbers": [1, 2], "target": 3, "goal": 1}, "/goal"),
        ({"numbers": [1, 2], "target": 3, "not": {"goal": 1}}, "/not/goal"),
        ({"game": {"numbers": [1, 2], "target": 3, "2": 5}}, "/game/2"),
    ],
)
def test_arguments_of_nested_members_are_checked(args, where):
    with pytest.raises(InvalidArgs) as caught:
        registry.check_args("any_of", NESTED, args)
    assert caught.value.where == where


def test_needs_are_joined_through_all_members():
    code, net = fixed("P", needs=[CODE]), fixed("F", needs=[NETWORK])
    deep = nest(3, {"kind": "not", "config": {"verifier": net}})
    assert KINDS["all_of"].find_needs(deep) == {NETWORK}
    assert KINDS["any_of"].find_needs({"verifiers": [code, {"kind": "all_of", "config": deep}]}) == {CODE, NETWORK}
    assert registry.find_needs("not", {"verifier": {"kind": "python"}}) == {CODE}
    weights = {"verifiers": [{"kind": "python", "weight": 2}], "threshold": 1}
    assert registry.find_needs("not", {"verifier": {"kind": "weighted", "config": weights}}) == {CODE}


@pytest.mark.parametrize("kind", ["all_of", "any_of", "weighted", "not"])
@pytest.mark.parametrize(
    "config",
    [{}, [], {"verifier": "x"}, {"verifiers": 5}, {"verifiers": [5, {}, {"kind": []}, {"kind": "not", "config": 5}]}],
)
def test_needs_of_what_no_schema_has_seen(kind, config):
    assert registry.find_needs(kind, config) == frozenset()

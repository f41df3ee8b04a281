"""exact and one_of: what is the same text, what they tell, and that no answer takes long."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import exact, one_of
from verifiers.base import Cause, InvalidArgs, InvalidVerifier, Status
from verifiers.texts import MAX_MARKS, MAX_REFERENCE_CHARS, Form


async def ask(kind, config, content, args=None):
    return await kind.compile_checked(config).verify({}, {"content": content}, args or {})


@pytest.mark.parametrize(
    ("options", "reference", "same", "other"),
    [
        ({}, "Paris", ["Paris", " Paris\n", "\tParis "], ["paris", "Paris.", "Par is", "", "ParisParis", "Pari"]),
        ({}, "a  b", ["a  b", " a  b "], ["a b", "a\nb"]),
        ({}, "é", ["é", "e\u0301"], ["e", "É", "e\u0300"]),
        ({"nfc": False}, "é", ["é"], ["e\u0301"]),
        ({"case": False}, "Straße", ["STRASSE", "strasse", "straße"], ["strase"]),
        ({"case": False}, "É", ["é", "e\u0301", "E\u0301"], ["e"]),
        ({"case": False}, "\u0390", ["\u03b9\u0308\u0301", "\u1fd3"], ["\u03b9"]),
        ({"white_space": "exact"}, " a", [" a"], ["a", " a ", "  a"]),
        ({"white_space": "exact"}, " ", [" "], ["", "  "]),
        ({"white_space": "collapse"}, "a  b\n", ["a b", "\n a\t\tb", "a\u2003b"], ["ab", "a b c", "a"]),
    ],
)
async def test_what_is_the_same_text(options, reference, same, other):
    for content in same:
        assert (await ask(exact.KIND, {"reference": reference, **options}, content)).status is Status.PASSED, content
        assert (await ask(exact.KIND, options, content, {"reference": reference})).status is Status.PASSED, content
    for content in other:
        assert (await ask(exact.KIND, {"reference": reference, **options}, content)).status is Status.FAILED, content
        found = await ask(one_of.KIND, {"references": ["nothing", reference], **options}, content)
        assert found.status is Status.FAILED, content
    found = await ask(one_of.KIND, options, same[-1], {"references": ["nothing", reference]})
    assert found.status is Status.PASSED


@pytest.mark.parametrize(
    ("content", "passes"),
    [
        ("yes", True), ("I think so.\nyes", True), ("yes\n\n \n", True), ("x\r\nyes\r\n", True), ("yes\nno", False),
        ("yes and no", False), ("", False),
    ],
)  # fmt: skip
async def test_the_last_line(content, passes):
    config = {"references": ["yes", "aye"], "last_line": True}
    assert ((await ask(one_of.KIND, config, content)).status is Status.PASSED) is passes
    config["last_line"] = False
    assert ((await ask(one_of.KIND, config, content)).status is Status.PASSED) is (content.strip() == "yes")


async def test_the_reference_is_shown_to_people_alone():
    found = await ask(exact.KIND, {"reference": "secret"}, "x\0" + "y" * 100)
    assert found.reason == f"the answer is 'x\\x00{'y' * 78}...', not 'secret'"
    assert not found.safe_for_model
    found = await ask(one_of.KIND, {"references": ["a", "b", "c", "d"]}, "x")
    assert (found.reason, found.safe_for_model) == ("the answer is 'x', which is none of 'a', 'b', 'c', ...", False)


@pytest.mark.parametrize("kind", [exact.KIND, one_of.KIND])
@pytest.mark.parametrize("content", [None, "", " \n"])
async def test_an_empty_answer_is_called_that(kind, content):
    args = {"reference": "a"} if kind is exact.KIND else {"references": ["a"]}
    found = await ask(kind, {}, content, args)
    assert (found.status, found.reason, found.safe_for_model) == (Status.FAILED, "the answer is empty", True)


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (exact.KIND, {}), (exact.KIND, {"reference": 5}), (exact.KIND, {"reference": " "}),
        (exact.KIND, {"reference": None}), (one_of.KIND, {}), (one_of.KIND, {"references": "a"}),
        (one_of.KIND, {"references": []}), (one_of.KIND, {"references": ["a", 5]}),
    ],
)  # fmt: skip
async def test_without_a_reference_they_abstain(kind, args):
    found = await ask(kind, {}, "a", args)
    assert (found.status, found.cause) == (Status.ABSTAINED, Cause.BAD_ARGS)


@pytest.mark.parametrize(
    ("kind", "config", "args", "where"),
    [
        (exact.KIND, {}, {}, "/reference"),
        (exact.KIND, {}, {"reference": ""}, "/reference"),
        (exact.KIND, {}, {"reference": " "}, "/reference"),
        (exact.KIND, {}, {"reference": "e" + "\u0301" * (MAX_MARKS + 1)}, "/reference"),
        (exact.KIND, {"reference": "a"}, {"case": False}, "(root)"),
        (one_of.KIND, {}, {}, "/references"),
        (one_of.KIND, {}, {"references": []}, "/references"),
        (one_of.KIND, {}, {"references": ["a", "\n"]}, "/references/1"),
        (one_of.KIND, {}, {"references": ["a" * MAX_REFERENCE_CHARS] * 5}, "/references"),
    ],
)
def test_arguments_are_checked(kind, config, args, where):
    with pytest.raises(InvalidArgs) as caught:
        kind.check_args(config, args)
    assert caught.value.where == where
    if args.keys() & {"reference", "references"}:
        with pytest.raises(InvalidVerifier) as refused:
            kind.compile_checked({**config, **args})
        assert refused.value.where == where or where == "(root)"


def test_configuration_or_arguments_hold_the_reference():
    exact.KIND.check_args({"reference": "a"}, {})
    exact.KIND.check_args({}, {"reference": "a"})
    one_of.KIND.check_args({"references": ["a"]}, {})


async def test_a_long_run_of_accents_is_no_text():
    """Composing it would take minutes."""
    long = "a" + "\u0315\u0300" * 400_000
    assert (await ask(exact.KIND, {"reference": "a" * MAX_REFERENCE_CHARS}, long[:65_000])).status is Status.FAILED
    assert (await ask(exact.KIND, {"reference": "a"}, long)).status is Status.FAILED
    fine = "a" + "\u0301" * MAX_MARKS
    assert (await ask(exact.KIND, {"reference": fine}, fine)).status is Status.PASSED


forms = st.fixed_dictionaries({
    "case": st.booleans(), "nfc": st.booleans(), "white_space": st.sampled_from(["exact", "strip", "collapse"])
})  # fmt: skip
letters = st.text(
    st.sampled_from("aAéE\u0301\u0308\u0345ß\u0131İΐ\u1f82\u0390ﬁ가\u1100\u1161 \n\u2003"), max_size=8
) | st.text(max_size=8)


@given(config=forms, text=letters)
def test_giving_up_early_never_misses_a_text(config, text):
    """What is in the form of a reference may be as long as that form says, and no shorter than a quarter of it."""
    form = Form(config)
    for way in ("NFC", "NFD"):
        written = unicodedata.normalize(way, text) if config["nfc"] else text
        wanted = form.shape(text)
        assert form.shape(written, len(wanted)) == wanted
        assert form.shape(f"{written}x" * 1000 + "y", 1) is None

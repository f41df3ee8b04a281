"""Reading text and JSON out of answers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.answers import MAX_DEPTH, MAX_TEXT_CHARS, NotJson, read_json, read_text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hello", "hello"),
        (None, ""),
        (7, ""),
        ({"text": "x"}, ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "refusal", "refusal": "no"}, None, "x", {"text": 5}], ""),
        ("a\ud800b", "a\ufffd\ufffd\ufffdb"),
        ("é", "é"),
    ],
)
def test_reads_text(content, text):
    assert read_text({"content": content}) == text


def test_an_answer_without_content_has_no_text():
    assert read_text({}) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("{", "line 1 column 2"),
        ('{"a": 1, "a": 1}', "the key 'a' stands twice"),
        ('[{"b": {"a": 1, "a": 2}}]', "the key 'a' stands twice"),
        ("NaN", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("1e999", "out of range"),
        ("9" * 5000, "too many digits"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('{"\\udfff": 1}', "half of a surrogate pair"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper"),
        ("[" * 200_000, "nested deeper"),
        (f'"{"x" * MAX_TEXT_CHARS}"', "longer than"),
        ("1 2", "Extra data"),
    ],
)
def test_refuses_what_is_not_strict_json(text, says):
    with pytest.raises(NotJson, match=says):
        read_json(text)


def test_allows_as_deep_as_it_says():
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert read_json(text) == json.loads(text)


def test_brackets_in_strings_are_not_nesting():
    text = json.dumps(["[{" * 200, 'a"[' * 200, "\\"])
    assert read_json(text) == json.loads(text)


def test_a_whole_pair_in_escapes_is_fine():
    assert read_json('"\\ud83d\\ude00"') == "😀"


texts = st.text('ab\\"{[\xe9\u20ac\U0001f600', max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@given(values, st.booleans())
def test_reads_back_what_was_written(value, ascii_only):
    assert read_json(json.dumps(value, ensure_ascii=ascii_only)) == value

"""numeric: which number an answer gives, what is refused, and when two numbers are the same."""

import time
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.base import Cause, InvalidArgs, InvalidVerifier, Status
from verifiers.number_text import (
    MAX_CHARS,
    MAX_DIGITS,
    MAX_EXPONENT,
    Format,
    NoNumber,
    find_after,
    find_boxed,
    read_number,
)
from verifiers.numeric import KIND

PLAIN = Format()
METRIC = Format(units=("km", "m", "m/s", "m²", "$", "€", "°C", "%"))


async def ask(config, content, args=None):
    return await KIND.compile_checked(config).verify({}, {"content": content}, args or {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42), (" 42\n", 42), ("The answer is 42.", 42), ("**42**", 42), ("*42*", 42), ("is *42*.", 42),
        ("(42)", 42),
        ("$42$", 42), ("\\boxed{42}", 42), ("It is 42, I think!", 42), ("42!", 42), ("x = 42", 42), ("答案是42个", 42),
        ("<b>42</b>", 42), ('<b class="x">42</b>', 42), ("=> 42", 42), ("-> 42", 42), ("> 42", 42),
        ("total — 42", 42),
        ("-42", -42), ("\u221242", -42), ("+42", 42), ("= -42", -42), ("(-42)", -42), ("007", 7), ("0", 0), ("-0", 0),
        ("3.14", "3.14"), (".5", ".5"), ("-.5", "-.5"), ("5.", 5), ("0.10", ".1"), ("1,234", 1234),
        ("1,234,567.8", "1234567.8"),
        ("1e3", 1000), ("1.5E-3", "0.0015"), ("6.02e+23", "6.02e23"), ("1.5\u00d710^3", 1500),
        ("1.5 x 10^{-3}", "0.0015"),
        ("2 \\times 10^5", 200_000), ("2\\cdot 10^{5}", 200_000), ("10^6", 10**6), ("10**-2", "0.01"),
        ("-10^{2}", -100),
        ("1/3", "1/3"), ("-3 / 4", "-3/4"), ("1.5/2", "0.75"), ("\\frac{3}{4}", "3/4"), ("-\\dfrac{3}{4}", "-3/4"),
        ("12%", "0.12"), ("12 %", "0.12"), ("12 percent of all", "0.12"), ("12.5\\%", "0.125"), ("1{,}234", 1234),
        ("1\\,234", 1234), ("1,\\!234", 1234), ("12\\,\\%", "0.12"), ("≈ 42", 42), ("~42", 42), ("42\u00b0", 42),
    ],
)  # fmt: skip
def test_reads(text, value):
    assert read_number(text, PLAIN) == Fraction(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42 km", 42), ("42km", 42), ("42 km.", 42), ("42 km is far", 42), ("$42", 42), ("$ 42", 42),
        ("-$42", -42), ("$-42", -42),
        ("42 €", 42), ("42€", 42), ("12%", 12), ("5 m/s", 5), ("5 m²", 5), ("5°C", 5), ("5\\,\\text{km}", 5),
        ("5~\\mathrm{m/s}", 5), ("about 42 miles", 42), ("1/2 km", "1/2"), ("km 42", 42),
    ],
)  # fmt: skip
def test_strips_units(text, value):
    assert read_number(text, METRIC) == Fraction(value)
    if "miles" in text:
        with pytest.raises(NoNumber, match=r"the unit of '.*42 miles' is missing"):
            read_number(text, METRIC, unit_required=True)
    else:
        assert read_number(text, METRIC, unit_required=True) == Fraction(value)


@pytest.mark.parametrize(
    ("form", "text", "value"),
    [
        (Format(".", ","), "1.234,5", "1234.5"), (Format(".", ","), "0,5", "0.5"),
        (Format(" "), "1 234 567", 1_234_567),
        (Format(" "), "1\u202f234", 1234), (Format(" ", ","), "1\u00a0234,5", "1234.5"),
        (Format("'"), "1'234.5", "1234.5"),
        (Format("_"), "1_000", 1000), (Format(""), "1234", 1234), (Format(""), "1234.5", "1234.5"),
    ],
)  # fmt: skip
def test_reads_other_marks(form, text, value):
    assert read_number(text, form) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "41 or 42", "42 or 41", "42 42", "42, 42", "41-42", "41\u201342", "x1 = 42", "1. 42", "42 = 6*7", "2^5",
        "2024-01-02", "12:30",
        "1/2/3", "1 3/4", "1.2.3", "1,23", "1,2345", "12,34,567", "1,234,56", "0,123", "1 000", "1_000", "1e5e5",
        "1e2.5",
        "5 ± 1", "3x10^5.5", "42\n41", "forty-one (41) or 42", "10^2^3", "2\\frac{1}{2}", "1\\,2", "3/-4",
        "1;2", "4 2", "[1, 2]", '{"a": 1, "b": 2}', "\\frac{1}{2}/3", "1/2.5",
    ],
)  # fmt: skip
def test_refuses_several_numbers(text):
    with pytest.raises(NoNumber, match="several numbers"):
        read_number(text, PLAIN)


@pytest.mark.parametrize(
    "text",
    [
        "x42", "GPT-42", "42x", "42km", "42k", "v.42", "is...42", "- 42", "\u2013 42", "\u201342", "\u201142",
        "±42", "x < 42", "<42", "x > 42",
        "x>42", "≤ 42", "≥42", "≠ 42", "√42", "\\sqrt{42}", "\\log 42", "\\pm 42", "^42", "42^x", "42 / x",
        "42/day", "/42",
        "minus 42", "it is negative 42", "42 million", "42 Thousands", "3 dozen", "f(x)-42", "]-42", "x + 42",
        "x - 42", "x * 42",
        "x*42", "42*y", "42 * y", "42 + y", "42-y", "42-ish", "1/x", "π42", "42π", "5i", "0x", ",42", "\\frac42",
    ],
)  # fmt: skip
def test_refuses_what_can_be_read_in_two_ways(text):
    with pytest.raises(NoNumber, match="not clear"):
        read_number(text, PLAIN)


@pytest.mark.parametrize("text", ["42 km/h", "42 kmh", "xkm 42 h", "US$42"])
def test_a_unit_is_a_whole_one(text):
    if "kmh" in text or "xkm" in text:
        with pytest.raises(NoNumber, match="unit"):
            read_number(text, METRIC, unit_required=True)
        return
    with pytest.raises(NoNumber):
        read_number(text, METRIC)


@pytest.mark.parametrize("text", ["", " ", "no", "forty-two", ".", "-", "%", "\\frac{a}{b}", "∞", "NaN"])
def test_refuses_no_number(text):
    with pytest.raises(NoNumber, match="there is no number"):
        read_number(text, PLAIN)


@pytest.mark.parametrize("text", ["٤٢", "\uff14\uff12", "4٢", "٤2", "42²", "½", "42½", "²42", "Ⅻ", "④", "१"])
def test_refuses_digits_of_other_scripts(text):
    with pytest.raises(NoNumber, match="another script"):
        read_number(text, PLAIN)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1/0", "a division by zero"), ("\\frac{1}{0}", "a division by zero"), ("1e401", "an exponent"),
        ("1e-401", "an exponent"),
        ("1e999999999999", "an exponent"), ("10^999999999", "an exponent"),
        ("1\u00d710^" + "9" * 100, "digits|exponent"),
        ("9" * (MAX_DIGITS + 1), "digits"), ("0." + "9" * MAX_DIGITS, "digits"), ("1/" + "9" * 2000, "digits"),
        ("1e" + "9" * 3000, "digits"), ("9" * 100_000, "digits"), ("x" * (MAX_CHARS + 1), "longer than"),
    ],
)  # fmt: skip
def test_refuses_what_is_beyond_its_bounds(text, says):
    with pytest.raises(NoNumber, match=says):
        read_number(text, PLAIN)


def test_reads_up_to_its_bounds():
    assert read_number("9" * MAX_DIGITS, PLAIN) == 10**MAX_DIGITS - 1
    assert read_number(f"1e{MAX_EXPONENT}", PLAIN) == 10**MAX_EXPONENT
    assert read_number(f"1e-{MAX_EXPONENT}", PLAIN) == Fraction(1, 10**MAX_EXPONENT)


@pytest.mark.parametrize(
    "text",
    [
        "1" * MAX_CHARS, "1," * (MAX_CHARS // 2), "-" * MAX_CHARS, "1 " * (MAX_CHARS // 2),
        "1," + "111," * (MAX_CHARS // 5),
        "\\" * MAX_CHARS, "\\frac{" * (MAX_CHARS // 6), "\\text{" * (MAX_CHARS // 6),
        "{" * MAX_CHARS, " " * MAX_CHARS + "1",
        "\n" * MAX_CHARS + "1", "<a " * (MAX_CHARS // 3) + ">1", ">" * (MAX_CHARS - 1) + "1",
        "1" + " " * (MAX_CHARS - 1),
        "." * MAX_CHARS, "é" * MAX_CHARS, "1\\," * (MAX_CHARS // 3), "1{,}" * (MAX_CHARS // 4), "minus " * 16_000 + "1",
    ],
)  # fmt: skip
def test_nothing_takes_long(text):
    started = time.process_time()
    with suppress(NoNumber):
        read_number(text, METRIC)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Answer: 42", "42"), ("ANSWER: 42\nor 43", "42"), ("answer: 1\nAnswer:2", "2"), ("**Answer:** 42", "42"),
        ("Answer:\n\n 42\n", "42"), ("Answer:", ""), ("It is 42", None), ("Äußerung Answer: é5", "é5"),
        ("answer:answer: 3", "3"),
    ],
)  # fmt: skip
def test_finds_what_is_marked(text, found):
    assert find_after(text, "Answer:") == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so \\boxed{42}.", "42"), ("\\boxed{1} no \\boxed{2}", "2"), ("\\boxed{\\frac{1}{2}} x", "\\frac{1}{2}"),
        ("42", None),
        ("\\boxed{42", None), ("\\boxed{}", ""), ("\\boxed{" * 3 + "1}", "1"), ("\\boxed{" + "1" * 5000 + "}", None),
    ],
)  # fmt: skip
def test_finds_what_is_boxed(text, found):
    assert find_boxed(text) == found


@pytest.mark.parametrize(
    ("config", "content", "status"),
    [
        ({"reference": 42}, "42", "passed"),
        ({"reference": 42}, "42.0", "passed"),
        ({"reference": 42}, "42.0000000000000000000000000001", "failed"),
        ({"reference": 42}, "41 or 42", "failed"),
        ({"reference": 42}, None, "failed"),
        ({"reference": 0.1}, "0.1", "passed"),
        ({"reference": 0.1}, "1/10", "passed"),
        ({"reference": 0.1}, "0.1000000000000000055511151231257827", "failed"),
        ({"reference": 9007199254740993}, "9007199254740992", "failed"),
        ({"reference": "1/3"}, "2/6", "passed"),
        ({"reference": "1/3"}, "0.3333333333333333", "failed"),
        ({"reference": "1,000 km", "units": ["km"]}, "1000", "passed"),
        ({"reference": 10, "absolute_tolerance": 0.5}, "10.5", "passed"),
        ({"reference": 10, "absolute_tolerance": 0.5}, "10.500001", "failed"),
        ({"reference": 0.3, "absolute_tolerance": 0.1}, "0.2", "passed"),
        ({"reference": -200, "relative_tolerance": 0.01}, "-202", "passed"),
        ({"reference": -200, "relative_tolerance": 0.01}, "-202.1", "failed"),
        ({"reference": 0, "relative_tolerance": 0.5}, "0.0001", "failed"),
        ({"reference": 100, "relative_tolerance": 0.01, "absolute_tolerance": 3}, "103", "passed"),
        ({"reference": 0.12}, "12%", "passed"),
        ({"reference": 12, "units": ["%"]}, "12%", "passed"),
        ({"reference": 42, "after": "answer:"}, "6 * 7 is what? Answer: 42", "passed"),
        ({"reference": 42, "after": "answer:"}, "42", "failed"),
        ({"reference": 42, "after": "answer:"}, "Answer: 41 or 42", "failed"),
        ({"reference": 42, "boxed": True}, "6 * 7 = \\boxed{42}", "passed"),
        ({"reference": 42, "boxed": True}, "6 * 7 = 42", "failed"),
        ({"reference": 1e300}, "1e300", "passed"),
        ({"reference": 5e-324}, "5e-324", "passed"),
        ({"reference": 1234.5, "decimal": ","}, "1.234,5", "passed"),
    ],
)
async def test_judges(config, content, status):
    assert (await ask(config, content)).status == status
    args = {name: config[name] for name in ("reference", "absolute_tolerance", "relative_tolerance") if name in config}
    config = {name: value for name, value in config.items() if name not in args}
    KIND.check_args(config, args)
    assert (await ask(config, content, args)).status == status


@pytest.mark.parametrize(
    ("config", "content", "reason", "safe"),
    [
        ({"reference": 42}, "41", "41 is not 42", False),
        ({"reference": "1/3"}, "0.3", "0.3 is not 1/3", False),
        ({"reference": 42.5, "absolute_tolerance": 0.25}, "41", "41 is not 42.5, and not within 0.25 of it", False),
        ({"reference": 1e300}, "1e301", "1e+301 is not 1e+300", False),
        ({"reference": 1}, "1e400", "a number of 401 digits is not 1", False),
        ({"reference": 42}, "41 or 42", "there are several numbers: '41 or 42' is the first", True),
        ({"reference": 42}, "x42\0", "it is not clear which number 'x42\\x00' is", True),
        ({"reference": 42}, "no", "there is no number", True),
        ({"reference": 42, "after": "Answer:"}, "42", "there is no 'Answer:'", True),
        ({"reference": 42, "boxed": True}, "42", "there is no \\boxed{...}", True),
    ],
)
async def test_says_why(config, content, reason, safe):
    found = await ask(config, content)
    assert (found.status, found.reason, found.safe_for_model) == (Status.FAILED, reason, safe)


@pytest.mark.parametrize(
    "args", [{}, {"reference": None}, {"reference": "x"}, {"reference": True}, {"reference": float("nan")},
             {"reference": [1]}, {"reference": 1, "absolute_tolerance": "1"},
             {"reference": 10**5000}, {"reference": float("inf")}]
)  # fmt: skip
async def test_without_a_reference_it_abstains(args):
    found = await ask({}, "42", args)
    assert (found.status, found.cause) == (Status.ABSTAINED, Cause.BAD_ARGS)


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"reference": "x"}, "/reference"),
        ({"reference": "1 or 2"}, "/reference"),
        ({"reference": True}, "/reference"),
        ({"reference": 1, "absolute_tolerance": -1}, "/absolute_tolerance"),
        ({"thousands": ".", "decimal": "."}, "/thousands"),
        ({"thousands": ",", "decimal": ","}, "/thousands"),
        ({"boxed": True, "after": "x"}, "/boxed"),
        ({"unit_required": True}, "/units"),
        ({"units": [""]}, "/units/0"),
    ],
)
def test_configurations_are_checked(config, where):
    with pytest.raises(InvalidVerifier) as caught:
        KIND.compile_checked(config)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("config", "args", "where"),
    [
        ({}, {}, "/reference"),
        ({}, {"reference": "x"}, "/reference"),
        ({"decimal": ","}, {"reference": "1.5"}, "/reference"),
        ({}, {"reference": 1, "units": []}, "(root)"),
    ],
)
def test_arguments_are_checked(config, args, where):
    with pytest.raises(InvalidArgs) as caught:
        KIND.check_args(config, args)
    assert caught.value.where == where


numbers = st.fractions(max_denominator=10**9) | st.integers(-(10**30), 10**30).map(Fraction)
decimals = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20)
words = st.text(st.characters(codec="ascii", exclude_categories=("N",)), max_size=12)


@given(number=numbers)
def test_reads_back_every_fraction(number):
    assert read_number(str(number), PLAIN) == number
    assert read_number(f"It is {number}.", PLAIN) == number


@given(number=decimals)
def test_reads_back_every_decimal(number: Decimal):
    assert read_number(str(number), PLAIN) == Fraction(number)
    assert read_number(f"{number:,f}", PLAIN) == Fraction(number)
    assert read_number(f"{number:e}", PLAIN) == Fraction(number)


@given(number=st.floats(allow_nan=False, allow_infinity=False))
async def test_a_float_is_the_decimal_that_it_is_written_as(number):
    assert (await ask({"reference": number}, repr(number))).status is Status.PASSED


@given(left=words, number=st.integers(-(10**6), 10**6), right=words)
def test_words_never_change_a_number(left, number, right):
    """Whatever words are around a number: it is read as it stands, or refused."""
    try:
        found = read_number(f"{left} {number} {right}", PLAIN)
    except NoNumber:
        return
    assert found in (number, Fraction(number, 100))


@given(
    first=st.integers(0, 10**6),
    between=words.filter(lambda text: not set(text) & set(",/")),
    second=st.integers(0, 10**6),
)
def test_two_numbers_are_never_one(first, between, second):
    text = f"{first} {between} {second}"
    try:
        found = read_number(text, PLAIN)
    except NoNumber:
        return
    raise AssertionError(f"{text!r} was read as {found}")


@given(text=st.text(max_size=30) | st.text("0123456789.,eE+-\u2212/%\u00d7x*^{}\\ frackm$٤²\n", max_size=20))
def test_any_text_is_a_number_or_none(text):
    for form in (PLAIN, METRIC):
        with suppress(NoNumber):
            assert isinstance(read_number(text, form), Fraction)

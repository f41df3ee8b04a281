r"""Reads the one number of an answer, exactly. Called by the `numeric` kind; never rounds and never guesses.

    number   = sign? (plain (exponent | "/" digits)? | power | "\frac{" digits "}{" digits "}")
    plain    = integer ("." digits?)? | "." digits
    integer  = digits, without separators or with one before every three
    exponent = ("e" | "E") sign? digits | ("x" | "*" | U+00D7 | "\times" | "\cdot") power
    power    = "10^" sign? digits
    sign     = "+" | "-" | U+2212, right before the number or the unit before it

A % behind it divides by 100. What can be read in two ways is refused (a sign apart from its number, the 5 of x5, "minus
5", "5 million", a digit of another script), and so is a second number anywhere. Other words are not read.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import re2

MAX_CHARS = 100_000
MAX_DIGITS = 400
MAX_EXPONENT = 400
MAX_BOXED_CHARS = 2_000

_SPACES = "[ \u00a0\u2009\u202f]"
_LETTER = "A-Za-z_\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u052f"  # of scripts that put a space between words
_POWER = r"10\s*(?:\^|\*\*)\s*\{?\s*([-+\u2212]?[0-9]+)\s*\}?"
_DIGIT = re.compile(r"[0-9]")
_UNCLEAR_BEFORE = re.compile(
    rf"(?:[{_LETTER}0-9.,]|[-+\u2212][^\S\n]+|[\u2010-\u2013\u00b1\u2264\u2265\u2260<^/\u221a]\s*"
    rf"|[^-=\s][^\S\n]*>\s*|[{_LETTER})]\s*[*\u00d7\u00b7]\s+|[{_LETTER})]\*|\b(?:minus|negative|plus)\s+"
    r"|\\(?:sqrt|log|ln|exp|sin|cos|tan|pm|mp|leq?|geq?|neq?|lt|gt)\s*\{?\s*)$",
    re.IGNORECASE,
)
_UNCLEAR_AFTER = re.compile(
    rf"[{_LETTER}]|-[{_LETTER}(]|\s*[/^+\u00d7\u00b7]|\s*\*\s*[{_LETTER}(]"
    r"|\s*(?:hundred|thousand|million|billion|trillion|dozen)s?\b",
    re.IGNORECASE,
)
_TAG = re.compile(r"</?[A-Za-z][\w-]*(?:\s[^<>\n]*=[^<>\n]*)?/?>\s*$")
_PERCENT = re.compile(r"\s*(?:%|per ?cent\b)", re.IGNORECASE)
_TEX_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
_TEX_COMMA = re.compile(r"(?<=[0-9])(?:\{,\}|,\\!)(?=[0-9])")
_TEX_GROUP = re.compile(r"(?<=[0-9])\\[,;:! ](?=[0-9]{3}(?![0-9]))")
_TEX_SPACE = re.compile(r"\\[,;:! ]|~")


class NoNumber(ValueError):
    """There is not exactly one number; the message says why and shows only the answer."""


class Format:
    """How numbers are written: the separator of thousands ("" for none), the decimal mark, and the units."""

    def __init__(self, thousands: str = ",", decimal: str = ".", units: Sequence[str] = ()) -> None:
        self.thousands = _SPACES if thousands == " " else re.escape(thousands)
        self.decimal = decimal
        self.units = sorted(units, key=len, reverse=True)
        whole = rf"[1-9][0-9]{{0,2}}(?:{self.thousands}[0-9]{{3}})+(?![0-9])|[0-9]+" if thousands else "[0-9]+"
        mark = re.escape(decimal)
        self.pattern = re.compile(
            rf"([-+\u2212]?)(?:\\[dtc]?frac\s*\{{\s*([0-9]+)\s*\}}\s*\{{\s*([0-9]+)\s*\}}|{_POWER}"
            rf"|((?:{whole})?)(?:(?:(?<=[0-9]){mark}|(?<![0-9]){mark}(?=[0-9]))([0-9]*))?"
            rf"(?:[eE]([-+]?[0-9]+)|\s*(?:[x\u00d7*\u00b7]|\\times|\\cdot)\s*{_POWER}|\s*/\s*([0-9]+))?)"
        )
        self.start = re.compile(rf"[-+\u2212]?(?:\\[dtc]?frac\s*\{{\s*[0-9]|{mark}?[0-9])")
        self.separator = re.compile(self.thousands) if thousands else None


def read_number(text: str, form: Format, *, unit_required: bool = False) -> Fraction:
    """Read the one number in a text.

    Raises: NoNumber.
    """
    if len(text) > MAX_CHARS:
        raise NoNumber(f"the answer is longer than {MAX_CHARS:,} characters")
    text = _drop_tex(text) if "\\" in text or "{" in text else text
    started = form.start.search(text)
    match = form.pattern.match(text, started.start()) if started else None
    if match is None or match.end() == match.start():
        _refuse_foreign(text)
        raise NoNumber("there is no number")
    start, end = match.span()
    before, sign, unit_before = _strip_unit_before(text[max(0, start - 200) : start], match[1], form)
    after, unit_after = _strip_unit_after(text[end:], form)
    percent = None if unit_after else _PERCENT.match(after)
    after = after[percent.end() :] if percent else after
    shown = _show(text, start, end)
    if _DIGIT.search(after):
        raise NoNumber(f"there are several numbers: {shown} is the first")
    _refuse_foreign(text[:start])
    _refuse_foreign(after)
    if _is_unclear(before, sign) or _UNCLEAR_AFTER.match(after):
        raise NoNumber(f"it is not clear which number {shown} is")
    if unit_required and not (unit_before or unit_after):
        raise NoNumber(f"the unit of {shown} is missing")
    value = _evaluate(match, form)
    value = value / 100 if percent else value
    return -value if sign in ("-", "\u2212") else value


def find_after(text: str, marker: str) -> str | None:
    """Find what stands after the last `marker`: the rest of its line, or the next one with anything on it."""
    encoded, wanted = text.encode(), marker.encode().lower()  # ASCII alone is lowered, so places stay where they are
    at = encoded.lower().rfind(wanted)
    if at < 0:
        return None
    rest = encoded[at + len(wanted) :][: 4 * MAX_CHARS].decode(errors="ignore").removeprefix("**")
    return rest.lstrip().partition("\n")[0]


def find_boxed(text: str) -> str | None:
    r"""Find the inside of the last `\boxed{...}`; None where there is none that ends."""
    at = text.rfind("\\boxed{")
    depth, start = 1, at + len("\\boxed{")
    if at < 0:
        return None
    for place, char in enumerate(text[start : start + MAX_BOXED_CHARS]):
        depth += (char == "{") - (char == "}")
        if not depth:
            return text[start : start + place]
    return None


@cache
def _find_foreign() -> Any:
    return re2.compile(r"[^\PN0-9]")


def _refuse_foreign(text: str) -> None:
    """Refuse a digit, a fraction or a power of another script than ASCII.

    Raises: NoNumber.
    """
    found = None if text.isascii() else _find_foreign().search(text)
    if found:
        raise NoNumber(f"{found[0]!a} is a digit of another script")


def _drop_tex(text: str) -> str:
    """Write what TeX writes around numbers and units plainly."""
    text = _TEX_GROUP.sub("", _TEX_COMMA.sub(",", text))
    text = _TEX_TEXT.sub(r"\1", text).replace("\\%", "%").replace("\\$", "$")
    return _TEX_SPACE.sub(" ", text)


def _strip_unit_before(before: str, sign: str, form: Format) -> tuple[str, str, bool]:
    """Take a unit off the end of what stands before the number, and the sign before it."""
    bare = before.rstrip()
    for unit in form.units:
        if bare.endswith(unit):
            rest = bare[: -len(unit)]
            if unit[0].isalpha() and rest[-1:].isalpha():
                continue
            if not sign and rest.endswith(("-", "+", "\u2212")):
                return rest[:-1], rest[-1], True
            return rest, sign, True
    return before, sign, False


def _strip_unit_after(after: str, form: Format) -> tuple[str, bool]:
    """Take a unit off the start of what stands after the number."""
    bare = after.lstrip()
    for unit in form.units:
        if bare.startswith(unit):
            rest = bare[len(unit) :]
            if not (unit[-1].isalnum() and (rest[:1].isalnum() or rest[:1] in ("_", "^"))):
                return rest, True
    return after, False


def _is_unclear(before: str, sign: str) -> bool:
    """Say whether what stands before a number changes it."""
    if sign and before.endswith((")", "]", "}")):
        return True
    found = _UNCLEAR_BEFORE.search(before)
    return found is not None and not (">" in found[0] and _TAG.search(before))


def _evaluate(match: "re.Match[str]", form: Format) -> Fraction:
    """Evaluate what was read, without its sign.

    Raises: NoNumber for more digits or a greater exponent than there may be, and for a division by zero.
    """
    _, top, bottom, power, whole, decimals, exponent, power_of_ten, denominator = match.groups()
    if len(match[0]) > 3 * MAX_DIGITS:
        raise NoNumber(f"a number has more than {MAX_DIGITS} digits")
    if top is not None:
        return _divide(Fraction(int(top)), int(bottom))
    if power is not None:
        return _shift(1, _read_exponent(power))
    digits = form.separator.sub("", whole) if form.separator else whole
    decimals = decimals or ""
    if len(digits) + len(decimals) > MAX_DIGITS:
        raise NoNumber(f"a number has more than {MAX_DIGITS} digits")
    value = _shift(int((digits or "0") + decimals), _read_exponent(exponent or power_of_ten or "0") - len(decimals))
    return value if denominator is None else _divide(value, int(denominator))


def _read_exponent(text: str) -> int:
    exponent = int(text.replace("\u2212", "-"))
    if abs(exponent) > MAX_EXPONENT:
        raise NoNumber(f"an exponent is beyond {MAX_EXPONENT}")
    return exponent


def _shift(value: int, places: int) -> Fraction:
    return Fraction(value * 10**places) if places >= 0 else Fraction(value, 10**-places)


def _divide(top: Fraction, bottom: int) -> Fraction:
    if not bottom:
        raise NoNumber("there is a division by zero")
    return top / bottom


def _show(text: str, start: int, end: int) -> str:
    """Show a number with what touches it."""
    shown = text[max(0, start - 8) : min(end + 8, start + 60)]
    return repr(" ".join(shown.split()))

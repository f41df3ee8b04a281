"""The kind `numeric`: the answer gives one number, and it is the reference, within a tolerance.

Owns where in an answer the number stands, and when two are the same; `verifiers.number_text` reads. Everything is
exact: a float of a configuration is the decimal that it is written as. A reason that shows the reference is for people
alone.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from verifiers.answers import read_text
from verifiers.base import Answer, Cause, InvalidArgs, InvalidVerifier, Request, Verdict
from verifiers.kind import Args, Config, Kind
from verifiers.number_text import MAX_DIGITS, Format, NoNumber, find_after, find_boxed, read_number

_ZERO = Fraction(0)
_TOLERANCE = {"type": "number", "minimum": 0, "default": 0}
_PROBLEM: dict[str, Any] = {
    "reference": {
        "anyOf": [{"type": "number"}, {"type": "string", "minLength": 1, "maxLength": MAX_DIGITS}],
        "description": 'The right number, or a text with it, read as answers are: 42, "1/3", "1,250.5", "6.02e23".',
    },
    "absolute_tolerance": {**_TOLERANCE, "description": "How far off the answer may be."},
    "relative_tolerance": {
        **_TOLERANCE,
        "maximum": 1,
        "description": "Likewise, as a share of the reference; the greater of the two counts.",
    },
}
_FORMAT: dict[str, Any] = {
    "after": {
        "type": "string",
        "minLength": 1,
        "maxLength": 64,
        "description": (
            "Read only what stands after the last of these in the answer, as in `Answer:`, to the end of its line, "
            "or the next line with anything on it. Upper and lower case (of ASCII) are the same."
        ),
    },
    "boxed": {"type": "boolean", "default": False, "description": "Read only the inside of the last \\boxed{...}."},
    "units": {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": 32},
        "maxItems": 32,
        "description": (
            "What may stand right before or behind the number, and means no more than it says (km, $). "
            "With % among them 12% is 12; else it is 0.12. Other words there are passed over, but for `unit_required`."
        ),
    },
    "unit_required": {"type": "boolean", "default": False, "description": "Fail where none of the units is there."},
    "thousands": {
        "enum": [",", ".", " ", "'", "_", ""],
        "default": ",",
        "description": "What may stand before every three digits. Not given, where `decimal` is a comma: a dot.",
    },
    "decimal": {"enum": [".", ","], "default": "."},
}


class NumericVerifier:
    """Compiled; `config` holds what arguments may leave out, and how numbers are written.

    Raises: InvalidVerifier for a reference that is no number, and marks that cannot be told apart.
    """

    never_waits = True

    def __init__(self, config: Config) -> None:
        self._format = _read_format(config)
        self._after: str = config.get("after", "")
        self._boxed = bool(config.get("boxed", False))
        self._unit_required = bool(config.get("unit_required", False))
        self._defaults = {name: config[name] for name in _PROBLEM if name in config}
        try:
            self._problem = _read_problem(self._defaults, self._format) if "reference" in config else None
        except (NoNumber, TypeError) as error:
            raise InvalidVerifier(f"numeric: the reference is no number: {error}", "/reference") from None

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the number in the answer's text."""
        try:
            problem = _read_problem({**self._defaults, **args}, self._format) if args else self._problem
        except (NoNumber, TypeError) as error:
            return Verdict.abstained(f"the reference cannot be used: {error}", Cause.BAD_ARGS)
        if problem is None:
            return Verdict.abstained("there is no reference", Cause.BAD_ARGS)
        try:
            value = read_number(self._find(read_text(answer)), self._format, unit_required=self._unit_required)
        except NoNumber as error:
            return Verdict.failed(str(error), safe_for_model=True)
        wanted, tolerance = problem
        if value == wanted or abs(value - wanted) <= tolerance:
            return Verdict.passed()
        within = f", and not within {_show(tolerance)} of it" if tolerance else ""
        return Verdict.failed(f"{_show(value)} is not {_show(wanted)}{within}")

    def _find(self, text: str) -> str:
        """Find the part of the answer that is read.

        Raises: NoNumber where nothing is marked.
        """
        if self._boxed:
            found = find_boxed(text)
            if found is None:
                raise NoNumber("there is no \\boxed{...}")
            return found
        if self._after:
            found = find_after(text, self._after)
            if found is None:
                raise NoNumber(f"there is no {self._after!r}")
            return found
        return text


def _read_format(config: Config) -> Format:
    decimal = config.get("decimal", ".")
    thousands = config.get("thousands", "," if decimal == "." else ".")
    if thousands == decimal:
        raise InvalidVerifier("numeric: the separator of thousands is the decimal mark", "/thousands")
    if config.get("boxed") and config.get("after"):
        raise InvalidVerifier("numeric: the number is either boxed or after a marker", "/boxed")
    if config.get("unit_required") and not config.get("units"):
        raise InvalidVerifier("numeric: a unit is required, and there are none", "/units")
    return Format(thousands, decimal, config.get("units", ()))


def _read_problem(problem: Mapping[str, Any], form: Format) -> tuple[Fraction, Fraction] | None:
    """Read the reference, and how far off an answer may be; None where there is no reference.

    Raises: NoNumber, TypeError.
    """
    if "reference" not in problem:
        return None
    reference = problem["reference"]
    wanted = read_number(reference, form) if isinstance(reference, str) else _read_json_number(reference)
    absolute, relative = problem.get("absolute_tolerance", 0), problem.get("relative_tolerance", 0)
    if absolute == 0 == relative:
        return wanted, _ZERO
    return wanted, max(_read_json_number(absolute), _read_json_number(relative) * abs(wanted))


def _read_json_number(value: Any) -> Fraction:
    """Read a number of JSON as it was written, or could have been.

    Raises: TypeError for what is none, NoNumber for one that is too big.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a {type(value).__name__} is no number")
    if isinstance(value, int):
        if value.bit_length() > 3 * MAX_DIGITS:
            raise NoNumber(f"it has more than {MAX_DIGITS} digits")
        return Fraction(value)
    if value - value != 0:
        raise NoNumber("it is not finite")
    return Fraction(repr(value))


def _show(value: Fraction) -> str:
    """Show a number exactly where that is short, else as a float."""
    shown = str(value) if value.denominator < 10**6 and abs(value.numerator) < 10**15 else ""
    if value.denominator == 1 and shown:
        return shown
    rounded = _round(value)
    try:
        exact = Fraction(rounded) == value
    except ValueError:
        exact = False
    return rounded if exact or not shown else shown


def _round(value: Fraction) -> str:
    try:
        return f"{float(value):.12g}"
    except OverflowError:
        return f"a number of {len(str(abs(value.numerator) // value.denominator))} digits"


def _require_reference(config: Config, args: Args) -> None:
    if "reference" not in config and "reference" not in args:
        raise InvalidArgs("numeric: reference is missing", "/reference")
    if "reference" in args:
        try:
            _read_problem({"reference": args["reference"]}, _read_format(config))
        except (NoNumber, TypeError) as error:
            raise InvalidArgs(f"numeric: the reference is no number: {error}", "/reference") from None


KIND = Kind(
    name="numeric",
    summary="The answer gives one number, and it is the reference, within a tolerance.",
    config_schema={"type": "object", "properties": {**_PROBLEM, **_FORMAT}, "additionalProperties": False},
    args_schema={"type": "object", "properties": _PROBLEM, "additionalProperties": False},
    compile=NumericVerifier,
    accept_args=_require_reference,
)

"""What one subschema costs by itself, without its parts. Called by `verifiers.schema_cost` alone.

In units of about 5 ns, measured on the validator: so much for each character of a value, and so much more for each of
its leaves (texts, numbers, names), where the work does not grow with their length. Rather too much than too little.
"""

import re
from collections.abc import Mapping
from typing import Any

BACKTRACKS = 3_000  # what a pattern may go back on one text, at about 14 ns a step
_PER_BACKTRACKING = 9_000

_FREE = frozenset({
    "$defs", "definitions", "title", "description", "default", "examples", "$comment", "$schema", "$id", "id",
    "$anchor", "$dynamicAnchor", "$vocabulary", "deprecated", "readOnly", "writeOnly",
})  # fmt: skip
_PER_CHAR = {"uniqueItems": 20, "contains": 20, "minLength": 5, "maxLength": 5, "propertyNames": 2}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_LISTS = ("dependentRequired", "dependentSchemas", "dependencies")

# Syntax that is matched by going back: lookaround, references to groups, atomic groups, possessive repetition.
_GOES_BACK = re.compile(r"\(\?(?!:|[a-z-]+[):]|P?<[A-Za-z_])|\\[1-9kgKGRXhH]|[*+?}]\+")
_REPEAT = re.compile(r"\{([0-9]{1,6})(,([0-9]{0,6}))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:[pPuxk](?:\{[^}]*\}|<[^>]*>)?|.)", re.DOTALL)


def weigh_chars(schema: Mapping[str, Any]) -> int:
    """Weigh what a subschema does with each character of a value; 1 at least."""
    return max(1, sum(_weigh_keyword(keyword, value) for keyword, value in schema.items() if keyword not in _FREE))


def weigh_leaves(schema: Mapping[str, Any]) -> int:
    """Weigh what a subschema does with each leaf of a value, above what its characters cost."""
    backtracking = sum(1 for pattern in list_patterns(schema) if _GOES_BACK.search(pattern))
    bounds = sum(35 if abs(schema[name]) < 2**63 else 100 for name in _BOUNDS if _is_number(schema.get(name)))
    compared = sum(270 for option in _list_options(schema) if not _is_quick(option))
    compared += 25 if _is_number(schema.get("const")) else 0
    return backtracking * _PER_BACKTRACKING + bounds + compared + _weigh_multiple(schema.get("multipleOf"))


def _weigh_multiple(divisor: Any) -> int:
    if not _is_number(divisor):
        return 0
    if isinstance(divisor, int) and abs(divisor) < 2**63:
        return 230
    return 2_500 if 1e-30 < abs(divisor) < 1e30 else 5_000


def _weigh_keyword(keyword: str, value: Any) -> int:
    if keyword == "enum" and isinstance(value, list):
        return 2 if all(map(_is_quick, value)) else 15 * len(value)
    if keyword == "const":
        return 2 if _is_quick(value) else 15
    if keyword in ("pattern", "patternProperties"):
        return 1 + sum(map(_weigh_pattern, list_patterns({keyword: value})))
    if keyword in _LISTS and isinstance(value, Mapping):
        return 1 + sum(2 + len(part) if isinstance(part, list) else 2 for part in value.values())
    if keyword == "format":
        return 40 if str(value).startswith("idn-") else 5
    return _PER_CHAR.get(keyword, 1)


def list_patterns(schema: Mapping[str, Any]) -> list[str]:
    """List the patterns of a subschema."""
    named = schema.get("patternProperties")
    found = [schema.get("pattern"), *(named if isinstance(named, Mapping) else ())]
    return [pattern for pattern in found if isinstance(pattern, str)]


def _weigh_pattern(pattern: str) -> int:
    states = count_states(pattern)
    return 1 + (states if states <= 500 else 12 * states)  # large ones are not matched by tables


def count_states(pattern: str) -> int:
    """Guess how many states a pattern has when every repetition is written out."""
    sizes, last, at = [0], 0, 0
    while at < len(pattern):
        char = pattern[at]
        repeat = _REPEAT.match(pattern, at) if char == "{" else None
        atom = (_CLASS if char == "[" else _ESCAPE).match(pattern, at) if char in "[\\" else None
        if repeat:
            times = max(int(repeat[1]), int(repeat[3] or 0), 1)
            sizes[-1] += last * (times - 1)
            last = min(last * times, 10**9)
        elif char == "(":
            sizes.append(0)
        elif char == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif char not in "*+?|^$":
            last = 30 if atom and ("\\p" in atom[0] or "\\P" in atom[0]) else 1
            sizes[-1] += last
        found = repeat or atom
        at = found.end() if found else at + 1
        sizes[-1] = min(sizes[-1], 10**9)
    return sum(sizes)


def _list_options(schema: Mapping[str, Any]) -> list[Any]:
    options = schema.get("enum")
    return [*(options if isinstance(options, list) else ()), *([schema["const"]] if "const" in schema else ())]


def _is_quick(option: Any) -> bool:
    """Tell whether an option is found by its hash: a text, true, false, null, or a number of 64 bits."""
    return option is None or isinstance(option, str | bool) or (isinstance(option, int) and abs(option) < 2**63)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""The right calls, and whether an answer's calls are they. Called by the `function_call` kind.

In the arguments of a right call three objects stand for more than one value, at any depth:
    {"$any_of": [value, ...]}    any one of these, each of which may be such an object again
    {"$any_order": [value, ...]} a list of these in any order
    {"$anything": true}          whatever the tool's schema takes
Beside each of them `"$optional": true` lets the argument be left out. Values compare by JSON types: true is not 1, "1"
is not 1, and 1.0 is 1 only where the tool's schema says `number` or the rules do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from verifiers.calls import MAX_CALLS, Call
from verifiers.schema_references import References
from verifiers.tool_schema import walk_parts

_PATTERNS = ("$any_of", "$any_order", "$anything")
_PUNCTUATION = str.maketrans("'", '"', ",./-_*^")
_ABSENT = object()


class BadReference(ValueError):
    """The reference is none. `where` is the JSON pointer of the offending part."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where


@dataclass(frozen=True, slots=True)
class Rules:
    """When two values are the same.

    `texts`: "exact", "case" (without case and white space) or "punctuation" (also without `,./-_*^`, and ' is ").
    `numbers`: "typed" or "value" (1 is 1.0 everywhere). `tolerance` is a share of the right number. `defaults`: an
    argument that is left out is the default of the tool's schema. `ordered`: parallel calls come in this order.
    """

    texts: str = "exact"
    numbers: str = "typed"
    tolerance: float = 0.0
    defaults: bool = True
    ordered: bool = False


def read_reference(reference: Any) -> list[list[Call]]:
    """Read a reference: the lists of calls of which one is right, each empty where no call is right.

    Raises: BadReference.
    """
    if isinstance(reference, Mapping) and "$any_of" in reference:
        return [_read_calls(one) for one in reference["$any_of"]]
    return [_read_calls(reference)]


def _read_calls(reference: Any) -> list[Call]:
    if reference is None:
        return []
    calls = reference if isinstance(reference, list | tuple) else [reference]
    try:
        return [Call(call["name"], dict(call["arguments"])) for call in calls]
    except (TypeError, KeyError, ValueError):
        raise BadReference("the reference is not a call, a list of calls, null, or one of several of these") from None


def find_bad_pattern(value: Any, where: str = "") -> None:
    """Look through a reference for objects that stand for values and cannot be read.

    Raises: BadReference.
    """
    if isinstance(value, Mapping):
        _read_pattern(value, where)
        for name, part in value.items():
            find_bad_pattern(part, f"{where}/{str(name).replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for at, part in enumerate(value):
            find_bad_pattern(part, f"{where}/{at}")


def _read_pattern(value: Mapping[str, Any], where: str = "") -> str | None:
    """Name the key that makes an object stand for values; None for a plain object.

    Raises: BadReference.
    """
    key = next((key for key in _PATTERNS if key in value), None)
    if key is None:
        if "$optional" in value:
            raise BadReference("$optional stands beside $any_of, $any_order or $anything", where)
        return None
    if not value.keys() <= {key, "$optional"} or value.get("$optional", True) not in (True, False):
        raise BadReference(f"beside {key} may only stand $optional, true or false", where)
    if key == "$anything":
        if value[key] is not True:
            raise BadReference("$anything is true", where)
    elif not isinstance(value[key], list) or not (value[key] or key == "$any_order"):
        raise BadReference(f"{key} is a list of values", where)
    elif key == "$any_order" and len(value[key]) > MAX_CALLS:  # comparing takes the square of it
        raise BadReference(f"$any_order takes {MAX_CALLS} values at most", where)
    return key


class Comparison:
    """Compares calls of the request's tools by some rules."""

    def __init__(self, tools: Mapping[str, Mapping[str, Any]], rules: Rules) -> None:
        self._tools = tools
        self._rules = rules

    def without_order(self) -> "Comparison":
        """Compare likewise, but for the order of calls."""
        return Comparison(self._tools, replace(self._rules, ordered=False))

    def same_calls(self, expected: Sequence[Call], actual: Sequence[Call]) -> bool:
        """Tell whether these are the right calls, in any order unless the rules say otherwise."""
        if len(expected) != len(actual):
            return False
        if self._rules.ordered:
            return all(map(self.same_call, expected, actual))
        return _pair_up(expected, actual, self.same_call)

    def same_call(self, expected: Call, actual: Call) -> bool:
        """Tell whether two calls name the same function with the same arguments."""
        return expected.name == actual.name and self._of(actual.name).same(expected.arguments, actual.arguments)

    def find_wrong(self, expected: Call, actual: Call) -> str | None:
        """Name the first argument, by its name, that differs between two calls of one function."""
        return self._of(actual.name).find_difference(expected.arguments, actual.arguments)

    def _of(self, name: str) -> "_Values":
        return _Values(self._tools.get(name, {}), self._rules)


class _Values:
    """Compares values of one tool's arguments."""

    def __init__(self, root: Mapping[str, Any], rules: Rules) -> None:
        self._root = root
        self._rules = rules
        self._references = References(root)

    def same(self, expected: Any, actual: Any) -> bool:
        return self._same(expected, actual, self._root)

    def find_difference(self, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> str | None:
        fields = self._fields(self._root)
        names = sorted(expected.keys() | actual.keys())
        return next((name for name in names if not self._same_field(name, expected, actual, fields)), None)

    def _same(self, expected: Any, actual: Any, schema: Any) -> bool:
        if isinstance(expected, Mapping):
            key = _read_pattern(expected)
            return (
                self._fits(key, expected[key], actual, schema) if key else self._same_object(expected, actual, schema)
            )
        if isinstance(expected, list):
            items = self._items(schema)
            return isinstance(actual, list) and len(expected) == len(actual) and all(
                self._same(left, right, items) for left, right in zip(expected, actual, strict=True)
            )  # fmt: skip
        if isinstance(expected, str):
            return isinstance(actual, str) and _same_text(expected, actual, self._rules.texts)
        if isinstance(expected, bool) or expected is None:
            return expected is actual
        return (
            isinstance(actual, int | float)
            and not isinstance(actual, bool)
            and self._same_number(expected, actual, schema)
        )

    def _same_object(self, expected: Mapping[str, Any], actual: Any, schema: Any) -> bool:
        if not isinstance(actual, Mapping):
            return False
        fields = self._fields(schema)
        names = expected.keys() if expected.keys() == actual.keys() else expected.keys() | actual.keys()
        return all(self._same_field(name, expected, actual, fields) for name in names)

    def _same_field(self, name: str, expected: Mapping[str, Any], actual: Mapping[str, Any], fields: Any) -> bool:
        wanted, given = expected.get(name, _ABSENT), actual.get(name, _ABSENT)
        schema = fields.get(name)
        if given is _ABSENT and isinstance(wanted, Mapping) and _read_pattern(wanted) and wanted.get("$optional"):
            return True
        if wanted is _ABSENT or given is _ABSENT:
            if not self._rules.defaults or not isinstance(schema, Mapping) or "default" not in schema:
                return False
            wanted = schema["default"] if wanted is _ABSENT else wanted
            given = schema["default"] if given is _ABSENT else given
        return self._same(wanted, given, schema)

    def _fits(self, key: str, wanted: Any, actual: Any, schema: Any) -> bool:
        if key == "$anything":
            return True
        if key == "$any_of":
            return any(self._same(one, actual, schema) for one in wanted)
        items = self._items(schema)
        return isinstance(actual, list) and _pair_up(wanted, actual, lambda one, other: self._same(one, other, items))

    def _same_number(self, expected: float, actual: float, schema: Any) -> bool:
        if expected != actual:
            try:
                if abs(expected - actual) > self._rules.tolerance * abs(expected):
                    return False
            except OverflowError:  # an integer beyond what a float can hold
                return False
        return type(expected) is type(actual) or self._rules.numbers == "value" or self._says_number(schema)

    def _says_number(self, schema: Any) -> bool:
        if not isinstance(schema, Mapping):
            return False
        if schema.get("type") == "number":
            return True
        types = [kind for part in walk_parts(schema, self._references) for kind in _list_types(part)]
        return "number" in types and "integer" not in types

    def _fields(self, schema: Any) -> Mapping[str, Any]:
        """List the properties that a schema names, here or in what it is combined of."""
        if not isinstance(schema, Mapping):
            return {}
        fields = schema.get("properties")
        if isinstance(fields, Mapping):
            return fields
        every = [part.get("properties") for part in walk_parts(schema, self._references)]
        return {name: part for fields in every if isinstance(fields, Mapping) for name, part in fields.items()}

    def _items(self, schema: Any) -> Any:
        if not isinstance(schema, Mapping) or "items" in schema:
            return schema.get("items") if isinstance(schema, Mapping) else None
        return next((part["items"] for part in walk_parts(schema, self._references) if "items" in part), None)


def _list_types(schema: Mapping[str, Any]) -> list[Any]:
    types = schema.get("type")
    return types if isinstance(types, list) else [types]


def _same_text(expected: str, actual: str, how: str) -> bool:
    if expected == actual:
        return True
    # What is ignored may be long, but not without end: the loop of events waits for this.
    if how == "exact" or len(actual) > 1000 + 4 * len(expected):
        return False
    return _simplify(expected, how) == _simplify(actual, how)


def _simplify(text: str, how: str) -> str:
    if how == "punctuation":
        return "".join(text.translate(_PUNCTUATION).casefold().split())
    return " ".join(text.casefold().split())


def _pair_up(expected: Sequence[Any], actual: Sequence[Any], same: Callable[[Any, Any], bool]) -> bool:
    """Tell whether each of one list can be paired with one of the other that is the same."""
    if len(expected) != len(actual):
        return False
    rows: list[int] = []
    left = set(range(len(actual)))
    for one in expected:  # as a rule the first that fits is the right one, and nothing has to be tried again
        found = next((at for at in left if same(one, actual[at])), None)
        if found is None:
            break
        left.discard(found)
    else:
        return True
    for one in expected:
        rows.append(sum(1 << at for at, other in enumerate(actual) if same(one, other)))
        if not rows[-1]:
            return False
    holder: dict[int, int] = {}
    return all(_seat(row, rows, holder, [(1 << len(actual)) - 1]) for row in range(len(rows)))


def _seat(row: int, rows: Sequence[int], holder: dict[int, int], untried: list[int]) -> bool:
    """Find a partner for a row, moving others where need be. `rows` are sets of bits, one for each partner."""
    while choices := rows[row] & untried[0]:
        at = (choices & -choices).bit_length() - 1
        untried[0] ^= 1 << at
        if at not in holder or _seat(holder[at], rows, holder, untried):
            holder[at] = row
            return True
    return False

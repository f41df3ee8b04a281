"""The openai SDK's own type definitions against the shapes and the table: a field that is new there fails here."""

import types
from collections.abc import Iterator
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

import pytest
from msgspec import inspect
from openai.types.chat import completion_create_params
from typing_extensions import is_typeddict

from server.api.chat_request import ChatRequest
from server.api.fields import FIELDS, NESTED, Table, Use

SDK_ROOT = completion_create_params.CompletionCreateParamsBase
STREAM = {"stream": bool | None}  # stands in two classes that only differ by it


def alternatives(hint: Any) -> Iterator[Any]:
    """Yield what a hint may be, with all wrappers and lists taken off."""
    origin = get_origin(hint)
    if origin in (Required, NotRequired):
        yield from alternatives(get_args(hint)[0])
    elif origin in (Union, types.UnionType):
        for one in get_args(hint):
            yield from alternatives(one)
    elif origin is not None and origin is not Literal and origin is not dict:
        yield from alternatives(get_args(hint)[0])  # Iterable, list, Annotated
    else:
        yield hint


def ours(kind: inspect.Type) -> Iterator[inspect.Type]:
    """Yield what a type of ours may be, in the same way."""
    if isinstance(kind, inspect.Metadata):
        yield from ours(kind.type)
    elif isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from ours(one)
    elif isinstance(kind, inspect.ListType):
        yield from ours(kind.item_type)
    else:
        yield kind


def literals(kinds: list[inspect.Type]) -> set[Any]:
    return {value for kind in kinds if isinstance(kind, inspect.LiteralType) for value in kind.values}


def read_tag(hints: dict[str, Any]) -> set[Any]:
    """Read the values of the field that tells shapes apart."""
    tag = next((name for name in ("role", "type") if name in hints), None)
    return {value for one in alternatives(hints[tag]) for value in get_args(one)} if tag else set()


def find_gaps(hint: Any, kind: inspect.Type, place: str, seen: set[tuple[Any, str]]) -> Iterator[str]:
    """Yield every place where the SDK can say what ours does not know."""
    kinds = list(ours(kind))
    for one in alternatives(hint):
        if get_origin(one) is Literal:
            known = literals(kinds)
            takes_any = any(isinstance(each, inspect.StrType) for each in kinds)
            if not takes_any and (unknown := set(get_args(one)) - known):
                yield f"{place}: the values {sorted(unknown)}"
        if not is_typeddict(one):
            continue
        hints = get_type_hints(one, include_extras=True)
        tags = read_tag(hints)
        structs = [each for each in kinds if isinstance(each, inspect.StructType)]
        struct = next((each for each in structs if (each.tag in tags if tags else each.tag is None)), None)
        if struct is None:
            yield f"{place}: the shape {one.__name__}"
        elif (one, place) not in seen:
            seen.add((one, place))
            yield from find_missing_fields(hints, struct, NESTED[struct.cls], place, seen)


def find_missing_fields(
    hints: dict[str, Any], struct: inspect.StructType, table: Table, place: str, seen: set[tuple[Any, str]]
) -> Iterator[str]:
    fields = {field.encode_name: field.type for field in struct.fields}
    for name, hint in hints.items():
        where = f"{place}.{name}"
        if name not in table.fields or (name not in fields and name != struct.tag_field):
            yield where
        elif name in fields and not table.refused and table.fields[name].use not in (Use.IGNORED, Use.REFUSED):
            yield from find_gaps(hint, fields[name], where, seen)


def gaps_of(hints: dict[str, Any]) -> list[str]:
    struct = inspect.type_info(ChatRequest)
    assert isinstance(struct, inspect.StructType)
    return list(find_missing_fields(hints, struct, Table("", FIELDS), "chat", set()))


def root_hints() -> dict[str, Any]:
    return {**get_type_hints(SDK_ROOT, include_extras=True), **STREAM}


def test_everything_that_the_sdk_can_say_is_in_a_shape_and_in_the_table():
    assert gaps_of(root_hints()) == []


def test_every_shape_of_the_request_is_in_the_table_field_by_field():
    reached: dict[type, set[str]] = {}

    def walk(kind: inspect.Type) -> None:
        for one in ours(kind):
            if isinstance(one, inspect.StructType) and one.cls not in reached:
                fields = {field.encode_name for field in one.fields}
                reached[one.cls] = fields | ({one.tag_field} if one.tag_field else set())
                for field in one.fields:
                    walk(field.type)

    walk(inspect.type_info(ChatRequest))
    del reached[ChatRequest]
    extensions = {one for one in reached if one.__name__ in ("RequestVerifier", "RetryOverrides")}
    assert {one: set(table.fields) for one, table in NESTED.items()} == {
        one: fields for one, fields in reached.items() if one not in extensions
    }


def test_every_nested_field_has_a_reason():
    rows = [(table.place, name, field) for table in NESTED.values() for name, field in table.fields.items()]
    assert [(place, name) for place, name, field in rows if not field.reason] == []


@pytest.mark.parametrize(
    ("hints", "gap"),
    [
        ({"brand_new": str}, "chat.brand_new"),
        ({"tool_choice": Literal["auto", "sometimes"]}, "chat.tool_choice: the values ['sometimes']"),
        ({"response_format": completion_create_params.WebSearchOptions}, "response_format: the shape"),
    ],
)
def test_the_walk_sees_what_is_new(hints, gap):
    (found,) = gaps_of({**root_hints(), **hints})
    assert gap in found


def test_the_walk_goes_to_the_bottom(monkeypatch):
    function = next(table for table in NESTED.values() if table.place == "tools[].function")
    monkeypatch.delitem(function.fields, "strict")
    assert gaps_of(root_hints()) == ["chat.tools.function.strict"]

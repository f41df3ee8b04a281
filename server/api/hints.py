"""Finds what a client meant by a field or a value that is none. Called where a request is refused, never before."""

import difflib
from collections.abc import Iterator
from typing import Any

from msgspec import inspect

_UNWRAPPED = ("extra_body", "extra_query", "extra_headers")


def suggest_field(path: str, shape: type) -> str:
    """Word what to write in place of an unknown field; "" where nothing is like it. `path` is dotted, as in errors."""
    *above, name = _names(path)
    if name in _UNWRAPPED:
        return f" ({name} is an argument of the SDK: over plain HTTP its fields stand in the body itself)"
    known = [field.encode_name for one in _find(inspect.type_info(shape), above) for field in _fields(one)]
    near = difflib.get_close_matches(name, known, n=1)
    return f". Did you mean {near[0]}?" if near else ""


def name_values(path: str, shape: type) -> str:
    """Name the values that a field takes, where they are few; else ""."""
    values = [
        value
        for one in _find(inspect.type_info(shape), _names(path))
        for part in _parts(one)
        if isinstance(part, inspect.LiteralType)
        for value in part.values
    ]
    return f": give one of {', '.join(map(str, values))}" if values else ""


def _names(path: str) -> list[str]:
    return [name.partition("[")[0] for name in path.split(".")]


def _find(root: inspect.Type, names: list[str]) -> Iterator[inspect.Type]:
    """Yield the types that a path leads to: a union may lead to several."""
    if not names:
        yield root
        return
    for field in _fields(root):
        if field.encode_name == names[0]:
            yield from _find(field.type, names[1:])


def _fields(root: inspect.Type) -> Iterator[Any]:
    for part in _parts(root):
        if isinstance(part, inspect.StructType):
            yield from part.fields


def _parts(root: inspect.Type) -> Iterator[inspect.Type]:
    """Yield a type, or those that it is made of."""
    if isinstance(root, inspect.UnionType):
        for part in root.types:
            yield from _parts(part)
    elif isinstance(root, inspect.ListType):
        yield from _parts(root.item_type)
    elif isinstance(root, inspect.Metadata):
        yield from _parts(root.type)
    else:
        yield root

"""Leaves out the fields of a request that nobody knows, for tasks that say `unknown_fields: ignore`.

Called by the surfaces once a request was refused for such a field: a request without any costs nothing. It works for
any struct, in time that grows with the request and not with the number of unknown fields.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from msgspec import inspect


def drop_unknown(fields: dict[str, Any], shape: type) -> dict[str, Any]:
    """Copy an object without the fields that its struct, and the structs inside it, do not have.

    What does not have the shape at all is left as it is: the check that follows names it.
    """
    return _drop(fields, _inspect(shape))


@lru_cache
def _inspect(shape: type) -> inspect.Type:
    return inspect.type_info(shape)


def _drop(value: Any, kind: inspect.Type) -> Any:
    if isinstance(kind, inspect.Metadata):
        return _drop(value, kind.type)
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    if isinstance(value, list):
        lists = [one for one in _bare(kinds) if isinstance(one, inspect.ListType)]
        return [_drop(item, lists[0].item_type) for item in value] if lists else value
    if isinstance(value, dict):
        struct = _find_struct(value, [one for one in _bare(kinds) if isinstance(one, inspect.StructType)])
        if struct is not None:
            return _drop_from(value, struct)
    return value


def _bare(kinds: Iterable[inspect.Type]) -> Iterable[inspect.Type]:
    return [kind.type if isinstance(kind, inspect.Metadata) else kind for kind in kinds]


def _find_struct(value: dict[str, Any], structs: list[inspect.StructType]) -> inspect.StructType | None:
    if len(structs) == 1 and structs[0].tag_field is None:
        return structs[0]
    return next((one for one in structs if one.tag_field and value.get(one.tag_field) == one.tag), None)


def _drop_from(value: dict[str, Any], struct: inspect.StructType) -> dict[str, Any]:
    known = {field.encode_name: field.type for field in struct.fields}
    kept = {name: _drop(item, known[name]) for name, item in value.items() if name in known}
    if struct.tag_field is not None and struct.tag_field in value:
        kept[struct.tag_field] = value[struct.tag_field]
    return kept

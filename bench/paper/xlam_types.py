"""The types of xlam's parameters as JSON Schema: Python's, in words. Called by `bench.paper.xlam`."""

import re
from typing import Any

_SIMPLE = {
    "str": "string", "string": "string", "int": "integer", "integer": "integer", "float": "number", "number": "number",
    "bool": "boolean", "boolean": "boolean", "dict": "object", "object": "object",
}  # fmt: skip
_LISTS = ("list", "array", "tuple", "set", "sequence")
_OPTIONAL = re.compile(r",\s*optional\b.*$", re.IGNORECASE)
_GENERIC = re.compile(r"(\w+)\[(.*)\]", re.DOTALL)


def read_type(said: str) -> tuple[dict[str, Any], bool]:
    """Read a type such as `List[int], optional`: its schema, and whether it may be left out.

    What is not known (`Callable`, a class) is a schema that takes anything.
    """
    bare = _OPTIONAL.sub("", said).strip()
    optional = bare != said.strip()
    generic = _GENERIC.fullmatch(bare)
    if generic and generic[1].lower() == "optional":
        return _read(generic[2].strip()), True
    return _read(bare), optional


def _read(said: str) -> dict[str, Any]:
    generic = _GENERIC.fullmatch(said)
    outer = (generic[1] if generic else said).lower()
    inner = _split(generic[2]) if generic else []
    if outer in _LISTS:
        items = _read(inner[0]) if len(inner) == 1 else {}
        return {"type": "array", **({"items": items} if items else {})}
    if outer == "union":
        options = [_read(one) for one in inner if one.lower() != "none"]
        return {"anyOf": options} if all(options) and options else {}
    kind = _SIMPLE.get(outer)
    return {"type": kind} if kind else {}


def _split(text: str) -> list[str]:
    """Split at the commas that are in no brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]

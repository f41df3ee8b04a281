"""Follows the references of a JSON schema, inside of that schema alone. Called by `schema_cost` and `tool_schema`.

A reference that two readers could follow to different places is refused: the cost of a schema is measured on what is
found here, and paid on what the validator finds.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_IDS = ("$id", "id")
_ANCHORS = ("$anchor", "$dynamicAnchor")


class BadSchema(ValueError):
    """The schema is refused. `where` is the JSON pointer of the offending part."""

    def __init__(self, message: str, where: str = "(root)") -> None:
        super().__init__(message, where)
        self.message = message
        self.where = where

    def __str__(self) -> str:
        return f"{self.message} (at {self.where})"


def has_id(schema: Mapping[str, Any]) -> bool:
    """Tell whether a schema gives itself an address, from which references inside of it would be read."""
    return any(isinstance(schema.get(keyword), str) for keyword in _IDS)


class References:
    """The references of one schema. As only its root may have an id, `$dynamicRef` points where `$ref` would."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._anchors: dict[str, list[Any]] | None = None

    def targets(self, schema: Mapping[str, Any]) -> list[Any]:
        """Find what a subschema refers to: nothing, or one target for each keyword that refers.

        Raises: BadSchema.
        """
        return [self.find(schema[keyword], keyword) for keyword in REFERENCES if keyword in schema]

    def find(self, reference: Any, keyword: str = "$ref") -> Any:
        """Find what `#`, `#/a/pointer` or `#anchor` refers to.

        Raises: BadSchema for what is outside of the schema, nowhere in it, or twice.
        """
        if reference == "#":
            return self._root
        if not isinstance(reference, str) or not reference.startswith("#") or keyword == "$recursiveRef":
            raise BadSchema(f"{keyword} must point into the schema itself (#/...), not to {str(reference)[:100]!r}")
        if not reference.startswith("#/"):
            return self._find_anchor(reference[1:])
        try:
            return self._find_pointer(unquote(reference[2:], errors="strict"))
        except (KeyError, IndexError, ValueError, TypeError) as error:
            if isinstance(error, BadSchema):
                raise
            raise BadSchema(f"{keyword} points to nothing: {reference[:100]!r}") from None

    def _find_pointer(self, pointer: str) -> Any:
        found = self._root
        for part in pointer.split("/"):
            if isinstance(found, Mapping) and found is not self._root and has_id(found):
                raise BadSchema("only the root of a schema may have an id")
            if isinstance(found, list):
                if not (part.isascii() and part.isdecimal()):
                    raise KeyError(part)
                found = found[int(part)]
            else:
                found = found[part.replace("~1", "/").replace("~0", "~")]
        return found

    def _find_anchor(self, name: str) -> Any:
        if self._anchors is None:
            self._anchors = {}
            for anchor, schema in _list_anchors(self._root):
                holders = self._anchors.setdefault(anchor, [])
                if all(schema is not holder for holder in holders):
                    holders.append(schema)
        found = self._anchors.get(name, [])
        if not found:
            raise BadSchema(f"$ref points to nothing: {'#' + name[:100]!r}")
        if len(found) > 1:
            raise BadSchema(f"two parts of the schema are named {name[:100]!r}")
        return found[0]


def _list_anchors(root: Any) -> Iterator[tuple[str, Any]]:
    """List every name that any part gives itself, old forms (`$id: "#name"`) and what is no subschema included."""
    left = [root]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            yield from ((part[keyword], part) for keyword in _ANCHORS if isinstance(part.get(keyword), str))
            ids = (part[keyword] for keyword in _IDS if isinstance(part.get(keyword), str))
            yield from ((address.partition("#")[2], part) for address in ids if "#" in address)
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)

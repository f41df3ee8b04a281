"""Bounds what a JSON schema can cost, before it judges anything.

Called by `verifiers.schema` alone. A few hundred bytes of schema can take exponential time (references that double at
every level), and schemas come from clients with every request, so each one is measured when it is compiled and each
answer is weighed against it. Pure arithmetic on the schema: it must never validate anything.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

MAX_EVALUATIONS = 100_000_000  # of one character each, about 4 ns

# Keywords whose subschemas judge the very same value...
_HERE = ("not", "if", "then", "else", "allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies")
# ... a part of it each ...
_APART = ("properties", "prefixItems")
# ... and parts of it that other keywords judge too.
_BELOW = (
    "patternProperties", "additionalProperties", "propertyNames", "items", "additionalItems", "contains",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "dependencies")


class BadSchema(ValueError):
    """The schema is refused. `where` is the JSON pointer of the offending part."""

    def __init__(self, message: str, where: str = "(root)") -> None:
        super().__init__(message, where)
        self.message = message
        self.where = where

    def __str__(self) -> str:
        return f"{self.message} (at {self.where})"


@dataclass(frozen=True, slots=True)
class Cost:
    """How often one place of a value is judged at most: `paths` times, times `growth` a level of recursion."""

    paths: int
    growth: int

    def evaluations(self, size: int, depth: int) -> int:
        """Bound the work on a value of `size` characters that is nested `depth` deep."""
        return size * self.paths * self.growth ** min(depth, 64)


@dataclass(slots=True)
class _Node:
    """What is known of one subschema. `is_open` while its children are still being visited."""

    here: int = 1  # judgements of the very same value
    below: int = 0  # judgements of any one part of it
    returns: int = 0  # ways back to a subschema that is still open
    is_open: bool = True

    @property
    def paths(self) -> int:
        return max(self.here, self.below)


@dataclass(slots=True)
class _Walk:
    root: Any
    nodes: dict[int, _Node] = field(default_factory=dict)
    re_entered: dict[int, _Node] = field(default_factory=dict)
    here_edges: dict[int, list[int]] = field(default_factory=dict)


def measure(schema: Any) -> Cost:
    """Measure a schema.

    Raises: BadSchema where it refers to anything outside itself, or to itself without going down into the value.
    """
    walk = _Walk(schema)
    try:
        root = _visit(walk, schema)
        TopologicalSorter(walk.here_edges).prepare()
    except RecursionError:
        raise BadSchema("the schema is nested too deeply") from None
    except CycleError:
        raise BadSchema("the schema refers to itself without going down into the value") from None
    growth = max((node.returns for node in walk.re_entered.values()), default=1)
    return Cost(root.paths, growth)


def measure_depth(value: Any) -> int:
    """Measure how deep a JSON value is nested; a plain value is 0 deep."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [child for item in level if isinstance(item, dict | list) for child in _parts(item)]
    return depth - 1


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else ()


def _visit(walk: _Walk, schema: Any) -> _Node:
    """Visit a subschema depth first; what is open already is a recursion."""
    if not isinstance(schema, Mapping):
        return _Node(is_open=False)
    node = walk.nodes.get(id(schema))
    if node is not None:
        if node.is_open:
            walk.re_entered[id(schema)] = node
        return node
    node = walk.nodes[id(schema)] = _Node()
    same = _children_here(walk.root, schema)
    walk.here_edges[id(schema)] = [id(child) for child in same if isinstance(child, Mapping)]
    for child in same:
        found = _visit(walk, child)
        _add(node, found, here=found.here, below=found.below)
    apart = [_visit(walk, child) for keyword in _APART for child in _subschemas(schema, keyword)]
    if apart:
        node.below += max(0 if found.is_open else found.paths for found in apart)
        node.returns += max(1 if found.is_open else found.returns for found in apart)
    for child in (child for keyword in _BELOW for child in _subschemas(schema, keyword)):
        found = _visit(walk, child)
        _add(node, found, here=0, below=found.paths)
    node.is_open = False
    return node


def _add(node: _Node, found: _Node, *, here: int, below: int) -> None:
    if found.is_open:
        node.returns += 1
    else:
        node.here += here
        node.below += below
        node.returns += found.returns


def _children_here(root: Any, schema: Mapping[str, Any]) -> list[Any]:
    """List the subschemas that judge the same value as `schema`, the target of its reference among them."""
    _refuse_names(schema, is_root=schema is root)
    target = [_resolve(root, schema["$ref"])] if "$ref" in schema else []
    return [*target, *(child for keyword in _HERE for child in _subschemas(schema, keyword))]


def _subschemas(schema: Mapping[str, Any], keyword: str) -> Iterator[Any]:
    found = schema.get(keyword)
    if isinstance(found, Mapping) and keyword not in _BY_NAME:
        yield found
    else:
        yield from _parts(found)


def _refuse_names(schema: Mapping[str, Any], *, is_root: bool) -> None:
    """Refuse what gives schemas other addresses than their place, so that every reference can be followed here."""
    for keyword in ("$dynamicRef", "$recursiveRef"):
        if keyword in schema:
            raise BadSchema(f"{keyword} is not supported: use $ref with a pointer (#/...)")
    if not is_root and (isinstance(schema.get("$id"), str) or isinstance(schema.get("id"), str)):
        raise BadSchema("only the root of a schema may have an id")


def _resolve(root: Any, reference: Any) -> Any:
    if reference == "#":
        return root
    if not isinstance(reference, str) or not reference.startswith("#/"):
        raise BadSchema(f"$ref must point into the schema itself (#/...), not to {str(reference)[:100]!r}")
    found = root
    for part in reference[2:].split("/"):
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise BadSchema(f"$ref points to nothing: {reference[:100]!r}") from None
    return found

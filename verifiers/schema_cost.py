"""Bounds what a JSON schema can cost, before it judges anything.

Called by `verifiers.schema` alone. A few hundred bytes of schema can take exponential time (references that double at
every level), and schemas come from clients with every request, so each one is measured when it is compiled and each
answer is weighed against it. Pure arithmetic on the schema: it must never validate anything.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from verifiers.schema_references import BadSchema, References, has_id
from verifiers.schema_weights import count_states, list_patterns, weigh_chars, weigh_leaves

MAX_WORK = 8_000_000  # in the units of `schema_weights`: about 40 ms, for which everything else waits
MAX_STATES = 50_000  # of all patterns together: compiling them takes about as long
MAX_PARTS = 5_000  # subschemas, each as often as it is referred to: compiling them takes about as long, too
MAX_COPIES = 2_000  # of what the validator copies to find the unevaluated: about 12 us each, when it is compiled

# Keywords whose subschemas judge the very same value...
_HERE = ("not", "if", "then", "else", "allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies")
# ... a part of it each ...
_APART = ("properties", "prefixItems")
# ... and parts of it that other keywords judge too.
_BELOW = (
    "patternProperties", "additionalProperties", "propertyNames", "items", "additionalItems", "contains",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_UNEVALUATED = ("unevaluatedItems", "unevaluatedProperties")
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "dependencies")


@dataclass(frozen=True, slots=True)
class Cost:
    """What judging takes at most: `paths` for each character and `leaf_paths` for each leaf, times `growth` a level."""

    paths: int
    growth: int
    leaf_paths: int = 0

    def work(self, size: int, depth: int, leaves: int) -> int:
        """Bound the work on a value of `size` characters and `leaves` leaves that is nested `depth` deep."""
        return (size * self.paths + leaves * self.leaf_paths) * self.growth ** min(depth, 64)


@dataclass(slots=True)
class _Node:
    """What is known of one subschema. `is_open` while its children are still being visited."""

    here: int  # work on the very same value
    below: int = 0  # work on any one part of it
    returns: int = 0  # ways back to a subschema that is still open
    is_open: bool = True

    @property
    def paths(self) -> int:
        return max(self.here, self.below)


@dataclass(slots=True)
class _Walk:
    root: Any
    references: References
    weigh: Callable[[Mapping[str, Any]], int]
    nodes: dict[int, _Node] = field(default_factory=dict)
    re_entered: dict[int, _Node] = field(default_factory=dict)
    here_edges: dict[int, list[int]] = field(default_factory=dict)
    parts: int = 0
    states: int = 0  # of all patterns, and 100 more for each
    asking: list[int] = field(default_factory=list)  # who asks what is unevaluated


def measure(schema: Any) -> Cost:
    """Measure a schema.

    Raises: BadSchema where it refers to anything outside itself, or to itself without going down into the value.
    """
    references = References(schema)
    try:
        root, growth, states = _walk(_Walk(schema, references, weigh_chars))
        leaves, _, _ = _walk(_Walk(schema, references, weigh_leaves))
    except RecursionError:
        raise BadSchema("the schema is nested too deeply") from None
    except CycleError:
        raise BadSchema("the schema refers to itself without going down into the value") from None
    if states > MAX_STATES:
        raise BadSchema("the patterns of the schema repeat too much, all together: use maxLength instead")
    return Cost(max(root, 1), growth, leaves)


def _walk(walk: _Walk) -> tuple[int, int, int]:
    root = _visit(walk, walk.root)
    if _count_copies(walk) > MAX_COPIES:
        raise BadSchema("what is unevaluated depends on too much: use additionalProperties or fewer references")
    growth = max((node.returns for node in walk.re_entered.values()), default=1)
    return root.paths, growth, walk.states


def _count_copies(walk: _Walk) -> int:
    """Count the subschemas that judge the same value as those that ask, with every reference written out.

    Raises: CycleError.
    """
    copies: dict[int, int] = {}
    for place in TopologicalSorter(walk.here_edges).static_order():
        copies[place] = 1 + sum(copies[child] for child in walk.here_edges[place])
    return sum(copies[place] for place in walk.asking)


def measure_depth(value: Any) -> int:
    """Measure how deep a JSON value is nested; a plain value is 0 deep."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [child for item in level if isinstance(item, dict | list) for child in _parts(item)]
    return depth - 1


def count_leaves(value: Any) -> int:
    """Count the texts, numbers and names in a JSON value."""
    leaves, left = 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            leaves += len(item)
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)
        else:
            leaves += 1
    return leaves


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else ()


def _visit(walk: _Walk, schema: Any) -> _Node:
    """Visit a subschema depth first; what is open already is a recursion."""
    walk.parts += 1
    if walk.parts > MAX_PARTS:
        raise BadSchema(f"the schema has more than {MAX_PARTS:,} parts")
    if not isinstance(schema, Mapping):
        return _Node(walk.weigh({}), is_open=False)
    node = walk.nodes.get(id(schema))
    if node is not None:
        if node.is_open:
            walk.re_entered[id(schema)] = node
        return node
    node = walk.nodes[id(schema)] = _Node(walk.weigh(schema))
    walk.states += sum(100 + count_states(pattern) for pattern in list_patterns(schema))
    same = _children_here(walk, schema)
    walk.here_edges[id(schema)] = [id(child) for child in same if isinstance(child, Mapping)]
    again = 3 if any(keyword in schema for keyword in _UNEVALUATED) else 1  # it asks the others what they looked at
    for child in same:
        found = _visit(walk, child)
        _add(node, found, here=again * found.here, below=again * found.below)
    if again > 1:
        walk.asking.append(id(schema))
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


def _children_here(walk: _Walk, schema: Mapping[str, Any]) -> list[Any]:
    """List the subschemas that judge the same value as `schema`, the target of its reference among them."""
    if schema is not walk.root and has_id(schema):
        raise BadSchema("only the root of a schema may have an id")
    targets = walk.references.targets(schema)
    return [*targets, *(child for keyword in _HERE for child in _subschemas(schema, keyword))]


def _subschemas(schema: Mapping[str, Any], keyword: str) -> Iterator[Any]:
    found = schema.get(keyword)
    if isinstance(found, Mapping) and keyword not in _BY_NAME:
        yield found
    else:
        yield from _parts(found)

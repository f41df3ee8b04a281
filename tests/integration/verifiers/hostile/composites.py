"""Composites that mean harm, and composites of members that do."""

from functools import reduce

from tests.integration.verifiers.hostile.table import Hostile


def member(kind="exact", name=None, **config):
    made = {"kind": kind, "config": config}
    return made if name is None else {**made, "name": name}


def composite(kind, config, *ends, **more):
    return Hostile(kind, config, ends, **more)


def bad(kind, config, place, says=""):
    return Hostile(kind, config, refused=place, says=says)


def within(levels, innermost):
    return reduce(lambda inner, _: {"verifiers": [{"kind": "all_of", "config": inner}]}, range(levels), innermost)


def wide(levels, width):
    inner = {"verifiers": [member("regex", str(n), pattern="a") for n in range(width)]}
    for _ in range(levels):
        inner = {"verifiers": [member("all_of", str(n), **inner) for n in range(width)]}
    return inner


SPINS = "def verify(request, answer, args):\n    while True: pass"
EATS = "def verify(request, answer, args):\n    x = [0]\n    while True: x = x + x"
RAISES = "def verify(request, answer, args): return 1 / 0"
A = {"kind": "regex", "config": {"pattern": "a"}}
NOT_A = {"kind": "not", "config": {"verifier": A}}


def code(source):
    return {"kind": "python", "config": {"code": source, "timeout_s": 0.2 if source == SPINS else 5.0}}


COMPOSITES = {
    "in each other five times": bad(
        "all_of", within(5, {"verifiers": [A]}), "config" + ".verifiers[0].config" * 4, "inside each other"
    ),
    "in each other a hundred times": bad("all_of", within(100, {"verifiers": [A]}), "", "nested deeper"),
    "a tree of 4,096": bad("all_of", wide(2, 16), "config", "members in all"),
    "seventeen side by side": bad("any_of", wide(0, 17), "config.verifiers"),
    "none": bad("all_of", {"verifiers": []}, "config.verifiers"),
    "one name twice": bad("all_of", {"verifiers": [A, A]}, "config.verifiers[1].name", "two members"),
    "one name twice, by a kind": bad(
        "all_of",
        {"verifiers": [A, {**A, "kind": "exact", "config": {"reference": "a"}, "name": "regex"}]},
        "config.verifiers[1].name",
        "two members",
    ),
    "a kind that is none": bad(
        "any_of", {"verifiers": [{"kind": "all_off"}]}, "config.verifiers[0].kind", "there is no kind"
    ),
    "a hostile member": bad(
        "all_of",
        {"verifiers": [A, {"kind": "json_schema", "config": {"schema": {"$ref": "#"}}}]},
        "config.verifiers[1].config.schema",
        "refers to itself",
    ),
    "code that does not compile, deep inside": bad(
        "all_of",
        within(3, {"verifiers": [code("verify = 5")]}),
        "config" + ".verifiers[0].config" * 4 + ".code",
        "no function",
    ),
    "an address inside": bad(
        "any_of",
        {"verifiers": [{"kind": "webhook", "config": {"url": "http://169.254.169.254/", "unsigned": True}}]},
        "config.verifiers[0].config.url",
    ),
    "weights of nothing": bad("weighted", {"verifiers": [{**A, "weight": 0}]}, "config"),
    "weights beyond numbers": bad("weighted", {"verifiers": [{**A, "weight": -1e308}]}, "config"),
    "members that spin": composite(
        "all_of", {"verifiers": [{**code(SPINS), "name": str(n)} for n in range(6)]}, "timeout"
    ),
    "members that eat": composite(
        "any_of", {"verifiers": [{**code(EATS), "name": str(n)} for n in range(4)]}, "crashed"
    ),
    "one that spins beside one that fails": composite("all_of", {"verifiers": [code(SPINS), A]}, "failed", answer="b"),
    "one that eats beside one that passes": composite("any_of", {"verifiers": [code(EATS), A]}, "passed", answer="a"),
    "not of what raises": composite("not", {"verifier": code(RAISES)}, "broke"),
    "not of not of not": composite(
        "not", {"verifier": {"kind": "not", "config": {"verifier": NOT_A}}}, "failed", answer="a"
    ),
    "half of the weight raises": composite(
        "weighted",
        {"verifiers": [{**code(RAISES), "weight": 1}, {**A, "weight": 1}], "threshold": 0.9},
        "broke",
        answer="a",
    ),
}

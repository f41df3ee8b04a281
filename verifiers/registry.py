"""The kinds of verifiers, by name. The only door to this room: everything outside compiles and checks through it.

Owns what the kinds of a process share, the one sandbox among it. Nothing starts when this module is imported; `close`
ends what did. A kind of ours has its entry in `_PLAIN`; those of installed packages come from `verifiers.plugins`, and
composites take members of all of them.
"""

import threading
from collections.abc import Mapping
from typing import Any

from verifiers import (
    all_of,
    any_of,
    code_tests,
    countdown,
    exact,
    function_call,
    isolation,
    json_schema,
    judge,
    maths,
    not_,
    numeric,
    one_of,
    plugins,
    policy,
    python,
    regex,
    sql,
    webhook,
    weighted,
)
from verifiers.base import InvalidArgs, InvalidVerifier, Verifier
from verifiers.kind import CODE, NETWORK, Kind
from verifiers.outbound import Outbound
from verifiers.policy import Policy
from verifiers.sandbox import Sandbox

__all__ = [
    "CODE", "NETWORK", "Kind", "Policy", "check_args", "close", "compile_verifier", "configure", "find_needs", "kinds",
]  # fmt: skip

_SANDBOX = Sandbox()
_OUTBOUND = Outbound()
_PLAIN: tuple[Kind, ...] = (
    countdown.KIND,
    function_call.KIND,
    json_schema.KIND,
    maths.KIND,
    code_tests.KIND,
    regex.KIND,
    exact.KIND,
    one_of.KIND,
    numeric.KIND,
    sql.KIND,
    python.make_kind(_SANDBOX),
    webhook.make_kind(_OUTBOUND),
    judge.make_kind(_OUTBOUND),
)
_COMPOSITES = (all_of, any_of, weighted, not_)
_CLOSERS = (_SANDBOX.close, isolation.close_all, _OUTBOUND.close)
"""What ends that which a kind started, in this order."""

_KINDS: dict[str, Kind] = {}
_KINDS |= {kind.name: kind for kind in (*_PLAIN, *(composite.make_kind(_KINDS) for composite in _COMPOSITES))}
_INSTALLED = threading.Event()  # set once the kinds of installed packages are among them
_LOCK = threading.Lock()


def kinds() -> dict[str, Kind]:
    """List the kinds by name: ours, then those of installed packages."""
    return dict(_load_all())


def _load_all() -> Mapping[str, Kind]:
    """Load the kinds of installed packages, once."""
    if not _INSTALLED.is_set():
        with _LOCK:
            if not _INSTALLED.is_set():
                _KINDS.update(plugins.load_kinds(_KINDS.keys()))
                _INSTALLED.set()
    return _KINDS


def configure(allowed: Policy) -> None:
    """Set what the operator allows in this process, and load all kinds, so that no request waits for that.

    Each root calls it once; without it nothing is allowed.
    """
    policy.configure(allowed)
    _load_all()


def compile_verifier(kind: str, config: Mapping[str, Any]) -> Verifier:
    """Compile a configuration into a verifier.

    For `python`, and composites with one in it, this runs the code once in the sandbox and so blocks: a millisecond as
    a rule, a second and a half at worst. It may be called from any thread. What was compiled once compiles at once.

    Raises: InvalidVerifier for an unknown kind or a configuration that the kind refuses, with the place.
    """
    found = _load_all().get(kind)
    if found is None:
        raise InvalidVerifier(f"there is no kind {kind!r}: choose one of {', '.join(_KINDS)}", "/kind")
    return found.compile_checked(config)


def check_args(kind: str, config: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    """Check per-request arguments against a kind, for a configuration that compiled.

    Raises: InvalidArgs, also for an unknown kind.
    """
    found = _load_all().get(kind)
    if found is None:
        raise InvalidArgs(f"there is no kind {kind!r}")
    found.check_args(config, args)


def find_needs(kind: str, config: Mapping[str, Any]) -> frozenset[str]:
    """Say what a key must be allowed before it may give this configuration: CODE, NETWORK, both or neither.

    `config` may be anything: nothing has checked it yet. An unknown kind needs nothing, and compiles to an error.
    """
    found = _load_all().get(kind)
    return frozenset() if found is None else found.find_needs(config)


def close() -> None:
    """End what the kinds started: workers, connections. Verifiers stay usable: the next verdict starts it again."""
    for end in _CLOSERS:
        end()

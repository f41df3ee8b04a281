"""The kinds of verifiers, by name. The only door to this room: everything outside compiles and checks through it.

Owns the one sandbox of the process. Nothing starts when this module is imported; `close` ends what did.
"""

from collections.abc import Mapping
from typing import Any

from verifiers import all_of, countdown, function_call, json_schema, python, regex
from verifiers.base import InvalidArgs, InvalidVerifier, Verifier
from verifiers.kind import Kind
from verifiers.sandbox import Sandbox

__all__ = ["Kind", "check_args", "close", "compile_verifier", "kinds"]

_SANDBOX = Sandbox()
_SINGLE = {
    kind.name: kind
    for kind in (countdown.KIND, function_call.KIND, json_schema.KIND, regex.KIND, python.make_kind(_SANDBOX))
}
_KINDS = {**_SINGLE, all_of.NAME: all_of.make_kind(_SINGLE)}


def kinds() -> dict[str, Kind]:
    """List the kinds by name."""
    return dict(_KINDS)


def compile_verifier(kind: str, config: Mapping[str, Any]) -> Verifier:
    """Compile a configuration into a verifier.

    For `python`, and `all_of` with one in it, this runs the code once in the sandbox and so blocks: a millisecond as a
    rule, a second and a half at worst. It may be called from any thread. What was compiled once compiles at once.

    Raises: InvalidVerifier for an unknown kind or a configuration that the kind refuses, with the place.
    """
    found = _KINDS.get(kind)
    if found is None:
        raise InvalidVerifier(f"there is no kind {kind!r}: choose one of {', '.join(_KINDS)}", "/kind")
    return found.compile_checked(config)


def check_args(kind: str, config: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    """Check per-request arguments against a kind, for a configuration that compiled.

    Raises: InvalidArgs, also for an unknown kind.
    """
    found = _KINDS.get(kind)
    if found is None:
        raise InvalidArgs(f"there is no kind {kind!r}")
    found.check_args(config, args)


def close() -> None:
    """End the sandbox's workers, if any were started. Verifiers stay usable: the next verdict starts new ones."""
    _SANDBOX.close()

"""Kinds of installed packages: entry points of the group `mulligan.verifiers`. Called by `verifiers.registry`.

An entry is a `verifiers.kind.Kind`, or is called without arguments and returns one. What fails to load, is no kind, or
has a name that is taken is left out, and the log says why. Such code is trusted like the server's own (an operator
installed it), but not to be without flaws: whatever it raises or returns ends as a clear refusal or an abstention.
"""

import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from verifiers.answers import scrub
from verifiers.base import Answer, Cause, InvalidArgs, InvalidVerifier, Request, Status, Verdict, Verifier
from verifiers.kind import CODE, NETWORK, Args, Config, Kind
from verifiers.schema import Schema

GROUP = "mulligan.verifiers"
MAX_CHARS = 4_000
_ALL_NEEDS = frozenset({CODE, NETWORK})
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_log = logging.getLogger(__name__)


def load_kinds(taken: Collection[str]) -> dict[str, Kind]:
    """Load the kinds of installed packages, by name; none of them has a name that is `taken`."""
    found: dict[str, Kind] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        try:
            kind = _load(entry)
            if kind.name in taken or kind.name in found:
                raise ValueError(f"there is a kind {kind.name!r} already")
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- what a package does when it is imported is its own
            package = entry.dist.name if entry.dist else "?"
            said = f"{type(error).__name__}: {error}"
            _log.warning("the entry point %s = %s of %s is left out: %s", entry.name, entry.value, package, said)
            continue
        found[kind.name] = guard(kind)
    return found


def _load(entry: EntryPoint) -> Kind:
    """Load a kind, and see that its schemas are some.

    Raises: whatever the package does, TypeError, ValueError.
    """
    loaded = entry.load()
    kind = loaded if isinstance(loaded, Kind) else loaded()
    if not isinstance(kind, Kind):
        raise TypeError(f"it is a {type(kind).__name__}, not a Kind")
    if not isinstance(kind.name, str) or not _NAME.fullmatch(kind.name):
        raise ValueError(f"{kind.name!r} is no name for a kind: small letters, digits and _, at most 64")
    for schema in (kind.config_schema, kind.args_schema):
        if not isinstance(schema, dict) or schema.get("type") != "object":
            raise ValueError("its schemas have to be of objects")
        Schema(schema)
    return kind


def guard(kind: Kind) -> Kind:
    """Wrap a kind, so that nothing but what the protocol says comes out of it."""
    return replace(
        kind,
        compile=lambda config: _compile(kind, config),
        accept_args=lambda config, args: _accept_args(kind, config, args),
        find_needs=lambda config: _find_needs(kind, config),
    )


class GuardedVerifier:
    """A verifier of somebody else's kind; what it returns is looked at."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self.never_waits = getattr(verifier, "never_waits", False) is True

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the answer."""
        verdict = await self._verifier.verify(request, answer, args)
        flaw = _find_flaw(verdict)
        if flaw:
            return Verdict.abstained(f"the verifier returned no verdict: {flaw}", Cause.BAD_RETURN)
        return replace(verdict, reason=_clean(verdict.reason), stdout=_clean(verdict.stdout))


def _find_flaw(verdict: Any) -> str:
    """Find what is wrong with a verdict; "" if nothing is."""
    if not isinstance(verdict, Verdict):
        return f"it is a {type(verdict).__name__}"
    if verdict.status not in (Status.PASSED, Status.FAILED, Status.ABSTAINED):
        return "it is neither passed nor failed nor abstained"
    if isinstance(verdict.score, bool) or not isinstance(verdict.score, int | float) or not 0 <= verdict.score <= 1:
        return "its score is not from 0 to 1"
    if not isinstance(verdict.reason, str) or not isinstance(verdict.stdout, str):
        return "its reason is no text"
    if (verdict.status is Status.ABSTAINED) != isinstance(verdict.cause, Cause):
        return "a cause belongs to who abstains, and only to them"
    return ""


def _clean(text: str) -> str:
    text = text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}..."
    return scrub(text).replace("\0", "\ufffd")  # databases refuse NUL in text


def _compile(kind: Kind, config: Config) -> Verifier:
    verifier = _call(kind, lambda: kind.compile(config), InvalidVerifier)
    if not callable(getattr(verifier, "verify", None)):
        raise InvalidVerifier(f"{kind.name}: compiling it made a {type(verifier).__name__}, which is no verifier")
    return GuardedVerifier(verifier)


def _accept_args(kind: Kind, config: Config, args: Args) -> None:
    _call(kind, lambda: kind.accept_args(config, args), InvalidArgs)


def _find_needs(kind: Kind, config: Config) -> frozenset[str]:
    """Ask a kind what it needs; where it breaks, it needs everything."""
    try:
        needs = frozenset(kind.find_needs(config))
    except Exception:  # noqa: BLE001 -- whatever it raises
        _log.warning("the kind %s could not say what it needs", kind.name, exc_info=True)
        return _ALL_NEEDS
    return _ALL_NEEDS if needs - _ALL_NEEDS else needs


def _call(kind: Kind, work: Callable[[], Any], refusal: type[InvalidVerifier] | type[InvalidArgs]) -> Any:
    try:
        return work()
    except refusal:
        raise
    except Exception as error:
        _log.warning("the kind %s broke", kind.name, exc_info=True)
        raise refusal(f"{kind.name}: {type(error).__name__}: {error}") from error

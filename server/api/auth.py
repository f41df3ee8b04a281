"""Knows who asks. The gate calls it before any route is looked up; routes state the scope that they need.

Keys are held as SHA-256 only, and a known key is asked for again after half a second, so that a revoked one is refused
within a second in every process. It must never log a secret.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from server.domain import ApiKey
from server.errors import Forbidden, StoreUnavailable, Unauthorized

KNOWN_FOR_S = 0.5
_MOST_KNOWN = 4096

SCOPES = ("inference", "verifiers", "admin")

_log = structlog.get_logger(__name__)


class KeySource(Protocol):
    """Where keys are looked up: `server.store.keys.KeyStore`."""

    async def by_sha256(self, digest: str) -> ApiKey | None:
        """Find a key by the hex SHA-256 of its secret."""
        ...


@dataclass(slots=True)
class _Known:
    key: ApiKey | None
    until: float


class Keyring:
    """Recognises bearer keys, with a short memory."""

    def __init__(self, keys: KeySource, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Future[ApiKey | None]] = {}

    async def recognise(self, authorization: str) -> ApiKey:
        """Return the key of an `Authorization` header.

        Raises: Unauthorized, StoreUnavailable.
        """
        scheme, _, secret = authorization.partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise Unauthorized("Give an API key as `Authorization: Bearer mk-...`.")
        digest = hashlib.sha256(secret.encode()).hexdigest()
        known = self._known.get(digest)
        key = known.key if known and known.until > self._clock() else await self._ask(digest)
        if key is None or key.revoked_at is not None:
            raise Unauthorized("The API key is unknown or revoked.")
        return key

    def forget(self, digest: str) -> None:
        """Look a key up again at its next use: it was revoked."""
        self._known.pop(digest, None)

    async def _ask(self, digest: str) -> ApiKey | None:
        """Look a key up once, however many requests wait for it."""
        if (asking := self._asking.get(digest)) is not None:
            return await asyncio.shield(asking)
        asking = asyncio.ensure_future(self._look_up(digest))
        self._asking[digest] = asking
        asking.add_done_callback(lambda done: self._forget_asking(digest, done))
        return await asyncio.shield(asking)

    def _forget_asking(self, digest: str, done: "asyncio.Future[ApiKey | None]") -> None:
        self._asking.pop(digest, None)
        if not done.cancelled():
            done.exception()  # looked at here, too: all who wait for it may have gone

    async def _look_up(self, digest: str) -> ApiKey | None:
        until = self._clock() + KNOWN_FOR_S
        try:
            key = await self._keys.by_sha256(digest)
        except StoreUnavailable as error:
            known = self._known.get(digest)
            if known is None or known.key is None:
                raise StoreUnavailable("The database is away, and this key is not known here yet.") from error
            # Nobody can revoke a key while the database is away, and answers are still logged to the spool.
            _log.warning("key_not_confirmed", key=known.key.id, error=repr(error))
            key = known.key
        self._known.pop(digest, None)
        if len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[digest] = _Known(key, until)
        return key


def may(key: ApiKey, scope: str) -> bool:
    """Say whether a key has a scope; `admin` has them all."""
    return scope in key.scopes or "admin" in key.scopes


def require_scope(key: ApiKey, scope: str) -> None:
    """Refuse a key without the scope.

    Raises: Forbidden.
    """
    if not may(key, scope):
        raise Forbidden(f"This needs the scope {scope!r}; the key {key.name!r} has {list(key.scopes)}.")

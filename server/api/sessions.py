"""Logins of the dashboard: the cookie that a browser shows in place of an API key. Asked by `server.api.auth`.

A session holds no right of its own: it stands for a key, and every request looks that key up as if it had been shown.
The cookie is sent by browsers whoever made the page that asks, so what changes something also needs a token that only
our own page can read, and what another site (or another port of this host) asked is refused. It must never log a
secret.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.api.wire import Scope, read_header
from server.domain import ApiKey
from server.errors import Forbidden, StoreUnavailable, Unauthorized
from server.store.sessions import Session

LASTS_S = 12 * 3600.0
"""How long a login is good for."""
KNOWN_FOR_S = 0.5
"""How long a session is believed in without asking again: one that ended elsewhere is refused within a second."""
COOKIE, SECURE_COOKIE = "mulligan_session", "__Host-mulligan_session"
CSRF_HEADER = b"x-mulligan-csrf"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

_MOST_KNOWN = 1024
_OURS = frozenset({b"", b"same-origin", b"none"})


class SessionSource(Protocol):
    """Where sessions are kept: `server.store.sessions.SessionStore`."""

    async def begin(self, sha256: str, key_id: str, lasts_s: float) -> float:
        """Begin a session; say when it ends."""
        ...

    async def find(self, sha256: str) -> Session | None:
        """Find a session by the hash of its secret."""
        ...

    async def end(self, sha256: str) -> None:
        """End a session."""
        ...


class KeySource(Protocol):
    """Who recognises the key of a session: `server.api.auth.Keyring`."""

    async def recognise_digest(self, digest: str) -> ApiKey:
        """Return the key with this SHA-256."""
        ...


@dataclass(slots=True)
class _Known:
    session: Session
    until: float


class Sessions:
    """Begins, recognises and ends logins, with a short memory."""

    def __init__(
        self,
        store: SessionSource,
        keys: KeySource,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._keys, self._clock, self._now = store, keys, clock, now
        self._known: dict[str, _Known] = {}

    async def begin(self, key: ApiKey) -> tuple[str, float]:
        """Begin a session of a key: the cookie's secret, and when it ends (Unix seconds). Raises: StoreUnavailable."""
        secret = secrets.token_urlsafe(32)
        return secret, await self._store.begin(_digest(secret), key.id, LASTS_S)

    async def end(self, secret: str) -> None:
        """End a session. Raises: StoreUnavailable."""
        self._known.pop(_digest(secret), None)
        await self._store.end(_digest(secret))

    async def recognise(self, scope: Scope, secret: str) -> ApiKey:
        """Return the key that the session of a request stands for.

        Raises: Unauthorized where it is over, or its key is; Forbidden for what our own page did not ask;
        StoreUnavailable.
        """
        refuse_foreign(scope)
        if scope["method"] not in SAFE:
            shown = read_header(scope, CSRF_HEADER)
            if not hmac.compare_digest(shown, make_csrf_token(secret).encode()):
                raise Forbidden("The request lacks the session's token: load the page again.", code="csrf_failed")
        session = await self.find(secret)
        if session is None:
            raise Unauthorized("The session is over: log in again.", code="session_over")
        return await self._keys.recognise_digest(session.key_sha256)

    async def find(self, secret: str) -> Session | None:
        """Find a session that is not over yet. Raises: StoreUnavailable."""
        digest = _digest(secret)
        known = self._known.get(digest)
        session = known.session if known and known.until > self._clock() else await self._look_up(digest)
        return session if session is not None and session.expires_at > self._now() else None

    async def _look_up(self, digest: str) -> Session | None:
        known = self._known.get(digest)
        try:
            async with asyncio.timeout(5.0):
                session = await self._store.find(digest)
        except (StoreUnavailable, TimeoutError) as error:
            if known is None:
                raise StoreUnavailable("The database is away, and this session is not known here yet.") from error
            session = known.session  # nobody can log out while the database is away
        self._known.pop(digest, None)
        if session is not None:
            if len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[digest] = _Known(session, self._clock() + KNOWN_FOR_S)
        return session


def read_cookie(scope: Scope) -> str:
    """Read the secret of a request's session; empty where it shows none."""
    shown = dict(
        pair.strip().split("=", 1) for pair in read_header(scope, b"cookie").decode("latin-1").split(";") if "=" in pair
    )
    return shown.get(SECURE_COOKIE) or shown.get(COOKIE) or ""


def make_csrf_token(secret: str) -> str:
    """Make the token of a session that its page sends beside the cookie: derived, so that nothing is kept for it."""
    return hmac.new(secret.encode("utf-8", "surrogatepass"), b"mulligan csrf", hashlib.sha256).hexdigest()


def refuse_foreign(scope: Scope) -> None:
    """Refuse what a browser says that another site's page asked; another port of this host is another site here.

    Raises: Forbidden.
    """
    if read_header(scope, b"sec-fetch-site") not in _OURS:
        raise Forbidden("Another site's page asked this in your name.", code="csrf_failed")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()

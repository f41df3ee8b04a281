"""Knows who asks and what that key may do. The gate calls it before any route is looked up; routes state the scope.

A key is shown as a bearer token, or by the cookie of a login to the dashboard (`server.api.sessions`).

Keys are held as SHA-256 only, and a known key is asked for again after half a second, so that a revoked one is refused
within a second in every process. It must never log a secret. `docs/keys.md` is the same in words.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from server.api.sessions import Sessions, read_cookie
from server.api.wire import read_header
from server.domain import ApiKey, BindingMode, Role, Scope, Task, VerifierVersion
from server.errors import Forbidden, StoreUnavailable, Unauthorized
from server.store.keys import NOTED_EVERY_S

KNOWN_FOR_S = 0.5
_MOST_KNOWN = 4096

INFERENCE, READ, READ_ALL, APPROVE, ADMIN = "inference", "read", "read_all", "approve", "admin"
"""Scopes that only a role brings: run models; read what the key may use; read everything; move adapters; the rest."""

SCOPES_OF_ROLE: Mapping[Role, frozenset[str]] = {
    Role.CLIENT: frozenset({INFERENCE, READ}),
    Role.VIEWER: frozenset({READ, READ_ALL}),
    Role.APPROVER: frozenset({READ, READ_ALL, APPROVE}),
}
"""What each role brings; an admin key has every scope."""

USES_NOTED_EVERY_S = 5.0

_log = structlog.get_logger(__name__)


class KeySource(Protocol):
    """Where keys are looked up: `server.store.keys.KeyStore`."""

    async def by_sha256(self, digest: str) -> ApiKey | None:
        """Find a key by the hex SHA-256 of its secret."""
        ...

    async def note_uses(self, uses: Mapping[str, float]) -> None:
        """Write when keys were last used."""
        ...


@dataclass(slots=True)
class _Known:
    key: ApiKey | None
    until: float


class Keyring:
    """Recognises bearer keys, with a short memory."""

    def __init__(
        self,
        keys: KeySource,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._now = now
        self._uses: dict[str, float] = {}
        self._noted: dict[str, float] = {}
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
        return await self.recognise_digest(hashlib.sha256(secret.encode()).hexdigest())

    async def recognise_digest(self, digest: str) -> ApiKey:
        """Return the key whose secret has this SHA-256. Raises: Unauthorized, StoreUnavailable."""
        known = self._known.get(digest)
        key = known.key if known and known.until > self._clock() else await self._ask(digest)
        if key is None or key.revoked_at is not None:
            raise Unauthorized("The API key is unknown or revoked.")
        now = self._now()
        if key.expires_at is not None and key.expires_at <= now:
            raise Unauthorized("The API key has expired: ask for a new one.", code="expired_api_key")
        self._uses[key.id] = now
        return key

    async def note_uses(self) -> None:
        """Write when keys were last used, of each key once a minute: a loop's work, never a request's.

        Raises: StoreUnavailable; what was not written is written the next time.
        """
        recent = self._now() - NOTED_EVERY_S
        self._noted = {key_id: at for key_id, at in self._noted.items() if at > recent}
        uses = {key_id: at for key_id, at in self._uses.items() if key_id not in self._noted}
        if uses:
            await self._keys.note_uses(uses)
            self._noted |= uses
        for key_id, at in uses.items():
            if self._uses[key_id] == at:
                del self._uses[key_id]

    def forget(self, digest: str) -> None:
        """Look a key up again at its next use: it was revoked or changed."""
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


async def recognise_caller(scope: Any, keyring: Keyring, sessions: Sessions) -> ApiKey:
    """Return the key that a request shows: in its `Authorization` header or, without one, by the dashboard's cookie.

    Raises: Unauthorized, Forbidden where a cookie is shown by a page that is not ours, StoreUnavailable.
    """
    authorization = read_header(scope, b"authorization").decode("latin-1")
    if not authorization and (secret := read_cookie(scope)):
        return await sessions.recognise(scope, secret)
    return await keyring.recognise(authorization)


def may(key: ApiKey, scope: str) -> bool:
    """Say whether a key has a scope, by its role or given to it; an admin key has them all."""
    return key.role is Role.ADMIN or scope in SCOPES_OF_ROLE[key.role] or scope in key.scopes


def may_read_configs(key: ApiKey) -> bool:
    """Say whether a key may see what registered verifiers are made of: code, or what answers are compared with."""
    return any(may(key, scope) for scope in (READ_ALL, Scope.REGISTER_VERIFIERS, Scope.REGISTER_CODE))


def require_scope(key: ApiKey, *scopes: str) -> None:
    """Refuse a key that has none of the scopes.

    Raises: Forbidden.
    """
    if not (may(key, scopes[0]) or any(may(key, scope) for scope in scopes[1:])):
        has = f"the role {str(key.role)!r}" + (f" and the scopes {', '.join(key.scopes)}" if key.scopes else "")
        message = f"This needs {_name_need(scopes)}; the key {key.name!r} has {has}."
        raise Forbidden(f"{message} An admin can change its scopes, not its role, or make another.")


def _name_need(scopes: tuple[str, ...]) -> str:
    """Name scopes that can be given to a key, or else the roles that bring them: nobody can ask for those by scope."""
    if given := [scope for scope in Scope if scope in scopes]:
        return "the scope " + " or ".join(repr(str(scope)) for scope in given)
    brings = [role for role, brought in SCOPES_OF_ROLE.items() if brought.intersection(scopes)]
    return "the role " + " or ".join(repr(str(role)) for role in (*brings, Role.ADMIN))


def may_use_task(key: ApiKey, task: str) -> bool:
    """Say whether a key may use and see a task. For one that it may not, answer as if there were none."""
    return not key.tasks or task in key.tasks


def may_use_verifier(key: ApiKey, version: VerifierVersion, tasks: Mapping[str, Task]) -> bool:
    """Say whether a key may use and see a registered verifier: one of its tasks or its own. Likewise for the rest.

    One that a task only audits with is not shown to a client by that.
    """
    if not key.tasks or version.owner == key.id:
        return True
    pins = [*key.verifiers, *(pin for name in key.tasks if name in tasks for pin in tasks[name].verifiers)]
    return any(pin.name == version.name and pin.mode != BindingMode.AUDIT for pin in pins)

"""Repeats recorded answers: a request with an `Idempotency-Key` is answered once, however often it is sent.

Called by the gate for what generates. A request claims its idempotency key in the database before it runs, so that all
processes agree; its answer is recorded before the last byte is sent. Only what a repetition may rely on is kept:
successes and verification errors. It must never keep what `store: false` forbids to keep, nor show one API key
another's answer. `docs/how-it-answers.md` is the same in words.
"""

import hashlib
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec
import structlog

from server.api.wire import Scope, Send
from server.domain import ApiKey, new_id
from server.errors import (
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    InvalidRequest,
    StoreUnavailable,
    VerificationAbstained,
    VerificationFailed,
)
from server.redaction import Redact, RedactionFailed, is_clean
from server.store.episode_rows import hash_user
from server.store.replays import Claim, RecordedAnswer, Replay

HEADER = b"idempotency-key"
LEASE_S = 15.0
"""How long the claim of a process that died holds its idempotency key."""

INTERVAL_S = 3.0
"""How often the claims of living processes are renewed."""

SWEEP_INTERVAL_S = 60.0
MOST_BYTES = 16 * 2**20
"""The biggest answer that is kept."""

_LONGEST_RETRY_AFTER_S = 30
_NAME = re.compile(rb"[\x20-\x7e]{1,255}")
_REPEATED = frozenset({b"content-type", b"cache-control", b"x-accel-buffering"})

_log = structlog.get_logger(__name__)


class ReplaySource(Protocol):
    """Where answers are kept: `server.store.replays.ReplayStore`."""

    async def claim(self, claim: Claim, lease_s: float) -> Replay | None:
        """Take an idempotency key, or say what it stands for."""
        ...

    async def record(self, claim: Claim, answer: RecordedAnswer, keep_s: float) -> bool:
        """Record the answer of a claim."""
        ...

    async def release(self, claim: Claim) -> None:
        """Give an idempotency key back."""
        ...

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> None:
        """Hold claims for longer."""
        ...

    async def sweep(self) -> int:
        """Delete what has expired."""
        ...


class _Stored(msgspec.Struct):
    store: Any = None
    user: Any = None
    safety_identifier: Any = None


_read_stored = msgspec.json.Decoder(_Stored).decode


class Replays:
    """The recorded answers as one API process uses them. `keep_s` is how long an answer can be repeated.

    An answer in which `redact` would change anything is not kept: a repetition has to be what was answered.
    """

    def __init__(self, store: ReplaySource, keep_s: float, redact: Redact | None = None) -> None:
        self._store = store
        self._redact = redact
        self._keep_s = keep_s
        self._claims: dict[str, Claim] = {}
        self._swept_at = -math.inf

    async def answer_once(
        self, name: bytes, key: ApiKey, scope: Scope, *, body: bytes, send: Send, work: Callable[..., Awaitable[None]]
    ) -> None:
        """Answer a request with the idempotency key `name`: from the record, or by `work(send=...)`, and record that.

        Raises: InvalidRequest, IdempotencyKeyReused, IdempotencyKeyInUse, StoreUnavailable, and what the work raises.
        """
        owner, users = new_id("claim"), read_users(body)
        claim = Claim(key.id, read_name(name), _hash_request(scope, body), owner, users)
        refuse_unstored(body)
        found = await self._store.claim(claim, LEASE_S)
        if found is not None:
            await _replay(read_answer(found, claim), send)
            return
        self._claims[claim.owner] = claim
        recording = _Recording(send, partial(self._record, claim))
        try:
            await work(send=recording.send)
        finally:
            del self._claims[claim.owner]
            if not recording.kept:
                await self._release(claim)

    async def keep(self) -> None:
        """Renew the claims of what runs, and now and then delete what has expired: a loop's work.

        Raises: StoreUnavailable.
        """
        if self._claims:
            await self._store.renew([*self._claims.values()], LEASE_S)
        if time.monotonic() - self._swept_at >= SWEEP_INTERVAL_S:
            self._swept_at = time.monotonic()
            while await self._store.sweep():
                pass  # a bounded number of rows each time

    async def _record(self, claim: Claim, answer: RecordedAnswer) -> bool:
        if self._redact is not None and not _may_be_kept(answer, self._redact):
            _log.info("answer_not_kept", error="the redactor would change it")
            return False
        try:
            kept = await self._store.record(claim, answer, self._keep_s)
        except StoreUnavailable as error:
            _log.warning("answer_not_kept", error=str(error))  # the client has to get it all the same
            return False
        if not kept:
            _log.warning("answer_not_kept", error="the claim had expired meanwhile")
        return kept

    async def _release(self, claim: Claim) -> None:
        try:
            await self._store.release(claim)
        except StoreUnavailable as error:
            _log.warning("claim_not_released", error=str(error), expires_in_s=LEASE_S)


class _Recording:
    """Sends an answer on, and records it before its last byte if it is one to be repeated."""

    def __init__(self, send: Send, record: Callable[[RecordedAnswer], Awaitable[bool]]) -> None:
        self._send, self._record = send, record
        self._status = 0
        self._headers: list[tuple[str, str]] = []
        self._parts: list[bytes] = []
        self._length = 0
        self.kept = False

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a message of ASGI on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = [
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in message["headers"]
                if name in _REPEATED or name.startswith(b"x-mulligan-")
            ]
        else:
            self._take(message.get("body", b""))
            if not message.get("more_body", False) and self._is_final(message.get("error")):
                self.kept = await self._record(RecordedAnswer(self._status, self._headers, b"".join(self._parts)))
        await self._send(message)

    def _take(self, body: bytes) -> None:
        fitted = self._length <= MOST_BYTES
        self._length += len(body)
        if self._length <= MOST_BYTES:
            self._parts.append(body)
        elif fitted:
            self._parts.clear()
            _log.warning("answer_not_kept", error=f"it is over {MOST_BYTES} bytes")

    def _is_final(self, error: object) -> bool:
        """Say whether a repetition would be answered likewise. `error` is what a stream that had begun ended with."""
        if self._length > MOST_BYTES:
            return False
        if error is not None:
            return isinstance(error, VerificationFailed | VerificationAbstained)
        return 200 <= self._status < 300 or self._status == VerificationFailed.status


def read_name(header: bytes) -> str:
    """Read the value of an `Idempotency-Key` header. Raises: InvalidRequest."""
    if not _NAME.fullmatch(header):
        raise InvalidRequest("An Idempotency-Key has 1 to 255 characters of plain ASCII.", param="Idempotency-Key")
    return header.decode()


def refuse_unstored(body: bytes) -> None:
    """Refuse to repeat what may not be kept; an unreadable body is refused elsewhere. Raises: InvalidRequest."""
    try:
        stored = _read_stored(body).store
    except msgspec.DecodeError:
        return
    if stored is False:
        message = "With `store: false` no answer is kept that could be repeated: leave out that or the Idempotency-Key."
        raise InvalidRequest(message, param="store")


def read_users(body: bytes) -> tuple[str, str]:
    """Read whom a request names, as hashes; nobody where it cannot be read."""
    try:
        said = _read_stored(body)
    except msgspec.DecodeError:
        return ("", "")
    return hash_user(said.user), hash_user(said.safety_identifier)


def _may_be_kept(answer: RecordedAnswer, redact: Redact) -> bool:
    try:
        return is_clean(answer.body, redact)
    except RedactionFailed:
        return False


def read_answer(found: Replay, claim: Claim) -> RecordedAnswer:
    """Read the answer to repeat. Raises: IdempotencyKeyReused, IdempotencyKeyInUse."""
    if found.request_sha256 != claim.request_sha256:
        raise IdempotencyKeyReused("This Idempotency-Key was sent with another request: take a new one for this.")
    if found.answer is None:
        running = IdempotencyKeyInUse("The first request with this Idempotency-Key still runs. Send it again later.")
        # The longer it runs, the longer it may take: an SDK's few repetitions should reach its end.
        running.retry_after_s = min(max(1, math.ceil(found.age_s)), _LONGEST_RETRY_AFTER_S)
        raise running
    return found.answer


async def _replay(answer: RecordedAnswer, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    length = (b"content-length", str(len(answer.body)).encode())
    headers = [*headers, length, (b"x-mulligan-replayed", b"true")]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _hash_request(scope: Scope, body: bytes) -> str:
    return hashlib.sha256(scope["path"].encode() + b"\0" + body).hexdigest()

"""Every error that crosses a boundary.

Flat classes by the boundary crossed; picklable; rendered once, as OpenAI's error envelope, by `server.api.errors`.

MulliganError
├── request: InvalidRequest 400, Unauthorized 401, Forbidden 403, NotFound 404, Conflict 409, TooLarge 413,
│            TooManyRequests 429, InsufficientQuota 429, IdempotencyKeyInUse 409, IdempotencyKeyReused 422
├── verifier: VerificationFailed 422, VerificationAbstained 422
├── engine: EngineUnavailable 503 (EngineUnreached where nothing was sent), EngineTimeout 504,
│           EngineRefused 400, EngineBroken 502, Unsupported 400, AdapterMissing 503, AdapterRefused 400
├── store: StoreUnavailable 503
└── parts: PartFailed 500 (never in a request: a part of `mulligan up` would not start)
"""

from typing import Any


class MulliganError(Exception):
    """The root. `message` says what happened and what to do; `param` names the offending field, if one does."""

    status = 500
    type = "server_error"
    code: str | None = "internal_error"
    retry_after_s: int | None = None

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param, code)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        self.details: dict[str, Any] = {}
        self.headers: dict[str, str] = {}

    def __str__(self) -> str:
        return self.message


class InvalidRequest(MulliganError):
    """The request is wrong; the message says how to mend it."""

    status, type, code = 400, "invalid_request_error", None


class Unauthorized(MulliganError):
    """No key, or a wrong, revoked or expired (`expired_api_key`) one."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class Forbidden(MulliganError):
    """The key lacks a scope."""

    status, type, code = 403, "permission_error", "insufficient_scope"


class NotFound(MulliganError):
    """No such thing, or not this key's."""

    status, type, code = 404, "invalid_request_error", "not_found"


class Conflict(MulliganError):
    """It is there already, or its state does not allow this."""

    status, type, code = 409, "invalid_request_error", "conflict"


class TooLarge(MulliganError):
    """The body is over the limit."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class TooManyRequests(MulliganError):
    """Over a limit; come back later."""

    status, type, code, retry_after_s = 429, "rate_limit_error", "rate_limit_exceeded", 1


class InsufficientQuota(MulliganError):
    """The key's budget of tokens is used up."""

    status, type, code = 429, "insufficient_quota", "insufficient_quota"


class IdempotencyKeyInUse(MulliganError):
    """The first request with this idempotency key still runs: SDKs come back by themselves."""

    status, type, code, retry_after_s = 409, "idempotency_error", "idempotency_key_in_use", 1


class IdempotencyKeyReused(MulliganError):
    """The idempotency key was sent with another request before."""

    status, type, code = 422, "idempotency_error", "idempotency_key_reused"


class VerificationFailed(MulliganError):
    """No attempt passed and the policy says `on_failure: error`. `details` holds the verdicts."""

    status, type, code = 422, "verification_error", "verification_failed"


class VerificationAbstained(MulliganError):
    """The verifiers could not judge and the policy says `on_abstain: error`."""

    status, type, code = 422, "verification_error", "verification_abstained"


class EngineUnavailable(MulliganError):
    """The engine is away or still starting."""

    status, type, code, retry_after_s = 503, "server_error", "engine_unavailable", 2


class EngineUnreached(EngineUnavailable):
    """No connection to the engine came about, so nothing was sent: another engine may be asked the same."""


class EngineTimeout(MulliganError):
    """The engine did not answer in time."""

    status, type, code = 504, "server_error", "engine_timeout"


class EngineRefused(MulliganError):
    """The engine called the request bad."""

    status, type, code = 400, "invalid_request_error", "engine_refused"


class EngineBroken(MulliganError):
    """The engine answered with an error of its own, or with something that is not an answer."""

    status, type, code = 502, "server_error", "engine_error"


class Unsupported(MulliganError):
    """The engine that is running cannot do this at all; another one could."""

    status, type, code = 400, "invalid_request_error", "unsupported_by_engine"


class AdapterMissing(MulliganError):
    """The adapter of a request is not loaded in the engine (it will be, once the engine is reconciled)."""

    status, type, code, retry_after_s = 503, "server_error", "adapter_missing", 2


class AdapterRefused(MulliganError):
    """The engine would not load an adapter."""

    status, type, code = 400, "invalid_request_error", "adapter_refused"


class StoreUnavailable(MulliganError):
    """The log cannot take an episode: the database is away and the spool is full or unwritable."""

    status, type, code, retry_after_s = 503, "server_error", "store_unavailable", 5


class Fenced(MulliganError):
    """A trainer wrote with an old epoch: another one holds the round now. It must stop."""

    status, type, code = 409, "invalid_request_error", "fenced"


class PartFailed(MulliganError):
    """A part of `mulligan up` (engine, API, worker, beat) would not start. The message ends with its log's end."""

    status, type, code = 500, "server_error", "part_failed"

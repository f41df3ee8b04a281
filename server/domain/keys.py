"""API keys: who may do what, and how much of it."""

from dataclasses import dataclass
from enum import StrEnum

from server.domain.verifiers import TaskVerifier


class Role(StrEnum):
    """What a key is for."""

    CLIENT = "client"  # asks models; sees its own episodes and the tasks and verifiers that it may use
    VIEWER = "viewer"  # sees everything and runs nothing
    APPROVER = "approver"  # a viewer who also moves adapters and cancels rounds
    ADMIN = "admin"  # everything


class Scope(StrEnum):
    """What a client key may do beyond its role; an admin key has them all, other roles have none."""

    INLINE_VERIFIERS = "inline_verifiers"  # give verifiers by kind in a request
    REGISTER_VERIFIERS = "register_verifiers"  # register verifiers whose kind has no code
    REGISTER_CODE = "register_code"  # register code as a verifier, or give it inline
    REGISTER_WEBHOOKS = "register_webhooks"  # have the server call an address of the client's
    PIN_ADAPTERS = "pin_adapters"  # name an adapter that is not the champion as the model


DEFAULT_SCOPES = (Scope.INLINE_VERIFIERS,)
"""What a new client key has where nothing else is said."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may use, over all processes together; None is no limit. `docs/keys.md` has the exact meaning.

    `token_budget` counts prompt and completion tokens of everything that was run for the key within a UTC day, a UTC
    month, or in all.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    token_budget: int | None = None
    budget_period: str = "total"  # or "day", "month"

    @property
    def any(self) -> bool:
        """Whether there is any limit at all."""
        return not (
            self.requests_per_minute is None
            and self.tokens_per_minute is None
            and self.max_concurrent is None
            and self.token_budget is None
        )


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as the server knows it: never the secret, only its SHA-256.

    `tasks` are the only ones that a client key may use and see; empty means all. `trains` is false where nothing that
    the key asks may be trained on. `verifiers` check the key's requests where neither the request nor the task names
    any. `last_used_at` is up to a minute old.
    """

    id: str
    name: str
    sha256: str
    role: Role = Role.CLIENT
    scopes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    limits: KeyLimits = KeyLimits()
    trains: bool = True
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None
    verifiers: tuple[TaskVerifier, ...] = ()

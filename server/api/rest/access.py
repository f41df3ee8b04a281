"""What a route needs of the key that the gate recognised. Every router states a scope; a test walks them all."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request

from server.api.auth import require_scope
from server.domain import ApiKey
from server.errors import Unauthorized


async def read_key(request: Request) -> ApiKey:
    """Return the key that the gate recognised. Raises: Unauthorized where the gate was not passed."""
    key = getattr(request.state, "key", None)
    if key is None:
        raise Unauthorized("Give an API key as `Authorization: Bearer mk-...`.")
    return key


Caller = Annotated[ApiKey, Depends(read_key)]


def needs(*scopes: str) -> Callable[[ApiKey], Awaitable[None]]:
    """Make the dependency that refuses keys with none of the scopes."""

    async def check(key: Caller) -> None:
        require_scope(key, *scopes)

    return check

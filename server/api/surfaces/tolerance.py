"""Reads requests of tasks that say `unknown_fields: ignore`. Called by the surfaces.

Who may ignore is decided by the task that the request names, and a key that may not use that task is refused as if it
did not exist.
"""

from collections.abc import Callable
from typing import TypeVar

from server.api.auth import may_use_task
from server.api.chat_request import ChatRequest
from server.api.context import Context
from server.api.surfaces.chat import may_ignore, name_task
from server.domain import ApiKey
from server.errors import InvalidRequest

T = TypeVar("T")


def read_tolerantly(read: Callable[[bool], T], body: bytes, context: Context) -> tuple[T, InvalidRequest | None]:
    """Read a request, and once more without its unknown fields where its task wants that; then with the refusal.

    `read` is told whether to ignore them.

    Raises: InvalidRequest.
    """
    try:
        return read(False), None
    except InvalidRequest as error:
        if not may_ignore(error, body, context):
            raise
        return read(True), error


def check_tolerated(refusal: InvalidRequest | None, request: ChatRequest, key: ApiKey, context: Context) -> None:
    """Refuse after all where the task that ignores unknown fields is none of this key's. Raises: InvalidRequest."""
    if refusal is not None and not may_use_task(key, name_task(request.model, request.task, context)):
        raise refusal

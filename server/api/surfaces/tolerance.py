"""Reads requests of tasks that say `unknown_fields: ignore`. Called by the surfaces.

Who may ignore is decided by the task that the request names, and a key that may not use that task is refused as if it
did not exist.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from server.api.auth import may_use_task
from server.api.chat_request import ChatRequest, decode_json
from server.api.context import Context
from server.domain import DEFAULT_TASK, ApiKey
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
        if not _may_ignore(error, body, context):
            raise
        return read(True), error


def check_tolerated(refusal: InvalidRequest | None, request: ChatRequest, key: ApiKey, context: Context) -> None:
    """Refuse after all where the task that ignores unknown fields is none of this key's. Raises: InvalidRequest."""
    if refusal is not None and not may_use_task(key, _name_task(request.model, request.task, context)):
        raise refusal


def _may_ignore(error: InvalidRequest, body: bytes, context: Context) -> bool:
    """Say whether a request was refused for a field that its task wants to be ignored."""
    if error.code != "unknown_field":
        return False
    fields = decode_json(body)
    task = context.roster.snapshot.tasks.get(_name_task(fields.get("model"), fields.get("task"), context))
    return task is not None and task.unknown_fields == "ignore"


def _name_task(model: Any, task: Any, context: Context) -> str:
    """Name the task that a request would be served under, if there is one of that name."""
    if model == context.settings.engine.model_name:
        return task if isinstance(task, str) else DEFAULT_TASK
    return model.partition("@")[0] if isinstance(model, str) else ""

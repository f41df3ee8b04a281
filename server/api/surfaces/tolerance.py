"""Reads requests of tasks that say `unknown_fields: ignore`. Called by the surfaces.

Who may ignore is decided by the task that the request names. A key that may not use that task is refused as if it did
not exist, whatever else is wrong with the request.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from server.api.auth import may_use_task
from server.api.chat_request import decode_json
from server.api.context import Context
from server.domain import DEFAULT_TASK, ApiKey
from server.errors import InvalidRequest

T = TypeVar("T")


def read_tolerantly(read: Callable[[bool], T], body: bytes, key: ApiKey, context: Context) -> T:
    """Read a request, and once more without its unknown fields where its task wants that.

    `read` is told whether to ignore them.

    Raises: InvalidRequest.
    """
    try:
        return read(False)
    except InvalidRequest as error:
        if not _may_ignore(error, body, key, context):
            raise
    return read(True)


def _may_ignore(error: InvalidRequest, body: bytes, key: ApiKey, context: Context) -> bool:
    """Say whether a request was refused for a field that its task wants to be ignored."""
    if error.code != "unknown_field":
        return False
    fields = decode_json(body)
    name = _name_task(fields.get("model"), fields.get("task"), context)
    task = context.roster.snapshot.tasks.get(name) if may_use_task(key, name) else None
    return task is not None and task.unknown_fields == "ignore"


def _name_task(model: Any, task: Any, context: Context) -> str:
    """Name the task that a request would be served under, if there is one of that name."""
    if model == context.settings.engine.model_name:
        return task if isinstance(task, str) else DEFAULT_TASK
    return model.partition("@")[0] if isinstance(model, str) else ""

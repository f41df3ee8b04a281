"""`GET /v1/models`: what a client may name as its model. The base model, tasks and adapters, as far as the key may."""

from typing import Any

from fastapi import APIRouter, Depends

from server.api.auth import READ, READ_ALL, may, may_use_task
from server.api.context import Context, Rooms
from server.api.rest.access import Caller, needs
from server.domain import DEFAULT_TASK, Adapter, AdapterStatus, ApiKey, Scope, Task
from server.errors import NotFound

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(needs(READ))])


@router.get("")
async def list_models(rooms: Rooms, key: Caller) -> dict[str, Any]:
    """List what can be named as `model`."""
    return {"object": "list", "data": await _models(rooms, key)}


@router.get("/{model:path}")
async def show_model(model: str, rooms: Rooms, key: Caller) -> dict[str, Any]:
    """Show one of them."""
    for found in await _models(rooms, key):
        if found["id"] == model:
            return found
    raise NotFound(
        f"There is no model {model[:80]!r}: GET /v1/models lists what there is.", param="model", code="model_not_found"
    )


async def _models(rooms: Context, key: ApiKey) -> list[dict[str, Any]]:
    tasks = (await rooms.roster.refresh()).tasks.values()
    adapters = await rooms.adapters.list() if may(key, READ_ALL) or may(key, Scope.PIN_ADAPTERS) else []
    about = {"kind": "base", "path": rooms.settings.engine.model} if may(key, READ_ALL) else {"kind": "base"}
    base = _render(rooms.settings.engine.model_name, 0.0, about)
    return [
        *([base] if may_use_task(key, DEFAULT_TASK) else []),  # named alone, it is served under that task's policy
        *(_render_task(task) for task in tasks if may_use_task(key, task.name)),
        *(
            _render_adapter(adapter)
            for adapter in adapters
            if adapter.status is not AdapterStatus.REJECTED and may_use_task(key, adapter.task)
        ),
    ]


def _render_task(task: Task) -> dict[str, Any]:
    return _render(task.name, task.created_at, {"kind": "task", "champion": task.champion, "verify": task.verify})


def _render_adapter(adapter: Adapter) -> dict[str, Any]:
    about = {"kind": "adapter", "task": adapter.task, "status": adapter.status, "forced": adapter.forced}
    return _render(adapter.name, adapter.created_at, about)


def _render(name: str, created_at: float, about: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created_at), "owned_by": "mulligan", "mulligan": about}

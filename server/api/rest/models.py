"""`GET /v1/models`: what a client may name as its model. The base model, the tasks, and for admin keys the adapters."""

from typing import Any

from fastapi import APIRouter, Depends

from server.api.auth import may
from server.api.context import Context, Rooms
from server.api.rest.access import Caller, needs
from server.domain import Adapter, ApiKey, Task
from server.errors import NotFound

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(needs("inference"))])


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
    raise NotFound(f"There is no model, task or adapter {model!r}.", param="model", code="model_not_found")


async def _models(rooms: Context, key: ApiKey) -> list[dict[str, Any]]:
    tasks = (await rooms.roster.refresh()).tasks.values()
    adapters = await rooms.adapters.list() if may(key, "admin") else []
    base = {"kind": "base", "path": rooms.settings.engine.model} if may(key, "admin") else {"kind": "base"}
    return [
        _render(rooms.settings.engine.model_name, 0.0, base),
        *(_render_task(task) for task in tasks),
        *(_render_adapter(adapter) for adapter in adapters),
    ]


def _render_task(task: Task) -> dict[str, Any]:
    return _render(task.name, task.created_at, {"kind": "task", "champion": task.champion, "verify": task.verify})


def _render_adapter(adapter: Adapter) -> dict[str, Any]:
    about = {"kind": "adapter", "task": adapter.task, "status": adapter.status, "forced": adapter.forced}
    return _render(adapter.name, adapter.created_at, about)


def _render(name: str, created_at: float, about: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created_at), "owned_by": "mulligan", "mulligan": about}

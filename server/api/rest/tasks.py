"""`/v1/tasks`: named lines of work. A key reads those that it may use; admins make and change them.

A task's verifiers are pinned when it is written: a later version of a verifier changes no task by itself.
"""

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from fastapi import APIRouter, Depends

from server.api.auth import ADMIN, READ, READ_ALL, may, may_use_task
from server.api.context import Context, Rooms
from server.api.rest.access import Caller, needs
from server.api.rest.pins import pin_verifiers
from server.api.rest.schemas import Page, TaskBody, TaskChanges, TaskView
from server.domain import ApiKey, BindingMode, CanaryPolicy, Event, RetryPolicy, Task, TrainingPolicy
from server.errors import Conflict, InvalidRequest, NotFound
from server.orchestration.canary_policy import read_canary_policy
from server.orchestration.progress import read_progress
from server.orchestration.training_options import check_options

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])
admin = [Depends(needs(ADMIN))]
reader = [Depends(needs(READ))]


@router.get("", dependencies=reader)
async def list_tasks(rooms: Rooms, key: Caller) -> Page[Task]:
    """List the tasks that the key may use."""
    return Page(data=[_show(task, key) for task in await rooms.tasks.list() if may_use_task(key, task.name)])


@router.get("/{name}", dependencies=reader)
async def show_task(name: str, rooms: Rooms, key: Caller) -> TaskView:
    """Show a task, and to keys that read everything its `progress`: how far it is from its next round and its gate."""
    if not may_use_task(key, name):
        raise _no_task(name)
    task = await find_task(name, rooms)
    progress = await read_progress(task, rooms.database, rooms.round_sizes) if may(key, READ_ALL) else None
    shown = _show(task, key)
    return TaskView(**{field.name: getattr(shown, field.name) for field in fields(shown)}, progress=progress)


@router.post("", dependencies=admin, status_code=201)
async def create_task(body: TaskBody, rooms: Rooms, key: Caller) -> Task:
    """Make a task: its name is what clients give as their model."""
    if body.name == rooms.settings.engine.model_name:
        raise Conflict(f"{body.name!r} is the id of the base model.", param="name")
    task = Task(body.name, created_at=time.time())
    task = await rooms.tasks.create(replace(task, **await _read_changes(body, task, rooms)))
    await _note("task.created", task, key, rooms)
    return task


@router.patch("/{name}", dependencies=admin)
async def change_task(name: str, body: TaskChanges, rooms: Rooms, key: Caller) -> Task:
    """Change a task's policies. Its champion is moved by a promotion or a rollback only."""
    changes = await _read_changes(body, await find_task(name, rooms), rooms)
    task = await rooms.tasks.update(name, **changes)
    await _note("task.changed", task, key, rooms, sorted(changes))
    return task


def _show(task: Task, key: ApiKey) -> Task:
    """Leave out what a task audits with, which who is measured must not learn, and the ids of others' keys."""
    if may(key, READ_ALL):
        return task
    pins = tuple(pin for pin in task.verifiers if pin.mode != BindingMode.AUDIT)
    return replace(task, verifiers=pins, training=replace(task.training, trust_feedback=(), audit_off=()))


async def find_task(name: str, rooms: Context) -> Task:
    """Find a task. Raises: NotFound."""
    task = await rooms.tasks.get(name)
    if task is None:
        raise _no_task(name)
    return task


def _no_task(name: str) -> NotFound:
    return NotFound(f"There is no task {name!r}.", param="task", code="task_not_found")


async def _note(kind: str, task: Task, key: ApiKey, rooms: Context, changed: list[str] | None = None) -> None:
    details = {"changed": changed} if changed else {}
    await rooms.events.add(Event(kind, task.name, key.id, details, time.time()))
    await rooms.roster.refresh()


async def _read_changes(body: TaskChanges, task: Task, rooms: Context) -> dict[str, Any]:
    """Read what a body changes of a task, policies merged field by field; null puts a limit back to none."""
    changes: dict[str, Any] = {}
    if body.verifiers is not None:
        changes["verifiers"] = await pin_verifiers(body.verifiers, rooms, task.verifiers)
    if body.verify is not None:
        changes["verify"] = body.verify
    if body.retry is not None:
        changes["retry"] = replace(task.retry, **_named(body.retry.model_dump(exclude_unset=True), RetryPolicy()))
        if changes["retry"].max_retries > (most := rooms.settings.limits.max_retries):
            raise InvalidRequest(f"At most {most} retries are taken.", param="retry.max_retries")
    if body.unknown_fields is not None:
        changes["unknown_fields"] = body.unknown_fields
    if body.training is not None:
        named = _named(body.training.model_dump(exclude_unset=True), TrainingPolicy())
        if named.get("canary") is not None:
            named["canary"] = _read_canary(named["canary"], task)
        changes["training"] = replace(task.training, **named)
        await check_options(named.get("options") or {})
        await _check_trusted(named.get("trust_feedback") or (), rooms)
    if body.prompts is not None:
        given = body.prompts.model_dump(exclude_unset=True)
        merged = {**task.prompts, **given}
        changes["prompts"] = {name: text for name, text in merged.items() if text is not None}
    return changes


def _read_canary(given: dict[str, Any], task: Task) -> CanaryPolicy:
    """Read what is given of a canary's policy; null is the default, but takes the latency's bound away."""
    default, latency = CanaryPolicy(), "latency_ratio"
    said = {
        name: getattr(default, name) if value is None and name != latency else value for name, value in given.items()
    }
    return read_canary_policy(said, task.training.canary, "training.canary")


async def _check_trusted(key_ids: Sequence[str], rooms: Context) -> None:
    """Refuse to trust a key that there is not: feedback would be trusted that nobody can send."""
    known = {key.id for key in await rooms.keys.list()} if key_ids else set()
    if missing := [key_id for key_id in key_ids if key_id not in known]:
        raise InvalidRequest(f"There is no key {missing[0]!r}.", param="training.trust_feedback")


def _named(given: dict[str, Any], default: RetryPolicy | TrainingPolicy) -> dict[str, Any]:
    return {name: getattr(default, name) if value is None else value for name, value in given.items()}

"""`/v1/tasks`: named lines of work. A key reads those that it may use; admins make and change them.

A task's verifiers are pinned when it is written: a later version of a verifier changes no task by itself.
"""

import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends

from server.api.auth import ADMIN, READ, may_use_task
from server.api.context import Context, Rooms
from server.api.resolution import check_when
from server.api.rest.access import Caller, needs
from server.api.rest.schemas import NAME, VERSION, Page, TaskBody, TaskChanges, TaskVerifierBody
from server.domain import ApiKey, Event, RetryPolicy, Task, TaskVerifier, TrainingPolicy
from server.errors import Conflict, InvalidRequest, NotFound

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])
admin = [Depends(needs(ADMIN))]
reader = [Depends(needs(READ))]


@router.get("", dependencies=reader)
async def list_tasks(rooms: Rooms, key: Caller) -> Page[Task]:
    """List the tasks that the key may use."""
    return Page(data=[task for task in await rooms.tasks.list() if may_use_task(key, task.name)])


@router.get("/{name}", dependencies=reader)
async def show_task(name: str, rooms: Rooms, key: Caller) -> Task:
    """Show a task."""
    if not may_use_task(key, name):
        raise _no_task(name)
    return await find_task(name, rooms)


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
        pins = [await _pin(entry, f"verifiers[{index}]", rooms) for index, entry in enumerate(body.verifiers)]
        changes["verifiers"] = tuple(pins)
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
        changes["training"] = replace(task.training, **named)
    if body.prompts is not None:
        given = body.prompts.model_dump(exclude_unset=True)
        merged = {**task.prompts, **given}
        changes["prompts"] = {name: text for name, text in merged.items() if text is not None}
    return changes


def _named(given: dict[str, Any], default: RetryPolicy | TrainingPolicy) -> dict[str, Any]:
    return {name: getattr(default, name) if value is None else value for name, value in given.items()}


async def _pin(entry: str | TaskVerifierBody, param: str, rooms: Context) -> TaskVerifier:
    if isinstance(entry, str):
        name, at, version = entry.partition("@")
        if not NAME.fullmatch(name) or (at and not VERSION.fullmatch(version)):
            raise InvalidRequest(f"{entry!r} is not of the form name or name@version.", param=param)
        entry = TaskVerifierBody(name=name, version=int(version) if version else None)
    found = await rooms.verifiers.get(entry.name, entry.version)
    if found is None:
        raise InvalidRequest(f"There is no verifier {entry.name!r} of that version.", param=param)
    check_when(entry.when, param)
    return TaskVerifier(found.name, found.version, entry.args, entry.when)

"""Knows the tasks, their champions and the newest verifiers, without asking the database in a request.

A snapshot is read every quarter of a second by `server.api.watch` and after every write of this process, and swapped
in one step. An episode takes its champion from the snapshot in the same step that counts it in flight, so that a
process which acknowledges a generation begins no more episodes with an older one.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from server.domain import Binding, Task, VerifierVersion
from server.errors import InvalidRequest
from server.orchestration.verification import VerifierSet


class TaskSource(Protocol):
    """Where tasks are read: `server.store.tasks.TaskStore`."""

    async def list(self) -> list[Task]:
        """List all tasks."""
        ...


class VerifierSource(Protocol):
    """Where verifiers are read: `server.store.verifiers.VerifierStore`."""

    async def get(self, name: str, version: int | None = None) -> VerifierVersion | None:
        """Find a version; the latest without one."""
        ...

    async def list(self) -> list[VerifierVersion]:
        """List the latest version of each verifier."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was true at one moment. `bindings` are each task's own verifiers."""

    tasks: Mapping[str, Task] = field(default_factory=dict)
    bindings: Mapping[str, tuple[Binding, ...]] = field(default_factory=dict)
    latest: Mapping[str, VerifierVersion] = field(default_factory=dict)
    bound: dict[str, VerifierSet] = field(default_factory=dict, compare=False)
    """Each task's own verifiers, compiled and checked when they were first used."""

    def acknowledged(self) -> dict[str, int]:
        """Read the champion's generation that new episodes of each task use."""
        return {task.name: task.generation for task in self.tasks.values()}


class Roster:
    """The newest snapshot, and the way to a newer one."""

    def __init__(self, tasks: TaskSource, verifiers: VerifierSource) -> None:
        self._tasks = tasks
        self._verifiers = verifiers
        self._versions: dict[tuple[str, int], VerifierVersion] = {}  # immutable, so never read twice
        self._reading = asyncio.Lock()
        self._reads = 0
        self.snapshot = Snapshot()

    async def refresh(self) -> Snapshot:
        """Read a snapshot that is not older than this call. Raises: StoreUnavailable."""
        wanted = self._reads + (2 if self._reading.locked() else 1)  # one that is under way may have read too early
        async with self._reading:
            if self._reads < wanted:
                self.snapshot = await self._read()
                self._reads += 1
            return self.snapshot

    async def find_task(self, name: str) -> Task | None:
        """Find a task; one that another process made a moment ago, too."""
        return self.snapshot.tasks.get(name) or (await self.refresh()).tasks.get(name)

    async def find_verifier(self, name: str, version: int | None = None) -> VerifierVersion | None:
        """Find a version of a verifier; the latest without one."""
        latest = self.snapshot.latest.get(name) or (await self.refresh()).latest.get(name)
        if latest is None or version in (None, latest.version):
            return latest
        return await self._find_version(name, version)

    async def _read(self) -> Snapshot:
        tasks = {task.name: task for task in await self._tasks.list()}
        latest = {one.name: one for one in await self._verifiers.list()}
        self._versions.update({(one.name, one.version): one for one in latest.values()})
        bindings = {task.name: await self._bind_task(task) for task in tasks.values()}
        return Snapshot(tasks, bindings, latest)

    async def _bind_task(self, task: Task) -> tuple[Binding, ...]:
        bindings = []
        for pin in task.verifiers:
            version = await self._find_version(pin.name, pin.version)
            if version is not None:  # there is no way to remove one; without it `check_bindings` refuses the task
                bindings.append(make_binding(version, pin.args, pin.when))
        return tuple(bindings)

    async def _find_version(self, name: str, version: int) -> VerifierVersion | None:
        known = self._versions.get((name, version))
        if known is None and (known := await self._verifiers.get(name, version)) is not None:
            self._versions[name, version] = known
        return known


def make_binding(version: VerifierVersion, args: Mapping, when: Mapping) -> Binding:
    """Bind a registered version."""
    return Binding(version.kind, version.config, version.name, version.version, args, when)


def check_bindings(task: Task, bindings: tuple[Binding, ...]) -> None:
    """Refuse a task one of whose verifiers is gone: an answer would pass unchecked.

    Raises: InvalidRequest.
    """
    if len(bindings) != len(task.verifiers):
        raise InvalidRequest(f"A verifier of the task {task.name!r} is not registered.", param="task")

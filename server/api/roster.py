"""Knows the tasks, their champions and the newest verifiers, without asking the database in a request.

A snapshot is read every quarter of a second by `server.api.watch` and after every write of this process, and swapped
in one step. An episode takes its champion from the snapshot in the same step that counts it in flight, so that a
process which acknowledges a generation begins no more episodes with an older one.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from server.domain import Binding, BindingMode, Task, VerifierVersion
from server.errors import InvalidRequest
from server.orchestration.verification import VerifierSet
from server.store.verifiers import Withdrawn


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
        """List the latest version of each verifier that is not archived."""
        ...

    async def newest(self) -> Mapping[str, int]:
        """Find the number of the latest version of each verifier that may be bound."""
        ...

    async def withdrawn(self) -> Sequence[Withdrawn]:
        """List the versions that were archived or revoked."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was true at one moment. `bindings` are each task's own verifiers, `latest` those that may be bound.

    `revoked` says of each version that was revoked, by its pin, why.
    """

    tasks: Mapping[str, Task] = field(default_factory=dict)
    bindings: Mapping[str, tuple[Binding, ...]] = field(default_factory=dict)
    latest: Mapping[str, VerifierVersion] = field(default_factory=dict)
    revoked: Mapping[str, str] = field(default_factory=dict)
    bound: dict[tuple[str, str], VerifierSet] = field(default_factory=dict, compare=False)
    """The verifiers of requests that name none, by task and key, compiled and checked when they were first used; the
    key is "" where it has no part in them."""

    def acknowledged(self) -> dict[str, int]:
        """Read the champion's generation that new episodes of each task use."""
        return {task.name: task.generation for task in self.tasks.values()}


class Roster:
    """The newest snapshot, and the way to a newer one."""

    def __init__(self, tasks: TaskSource, verifiers: VerifierSource) -> None:
        self._tasks = tasks
        self._verifiers = verifiers
        self._versions: dict[tuple[str, int], VerifierVersion] = {}  # read once: what may change of them is `withdrawn`
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
        """Find a version of a verifier, a withdrawn one too; without a number the latest that may be bound, if any."""
        if version is not None:
            return await self.find_version(name, version)
        latest = self.snapshot.latest.get(name) or (await self.refresh()).latest.get(name)
        return latest or await self._verifiers.get(name)

    async def find_version(self, name: str, version: int) -> VerifierVersion | None:
        """Find exactly this version."""
        known = self._versions.get((name, version))
        if known is None and (known := await self._verifiers.get(name, version)) is not None:
            self._versions[name, version] = known
        return known

    async def _read(self) -> Snapshot:
        withdrawn = await self._verifiers.withdrawn()  # first: what a revocation changed of a task is never read later
        tasks = {task.name: task for task in await self._tasks.list()}
        newest = await self._verifiers.newest()
        if not self._versions:
            self._versions = {(one.name, one.version): one for one in await self._verifiers.list()}
        # One by one: a configuration may be big, and reading all of them four times a second would hold up everybody.
        found = [await self.find_version(name, number) for name, number in newest.items()]
        for one in withdrawn:
            if (known := self._versions.get((one.name, one.version))) is not None:
                state = {"archived_at": one.archived_at, "revoked_at": one.revoked_at}
                known = replace(known, **state, revoked_reason=one.revoked_reason)
                self._versions[one.name, one.version] = known
        bindings = {task.name: await self._bind_task(task) for task in tasks.values()}
        latest = {one.name: one for one in found if one is not None}
        revoked = {one.pin: one.revoked_reason for one in withdrawn if one.revoked_at is not None}
        return Snapshot(tasks, bindings, latest, revoked)

    async def _bind_task(self, task: Task) -> tuple[Binding, ...]:
        bindings = []
        for pin in task.verifiers:
            version = await self.find_version(pin.name, pin.version)
            if version is not None:  # there is no way to remove one; without it `check_bindings` refuses the task
                bindings.append(make_binding(version, pin.args, pin.when, pin.mode))
        return tuple(bindings)


def make_binding(
    version: VerifierVersion, args: Mapping, when: Mapping, mode: BindingMode = BindingMode.ENFORCE
) -> Binding:
    """Bind a registered version."""
    return Binding(version.kind, version.config, version.name, version.version, args, when, mode)


def check_bindings(task: Task, bindings: tuple[Binding, ...]) -> None:
    """Refuse a task one of whose verifiers is gone: an answer would pass unchecked.

    Raises: InvalidRequest.
    """
    if len(bindings) != len(task.verifiers):
        raise InvalidRequest(f"A verifier of the task {task.name!r} is not registered.", param="task")

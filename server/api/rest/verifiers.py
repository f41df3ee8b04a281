"""`/v1/verifiers`: what checks answers. Registered versions are immutable; trying one runs the very path that serves.

A client key sees those that it may use, and what they are made of only where it may register some itself: a
configuration may be code, or carry what answers are compared with.
"""

import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from server.api.auth import ADMIN, READ, READ_ALL, may, may_read_configs, may_use_task, may_use_verifier, require_scope
from server.api.binding import bind_checked, find_scopes
from server.api.context import Context, Rooms
from server.api.render import render_verdict
from server.api.rest.access import Caller, needs
from server.api.rest.schemas import (
    Count,
    KindView,
    Page,
    RegisteredView,
    RevocationBody,
    TrialView,
    VerifierBody,
    VerifierTrial,
    VerifierView,
)
from server.api.rest.trials import compile_checked, try_sample
from server.api.roster import make_binding
from server.domain import ApiKey, BindingMode, Event, Scope, VerifierVersion
from server.errors import Conflict, Forbidden, InvalidRequest, NotFound
from server.store.agreement import MOST_ATTEMPTS, NEWEST_ATTEMPTS, Agreement, measure_agreement
from server.store.verifiers import OF_OWNER
from server.store.withdrawals import Archival, Revocation, Withdrawals
from verifiers.registry import kinds

REGISTER = (Scope.REGISTER_VERIFIERS, Scope.REGISTER_CODE, Scope.REGISTER_WEBHOOKS)

router = APIRouter(prefix="/v1/verifiers", tags=["verifiers"])
reader = [Depends(needs(READ))]
registrar = [Depends(needs(*REGISTER))]


@router.post("", dependencies=registrar, status_code=201)
async def add_verifier(body: VerifierBody, rooms: Rooms, key: Caller, response: Response) -> RegisteredView:
    """Register a verifier, or its next version; 200 and the newest version where that says the same already.

    A `sample` is judged first, as a request would be; nothing is registered where it goes against its `expect`.
    """
    for scope in find_scopes(body.kind, body.config) or (Scope.REGISTER_VERIFIERS,):
        require_scope(key, scope)
    latest = await rooms.verifiers.get(body.name)
    if latest is not None and not _may_use(key, latest, rooms):
        raise Conflict(f"The name {body.name!r} is taken.", param="name")
    if latest is not None and not _may_change(key, latest):
        raise Forbidden(f"The next version of {body.name!r} {OF_OWNER}", param="name")
    verifier = await compile_checked(body.kind, body.config)
    trial = None if body.sample is None else await try_sample(body.kind, body.config, verifier, body.sample)
    version, made = await rooms.verifiers.register(
        body.name, body.kind, body.config, body.description, owner=key.id, own_only=not may(key, ADMIN)
    )
    if made:
        details = {"version": version.version, "kind": version.kind}
        await rooms.events.add(Event("verifier.added", version.name, key.id, details, time.time()))
        await rooms.roster.refresh()
    else:
        response.status_code = 200
    return RegisteredView(**_show(version, key).model_dump(), trial=TrialView(**trial) if trial else None)


@router.get("", dependencies=reader)
async def list_verifiers(rooms: Rooms, key: Caller, *, archived: bool = False) -> Page[VerifierView]:
    """List the latest version of each verifier that the key may use; archived ones where `archived` asks for them."""
    found = await rooms.verifiers.list(archived=archived)
    return Page(data=[_show(one, key) for one in found if _may_use(key, one, rooms)])


@router.get("/kinds", dependencies=reader)
async def list_kinds() -> Page[KindView]:
    """List the kinds of verifiers, with the schemas of their configurations and of their arguments."""
    return Page(
        data=[
            KindView(
                name=kind.name, summary=kind.summary, config_schema=kind.config_schema, args_schema=kind.args_schema
            )
            for kind in kinds().values()
        ]
    )


@router.get("/{name}", dependencies=reader)
async def show_verifier(name: str, rooms: Rooms, key: Caller, version: Count | None = None) -> VerifierView:
    """Show a version of a verifier; the latest where none is named."""
    return _show(await _find(name, version, rooms, key), key)


@router.delete("/{name}", dependencies=registrar)
async def archive_verifier(name: str, rooms: Rooms, key: Caller, version: Count | None = None) -> Page[VerifierView]:
    """Archive a verifier, or one version: nothing new is bound to it. For admins and the key that owns the name."""
    found = await _find(name, version, rooms, key)
    if not _may_change(key, found):
        raise Forbidden(f"{name!r} is archived by an admin, or by the key that registered the name first.")
    archival = await Withdrawals(rooms.database).archive(name, version, actor=key.id)
    if archival.still_pinned:
        raise Conflict(_say_who_pins(name, archival, key, rooms), code="verifier_pinned")
    await rooms.roster.refresh()
    return Page(data=[_show(one, key) for one in archival.versions])


@router.get("/{name}/versions", dependencies=reader)
async def list_versions(name: str, rooms: Rooms, key: Caller) -> Page[VerifierView]:
    """List all versions of a verifier, archived and revoked ones too."""
    await _find(name, None, rooms, key)
    return Page(data=[_show(one, key) for one in await rooms.verifiers.versions(name)])


@router.get("/{name}/versions/{version}", dependencies=reader)
async def show_version(name: str, version: Count, rooms: Rooms, key: Caller) -> VerifierView:
    """Show one version of a verifier."""
    return _show(await _find(name, version, rooms, key), key)


@router.post("/{name}/versions/{version}/revoke", dependencies=[Depends(needs(ADMIN))])
async def revoke_version(name: str, version: Count, body: RevocationBody, rooms: Rooms, key: Caller) -> Revocation:
    """Revoke a version: what pins it goes back to the one before, and adapters that learnt from it are flagged."""
    revocation = await Withdrawals(rooms.database).revoke(name, version, body.reason, actor=key.id)
    await rooms.roster.refresh()
    return revocation


@router.get("/{name}/agreement", dependencies=[Depends(needs(READ_ALL))])
async def show_agreement(
    name: str,
    rooms: Rooms,
    key: Caller,
    *,
    version: Count | None = None,
    other: Annotated[Count | None, Query(alias="with")] = None,
    task: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_ATTEMPTS)] = NEWEST_ATTEMPTS,
) -> Agreement:
    """Compare two versions on the newest logged attempts that both judged; by default the latest and the one before.

    Attempts are those of `task`, else of the tasks that bind the verifier now, else of all.
    """
    new = (await _find(name, version, rooms, key)).version
    if other is None:
        other = next((one.version for one in await rooms.verifiers.versions(name) if one.version < new), None)
        if other is None:
            raise InvalidRequest(f"{name}@{new} has no version before it: say `with`.", param="with")
    await _find(name, other, rooms, key)
    binding = [one.name for one in rooms.roster.snapshot.tasks.values() if any(p.name == name for p in one.verifiers)]
    tasks = [task] if task is not None else binding
    return await measure_agreement(rooms.database, name, new, other, tasks=tasks, limit=limit)


@router.post("/{name}/run", dependencies=registrar)
async def run_verifier(name: str, body: VerifierTrial, rooms: Rooms, key: Caller) -> dict[str, Any]:
    """Judge an answer as a request would have it judged. Nothing is logged."""
    binding = make_binding(await _find(name, body.version, rooms, key), body.args, body.when)
    answer = {"role": "assistant", "content": body.answer} if isinstance(body.answer, str) else body.answer
    request = {"messages": body.messages, "tools": body.tools}
    status, score, reason, verdicts = await (await bind_checked((binding,))).judge(request, answer)
    shown = [{**render_verdict(verdict), "safe_for_model": verdict.safe_for_model} for verdict in verdicts]
    return {"verifier": binding.pin, "status": status, "score": score, "reason": reason, "verdicts": shown}


async def _find(name: str, version: int | None, rooms: Context, key: ApiKey) -> VerifierVersion:
    found = await rooms.verifiers.get(name, version)
    if found is None or not _may_use(key, found, rooms):
        wanted = name if version is None else f"{name}@{version}"
        raise NotFound(f"There is no verifier {wanted!r}.", code="verifier_not_found")
    return found


def _may_use(key: ApiKey, version: VerifierVersion, rooms: Context) -> bool:
    return may_use_verifier(key, version, rooms.roster.snapshot.tasks)


def _may_change(key: ApiKey, version: VerifierVersion) -> bool:
    """Say whether a key may add versions to a name or archive them: others mean the latest when they say the name."""
    return may(key, ADMIN) or version.owner == key.id


def _show(version: VerifierVersion, key: ApiKey) -> VerifierView:
    shown = asdict(version)
    if not may_read_configs(key):
        shown |= {"config": None, "revoked_reason": ""}
    return VerifierView(**shown)


def _say_who_pins(name: str, archival: Archival, key: ApiKey, rooms: Context) -> str:
    """Word why a verifier is not archived, by those of the names that the key may see."""
    everything, tasks = may(key, READ_ALL), rooms.roster.snapshot.tasks

    def sees(task: str) -> bool:
        pins = tasks[task].verifiers if task in tasks else ()
        shown = any(pin.name == name and pin.mode != BindingMode.AUDIT for pin in pins)
        return everything or (may_use_task(key, task) and shown)

    names = [f"the task {task!r}" for task in archival.tasks if sees(task)]
    names += [f"the key {one!r}" for one in archival.keys if everything]
    if len(names) < len(archival.tasks) + len(archival.keys):
        names.append("what this key does not see")
    return f"{name!r} is still pinned by {', '.join(names)}: pin another version there first."

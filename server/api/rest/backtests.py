"""`/v1/backtests`: versions of verifiers judge logged answers again, in the background.

A key backtests with verifiers that it may use and register the like of. A client key's backtests judge its own episodes
and are shown to it alone; who reads everything sees all.
"""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from server.api.auth import ADMIN, READ, READ_ALL, may, may_use_task, may_use_verifier, require_scope
from server.api.binding import find_scopes
from server.api.context import Context, Rooms
from server.api.rest.access import Caller, needs
from server.api.rest.schemas import NAME, VERSION, Body, Count, Page
from server.domain import ApiKey, Backtest, Event, Outcome, Scope, VerifierVersion
from server.errors import Conflict, InvalidRequest, NotFound
from server.orchestration.backtest import MOST_SAMPLED, SAMPLE, BacktestOptions
from server.store.rows import to_json

REGISTER = (Scope.REGISTER_VERIFIERS, Scope.REGISTER_CODE, Scope.REGISTER_WEBHOOKS)
MOST_OPEN = 10
"""How many backtests a key may have that run or wait."""

router = APIRouter(prefix="/v1", tags=["backtests"])
reader = [Depends(needs(READ))]


class BacktestBody(Body):
    """Which version judges which logged attempts, and how many; times are Unix seconds, `until` itself left out.

    `against` is the pin to compare with, else what the verifier's name said then. The same `seed` on the same log
    chooses the same attempts.
    """

    version: Count | None = None
    task: str | None = None
    outcome: Outcome | None = None
    adapter: str | None = None
    since: float | None = Field(None, ge=0, allow_inf_nan=False)
    until: float | None = Field(None, gt=0, allow_inf_nan=False)
    against: str | None = None
    sample: int = Field(SAMPLE, ge=1, le=MOST_SAMPLED)
    seed: int = Field(0, ge=0, le=2**31 - 1)


@router.post("/verifiers/{name}/backtest", dependencies=[Depends(needs(*REGISTER))], status_code=202)
async def start_backtest(name: str, body: BacktestBody, rooms: Rooms, key: Caller) -> Backtest:
    """Let a version judge logged attempts again, each twice: agreement, flips, abstentions, flakes and times."""
    version = await find_usable(name, body.version, rooms, key)
    for scope in find_scopes(version.kind, version.config) or (Scope.REGISTER_VERIFIERS,):
        require_scope(key, scope)
    if version.revoked_at is not None:
        raise Conflict(f"{version.pin} was revoked: it judges nothing any more.", code="verifier_revoked")
    if body.against is not None:
        _check_pin(body.against)
    if body.task is not None and not (may_use_task(key, body.task) and await rooms.roster.find_task(body.task)):
        raise NotFound(f"There is no task {body.task!r}.", param="task", code="task_not_found")
    options = to_json(_make_options(body, key))
    made = await rooms.backtests.create(name, version.version, key.id, options, most_open=MOST_OPEN)
    details = {"backtest": made.id, "version": version.version, "sample": body.sample}
    await rooms.events.add(Event("verifier.backtested", name, key.id, details, time.time()))
    return made


@router.get("/backtests", dependencies=reader)
async def list_backtests(
    rooms: Rooms,
    key: Caller,
    *,
    verifier: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: str | None = None,
) -> Page[Backtest]:
    """List backtests, newest first. `before` is the last id of the page before."""
    owner = None if may(key, READ_ALL) else key.id
    found = await rooms.backtests.list(verifier=verifier, key=owner, limit=limit + 1, before=before)
    return Page(data=found[:limit], has_more=len(found) > limit)


@router.get("/backtests/{backtest_id}", dependencies=reader)
async def show_backtest(backtest_id: str, rooms: Rooms, key: Caller) -> Backtest:
    """Show a backtest: how far it is, and its report once it is done."""
    found = await rooms.backtests.get(backtest_id)
    if found is None or not (may(key, READ_ALL) or found.key == key.id):
        raise NotFound(f"There is no backtest {backtest_id!r}.", code="backtest_not_found")
    return found


@router.delete("/backtests/{backtest_id}", dependencies=reader)
async def cancel_backtest(backtest_id: str, rooms: Rooms, key: Caller) -> Backtest:
    """Cancel a backtest that runs or waits. For admins and the key that started it."""
    found = await show_backtest(backtest_id, rooms, key)
    if found.key != key.id:
        require_scope(key, ADMIN)
    return await rooms.backtests.cancel(backtest_id)


async def find_usable(name: str, version: int | None, rooms: Context, key: ApiKey) -> VerifierVersion:
    """Find a version of a verifier, the latest without one, that the key may use.

    Raises: NotFound.
    """
    found = await rooms.verifiers.get(name, version)
    if found is None or not may_use_verifier(key, found, rooms.roster.snapshot.tasks):
        wanted = name if version is None else f"{name}@{version}"
        raise NotFound(f"There is no verifier {wanted!r}.", code="verifier_not_found")
    return found


def _make_options(body: BacktestBody, key: ApiKey) -> BacktestOptions:
    """Say what is asked; up to now where nothing else is said, so that one begun anew sees the same log."""
    return BacktestOptions(
        task=body.task,
        outcome=None if body.outcome is None else body.outcome.value,
        adapter=body.adapter,
        key=None if may(key, READ_ALL) else key.id,
        since=body.since or 0.0,
        until=body.until or time.time(),
        against=body.against,
        sample=body.sample,
        seed=body.seed,
    )


def _check_pin(pin: str) -> None:
    name, _, version = pin.partition("@")
    if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
        raise InvalidRequest(f"{pin[:80]!r} is not of the form name@version.", param="against")

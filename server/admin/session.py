"""`/admin/session`: log in to the dashboard with an API key, see who is logged in, log out.

The key is shown once, to log in; from then on the browser shows a cookie that no script can read. The page keeps the
token that goes beside it in memory alone.
"""

import asyncio
import time
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from server.admin.attempts import FailedLogins
from server.admin.pages import SECURITY_HEADERS
from server.api.auth import READ_ALL, may
from server.api.context import Context, Rooms
from server.api.rest.access import Caller, needs
from server.api.sessions import COOKIE, SECURE_COOKIE, make_csrf_token, read_cookie, refuse_foreign
from server.api.wire import read_body
from server.domain import ApiKey, Event
from server.errors import Forbidden, InvalidRequest, Unauthorized

MAX_BYTES = 4096
HEADERS = {**SECURITY_HEADERS, "cache-control": "no-store"}


class SessionView(BaseModel):
    """Who is logged in. `csrf` is the token that requests which change something carry as `x-mulligan-csrf`."""

    object: Literal["session"] = "session"
    key: str
    name: str
    role: str
    csrf: str
    expires_at: float


class Login(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a login."""

    key: str


def make_router() -> APIRouter:
    """Make the routes, with a count of failed logins of their own."""
    router = APIRouter(prefix="/admin/session", tags=["admin"])
    failed = FailedLogins()

    @router.post("", status_code=201)
    async def log_in(request: Request, rooms: Rooms) -> SessionView:
        """Log in with the API key of a viewer, an approver or an admin; the answer sets the session's cookie."""
        refuse_foreign(request.scope)
        address = request.client.host if request.client else ""
        failed.check(address)
        body = await _read_login(request)
        try:
            key = await _recognise(body.key, rooms)
        except (Unauthorized, Forbidden) as error:
            failed.note(address)
            await rooms.events.add(Event("session.refused", "", "", _tell(address, error), time.time()))
            raise
        secret, expires_at = await rooms.sessions.begin(key)
        await rooms.events.add(Event("session.began", key.id, key.id, {"address": address}, time.time()))
        response: Any = _respond(_view(key, secret, expires_at), 201)
        _set_cookie(response, request, secret)
        return response

    @router.get("", dependencies=[Depends(needs(READ_ALL))])
    async def show_session(request: Request, rooms: Rooms, caller: Caller) -> SessionView:
        """Say who is logged in, and give the page its token."""
        secret = read_cookie(request.scope)
        session = await rooms.sessions.find(secret) if secret else None
        if session is None or session.key != caller.id:
            raise Unauthorized("Nobody is logged in: this is asked with the session's cookie.", code="session_over")
        return _respond(_view(caller, secret, session.expires_at), 200)  # pyright: ignore[reportReturnType]

    @router.delete("", dependencies=[Depends(needs(READ_ALL))], status_code=204)
    async def log_out(request: Request, rooms: Rooms, caller: Caller) -> Response:
        """Log out: the session ends at once, here and in every other process."""
        response = Response(status_code=204, headers=HEADERS)
        if secret := read_cookie(request.scope):
            await rooms.sessions.end(secret)
            await rooms.events.add(Event("session.ended", caller.id, caller.id, {}, time.time()))
        for name, secure in ((COOKIE, False), (SECURE_COOKIE, True)):
            response.delete_cookie(name, path="/", secure=secure, httponly=True, samesite="strict")
        return response

    return router


async def _read_login(request: Request) -> Login:
    """Read the body, which the gate has not bounded. Raises: InvalidRequest, TooLarge."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise InvalidRequest("Log in with a JSON body, sent as content-type: application/json.")  # no form can send it
    async with asyncio.timeout(30):
        body = await read_body(request.scope, request.receive, MAX_BYTES)
    try:
        return msgspec.json.decode(body, type=Login)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest('Log in with a body like {"key": "mk-..."}.') from None


async def _recognise(secret: str, rooms: Context) -> ApiKey:
    key = await rooms.keyring.recognise(f"Bearer {secret.strip()}")
    if not may(key, READ_ALL):
        message = f"The dashboard needs the key of a viewer, an approver or an admin; {key.name!r} is a client's."
        raise Forbidden(message)
    return key


def _tell(address: str, error: Unauthorized | Forbidden) -> dict[str, Any]:
    return {"address": address, "code": error.code}


def _view(key: ApiKey, secret: str, expires_at: float) -> SessionView:
    return SessionView(
        key=key.id, name=key.name, role=str(key.role), csrf=make_csrf_token(secret), expires_at=expires_at
    )


def _respond(view: SessionView, status: int) -> JSONResponse:
    return JSONResponse(view.model_dump(), status, HEADERS)


def _set_cookie(response: Response, request: Request, secret: str) -> None:
    """Set the cookie, without an end of its own: the session's is known here. Secure wherever the page is."""
    secure = "https" in (
        request.url.scheme,
        request.headers.get("origin", "").partition(":")[0],  # the browser's own word, also behind a proxy
        request.headers.get("x-forwarded-proto", ""),
    )
    name = SECURE_COOKIE if secure else COOKIE
    response.set_cookie(name, secret, path="/", secure=secure, httponly=True, samesite="strict")

"""The outermost door: every request gets an id, has to show a key, and has a body of bounded size.

What generates is served from here directly; everything else goes on to the REST application. Default-deny: a path is
open only if it stands in `PUBLIC`, compared whole, or under `PUBLIC_UNDER`. Pure ASGI: middleware of the framework
would hide that a client went away.
"""

import asyncio
import time
from functools import partial

import structlog
from fastapi import FastAPI

from server.api.auth import recognise_caller, require_scope
from server.api.context import Context
from server.api.errors import internal_error
from server.api.replay import HEADER as IDEMPOTENCY_KEY
from server.api.rest.metrics import LET_IN, needs_no_key
from server.api.rest.metrics import PATH as METRICS
from server.api.serve import serve
from server.api.surfaces.base import Surface
from server.api.surfaces.chat import ChatSurface
from server.api.surfaces.completions import CompletionsSurface
from server.api.surfaces.responses import ResponsesSurface
from server.api.wire import (
    ClientGone,
    Receive,
    Scope,
    Send,
    read_body,
    read_header,
    read_request_id,
    refuse_deep,
    send_error,
)
from server.domain import ApiKey, new_id
from server.errors import EngineUnavailable, InvalidRequest, MulliganError
from server.telemetry.tally import GONE

SURFACES: dict[tuple[str, str], Surface] = {
    ("POST", "/v1/chat/completions"): ChatSurface(),
    ("POST", "/v1/responses"): ResponsesSurface(),
    ("POST", "/v1/completions"): CompletionsSurface(),
}
"""What generates: served from here, without a framework."""
COUNTED_AS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/health": "health",
    "/ready": "health",
    METRICS: "metrics",
}
"""What requests are counted as; all others as `rest`: no label may grow with what clients ask for."""
PUBLIC = frozenset(
    (method, path)
    for method in ("GET", "HEAD")
    for path in ("/health", "/ready", "/docs", "/openapi.json", "/admin", "/admin/")
) | {("POST", "/admin/session")}
"""What is answered without a key."""
PUBLIC_UNDER = "/admin/assets/"
"""Where the dashboard's scripts and styles are read, without a key."""
MAX_BYTES = {("POST", "/v1/verifiers"): 2**20}
"""Bodies that are smaller than others: reading one keeps everybody waiting, and what is in it is kept for good."""

_log = structlog.get_logger(__name__)


class Gate:
    """The ASGI application that clients talk to. `rest` is the framework's, with the context in its state."""

    def __init__(self, rest: FastAPI) -> None:
        self.rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI server."""
        if scope["type"] == "lifespan":
            await self.rest(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = read_request_id(scope) or new_id("req")
        started = whole = False
        status, began = GONE, time.perf_counter()

        async def send_with_id(message: dict) -> None:
            nonlocal started, whole, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            else:
                whole = not message.get("more_body", False)
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)  # a request is a task, with a context of its own
        try:
            await self._enter(scope, receive, send_with_id)
        except ClientGone:
            _log.info("client_gone", path=scope["path"])
        except MulliganError as error:
            await send_error(send_with_id, error, [])
        except asyncio.CancelledError:
            if not started:  # the server is stopping; it would answer in plain text
                await send_error(send_with_id, EngineUnavailable("The server is stopping. Try again shortly."), [])
            raise
        except Exception:
            # Nobody is above to render what nobody foresaw; the server would answer in plain text.
            _log.exception("request_broke", method=scope["method"], path=scope["path"])
            if not started:
                await send_error(send_with_id, internal_error(), [])
            elif not whole:
                raise  # the server cuts the connection, so that nobody takes a part for the whole
        finally:
            self._count(scope, status, began)

    def _count(self, scope: Scope, status: int, began: float) -> None:
        context: Context | None = getattr(self.rest.state, "context", None)
        if context is not None and context.meter is not None:
            path = scope["path"]
            duration_s = time.perf_counter() - began if (scope["method"], path) in SURFACES else None
            context.meter.tally.count_request(COUNTED_AS.get(path, "rest"), status, duration_s)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: Context | None = getattr(self.rest.state, "context", None)
        if context is None:
            raise EngineUnavailable("The server is starting.")
        door = (scope["method"], scope["path"])
        if door in PUBLIC or (scope["method"] in ("GET", "HEAD") and scope["path"].startswith(PUBLIC_UNDER)):
            await self.rest(scope, receive, send)
            return
        if door == ("GET", METRICS) and needs_no_key(read_header(scope, b"authorization"), context):
            scope.setdefault("state", {})[LET_IN] = True
            await self.rest(scope, receive, send)
            return
        key = await recognise_caller(scope, context.keyring, context.sessions)
        most_bytes = context.settings.limits.body_max_bytes
        body = await read_body(scope, receive, min(most_bytes, MAX_BYTES.get(door, most_bytes)))
        refuse_deep(body)
        if (surface := SURFACES.get(door)) is not None:
            require_scope(key, "inference")
            work = partial(serve, surface, context, key, scope, body=body, receive=receive)
            if name := read_header(scope, IDEMPOTENCY_KEY):
                await context.replays.answer_once(name, key, scope, body=body, send=send, work=work)
            else:
                await work(send=send)
        else:
            await self._serve_rest(scope, key, body, receive, send)

    async def _serve_rest(self, scope: Scope, key: ApiKey, body: bytes, receive: Receive, send: Send) -> None:
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:  # no name has it, and PostgreSQL breaks on it
            raise InvalidRequest("The URL holds a U+0000, which stands in no name.")
        replayed = False

        async def replay() -> dict:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body}

        scope.setdefault("state", {})["key"] = key
        await self.rest(scope, replay, send)

"""OpenAI's endpoints that are not served here, each refused with what to do instead. In no OpenAPI document.

A 404 as for any path that is not there, so that no SDK tries again; its code, `unsupported_endpoint`, tells it from a
mistyped one.
"""

from collections.abc import Mapping

from fastapi import APIRouter, Depends, Request

from server.api.auth import INFERENCE, READ
from server.api.errors import suggest_path
from server.api.rest.access import needs
from server.errors import NotFound

_FILES = "no files are kept here: put their text into the request"
_HEARING = "the models that are served here read and write text"

_OPENAIS = "it is a service of OpenAI's own"

REFUSED: Mapping[str, str] = {
    "/v1/agents": "use /v1/responses",
    "/v1/assistants": "use /v1/responses with previous_response_id",
    "/v1/audio": _HEARING,
    "/v1/batches": "send the requests one by one, side by side",
    "/v1/chat/completions": "completions that were answered are read at /v1/episodes",
    "/v1/chatkit": "use /v1/responses",
    "/v1/containers": "nothing runs code here",
    "/v1/content_provenance_checks": _OPENAIS,
    "/v1/conversations": "use /v1/responses with previous_response_id",
    "/v1/decisions": _OPENAIS,
    "/v1/edits": "use /v1/chat/completions",
    "/v1/evals": "verifiers judge every answer, and a round's gate its adapter: see /v1/verifiers and /v1/rounds",
    "/v1/files": _FILES,
    "/v1/fine_tuning": "rounds train from the episode log: POST /v1/tasks/{name}/rounds",
    "/v1/images": _HEARING,
    "/v1/live": "stream from /v1/chat/completions or /v1/responses",
    "/v1/moderations": "nothing here moderates",
    "/v1/organization": "keys are made at /v1/keys",
    "/v1/projects": "keys are made at /v1/keys",
    "/v1/realtime": "stream from /v1/chat/completions or /v1/responses",
    "/v1/responses": "a response is made by POST and read by GET; closing its connection cancels it",
    "/v1/safety": _OPENAIS,
    "/v1/skills": "nothing runs tools here but the client",
    "/v1/threads": "use /v1/responses with previous_response_id",
    "/v1/uploads": _FILES,
    "/v1/vaults": _OPENAIS,
    "/v1/vector_stores": "nothing here searches files",
    "/v1/videos": _HEARING,
}
"""Beginnings of paths, and what to do instead. Routes that are served come before these."""

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

router = APIRouter(dependencies=[Depends(needs(INFERENCE, READ))], include_in_schema=False)


async def refuse_endpoint(request: Request) -> None:
    """Refuse one of OpenAI's endpoints by name. Raises: NotFound."""
    path = request.url.path
    if path.endswith("/") and (meant := suggest_path(path, request.app.openapi()["paths"])):
        raise NotFound(f"There is no path {path[:200]}. Did you mean {meant}?", code="unknown_url")
    reason = next(reason for start, reason in REFUSED.items() if path == start or path.startswith(start + "/"))
    message = f"{request.method} {path[:200]} is not supported: {reason}."
    raise NotFound(message, code="unsupported_endpoint")


for _start in REFUSED:
    router.add_api_route(_start, refuse_endpoint, methods=_METHODS)
    router.add_api_route(_start + "/{rest:path}", refuse_endpoint, methods=_METHODS)

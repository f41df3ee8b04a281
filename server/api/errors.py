"""Renders every error as OpenAI's envelope: the one place that does. Used by the gate, the REST routes and streams."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.errors import InvalidRequest, MulliganError, NotFound
from server.store.cleaning import decode_json, encode_json


def render_error(error: MulliganError) -> dict[str, Any]:
    """Render OpenAI's envelope: `{"error": {"message", "type", "param", "code"}}`, with our details in it.

    In it, for that is what SDKs show of an error; what stands beside it they drop. It may quote what a client sent, or
    a model wrote, and no JSON can say: half a surrogate pair, NaN.
    """
    envelope = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return decode_json(encode_json({"error": {**envelope, **error.details}}))


def error_headers(error: MulliganError) -> dict[str, str]:
    """Render the headers that go with an error: when to come back, how to authenticate."""
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def internal_error() -> MulliganError:
    """Make the error of something that nobody foresaw. It tells the client nothing of our insides."""
    return MulliganError("Something broke in the server. The log has it under this request's id.")


def respond_error(error: MulliganError) -> JSONResponse:
    """Render an error as a REST response."""
    return JSONResponse(render_error(error), error.status, error_headers(error))


def explain_validation(errors: list[Mapping[str, Any]]) -> InvalidRequest:
    """Turn pydantic's errors into one that names the first offending field."""
    first = errors[0]
    path = ""
    for part in first["loc"][1:]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"Unknown field: {path}", param=path, code="unknown_field")
    if first["type"] in ("model_attributes_type", "dict_type") and not path:
        return InvalidRequest("The body must be a JSON object, sent as content-type: application/json.")
    if first["type"] == "json_invalid":
        return InvalidRequest("The body is not valid JSON.")
    return InvalidRequest(f"{path}: {first['msg']}" if path else first["msg"], param=path or None)


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{.*?\\\}", "[^/]+", re.escape(path)))


def suggest_path(path: str, known: Iterable[str]) -> str | None:
    """Find the path that a client meant: SDKs whose base URL lacks `/v1`, or has it twice, ask beside it."""
    meant = ["/v1" + path, path.removeprefix("/v1"), path.rstrip("/"), "/v1" + path.rstrip("/")]
    patterns = [_pattern(one) for one in known]
    return next((one for one in meant if one != path and any(each.fullmatch(one) for each in patterns)), None)


def _methods_of(request: Request) -> list[str]:
    paths = request.app.openapi()["paths"]
    return sorted({verb.upper() for one in paths for verb in paths[one] if _pattern(one).fullmatch(request.url.path)})


def _from_http(request: Request, error: HTTPException) -> MulliganError:
    if error.status_code == 404:
        hint = suggest_path(request.url.path, request.app.openapi()["paths"])
        meant = f" Did you mean {hint}?" if hint else " The OpenAPI document at /openapi.json has all that there are."
        return NotFound(f"There is no path {request.url.path[:200]}.{meant}", code="unknown_url")
    message = str(error.detail)
    if error.status_code == 405 and (allowed := ", ".join(_methods_of(request))):
        message = f"{request.method} {request.url.path[:200]} is not allowed: there is {allowed}."
    made = MulliganError(message, code="method_not_allowed" if error.status_code == 405 else None)
    made.status, made.type = error.status_code, "invalid_request_error" if error.status_code < 500 else "server_error"
    return made


def install_handlers(app: FastAPI) -> None:
    """Make the REST application render every error as the envelope."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, MulliganError)
        return respond_error(error)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return respond_error(explain_validation(list(error.errors())))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        response = respond_error(_from_http(request, error))
        response.headers.update(error.headers or {})
        return response

    async def unforeseen(_: Request, _error: Exception) -> JSONResponse:
        return respond_error(internal_error())  # the framework raises it again, and the gate logs it

    app.add_exception_handler(Exception, unforeseen)
    app.add_exception_handler(MulliganError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def encode_error(error: MulliganError) -> bytes:
    """Encode an error for the paths that write bytes themselves."""
    return msgspec.json.encode(render_error(error))

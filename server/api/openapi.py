"""Makes the one OpenAPI document of the server: FastAPI's routes, and the surfaces that are served without it.

Installed by `server.api.rest.application`, so that `/openapi.json` and `/docs` show it. What is said of fields comes
from the tables that enforce them, what is said of errors from `server.errors`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.api.chat_request import ChatRequest
from server.api.fields import FIELDS, NESTED, Field
from server.api.surfaces.completions_fields import COMPLETIONS_FIELDS
from server.api.surfaces.completions_request import CompletionsRequest
from server.api.surfaces.responses_fields import RESPONSES_FIELDS
from server.api.surfaces.responses_request import ResponsesRequest
from server.errors import MulliganError

PUBLIC_PATHS = frozenset({"/health", "/ready"})
_REF = "#/components/schemas/{name}"
_ERROR = {
    "type": "object",
    "title": "Error",
    "description": "OpenAI's envelope. Where verification failed, `mulligan` and `usage` stand in it.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "what happened, and what to do"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the field that is wrong, if one is"},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One surface: how its request looks, what becomes of its fields, and the least that its answer has."""

    path: str
    shape: type
    fields: Mapping[str, Field]
    summary: str
    description: str
    answer: tuple[str, ...]


OPERATIONS = (
    Operation(
        "/v1/chat/completions",
        ChatRequest,
        FIELDS,
        "Create Chat Completion",
        "Answer a conversation: OpenAI's chat completions, verified, reflected on and retried.",
        ("id", "object", "created", "model", "choices", "usage", "mulligan"),
    ),
    Operation(
        "/v1/responses",
        ResponsesRequest,
        RESPONSES_FIELDS,
        "Create Response",
        "Answer as OpenAI's responses do, through the same loop.",
        ("id", "object", "created_at", "model", "output", "usage"),
    ),
    Operation(
        "/v1/completions",
        CompletionsRequest,
        COMPLETIONS_FIELDS,
        "Create Completion",
        "Continue raw text: OpenAI's older completions, through the same loop.",
        ("id", "object", "created", "model", "choices", "usage"),
    ),
)
"""What the gate serves by itself. A test holds it against the gate's own list."""


def install_document(app: FastAPI) -> None:
    """Let an application show the whole document as its own; it is made once, when it is first asked for."""

    def show() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = make_document(app)
        return app.openapi_schema

    app.openapi = show  # pyright: ignore[reportAttributeAccessIssue] -- the way that FastAPI says to do it


def make_document(app: FastAPI) -> dict[str, Any]:
    """Make the document."""
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
    )
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own errors never leave here
        schemas.pop(name, None)
    schemas.update(_describe_shapes(), Error=_ERROR)
    document["components"]["responses"] = _describe_errors()
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer mk-...`"}
    }
    document["security"] = [{"key": []}]
    paths = document["paths"]
    paths |= {operation.path: {"post": _describe(operation)} for operation in OPERATIONS}
    for path, methods in paths.items():
        for route in methods.values():
            route["responses"] = _with_errors(route["responses"], public=path in PUBLIC_PATHS)
            if path in PUBLIC_PATHS:
                route["security"] = []
    return document


def list_errors() -> dict[int, list[type[MulliganError]]]:
    """List the errors that a request may end with, by their status."""
    errors: dict[int, list[type[MulliganError]]] = {}
    for error in (MulliganError, *sorted(MulliganError.__subclasses__(), key=lambda one: one.__name__)):
        if error is MulliganError or error.status != MulliganError.status:  # a part that will not start is no answer
            errors.setdefault(error.status, []).append(error)
    return dict(sorted(errors.items()))


def describe_error(error: type[MulliganError]) -> str:
    """Say in a line when an error is answered."""
    if error is MulliganError:
        return "Something that nobody foresaw broke. The log has it under the request's id."
    return (error.__doc__ or "").partition("\n")[0]


def _describe_errors() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}}
    return {
        f"Error{status}": {
            "description": " ".join(describe_error(error) for error in errors),
            "content": content,
            **({"headers": {"retry-after": _RETRY_AFTER}} if any(error.retry_after_s for error in errors) else {}),
        }
        for status, errors in list_errors().items()
    }


_RETRY_AFTER = {"schema": {"type": "integer", "minimum": 1}, "description": "come back after so many seconds"}


def _with_errors(responses: dict[str, Any], *, public: bool) -> dict[str, Any]:
    """Add every error that a route may answer with; FastAPI's 422 is a 400 here."""
    own = {status: response for status, response in responses.items() if status.startswith("2")}
    statuses = (MulliganError.status,) if public else tuple(list_errors())
    errors = {str(status): {"$ref": f"#/components/responses/Error{status}"} for status in statuses}
    if public:
        errors["503"] = {"description": "Not ready, or still starting."}
    return {**own, **errors}


def _describe(operation: Operation) -> dict[str, Any]:
    answer = {"type": "object", "required": list(operation.answer)}
    return {
        "tags": ["generation"],
        "summary": operation.summary,
        "description": operation.description,
        "operationId": operation.path.strip("/").replace("/", "_") + "_post",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF.format(name=operation.shape.__name__)}}},
        },
        "responses": {
            "200": {
                "description": "The answer, whole, or with `stream: true` as server-sent events.",
                "headers": {name: {"schema": {"type": "string"}} for name in _HEADERS},
                "content": {
                    "application/json": {"schema": answer},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            }
        },
    }


_HEADERS = ("x-request-id", "x-mulligan-episode", "x-mulligan-adapter", "x-mulligan-outcome")


def _describe_shapes() -> dict[str, Any]:
    """Describe the requests of all surfaces, each field with what becomes of it."""
    tables: dict[type, Mapping[str, Field]] = {one.shape: one.fields for one in OPERATIONS}
    tables |= {shape: table.fields for shape, table in NESTED.items()}
    refs, schemas = msgspec.json.schema_components(tuple(tables), ref_template=_REF)
    for ref, fields in zip(refs, tables.values(), strict=True):
        properties = schemas[ref["$ref"].rpartition("/")[2]]["properties"]
        for name, field in fields.items():
            if name in properties:
                properties[name] = {**properties[name], "description": f"{field.use}: {field.reason}"}
    return schemas

"""Puts the REST routes together. Built by `server.app`, which gives it its lifespan and its context."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI

from server.api.errors import install_handlers
from server.api.openapi import install_document
from server.api.rest import (
    adapters,
    audit,
    backtests,
    deletions,
    embeddings,
    episodes,
    events,
    feedback,
    health,
    keys,
    lineage,
    metrics,
    models,
    overview,
    panel,
    reference,
    refused,
    responses,
    rounds,
    tasks,
    verifier_stats,
    verifiers,
)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_rest(lifespan: Lifespan | None = None, more: Sequence[APIRouter] = ()) -> FastAPI:
    """Build the REST application, with `more` routes than the API's. It is never served without the gate before it."""
    app = FastAPI(
        title="Mulligan",
        summary="An OpenAI-compatible inference server that gives a model a second try, and learns from it.",
        description="Paths that OpenAI has are OpenAI's; `mulligan` in answers and `extra_body` in requests are ours.",
        lifespan=lifespan,
        redirect_slashes=False,
        strict_content_type=False,
        docs_url=None,
        redoc_url=None,
    )
    install_handlers(app)
    ours = (
        tasks,
        verifiers,
        verifier_stats,
        backtests,
        episodes,
        deletions,
        feedback,
        audit,
        panel,
        rounds,
        adapters,
        lineage,
        overview,
        events,
        keys,
    )
    for room in (health, reference, metrics, models, *ours, responses, embeddings, refused):  # the last: the rest
        app.include_router(room.router)
    for router in more:
        app.include_router(router)
    install_document(app)
    return app

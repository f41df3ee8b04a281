"""A plain FastAPI proxy over httpx: a pydantic body, one pooled client, streams passed on. Runs in `.venv-bench`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx  # pyright: ignore[reportMissingImports]  # in .venv-bench only
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from bench.gateway.peers.body import ChatBody

ENGINE_URL = os.environ.get("BENCH_ENGINE_URL", "")


@asynccontextmanager
async def _live(app: FastAPI) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=ENGINE_URL, limits=limits, timeout=60) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=_live)


@app.get("/health")
async def health() -> dict[str, Any]:
    """Say that it is up."""
    return {}


@app.post("/v1/chat/completions")
async def chat(body: ChatBody, request: Request) -> Response:
    """Pass one chat request on, and its answer back."""
    client: httpx.AsyncClient = request.app.state.client
    sent = client.build_request("POST", "/v1/chat/completions", json=body.model_dump(exclude_none=True))
    if not body.stream:
        answer = await client.send(sent)
        return Response(answer.content, answer.status_code, media_type="application/json")
    answer = await client.send(sent, stream=True)

    async def relay() -> AsyncIterator[bytes]:
        try:
            async for chunk in answer.aiter_bytes():
                yield chunk
        finally:
            await answer.aclose()

    return StreamingResponse(relay(), answer.status_code, media_type="text/event-stream")

"""A plain FastAPI proxy over aiohttp: a pydantic body, one pooled client, streams passed on. Runs in `.venv-bench`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp  # pyright: ignore[reportMissingImports]  # in .venv-bench only
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from bench.gateway.peers.body import ChatBody

ENGINE_URL = os.environ.get("BENCH_ENGINE_URL", "")


@asynccontextmanager
async def _live(app: FastAPI) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(ENGINE_URL, connector=aiohttp.TCPConnector(limit=0)) as client:
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
    client: aiohttp.ClientSession = request.app.state.client
    answer = await client.post("/v1/chat/completions", json=body.model_dump(exclude_none=True))
    if not body.stream:
        async with answer:
            return Response(await answer.read(), answer.status, media_type="application/json")

    async def relay() -> AsyncIterator[bytes]:
        async with answer:
            async for chunk in answer.content.iter_any():
                yield chunk

    return StreamingResponse(relay(), answer.status, media_type="text/event-stream")

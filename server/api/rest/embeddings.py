"""`POST /v1/embeddings`: passed through to the engine where it has them. Nothing is verified, and it is no episode."""

import time

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from server.api.auth import INFERENCE
from server.api.chat_request import ChatRequest
from server.api.context import Rooms
from server.api.resolution import resolve_target
from server.api.rest.access import Caller, needs
from server.api.surfaces.embeddings import MAX_INPUTS, EmbeddingsBody
from server.api.wire import until_gone
from server.errors import InvalidRequest

router = APIRouter(prefix="/v1/embeddings", tags=["embeddings"], dependencies=[Depends(needs(INFERENCE))])


@router.post("")
async def make_embeddings(body: EmbeddingsBody, rooms: Rooms, caller: Caller, request: Request) -> Response:
    """Give the engine's embeddings of one text or several, where the engine has them."""
    target = await resolve_target(ChatRequest(model=body.model, messages=[]), caller, rooms)
    if target.adapter:
        raise InvalidRequest("Embeddings are the base model's: an adapter has none of its own.", param="model")
    if not body.input or (isinstance(body.input, list) and len(body.input) > MAX_INPUTS):
        raise InvalidRequest(f"`input` is a text, or a list of 1 to {MAX_INPUTS} of them.", param="input")
    deadline_at = time.time() + rooms.settings.limits.deadline_s
    await rooms.traffic.enter(1, request.receive, deadline_at)
    try:
        answer = await until_gone(request.receive, rooms.engine.embed(body.engine_body()))
        return Response(answer, media_type="application/json")
    finally:
        rooms.traffic.leave(1)

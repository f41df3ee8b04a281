"""`POST /v1/embeddings`: passed through to the engine where it has them. Nothing is verified, and it is no episode."""

import time

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from msgspec import Struct, field

from server.api.auth import INFERENCE
from server.api.chat_request import ChatRequest
from server.api.context import Context, Rooms
from server.api.resolution import resolve_target
from server.api.rest.access import Caller, needs
from server.api.surfaces.embeddings import MAX_INPUTS, EmbeddingsBody
from server.api.wire import until_gone
from server.errors import EngineBroken, InvalidRequest

router = APIRouter(prefix="/v1/embeddings", tags=["embeddings"], dependencies=[Depends(needs(INFERENCE))])


class _Usage(Struct):
    total_tokens: int = 0


class _Answer(Struct):
    usage: _Usage = field(default_factory=_Usage)


_read_answer = msgspec.json.Decoder(_Answer).decode


@router.post("")
async def make_embeddings(body: EmbeddingsBody, rooms: Rooms, caller: Caller, request: Request) -> Response:
    """Give the engine's embeddings of one text or several, where the engine has them."""
    target = await resolve_target(ChatRequest(model=body.model, messages=[]), caller, rooms)
    if target.adapter:
        raise InvalidRequest("Embeddings are the base model's: an adapter has none of its own.", param="model")
    if not body.input or (isinstance(body.input, list) and len(body.input) > MAX_INPUTS):
        raise InvalidRequest(f"`input` is a text, or a list of 1 to {MAX_INPUTS} of them.", param="input")
    admission = await rooms.limiter.admit(caller)
    tokens = 0
    try:
        answer = await _embed(body, rooms, request)
        tokens = _count_tokens(answer)
    finally:
        admission.finish(tokens)
    headers = {name.decode(): value.decode() for name, value in admission.headers}
    return Response(answer, media_type="application/json", headers=headers)


async def _embed(body: EmbeddingsBody, rooms: Context, request: Request) -> bytes:
    await rooms.traffic.enter(1, request.receive, time.time() + rooms.settings.limits.deadline_s)
    try:
        return await until_gone(request.receive, rooms.engine.embed(body.engine_body()))
    finally:
        rooms.traffic.leave(1)


def _count_tokens(answer: bytes) -> int:
    """Read what a key's limits are told. Raises: EngineBroken."""
    try:
        return _read_answer(answer).usage.total_tokens
    except msgspec.DecodeError as error:
        raise EngineBroken(f"The engine's embeddings cannot be read: {error}") from None

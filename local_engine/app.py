"""The engine's HTTP surface: a raw ASGI app that speaks the part of SGLang's protocol that the server's client uses.

The model loads in a thread while the app is up already: until then `/health` says 503. Bound to loopback by its
caller; it has no keys.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from local_engine.chat import begin_chat, complete_chat, read_chat, stream_chat
from local_engine.completions import complete_text, read_text, stream_text
from local_engine.errors import DecodingFailed, Refused
from local_engine.generation import generate
from local_engine.models import AdapterLimits, load_base
from local_engine.prompts import encode_prompt, read_tools, render_prompt
from local_engine.service import Service
from local_engine.text import decode

_Scope = dict[str, Any]
_Receive = Callable[[], Awaitable[dict[str, Any]]]
_Send = Callable[[dict[str, Any]], Awaitable[None]]

_log = logging.getLogger(__name__)
_LOADING_FAILED = 3  # exit status
TOOL_CALL_FORMAT = "qwen25"  # as SGLang calls the one that is read here


@dataclass(frozen=True, slots=True)
class Options:
    """How the engine was started."""

    model: str
    model_name: str
    dtype: str
    device: str
    context_tokens: int | None
    max_running: int
    max_adapters: int
    limits: AdapterLimits


class Connection:
    """One HTTP request's connection: its body, and whether its client is still there."""

    def __init__(self, receive: _Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None

    async def read_body(self) -> bytes:
        """Read the whole body."""
        parts = []
        while True:
            message = await self._receive()
            parts.append(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return b"".join(parts)

    def gone(self) -> Awaitable[None]:
        """Return once the client has gone away."""
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._wait_for_disconnect())
        return asyncio.shield(self._watcher)

    def close(self) -> None:
        """Stop looking."""
        if self._watcher is not None:
            self._watcher.cancel()

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class App:
    """Routes requests to the endpoints, and renders what they refuse."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._service: Service | None = None
        self._routes: dict[tuple[str, str], Callable[[Any, Service, Connection], Awaitable[Any]]] = {
            ("GET", "/v1/models"): self._list_models,
            ("GET", "/model_info"): self._describe_model,
            ("GET", "/get_model_info"): self._describe_model,
            ("POST", "/generate"): generate,
            ("POST", "/load_lora_adapter"): self._load_adapter,
            ("POST", "/unload_lora_adapter"): self._unload_adapter,
            ("POST", "/abort_request"): self._abort,
            ("POST", "/detokenize"): self._detokenize,
            ("POST", "/tokenize"): self._tokenize,
            ("GET", "/server_info"): self._describe_server,
        }
        self._answering = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._complete_text,
        }

    def drop_requests(self) -> None:
        """Abort what is in flight, because the engine ends: nobody can wait for it."""
        if self._service is not None:
            self._service.drop_requests()

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Serve one connection's request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            connection = Connection(receive)
            try:
                await self._serve(scope["method"], scope["path"], connection, send)
            finally:
                connection.close()

    async def _live(self, receive: _Receive, send: _Send) -> None:
        await receive()
        loading = asyncio.create_task(self._load())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        loading.cancel()
        if self._service is not None:
            self._service.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _load(self) -> None:
        options = self._options
        try:
            base = await asyncio.to_thread(
                load_base,
                options.model,
                dtype=options.dtype,
                device=options.device,
                context_tokens=options.context_tokens,
            )
        except Exception:  # noqa: BLE001  # a process without a model is of no use, whatever the reason
            _log.exception("cannot load the model in %s", options.model)
            os._exit(_LOADING_FAILED)
        self._service = Service(
            base,
            model_name=options.model_name,
            limits=options.limits,
            max_running=options.max_running,
            max_adapters=options.max_adapters,
        )

    async def _serve(self, method: str, path: str, connection: Connection, send: _Send) -> None:
        raw = await connection.read_body()
        service = self._service
        if path in ("/health", "/health_generate"):
            await _send_json(send, 200 if service else 503, b"")
            return
        if service is None:
            await _send_json(send, 503, _error("the model is loading", 503))
            return
        endpoint = self._routes.get((method, path))
        answer = self._answering.get((method, path))
        if endpoint is None and answer is None:
            await _send_json(send, 404, _error(f"no {method} {path}", 404))
            return
        try:
            body = msgspec.json.decode(raw) if raw else {}
            if not isinstance(body, dict):
                raise Refused("the body must be a JSON object.")
            if answer is not None:
                await answer(body, service, connection, send)
            elif endpoint is not None:
                await _send_json(send, *_with_status(await endpoint(body, service, connection)))
        except (Refused, msgspec.DecodeError) as error:
            await _send_json(send, 400, _error(str(error), 400, nested=path == "/generate"))
        except DecodingFailed as error:
            await _send_json(send, error.status, _error(str(error), error.status, nested=path == "/generate"))

    async def _chat(self, body: dict[str, Any], service: Service, connection: Connection, send: _Send) -> None:
        request = read_chat(body, service)
        if not request.asked.streams:
            await _send_json(send, 200, await complete_chat(request, service, connection))
            return
        sequence = await begin_chat(request, service)
        await _send_events(send, stream_chat(request, sequence, service, connection))

    async def _complete_text(self, body: dict[str, Any], service: Service, connection: Connection, send: _Send) -> None:
        request = read_text(body, service)
        if not request.asked.streams:
            await _send_json(send, 200, await complete_text(request, service, connection))
            return
        sequence = service.begin(request.prompt, request.adapter, request.sampling, request.asked)
        await _send_events(send, stream_text(request, sequence, service, connection))

    async def _list_models(self, _body: Any, service: Service, _connection: Connection) -> Any:
        def card(name: str, root: str, parent: str | None) -> dict[str, Any]:
            return {"id": name, "object": "model", "owned_by": "mulligan", "root": root, "parent": parent}

        base = {**card(service.model_name, service.model_name, None), "max_model_len": service.base.context_tokens}
        return {
            "object": "list",
            "data": [base, *(card(name, path, service.model_name) for name, path in service.adapters.items())],
        }

    async def _describe_model(self, _body: Any, service: Service, _connection: Connection) -> Any:
        return {
            "model_path": service.base.path,
            "served_model_name": service.model_name,
            "tokenizer_path": service.base.path,
            "is_generation": True,
            "weight_version": "default",
        }

    async def _describe_server(self, body: Any, service: Service, connection: Connection) -> Any:
        options = self._options
        return {
            **await self._describe_model(body, service, connection),
            "version": "embedded",
            "enable_lora": True,
            "max_lora_rank": options.limits.max_rank,
            "lora_target_modules": sorted(options.limits.target_modules),
            "max_loaded_loras": options.max_adapters,
            "max_loras_per_batch": None,  # a batch may hold any number
            "tool_call_parser": TOOL_CALL_FORMAT,
            "chat_template": None,  # the model's own
            "enable_priority_scheduling": True,
            "default_priority_value": 0,
            "context_length": service.base.context_tokens,
        }

    async def _load_adapter(self, body: dict[str, Any], service: Service, _connection: Connection) -> Any:
        try:
            await service.load_adapter(str(body.get("lora_name") or ""), str(body.get("lora_path") or ""))
        except Refused as error:
            return 400, _adapter_report(service, error.message)
        return _adapter_report(service)

    async def _unload_adapter(self, body: dict[str, Any], service: Service, _connection: Connection) -> Any:
        try:
            await service.unload_adapter(str(body.get("lora_name") or ""))
        except Refused as error:
            return 400, _adapter_report(service, error.message)
        return _adapter_report(service)

    async def _abort(self, body: dict[str, Any], service: Service, _connection: Connection) -> Any:
        service.abort(str(body.get("rid") or ""), everything=bool(body.get("abort_all")))
        return {}

    async def _detokenize(self, body: dict[str, Any], service: Service, _connection: Connection) -> Any:
        tokens = body.get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise Refused("tokens must be a list of token ids.")
        skip = body.get("skip_special_tokens", True)
        return {"text": decode(service.base.tokenizer, tokens, skip_special_tokens=bool(skip))}

    async def _tokenize(self, body: dict[str, Any], service: Service, _connection: Connection) -> Any:
        prompt, messages = body.get("prompt"), body.get("messages")
        if (prompt is None) == (messages is None):
            raise Refused("Exactly one of 'prompt' or 'messages' must be provided.")
        if prompt is None:
            tokens = render_prompt(service.base, messages, read_tools(body.get("tools")), {})
        elif isinstance(prompt, str):
            special = bool(body.get("add_special_tokens", True))
            tokens = encode_prompt(service.base, prompt, add_special_tokens=special)
        else:
            raise Refused("prompt must be a text.")
        return {"tokens": tokens, "count": len(tokens), "max_model_len": service.base.context_tokens}


def _adapter_report(service: Service, error: str = "") -> dict[str, Any]:
    return {"success": not error, "error_message": error, "loaded_adapters": service.adapters}


def _error(message: str, status: int, *, nested: bool = False) -> dict[str, Any]:
    if nested:
        return {"error": {"message": message}}
    kind = "BadRequestError" if status == 400 else "InternalServerError"
    return {"object": "error", "message": message, "type": kind, "param": None, "code": status}


def _with_status(reply: Any) -> tuple[int, Any]:
    return reply if isinstance(reply, tuple) else (200, reply)


async def _send_json(send: _Send, status: int, reply: Any) -> None:
    raw = reply if isinstance(reply, bytes) else msgspec.json.encode(reply)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


async def _send_events(send: _Send, chunks: AsyncIterator[Any]) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        async for chunk in chunks:
            body = b"data: " + msgspec.json.encode(chunk) + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
    except DecodingFailed as error:
        body = b"data: " + msgspec.json.encode({"error": _error(error.message, error.status)}) + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

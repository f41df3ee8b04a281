"""The engine over SGLang's HTTP protocol: for SGLang itself and for `local_engine/` alike.

Made by the roots, used by the loop, the trainer and the hot swap. It never retries what may have been generated, and
never lets the engine apply a default of its own: every sampling parameter is sent. SGLang revives an unloaded adapter
silently when it is named again, so names that were unloaded here are not sent any more.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from server.domain import Usage
from server.engine import restoring, wire
from server.engine.base import Completion, EngineState
from server.engine.priority import name_priority
from server.engine.upstream import Upstream
from server.errors import (
    AdapterMissing,
    AdapterRefused,
    EngineBroken,
    EngineTimeout,
    EngineUnavailable,
    EngineUnreached,
    MulliganError,
)

_HEALTH_TIMEOUT_S = 10.0

_MakePayload = Callable[[Mapping[str, Any], str], dict[str, Any]]


class SGLangEngine:
    """Implements `Engine`. `model_name` is the id under which the engine serves the plain base model."""

    def __init__(self, url: str, *, model_name: str = "base", timeout_s: float = 600.0) -> None:
        self._model_name, self._url = model_name, url
        self._upstream = Upstream(url, timeout_s=timeout_s)
        self._unloaded: set[str] = set()
        self._unloading: set[str] = set()
        self._background: set[asyncio.Task[None]] = set()

    async def complete(self, body: Mapping[str, Any], adapter: str, *, with_tokens: bool = False) -> Completion:
        """Answer one chat request; see `Engine.complete`.

        Raises: EngineUnavailable, EngineTimeout, EngineRefused, EngineBroken, AdapterMissing.
        """
        payload = self._payload(body, adapter)
        may_call = _may_call(body)
        if with_tokens:
            payload |= {"logprobs": True, "return_meta_info": True}
        if with_tokens or may_call:
            payload["return_token_ids"] = True
        raw = await self._abortable(payload["rid"], self._post("/v1/chat/completions", payload, adapter))
        reply = wire.decode_chat(raw)
        choice = reply.choices[0]
        message = wire.read_message(choice.message)
        if may_call and "tool_calls" not in message:
            message["content"] = await self._restore_content(
                choice.response_token_ids or (),
                choice.matched_stop,
                message["content"] or "",
                message.get("reasoning_content", ""),
            )
        return Completion(
            message=message,
            finish_reason=choice.finish_reason,
            usage=Usage(reply.usage.prompt_tokens, reply.usage.completion_tokens),
            prompt_ids=(choice.prompt_token_ids or ()) if with_tokens else (),
            token_ids=(choice.response_token_ids or ()) if with_tokens else (),
            logprobs=wire.read_logprobs(choice) if with_tokens else (),
            choice_logprobs=choice.logprobs if body.get("logprobs") else None,
        )

    async def complete_ids(self, prompt_ids: Sequence[int], adapter: str, sampling: Mapping[str, Any]) -> Completion:
        """Continue exactly these tokens; see `Engine.complete_ids`.

        Raises: EngineUnavailable, EngineTimeout, EngineRefused, EngineBroken, AdapterMissing.
        """
        self._check_adapter(adapter)
        payload: dict[str, Any] = {
            "input_ids": list(prompt_ids),
            "sampling_params": {**wire.NEUTRAL_SAMPLING, **wire.given(sampling)},
            "return_logprob": True,
            "rid": os.urandom(16).hex(),
            **name_priority(),
        }
        if adapter:
            payload["lora_path"] = adapter
        raw = await self._abortable(payload["rid"], self._post("/generate", payload, adapter))
        reply = wire.decode_generation(raw)
        info = reply.meta_info
        return Completion(
            message={"role": "assistant", "content": reply.text},
            finish_reason=info.finish_reason["type"],
            usage=Usage(info.prompt_tokens, info.completion_tokens),
            prompt_ids=list(prompt_ids),
            token_ids=reply.output_ids,
            logprobs=[logprob for logprob, *_ in info.output_token_logprobs],
        )

    async def complete_text(self, body: Mapping[str, Any], adapter: str) -> Completion:
        """Continue a raw text; see `Engine.complete_text`.

        Raises: EngineUnavailable, EngineTimeout, EngineRefused, EngineBroken, AdapterMissing.
        """
        payload = self._text_payload(body, adapter)
        raw = await self._abortable(payload["rid"], self._post("/v1/completions", payload, adapter))
        reply = wire.decode_completion(raw)
        choice = reply.choices[0]
        return Completion(
            message={"role": "assistant", "content": choice.text},
            finish_reason=choice.finish_reason,
            usage=Usage(reply.usage.prompt_tokens, reply.usage.completion_tokens),
            choice_logprobs=choice.logprobs,
        )

    def stream(self, body: Mapping[str, Any], adapter: str) -> AsyncGenerator[bytes, None]:
        """Yield the payloads of the engine's events; see `Engine.stream`. With tools, dropped text is given back.

        Raises: EngineUnavailable, EngineTimeout, EngineRefused, EngineBroken, AdapterMissing.
        """
        if not _may_call(body):
            return self._stream("/v1/chat/completions", self._payload, body, adapter)
        asking = {**body, restoring.ASK_FOR_TOKENS: True}
        events = self._stream("/v1/chat/completions", self._payload, asking, adapter)
        return restoring.restore_stream(events, self._restore_content)

    def stream_text(self, body: Mapping[str, Any], adapter: str) -> AsyncGenerator[bytes, None]:
        """Yield the payloads of a raw text completion; see `Engine.stream_text`.

        Raises: EngineUnavailable, EngineTimeout, EngineRefused, EngineBroken, AdapterMissing.
        """
        return self._stream("/v1/completions", self._text_payload, body, adapter)

    async def embed(self, body: Mapping[str, Any]) -> bytes:
        """Give the engine's answer to an embeddings request; see `Engine.embed`.

        Raises: Unsupported, EngineUnavailable, EngineTimeout, EngineRefused, EngineBroken.
        """
        wire.check_inputs(body.get("input"))
        # Without an id to abort by: SGLang takes one only a single input, and one pass is soon over.
        status, raw = await self._exchange("/v1/embeddings", {**wire.given(body), "model": self._model_name})
        if status != 200:
            raise wire.to_embedding_error(status, raw)
        return raw

    async def state(self) -> EngineState:
        """Say what is served. Raises: EngineUnavailable, EngineTimeout, EngineBroken."""
        gone = self._unloaded - self._unloading
        info, models = await asyncio.gather(self._get("/model_info"), self._get("/v1/models"))
        state = wire.read_state(info, models)
        # What was gone before the engine was asked and is there now has been loaded again, by another process.
        self._unloaded -= gone & state.adapters.keys()
        return state

    async def ready(self) -> bool:
        """Say whether it takes traffic now."""
        try:
            status, _ = await self._upstream.exchange("GET", "/health", timeout_s=_HEALTH_TIMEOUT_S)
        except MulliganError:
            return False
        return status == 200

    async def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter under a new name. Raises: EngineUnavailable, EngineTimeout, AdapterRefused."""
        try:
            reply = await self._post_adapter("/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except EngineUnreached:
            raise
        except EngineUnavailable:  # the connection broke: the engine may have loaded it all the same
            if (await self.state()).adapters.get(name) != path:
                raise
        else:
            if reply.error_message:
                raise AdapterRefused(f"the engine would not load adapter {name}: {reply.error_message}")
        self._unloaded.discard(name)
        self._unloading.discard(name)

    async def unload_adapter(self, name: str) -> None:
        """Unload; a name not loaded is no error. Raises: EngineUnavailable, EngineTimeout, AdapterRefused."""
        self._unloaded.add(name)
        self._unloading.add(name)
        payload = {"lora_name": name}
        try:
            try:
                reply = await self._post_adapter("/unload_lora_adapter", payload)
            except EngineUnreached:
                raise
            except EngineUnavailable:  # the connection broke: what is gone stays gone when it is asked for twice
                reply = await self._post_adapter("/unload_lora_adapter", payload)
        except (EngineUnavailable, EngineBroken):
            self._unloading.discard(name)
            raise
        self._unloading.discard(name)  # one that is cut short here goes on over there
        if reply.error_message and "does not exist" not in reply.error_message:
            raise AdapterRefused(f"the engine would not unload adapter {name}: {reply.error_message}")

    def replicas(self) -> Mapping[str, "SGLangEngine"]:
        """Name itself: it stands alone."""
        return {self._url: self}

    async def close(self) -> None:
        """Release connections, once aborts that are under way have been sent."""
        await asyncio.gather(*self._background)
        await self._upstream.close()

    async def _stream(
        self, path: str, make_payload: _MakePayload, body: Mapping[str, Any], adapter: str
    ) -> AsyncGenerator[bytes, None]:
        payload = {**make_payload(body, adapter), "stream": True}
        events, refusal, done = wire.EventReader(), b"", False
        reply = await self._upstream.open("POST", path, msgspec.json.encode(payload))
        try:
            while part := await reply.part():
                if reply.status != 200:
                    refusal += part
                    continue
                for event in events.push(part):
                    yield event
            if reply.status != 200:
                raise wire.to_error(reply.status, refusal, adapter)
            done = events.done
            if not done:
                raise EngineBroken("the engine ended a stream before its answer was complete")
        except EngineTimeout:
            raise
        except MulliganError:
            done = True
            raise
        finally:
            reply.close()
            if not done:
                self._abort_later(payload["rid"])

    def _payload(self, body: Mapping[str, Any], adapter: str) -> dict[str, Any]:
        self._check_adapter(adapter)
        model = f"{self._model_name}:{adapter}" if adapter else self._model_name
        named = {"model": model, "rid": os.urandom(16).hex(), **name_priority()}
        return {**wire.NEUTRAL_SAMPLING, **wire.given(body), **named}

    def _text_payload(self, body: Mapping[str, Any], adapter: str) -> dict[str, Any]:
        payload = {"max_tokens": wire.TEXT_TOKENS, **self._payload(body, adapter)}
        if not isinstance(payload["prompt"], str):
            payload["logit_bias"] = wire.name_ids(payload["prompt"], payload.get("logit_bias"))
        return payload

    def _check_adapter(self, adapter: str) -> None:
        if adapter in self._unloaded:
            raise AdapterMissing(f"adapter {adapter} was unloaded")

    async def _restore_content(self, tokens: Sequence[int], stop: int | str | None, content: str, thoughts: str) -> str:
        if isinstance(stop, int) and tokens and tokens[-1] == stop:
            tokens = tokens[:-1]
        raw = await self._post("/detokenize", {"tokens": tokens, "skip_special_tokens": False})
        text = wire.decode_text(raw)
        if isinstance(stop, str):
            text = text.partition(stop)[0]
        return restoring.find_content(text, content, thoughts)

    async def _abortable(self, request_id: str, reply: Coroutine[Any, Any, bytes]) -> bytes:
        try:
            return await reply
        except (asyncio.CancelledError, EngineTimeout):
            # Closing the connection is noticed by SGLang within seconds only; the slot is wanted at once.
            self._abort_later(request_id)
            raise

    def _abort_later(self, request_id: str) -> None:
        task = asyncio.create_task(self._abort(request_id))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _abort(self, request_id: str) -> None:
        try:
            payload = msgspec.json.encode({"rid": request_id})
            await self._upstream.exchange("POST", "/abort_request", payload, timeout_s=_HEALTH_TIMEOUT_S)
        except MulliganError:
            return  # an engine that is away generates nothing

    async def _post_adapter(self, path: str, payload: Mapping[str, Any]) -> wire.AdapterReply:
        status, raw = await self._exchange(path, payload)
        if status not in (200, 400):
            raise wire.to_error(status, raw)
        return wire.decode_adapter_reply(raw)

    async def _post(self, path: str, payload: Mapping[str, Any], adapter: str = "") -> bytes:
        status, raw = await self._exchange(path, payload)
        if status != 200:
            raise wire.to_error(status, raw, adapter)
        return raw

    async def _exchange(self, path: str, payload: Mapping[str, Any]) -> tuple[int, bytes]:
        return await self._upstream.exchange("POST", path, msgspec.json.encode(payload))

    async def _get(self, path: str) -> bytes:
        try:
            status, raw = await self._upstream.exchange("GET", path)
        except EngineUnavailable:
            status, raw = await self._upstream.exchange("GET", path)  # a read is safe to repeat on a stale connection
        if status != 200:
            raise wire.to_error(status, raw)
        return raw


def _may_call(body: Mapping[str, Any]) -> bool:
    return bool(body.get("tools")) and body.get("tool_choice") != "none"

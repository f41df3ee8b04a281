"""The engine as one traced episode sees it: every call of it is a span, and carries the trace to the engine."""

from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from server.engine.base import Completion, Engine
from server.engine.trace_context import continue_trace
from server.telemetry.traces import EpisodeTrace

T = TypeVar("T")


class TracedEngine:
    """What an episode asks of an engine; everything else goes to the engine itself."""

    def __init__(self, engine: Engine, trace: EpisodeTrace) -> None:
        self._engine, self._trace = engine, trace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def complete(self, body: Mapping[str, Any], adapter: str, *, with_tokens: bool = False) -> Completion:
        """Answer one chat request; see `Engine.complete`. Raises: what the engine raises."""
        return await self._ask("chat", self._engine.complete(body, adapter, with_tokens=with_tokens))

    async def complete_text(self, body: Mapping[str, Any], adapter: str) -> Completion:
        """Continue a raw text; see `Engine.complete_text`. Raises: what the engine raises."""
        return await self._ask("text_completion", self._engine.complete_text(body, adapter))

    def stream(self, body: Mapping[str, Any], adapter: str) -> AsyncIterator[bytes]:
        """Yield the payloads of the engine's events; see `Engine.stream`."""
        return self._stream("chat", self._engine.stream(body, adapter))

    def stream_text(self, body: Mapping[str, Any], adapter: str) -> AsyncIterator[bytes]:
        """Yield the payloads of a raw text completion; see `Engine.stream_text`."""
        return self._stream("text_completion", self._engine.stream_text(body, adapter))

    async def _ask(self, operation: str, call: Coroutine[Any, Any, T]) -> T:
        part, traceparent = self._trace.begin_call(operation)
        continue_trace(traceparent)
        try:
            answer = await call
        except BaseException as error:
            self._trace.end_call(part, error)
            raise
        self._trace.end_call(part)
        return answer

    async def _stream(self, operation: str, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        part, traceparent = self._trace.begin_call(operation)
        continue_trace(traceparent)
        try:
            async with aclosing(events) as opened:  # pyright: ignore[reportArgumentType]
                async for event in opened:
                    yield event
        except BaseException as error:
            self._trace.end_call(part, error)
            raise
        self._trace.end_call(part)

"""Traces of episodes for OpenTelemetry. Off until an address is set; only then is the SDK loaded.

One span an episode, continued from the client's `traceparent`, and below it what it consists of: the queue, each
attempt, verdict, reflection and retry, and the append to the log. The names of attributes are those of the GenAI
conventions where there are any. What was said is in them only where the settings ask for it, redacted as the log is,
and never of a request with `store: false`. Nothing here may break or hold up a request: spans wait in memory, a bounded
number of them, and are dropped where nobody takes them.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from server.domain import Attempt, Episode, LoggedVerdict, Outcome, Reflection
from server.errors import InvalidRequest
from server.redaction import Redact, RedactionFailed, redact_value
from server.settings import TelemetrySettings
from verifiers.base import Status

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

NS = 1_000_000_000
CLOSE_S = 3.0
SEND_S = 5.0
_SAMPLING = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
}


class Traces:
    """Makes the spans of this process and sends them. `exporter` stands in for the one of the settings."""

    def __init__(
        self, settings: TelemetrySettings, *, redact: Redact | None = None, exporter: "SpanExporter | None" = None
    ) -> None:
        self._content, self._redact = settings.traces_content, redact
        try:
            self._provider = _open_provider(settings, exporter)
            from opentelemetry import trace  # noqa: PLC0415 -- nothing is loaded where traces are off
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415
        except ImportError as error:
            raise InvalidRequest(
                f"MULLIGAN_TELEMETRY__TRACES_URL is set, and {error.name} is missing: pip install 'mulligan[otel]'"
            ) from error
        self._api, self._propagator = trace, TraceContextTextMapPropagator()
        self._tracer = self._provider.get_tracer("mulligan")

    def open(self, episode: Episode, traceparent: bytes, began_ns: int, model: str) -> "EpisodeTrace":
        """Begin an episode's trace. Its request came at `began_ns` (Unix); `model` is what the engine is asked for."""
        carrier = {"traceparent": traceparent.decode("latin-1")} if traceparent else {}
        span = self._tracer.start_span(
            "episode",
            context=self._propagator.extract(carrier),
            kind=self._api.SpanKind.SERVER,
            attributes=_describe_episode(episode),
            start_time=began_ns,
        )
        return EpisodeTrace(self, episode, span, model)

    def start(self, parent: "Span", name: str, started_ns: int, attributes: Mapping[str, Any], *, asks: bool) -> "Span":
        """Begin a span below another; `asks`: it waits for another service."""
        kind = self._api.SpanKind.CLIENT if asks else self._api.SpanKind.INTERNAL
        within = self._api.set_span_in_context(parent)
        return self._tracer.start_span(
            name, context=within, kind=kind, attributes=dict(attributes), start_time=started_ns
        )

    def name_parent(self, span: "Span") -> str:
        """Give the `traceparent` under which another service's spans stand below this one."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._api.set_span_in_context(span))
        return carrier.get("traceparent", "")

    def mark_failed(self, span: "Span", error: str) -> None:
        """Mark a span as failed, with an error's class: what it says may hold what somebody said."""
        span.set_attribute("error.type", error)
        span.set_status(self._api.Status(self._api.StatusCode.ERROR))

    def shows(self, episode: Episode) -> bool:
        """Say whether what was said in an episode may be told."""
        return self._content and episode.store

    def write_messages(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Write messages down as the conventions have them, redacted; where the redactor fails, without any text."""
        parts = [_as_parts(message) for message in messages]
        if self._redact is not None:
            try:
                parts = redact_value(parts, self._redact)
            except RedactionFailed:
                return "[]"
        return msgspec.json.encode(parts).decode()

    def close(self) -> None:
        """Send what waits, for a bounded time: the SDK's own close tries for half a minute where nobody answers."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class EpisodeTrace:
    """The trace of one episode while it runs."""

    def __init__(self, traces: Traces, episode: Episode, span: "Span", model: str) -> None:
        self._traces, self._episode, self._span, self._model = traces, episode, span, model
        self._calls: dict[tuple[str, int], tuple[Span, int]] = {}

    def add_queue(self, began_ns: int, ended_ns: int) -> None:
        """Tell of the wait for room."""
        self._traces.start(self._span, "queue", began_ns, {}, asks=False).end(ended_ns)

    def begin_call(self, operation: str) -> tuple[tuple[str, int], str]:
        """Begin what the engine is about to be asked: which part it is, and the `traceparent` to send with it.

        Which part it is, is told by what the episode has so far: the loop fills it as it goes.
        """
        episode = self._episode
        if not episode.attempts:
            part = ("attempt", 1)
        elif len(episode.reflections) < len(episode.attempts):
            part = ("reflection", len(episode.attempts))
        else:
            part = ("retry", len(episode.attempts) + 1)
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "mulligan",
            "gen_ai.request.model": self._model,
            "mulligan.attempt": part[1],
        }
        span = self._traces.start(self._span, part[0], time.time_ns(), attributes, asks=True)
        self._calls[part] = (span, 0)
        return part, self._traces.name_parent(span)

    def end_call(self, part: tuple[str, int], error: BaseException | None = None) -> None:
        """End what the engine was asked; what it gave is told when the episode is over."""
        span, _ = self._calls[part]
        if error is not None:
            self._traces.mark_failed(span, type(error).__name__)
        self._calls[part] = (span, time.time_ns())

    def end(self, log_began_ns: int, *, logged: bool) -> None:
        """Tell all that is known now that the episode was logged, or could not be."""
        ended_ns, episode = time.time_ns(), self._episode
        for attempt in episode.attempts:
            self._tell_attempt(attempt)
        for reflection in episode.reflections:
            self._tell_reflection(reflection)
        for span, call_ended_ns in self._calls.values():  # those that gave nothing
            span.end(call_ended_ns or ended_ns)
        append = self._traces.start(self._span, "log", log_began_ns, {}, asks=False)
        if not logged:
            self._traces.mark_failed(append, "StoreUnavailable")
        append.end(ended_ns)
        self._tell_episode(ended_ns)

    def _tell_episode(self, ended_ns: int) -> None:
        episode, span = self._episode, self._span
        usage = episode.usage
        told = {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "mulligan.outcome": episode.outcome.value,
            "mulligan.attempts": len(episode.attempts),
            "mulligan.reflections": len(episode.reflections),
        }
        if self._traces.shows(episode):
            told["gen_ai.input.messages"] = self._traces.write_messages((episode.request or {}).get("messages") or ())
            if episode.attempts:
                told["gen_ai.output.messages"] = self._traces.write_messages([episode.attempts[-1].answer])
        span.set_attributes(told)
        if episode.outcome is Outcome.ERRORED:
            self._traces.mark_failed(span, episode.error.partition(":")[0])
        span.end(ended_ns)

    def _tell_attempt(self, attempt: Attempt) -> None:
        told: dict[str, Any] = {
            _SAMPLING[name]: value
            for name, value in attempt.sampling.items()
            if name in _SAMPLING and isinstance(value, int | float)
        }
        told |= {"gen_ai.response.finish_reasons": [attempt.finish_reason], "mulligan.status": str(attempt.status)}
        part = ("attempt" if attempt.number == 1 else "retry", attempt.number)
        self._tell_call(part, attempt, [attempt.answer], told)
        judged_ns = int(attempt.started_at * NS + attempt.engine_ms * 1e6)
        for verdict in attempt.verdicts:
            self._tell_verdict(verdict, attempt, judged_ns)

    def _tell_reflection(self, reflection: Reflection) -> None:
        said = [{"role": "assistant", "content": reflection.text}]
        told = {"gen_ai.response.finish_reasons": [reflection.finish_reason]}
        self._tell_call(("reflection", reflection.attempt), reflection, said, told)

    def _tell_call(
        self, part: tuple[str, int], gave: Attempt | Reflection, said: Sequence[Mapping], told: Mapping[str, Any]
    ) -> None:
        span, ended_ns = self._calls.pop(part, (None, 0))
        if span is None:
            return
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": gave.usage.prompt_tokens,
                "gen_ai.usage.output_tokens": gave.usage.completion_tokens,
                "gen_ai.response.model": self._model,
                **told,
            }
        )
        if self._traces.shows(self._episode):
            span.set_attribute("gen_ai.output.messages", self._traces.write_messages(said))
        span.end(ended_ns or None)

    def _tell_verdict(self, verdict: LoggedVerdict, attempt: Attempt, began_ns: int) -> None:
        told: dict[str, Any] = {
            "gen_ai.evaluation.name": verdict.verifier,
            "gen_ai.evaluation.score.label": str(verdict.status),
            "mulligan.mode": verdict.mode.value,
            "mulligan.attempt": attempt.number,
        }
        if verdict.status in (Status.PASSED, Status.FAILED):
            told["gen_ai.evaluation.score.value"] = verdict.score
        if verdict.cause:
            told["mulligan.cause"] = str(verdict.cause)
        if self._traces.shows(self._episode) and verdict.reason:
            told["gen_ai.evaluation.explanation"] = self._traces.write_messages([{"content": verdict.reason}])
        span = self._traces.start(self._span, "verify", began_ns, told, asks=False)
        ended_ns = began_ns + int(verdict.duration_ms * 1e6)
        span.add_event("gen_ai.evaluation.result", told, timestamp=ended_ns)
        span.end(ended_ns)


def _describe_episode(episode: Episode) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mulligan",
        "gen_ai.request.model": episode.model,
        "gen_ai.response.id": episode.id,
        "mulligan.episode": episode.id,
        "mulligan.task": episode.task,
        "mulligan.adapter": episode.adapter,
    }


def _as_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """Turn an OpenAI message into the conventions' one."""
    content, parts = message.get("content"), []
    if isinstance(content, str) and content:
        parts.append({"type": "text", "content": content})
    several = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    parts += [{"type": "text", "content": part.get("text")} for part in several if part.get("type") == "text"]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        parts.append(
            {
                "type": "tool_call",
                "id": call.get("id"),
                "name": function.get("name"),
                "arguments": function.get("arguments"),
            }
        )
    return {"role": message.get("role", "assistant"), "parts": parts}


def _open_provider(settings: TelemetrySettings, exporter: "SpanExporter | None") -> "TracerProvider":
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 -- nothing is loaded where traces are off
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415

    sampler = ParentBased(TraceIdRatioBased(settings.traces_share))
    resource = Resource.create({"service.name": settings.traces_service})
    provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        return provider
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    sends = OTLPSpanExporter(endpoint=settings.traces_url, headers=dict(settings.traces_headers), timeout=SEND_S)
    provider.add_span_processor(BatchSpanProcessor(sends))
    return provider

"""Puts metrics and traces into the context of an API process. Called by `server.app`, used by the walk of a request.

What is switched off is None, so that a request pays a look at it and no more.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import cast

import structlog

from server.api.context import Context
from server.api.vital_signs import VitalSigns, read_gauges
from server.api.watch import repeat
from server.domain import Episode
from server.engine.base import Engine
from server.telemetry.meter import SHARE_EVERY_S, Meter
from server.telemetry.traced_engine import TracedEngine
from server.telemetry.traces import EpisodeTrace, Traces

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def observed(context: Context, meter: Meter | None) -> AsyncIterator[Context]:
    """Give the context with what the settings switch on. `meter`: of a process among several; else it gets its own.

    Raises: InvalidRequest where traces are on and what they need is not installed.
    """
    settings = context.settings.telemetry
    traces = Traces(settings, redact=context.redact) if settings.traces_url else None
    context = replace(context, traces=traces)
    sharing: asyncio.Task[None] | None = None
    if settings.metrics:
        meter = meter or Meter()
        context = replace(context, meter=meter)
        context = replace(context, vital_signs=VitalSigns(context).read)
        meter.read_gauges = partial(read_gauges, context)
        context.log.note = meter.tally.count_logged
        sharing = asyncio.create_task(repeat("metrics", meter.share, SHARE_EVERY_S))
    try:
        yield context
    finally:
        if sharing is not None:
            sharing.cancel()
            await asyncio.wait([sharing])
        if traces is not None:
            await asyncio.to_thread(traces.close)


def open_traces(
    context: Context, episodes: tuple[Episode, ...], traceparent: bytes, began_ns: int, queued_ns: int
) -> tuple[EpisodeTrace, ...]:
    """Begin the traces of a request's episodes; none where traces are off. Times are Unix nanoseconds."""
    if context.traces is None:
        return ()
    opened = []
    for episode in episodes:
        trace = context.traces.open(
            episode, traceparent, began_ns, episode.adapter or context.settings.engine.model_name
        )
        trace.add_queue(queued_ns, time.time_ns())
        opened.append(trace)
    return tuple(opened)


def trace_engine(engine: Engine, traces: tuple[EpisodeTrace, ...], index: int) -> Engine:
    """Give the engine that the episode of a choice asks: traced, where traces are on."""
    return cast(Engine, TracedEngine(engine, traces[index])) if traces else engine


def log_episode(episode: Episode) -> None:
    """Write a line of an episode, without anything that was said in it."""
    usage = episode.usage
    _log.info(
        "episode",
        episode=episode.id,
        task=episode.task,
        adapter=episode.adapter,
        outcome=episode.outcome.value,
        attempts=len(episode.attempts),
        reflections=len(episode.reflections),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        duration_ms=round(episode.duration_ms, 3),
        error=error_class(episode),
    )


def error_class(episode: Episode) -> str:
    """Read the class of an episode's error; the rest of it may quote what was said."""
    words = episode.error.split(": ")
    return words[1] if words[0].startswith("retry ") and len(words) > 1 else words[0]

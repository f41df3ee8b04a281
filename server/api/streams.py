"""Answers a chat request as a stream, in one of two ways. Called by `server.api.chat`.

Held: with enforcing verifiers nothing of an answer is sent before it is verified; comments keep the connection alive.
Live: else the engine's chunks pass through untouched, read on the side for the log; only the last one gains a field.
Both log the episode before the last byte.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from server.api.exchange import Exchange
from server.api.gathering import Gathering
from server.api.render import (
    end_headers,
    refusal_of,
    render_chunks,
    render_mulligan,
    render_reasoning,
    start_headers,
)
from server.api.wire import EventStream
from server.domain import Attempt, Outcome, Reflection, VerifyMode
from server.errors import EngineBroken, EngineTimeout, MulliganError
from server.orchestration.episode import judge, read_outcome
from server.orchestration.verification import VerifierSet


async def answer_held(exchange: Exchange, *, include_attempts: bool = False) -> None:
    """Run the episode, then stream its verified answer.

    With `include_attempts` each failed attempt that is reflected on, and each reflection, is sent meanwhile as one
    `reasoning_content` delta.

    Raises: what goes wrong before the first byte; after it, it is sent as an event.
    """
    episode, stream = exchange.episode, EventStream(exchange.send)

    async def show(part: Attempt | Reflection) -> None:
        # An attempt is shown with the reflection on it: the last one of all is the answer itself.
        if isinstance(part, Reflection):
            await stream.start(start_headers(episode))
            chunks = render_reasoning(episode, episode.attempts[part.attempt - 1], part)
            await stream.send_events(*(msgspec.json.encode(chunk) for chunk in chunks))

    work = asyncio.ensure_future(exchange.run_logged(show if include_attempts else None))
    try:
        while not (await asyncio.wait({work}, timeout=exchange.keep_alive_s))[0]:
            await stream.start(start_headers(episode))
            await stream.send_comment()
        work.result()
        if (refusal := refusal_of(episode)) is not None:
            raise refusal
    except MulliganError as error:
        if not stream.started:
            raise
        await stream.fail(error)
        return
    finally:
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
    await stream.start(end_headers(episode))
    chunks = render_chunks(episode, include_usage=exchange.include_usage)
    await stream.end(*(msgspec.json.encode(chunk) for chunk in chunks))


async def answer_live(exchange: Exchange) -> None:
    """Pass the engine's stream on, and log what went by.

    Raises: what goes wrong before the first byte; after it, it is sent as an event.
    """
    stream = EventStream(exchange.send)
    held: list[bytes] = []
    try:
        await exchange.log_after(_relay(exchange, stream, held))
    except MulliganError as error:
        if not stream.started:
            raise
        await stream.fail(error)
        return
    mulligan = b',"mulligan":' + msgspec.json.encode(render_mulligan(exchange.episode)) + b"}"
    await stream.start(end_headers(exchange.episode))
    await stream.end(*held[:-1], held[-1].rstrip()[:-1] + mulligan)


async def _relay(exchange: Exchange, stream: EventStream, held: list[bytes]) -> None:
    """Pass chunks on up to the one that finishes; that and what follows is `held` until the episode is logged."""
    episode, gathering = exchange.episode, Gathering()
    started_at, started = time.time(), time.perf_counter()
    headers = start_headers(episode)
    body = {**exchange.body, "stream_options": {"include_usage": True}}
    chunks = exchange.context.engine.stream(body, episode.adapter)
    try:
        async with asyncio.timeout(max(0.0, exchange.deadline_at - time.time())):
            async for payload in chunks:
                if not (gathering.add(payload) or exchange.include_usage):
                    continue  # the usage, which only the log asked for
                if gathering.finish_reason:
                    held.append(payload)
                else:
                    await stream.start(headers)
                    await stream.send_events(payload)
        if not held:
            raise EngineBroken("The engine's stream ended before its answer did.")
        await _judge(exchange, gathering, started_at, started)
        episode.outcome = read_outcome(episode.attempts[-1])
    except asyncio.CancelledError:
        episode.outcome = Outcome.CANCELLED
        raise
    except TimeoutError:
        error = EngineTimeout("The engine did not finish its answer before the deadline.")
        episode.outcome, episode.error = Outcome.ERRORED, f"EngineTimeout: {error}"
        raise error from None
    except Exception as error:
        episode.outcome, episode.error = Outcome.ERRORED, f"{type(error).__name__}: {error}"
        raise
    finally:
        await _close(chunks)
        if not episode.attempts and gathering.begun:  # what was sent before it broke off belongs into the log
            await _judge(exchange, gathering, started_at, started, partial=True)
        episode.duration_ms = (time.perf_counter() - started) * 1000


async def _close(chunks: AsyncIterator[bytes]) -> None:
    """Close the engine's stream where it was left early: that aborts the generation."""
    if isinstance(chunks, AsyncGenerator):
        await chunks.aclose()


async def _judge(
    exchange: Exchange, gathering: Gathering, started_at: float, started: float, *, partial: bool = False
) -> None:
    verify = VerifierSet() if partial or exchange.episode.verify is VerifyMode.OFF else exchange.verify
    engine_ms = (time.perf_counter() - started) * 1000
    completion = gathering.completion()
    judged = await judge(1, exchange.body, completion, verify=verify, started_at=started_at, engine_ms=engine_ms)
    exchange.episode.attempts.append(judged)

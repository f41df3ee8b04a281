"""Answers a request as a stream, in one of two ways. Called by `server.api.serve`.

Held: with enforcing verifiers nothing of an answer is sent before it is verified; comments keep the connection alive.
Live: else the engine's chunks pass through as the surface has it, read on the side for the log.
Both log the episodes before the last byte.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from functools import partial
from typing import Any

from server.api.exchange import Exchange
from server.api.gathering import TOKEN_BYTES, Gathering
from server.api.render import refusal_of
from server.api.surfaces.base import Events
from server.api.wire import ClientGone, EventStream
from server.domain import Attempt, Outcome, Reflection, VerifyMode
from server.errors import EngineBroken, EngineTimeout, MulliganError
from server.orchestration.episode import judge, open_stream, read_outcome
from server.orchestration.selection import read_text
from server.orchestration.verification import VerifierSet


async def answer_held(exchange: Exchange) -> None:
    """Run the episodes, then stream their verified answers.

    With `include_attempts` each failed attempt that is reflected on, and each reflection, is sent meanwhile.

    Raises: what goes wrong before the first byte; after it, it is sent as an event.
    """
    episodes, stream = exchange.episodes, EventStream(exchange.send)
    events = exchange.surface.open_events(exchange.ask, episodes)

    async def start() -> None:
        if not stream.started:
            await stream.start(exchange.start_headers())
            await stream.send(events.begin())

    async def show(index: int, part: Attempt | Reflection) -> None:
        # An attempt is shown with the reflection on it: the last one of all is the answer itself.
        if isinstance(part, Reflection):
            await start()
            await stream.send(events.reasoning(index, episodes[index].attempts[part.attempt - 1], part))

    work = asyncio.ensure_future(exchange.run_logged(show if exchange.ask.includes_attempts else None))
    try:
        while not (await asyncio.wait({work}, timeout=exchange.keep_alive_s))[0]:
            await start()
            await stream.send_comment()
        work.result()
        if (refusal := refusal_of(episodes)) is not None:
            raise refusal
    except MulliganError as error:
        if not stream.started:
            raise
        await stream.fail(events.failure(error), error)
        return
    finally:
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
    begun = b"" if stream.started else events.begin()
    await stream.start(exchange.end_headers())
    await stream.end(begun + events.answer())


async def answer_live(exchange: Exchange) -> None:
    """Pass the engine's streams on, and log what went by.

    Raises: what goes wrong before the first byte; after it, it is sent as an event.
    """
    stream = EventStream(exchange.send)
    events = exchange.surface.open_events(exchange.ask, exchange.episodes)
    try:
        await exchange.log_after(exchange.for_each(partial(_relay, exchange, stream, events)))
    except MulliganError as error:
        if not stream.started:
            raise
        await stream.fail(events.failure(error), error)
        return
    begun = b"" if stream.started else events.begin()
    await stream.start(exchange.end_headers())
    await stream.end(begun + events.finish())


async def _relay(exchange: Exchange, stream: EventStream, events: Events, index: int) -> None:
    """Pass the chunks of one choice on; what the surface keeps is sent once the episodes are logged."""
    exchange.name_in_logs(index)
    episode, gathering = exchange.episodes[index], Gathering()
    started_at, started = time.time(), time.perf_counter()
    headers = exchange.start_headers()
    chunks = open_stream(exchange.engine_of(index), exchange.ask.choices[index].body, episode.adapter)
    try:
        async with asyncio.timeout(max(0.0, exchange.deadline_at - time.time())):
            async for payload in chunks:
                gathering.add(payload)
                if shown := events.passing(index, payload, gathering):
                    if not stream.started:
                        await stream.start(headers)
                        shown = events.begin() + shown
                    await stream.send(shown)
        if not gathering.finish_reason:
            raise EngineBroken("The engine's stream ended before its answer did.")
        await _judge(exchange, index, gathering, started_at, started)
        episode.outcome = read_outcome(episode.attempts[-1])
    except (asyncio.CancelledError, ClientGone):
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
            gathering.estimate_usage(_guess_prompt_tokens(exchange.ask.choices[index].body))
            await _judge(exchange, index, gathering, started_at, started, broken_off=True)
        episode.duration_ms = (time.perf_counter() - started) * 1000


def _guess_prompt_tokens(body: Mapping[str, Any]) -> int:
    """Guess how long a prompt is that the engine has not counted yet: by its text, images left out."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        return len(prompt)
    texts = [prompt] if prompt is not None else [read_text(message.get("content")) for message in body["messages"]]
    return sum(len(text.encode()) for text in texts) // TOKEN_BYTES


async def _close(chunks: AsyncIterator[bytes]) -> None:
    """Close the engine's stream where it was left early: that aborts the generation."""
    if isinstance(chunks, AsyncGenerator):
        await chunks.aclose()


async def _judge(
    exchange: Exchange,
    index: int,
    gathering: Gathering,
    started_at: float,
    started: float,
    *,
    broken_off: bool = False,
) -> None:
    episode, body = exchange.episodes[index], exchange.ask.choices[index].body
    verify = VerifierSet() if broken_off or episode.verify is VerifyMode.OFF else exchange.verify
    engine_ms = (time.perf_counter() - started) * 1000
    completion = gathering.completion()
    judged = await judge(1, body, completion, verify=verify, started_at=started_at, engine_ms=engine_ms)
    episode.attempts.append(judged)

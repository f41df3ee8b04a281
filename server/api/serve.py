"""The walk of every request that generates, without a framework: it is what the server is for. Called by the gate.

One way through: read, resolve names, admit the key, find room, count the episodes in flight, run them, log them,
render. No database session is held while the engine works, and an episode keeps the adapter that it began with.
"""

import math
import time

from server.api.binding import resolve_verifiers
from server.api.context import Context
from server.api.exchange import Exchange
from server.api.limits import Admission
from server.api.render import refusal_of, sum_usage
from server.api.resolution import choose_adapter, make_episodes, resolve_target
from server.api.streams import answer_held, answer_live
from server.api.surfaces.base import Ask, Surface
from server.api.telemetry import open_traces
from server.api.wire import Receive, Scope, Send, in_time, read_header, send_error, send_json
from server.domain import ApiKey, VerifyMode
from server.errors import MulliganError, TooLarge

KEEP_ALIVE_S = 10.0
NO_LIMITS = Admission()
_SHORTEST_PAUSE_S = 0.02
_MARGIN = 0.05
_MOST_MARGIN_S = 1.0
"""The share of the client's patience, at most a second, that is left for the way back."""


async def serve(
    surface: Surface, context: Context, key: ApiKey, scope: Scope, *, body: bytes, receive: Receive, send: Send
) -> None:
    """Serve one request.

    Raises: MulliganError for what is wrong before an episode begins, ClientGone.
    """
    began_ns = time.time_ns()
    ask = await surface.extend(surface.read(body, key, context), key, context)
    refuse_much(ask, body, context)
    target = await resolve_target(ask.request, key, context)
    verify = await resolve_verifiers(ask.request, target.task, key, context)
    deadline_at, keep_alive_s = read_patience(scope, ask, context)
    limiter = context.limiter
    admission = NO_LIMITS if limiter.unlimited(key) else await limiter.admit(key)
    count, episodes = len(ask.choices), ()
    try:
        queued_ns = await _enter(context, count, receive, deadline_at)
        try:
            # From here to the count in flight there is no await: no flip of the champion can come between them.
            adapter, drawn = choose_adapter(target, ask, key, context)
            with context.traffic.counted(adapter, count):
                ours = {"adapter": adapter, "verify": verify, "key": key, "context": context, "conversation": drawn}
                episodes = make_episodes(ask, target.task, **ours)
                ways = (deadline_at, keep_alive_s, receive, send, admission.headers)
                traceparent = read_header(scope, b"traceparent")
                traces = open_traces(context, episodes, traceparent, began_ns, queued_ns)
                await _answer(Exchange(context, surface, ask, episodes, verify, *ways, traces))
        finally:
            context.traffic.leave(count)
    finally:
        if admission is not NO_LIMITS:
            admission.finish(sum_usage(episodes).total_tokens)


async def _enter(context: Context, count: int, receive: Receive, deadline_at: float) -> int:
    """Find room, and say since when it was sought (Unix nanoseconds). Raises: as `Traffic.enter`."""
    sought_ns = time.time_ns()
    try:
        await context.traffic.enter(count, receive, deadline_at)
    finally:
        if context.meter is not None:
            context.meter.tally.count_queued((time.time_ns() - sought_ns) / 1e9)
    return sought_ns


def refuse_much(ask: Ask, body: bytes, context: Context) -> None:
    """Refuse a request whose choices multiply it: each is logged with all that was asked. Raises: TooLarge."""
    count, most_bytes = len(ask.choices), context.settings.limits.body_max_bytes
    if count > 1 and count * len(body) > most_bytes:
        raise TooLarge(f"{count} choices times a body of {len(body)} bytes are over the limit of {most_bytes} bytes.")


async def _answer(exchange: Exchange) -> None:
    episodes = exchange.episodes
    try:
        if not exchange.ask.streams:
            await answer_whole(exchange)
        elif exchange.verify.enforces and episodes[0].verify is VerifyMode.ENFORCE:
            await answer_held(exchange)
        else:
            await answer_live(exchange)
    except MulliganError as error:
        begun = any(episode.attempts for episode in episodes)
        headers = exchange.end_headers() if begun else exchange.start_headers()
        await in_time(send_error(exchange.send, error, headers))


async def answer_whole(exchange: Exchange) -> None:
    """Run the episodes and answer with what they gave."""
    await exchange.run_logged()
    if (refusal := refusal_of(exchange.episodes)) is not None:
        raise refusal
    body = exchange.surface.render(exchange.ask, exchange.episodes)
    await in_time(send_json(exchange.send, 200, body, exchange.end_headers()))


def read_patience(scope: Scope, ask: Ask, context: Context) -> tuple[float, float]:
    """Read until when to answer (Unix seconds) and how often to give a sign of life (seconds).

    The SDKs say how long they wait for bytes: for a whole answer that is the deadline, for a stream the longest pause.
    """
    longest_s = context.settings.limits.deadline_s
    said = read_header(scope, b"x-stainless-read-timeout") or read_header(scope, b"x-stainless-timeout")
    patience_s = _read_seconds(said) or longest_s
    if ask.streams:
        return time.time() + longest_s, min(KEEP_ALIVE_S, max(_SHORTEST_PAUSE_S, patience_s / 2))
    margin_s = min(patience_s * _MARGIN, _MOST_MARGIN_S)
    return time.time() + min(longest_s, patience_s - margin_s), KEEP_ALIVE_S


def _read_seconds(header: bytes) -> float | None:
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None

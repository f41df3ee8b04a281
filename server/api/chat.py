"""`POST /v1/chat/completions`, without a framework: it is what the server is for. Called by `server.api.gate`.

One way through: parse, resolve names, count the episode in flight, run it, log it, render it. No database session is
held while the engine works, and an episode keeps the adapter that it began with.
"""

import math
import time

import msgspec

from server.api.chat_request import ParsedChat, parse_chat
from server.api.context import Context
from server.api.exchange import Exchange
from server.api.render import end_headers, refusal_of, render_completion, start_headers
from server.api.resolution import make_episode, resolve_target, resolve_verifiers
from server.api.streams import answer_held, answer_live
from server.api.wire import Receive, Scope, Send, read_header, send_error, send_json
from server.domain import ApiKey, VerifyMode
from server.errors import MulliganError

KEEP_ALIVE_S = 10.0
_SHORTEST_PAUSE_S = 0.02
_MARGIN = 0.05
_MOST_MARGIN_S = 1.0
"""The share of the client's patience, at most a second, that is left for the way back."""


async def serve_chat(context: Context, key: ApiKey, scope: Scope, *, body: bytes, receive: Receive, send: Send) -> None:
    """Serve one chat request.

    Raises: MulliganError for what is wrong before an episode begins, ClientGone.
    """
    parsed = parse_chat(body, context.settings.limits)
    target = await resolve_target(parsed, key, context)
    verify = await resolve_verifiers(parsed, target.task, key, context)
    # From here to the count in flight there is no await: no flip of the champion can come between them.
    champion = context.roster.snapshot.tasks[target.task.name].champion
    adapter = champion if target.adapter is None else target.adapter
    with context.traffic.episode(adapter):
        episode = make_episode(
            parsed, target.task, adapter=adapter, bindings=verify.bindings, key=key, settings=context.settings
        )
        deadline_at, keep_alive_s = read_patience(scope, parsed, context)
        options = parsed.request.stream_options
        include_usage = bool(options and options.include_usage)
        include_attempts = bool(options and options.include_attempts)
        exchange = Exchange(
            context, episode, verify, parsed.engine_body, include_usage, deadline_at, keep_alive_s, receive, send
        )
        try:
            if not parsed.request.stream:
                await answer_whole(exchange)
            elif verify and episode.verify is VerifyMode.ENFORCE:
                await answer_held(exchange, include_attempts=include_attempts)
            else:
                await answer_live(exchange)
        except MulliganError as error:
            headers = end_headers(episode) if episode.attempts else start_headers(episode)
            await send_error(send, error, headers)


async def answer_whole(exchange: Exchange) -> None:
    """Run the episode and answer with its completion."""
    await exchange.run_logged()
    if (refusal := refusal_of(exchange.episode)) is not None:
        raise refusal
    body = msgspec.json.encode(render_completion(exchange.episode))
    await send_json(exchange.send, 200, body, end_headers(exchange.episode))


def read_patience(scope: Scope, parsed: ParsedChat, context: Context) -> tuple[float, float]:
    """Read until when to answer (Unix seconds) and how often to give a sign of life (seconds).

    The SDKs say how long they wait for bytes: for a whole answer that is the deadline, for a stream the longest pause.
    """
    longest_s = context.settings.limits.deadline_s
    patience_s = _read_seconds(read_header(scope, b"x-stainless-read-timeout")) or longest_s
    if parsed.request.stream:
        return time.time() + longest_s, min(KEEP_ALIVE_S, max(_SHORTEST_PAUSE_S, patience_s / 2))
    margin_s = min(patience_s * _MARGIN, _MOST_MARGIN_S)
    return time.time() + min(longest_s, patience_s - margin_s), KEEP_ALIVE_S


def _read_seconds(header: bytes) -> float | None:
    try:
        seconds = float(header)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None

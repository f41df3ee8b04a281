"""The mock engine: SGLang's protocol over a bare asyncio protocol, with every answer encoded beforehand.

Started by `bench.gateway.start` as a process of its own: `python -m bench.gateway.engine`. It prints its port, and
ends when its standard input does. It has to cost so little that it does not matter; it must never judge a gateway.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from functools import lru_cache
from typing import ClassVar, cast

import msgspec
import uvloop

from bench.gateway.script import FAIL_ONCE, FAILING, PASSING, REFLECTION, completion, stream_events

MODEL = "base"
_HEADS = 512
_JSON, _EVENTS = b"application/json", b"text/event-stream"


class _Message(msgspec.Struct):
    role: str
    content: str | None = None


class _Options(msgspec.Struct):
    include_usage: bool = False


class _Chat(msgspec.Struct):
    messages: list[_Message]
    model: str = MODEL
    stream: bool | None = False
    stream_options: _Options | None = None
    return_meta_info: bool | None = False


_chat_decoder = msgspec.json.Decoder(_Chat)


def reply(body: bytes, status: int = 200, kind: bytes = _JSON) -> bytes:
    """Encode a whole HTTP reply."""
    reason = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 501: b"Not Implemented"}[status]
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        status, reason, kind, len(body), body,
    )  # fmt: skip


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % _EVENTS
_REPLIES = {
    b"/health": reply(b""),
    b"/model_info": reply(b'{"model_path":"mock","is_generation":true}'),
    b"/get_model_info": reply(b'{"model_path":"mock","is_generation":true}'),
    b"/server_info": reply(b'{"model_path":"mock","served_model_name":"base","tp_size":1,"dp_size":1,"version":"0"}'),
    b"/get_server_info": reply(b'{"model_path":"mock","served_model_name":"base","tp_size":1,"dp_size":1}'),
    b"/v1/models": reply(b'{"object":"list","data":[{"id":"base","object":"model","root":"mock","parent":null}]}'),
    b"/abort_request": reply(b"{}"),
    b"/load_lora_adapter": reply(b'{"success":true,"error_message":"","loaded_adapters":{}}'),
    b"/unload_lora_adapter": reply(b'{"success":true,"error_message":"","loaded_adapters":{}}'),
}
_NOT_FOUND = reply(b'{"message":"the mock engine has no such route"}', 404)
_NOT_READ = reply(b'{"message":"the mock engine reads HTTP/1.1 with a content-length only"}', 501)


@lru_cache(maxsize=16)
def _whole(model: str, text: str, with_tokens: bool) -> bytes:
    return reply(completion(model, text, with_tokens=with_tokens))


@lru_cache(maxsize=16)
def _pieces(model: str, include_usage: bool) -> list[bytes]:
    events = stream_events(model, include_usage=include_usage)
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    # What an engine sends in one go: its head with the first chunk; the finish, the usage and the end.
    last = next(index for index, event in enumerate(events) if b'"finish_reason":"stop"' in event)
    return [_STREAM_HEAD + chunks[0], *chunks[1:last], b"".join(chunks[last:]) + b"0\r\n\r\n"]


@lru_cache(maxsize=_HEADS)
def parse_head(head: bytes) -> tuple[bytes, int]:
    """Read the path and the body's length from a request's head; -1 where the length is not said.

    Raises: ValueError for what is not HTTP/1.1.
    """
    line, *fields = head.split(b"\r\n")
    _, path, version = line.split(b" ")
    if version != b"HTTP/1.1":
        raise ValueError(f"not HTTP/1.1 but {version!r}")
    said = {name.strip().lower(): value for name, _, value in (field.partition(b":") for field in fields)}
    length = -1 if b"transfer-encoding" in said else int(said.get(b"content-length", 0))
    return path.partition(b"?")[0], length


def pick_text(chat: _Chat) -> str:
    """Pick what the model says: the passing answer; where it is hard, a failing one, a reflection, the passing one."""
    hard = any(message.role == "user" and (message.content or "").endswith(FAIL_ONCE) for message in chat.messages)
    shown = sum(message.role == "assistant" for message in chat.messages)
    if not hard or shown >= 2:
        return PASSING
    return REFLECTION if shown else FAILING


class EngineConnection(asyncio.Protocol):
    """One connection of a gateway's."""

    seen: ClassVar[Counter[str]] = Counter()
    interval_s: ClassVar[float] = 0.0

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class looks like it, and is none

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop a stream that was under way."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self.seen["cut off"] += 1

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            try:
                path, length = parse_head(self._rest[:end])
            except ValueError:  # sglang-router knocks with HTTP/2 first
                path, length = b"", -1
            begin = end + 4
            if length < 0:
                self._refuse()
                return
            if len(self._rest) < begin + length:
                return
            body, self._rest = self._rest[begin : begin + length], self._rest[begin + length :]
            self._answer(path, body)

    def _refuse(self) -> None:
        if self._transport is not None:
            self._transport.write(_NOT_READ)
            self._transport.close()

    def _answer(self, path: bytes, body: bytes) -> None:
        assert self._transport is not None
        self.seen[path.decode()] += 1
        if path == b"/v1/chat/completions":
            chat = _chat_decoder.decode(body)
            if chat.stream:
                options = chat.stream_options
                self._send_piece(_pieces(chat.model, bool(options and options.include_usage)), 0)
            else:
                self._transport.write(_whole(chat.model, pick_text(chat), bool(chat.return_meta_info)))
        elif path == b"/seen":
            self._transport.write(reply(json.dumps(self.seen).encode()))
        else:
            self._transport.write(_REPLIES.get(path, _NOT_FOUND))

    def _send_piece(self, pieces: list[bytes], index: int) -> None:
        self._timer = None
        if self._transport is None:
            return
        self._transport.write(pieces[index])
        if index + 1 < len(pieces):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.interval_s, self._send_piece, pieces, index + 1)


async def serve(interval_s: float) -> None:
    """Serve on a free port, which is printed, until standard input ends."""
    EngineConnection.interval_s = interval_s
    loop = asyncio.get_running_loop()
    server = await loop.create_server(EngineConnection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)  # nothing is ever written to it: readable means that it ended
    await ended.wait()
    server.close()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="The mock engine of the gateway benchmark.")
    parser.add_argument("--interval-ms", type=float, default=4.0, help="pause between two chunks of one stream")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments.interval_ms / 1000))


if __name__ == "__main__":
    main()

"""A client of the API that streams over one kept connection and looks at every byte of it."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httptools


@dataclass(frozen=True)
class Said:
    """What one stream said: its text, which adapter it names, how it ended, and the first byte's time on the loop."""

    text: str
    adapter: str | None
    finish_reason: str
    done: bool


class StreamClient:
    """One connection. What is not a whole, well-formed stream is a `CutError`."""

    def __init__(self, port: int, key: str) -> None:
        self._port, self._key = port, key
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, body: dict[str, Any]) -> Said:
        """Ask for a stream, and read it to its end. Raises: CutError, OSError."""
        raw = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {self._key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(head.encode() + raw)
        reply = _Reply()
        parser = httptools.HttpResponseParser(reply)
        assert self._reader is not None
        while not reply.complete:
            part = await self._reader.read(65536)
            if not part:
                await self.close()
                raise CutError("the connection was closed before the stream's end")
            parser.feed_data(part)
        if parser.get_status_code() != 200:
            raise CutError(f"status {parser.get_status_code()}: {reply.body[:300]!r}")
        return read_stream(bytes(reply.body))

    async def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()
            self._reader = self._writer = None


class CutError(Exception):
    """A request failed, or its stream is not whole."""


class _Reply:
    def __init__(self) -> None:
        self.body, self.complete = bytearray(), False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def read_stream(raw: bytes) -> Said:
    """Read the events of a stream. Raises: CutError where one of them is an error, or no JSON."""
    text, adapter, finish, done = "", None, "", False
    for event in raw.decode().split("\n\n"):
        if not event.startswith("data:"):
            continue  # a comment that keeps the connection alive
        payload = event[5:].strip()
        if payload == "[DONE]":
            done = True
            continue
        chunk = json.loads(payload)
        if "error" in chunk:
            raise CutError(f"an error in the stream: {chunk['error']}")
        for choice in chunk.get("choices", ()):
            text += choice["delta"].get("content") or ""
            finish = choice.get("finish_reason") or finish
        if "mulligan" in chunk:
            adapter = chunk["mulligan"]["adapter"]
    return Said(text, adapter, finish, done)

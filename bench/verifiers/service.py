"""A service on loopback that passes every answer at once: a webhook, and a judge's model.

`python -m bench.verifiers.service` prints its port, serves, and ends when its standard input does.
"""

import asyncio
import json
import re
import sys

_NONCE = re.compile(r"^BEGIN RUBRIC (\w+)$", re.MULTILINE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PASSED = b'{"passed": true}'


def judge(body: bytes) -> bytes:
    """Answer a chat request with a vote that passes."""
    nonce = _NONCE.search(json.loads(body)["messages"][0]["content"])
    assert nonce is not None
    vote = json.dumps({"nonce": nonce[1], "reason": "as the rubric says", "passed": True})
    choice = {"index": 0, "message": {"role": "assistant", "content": vote}, "finish_reason": "stop"}
    return json.dumps({"id": "j", "object": "chat.completion", "choices": [choice]}).encode()


class Service(asyncio.Protocol):
    """One connection, kept open; requests may come one after another."""

    def __init__(self) -> None:
        self._seen = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._seen += data
        while True:
            head, end, rest = self._seen.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            size = int(length[1]) if length else 0
            if not end or len(rest) < size or self._transport is None:
                return
            self._seen = rest[size:]
            body = judge(rest[:size]) if b"/chat/completions" in head.partition(b"\r\n")[0] else _PASSED
            lines = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            self._transport.write(lines.encode() + body)


async def serve() -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Service, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve())

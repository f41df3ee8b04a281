"""A scripted engine for the soak, in a process of its own: fast, and as unreliable as it is asked to be.

Started by `test_soak.py`; prints its port and ends when its standard input does. The first word of the user's text says
what happens, the second one is repeated in every answer, so that no answer can be taken for another's.
"""

import asyncio
import json
import sys
from collections import Counter
from typing import ClassVar

import uvloop

LONG_CHUNKS = 150
LONG_WORD = "long " * 100
_JSON, _EVENTS = b"application/json", b"text/event-stream"
_PLAIN = {
    "/health": {},
    "/model_info": {"model_path": "soak"},
    "/v1/models": {"data": [{"id": "base", "root": "soak", "parent": None}]},
    "/abort_request": {},
}


class Connection(asyncio.Protocol):
    """One connection of the API's."""

    seen: ClassVar[Counter[str]] = Counter()
    open: ClassVar[set["Connection"]] = set()
    hanging: ClassVar[set["Connection"]] = set()

    def connection_made(self, transport):
        self.transport, self.rest = transport, b""
        self.open.add(self)

    def connection_lost(self, _error):
        self.open.discard(self)
        if self in self.hanging:
            self.hanging.discard(self)
            self.seen["cut off"] += 1

    def data_received(self, received):
        self.rest += received
        while (end := self.rest.find(b"\r\n\r\n")) >= 0:
            head = self.rest[:end].decode().lower().split("\r\n")
            fields = dict(line.split(": ", 1) for line in head[1:])
            begin, length = end + 4, int(fields.get("content-length", 0))
            if len(self.rest) < begin + length:
                return
            body, self.rest = self.rest[begin : begin + length], self.rest[begin + length :]
            self.answer(head[0].split(" ")[1], json.loads(body) if body else {})

    def answer(self, path, body):
        self.seen[path] += 1
        if path == "/seen":
            counts = {"open": len(self.open), "hanging": len(self.hanging)}
            self.reply(200, {**self.seen, **counts})
        elif path in _PLAIN:
            self.reply(200, _PLAIN[path])
        else:
            self.chat(body)

    def chat(self, body):
        asked = next(message["content"] for message in body["messages"] if message["role"] == "user")
        what, number = asked.split(" ")[:2]
        self.seen[what] += 1
        if what == "hang":
            self.hanging.add(self)
            return
        if what == "broken":
            self.reply(500, {"message": "the engine is broken"})
            return
        if what == "cut" and not body.get("stream"):
            self.transport.close()
            return
        text, calls = f"right {number}", None
        if what == "fails" and body.get("return_meta_info"):
            text = f"I was wrong about {number}."
        elif what == "fails" and not any(message["role"] == "assistant" for message in body["messages"]):
            text = f"wrong {number}"
        elif what == "calls":
            function = {"name": "add", "arguments": json.dumps({"number": number})}
            text, calls = None, [{"id": f"call_{number}", "type": "function", "function": function}]
        finish = "abort" if what == "abort" else "tool_calls" if calls else "stop"
        if body.get("stream"):
            self.stream(what, text, calls, finish)
        else:
            self.whole(text, calls, finish, with_tokens=bool(body.get("return_token_ids")))

    def whole(self, text, calls, finish, *, with_tokens):
        message = {"role": "assistant", "content": text, "tool_calls": calls}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
        if with_tokens:
            rows = [[-0.5, token, None] for token in range(3)]
            choice |= {"prompt_token_ids": [*range(10)], "response_token_ids": [*range(3)]}
            choice["meta_info"] = {**usage, "finish_reason": {"type": finish}, "output_token_logprobs": rows}
        self.reply(200, {"id": "e", "object": "chat.completion", "choices": [choice], "usage": usage})

    def stream(self, what, text, calls, finish):
        deltas = [{"role": "assistant", "content": ""}]
        if what == "long":
            deltas += [{"content": LONG_WORD}] * LONG_CHUNKS
        deltas += [{"tool_calls": [{"index": 0, **calls[0]}]}] if calls else [{"content": text}]
        chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        chunks.append({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}})
        head = {"id": "e", "object": "chat.completion.chunk", "created": 1, "model": "base"}
        events = [b"data: " + json.dumps({**head, **chunk}).encode() + b"\n\n" for chunk in chunks] + [
            b"data: [DONE]\n\n"
        ]
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: " + _EVENTS + b"\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in events[:2] if what == "cut" else events:
            self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        if what == "cut":
            self.transport.close()
        else:
            self.transport.write(b"0\r\n\r\n")

    def reply(self, status, content):
        body = json.dumps(content).encode()
        head = b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (status, _JSON, len(body))
        self.transport.write(head + body)


async def serve():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


if __name__ == "__main__":
    uvloop.run(serve())

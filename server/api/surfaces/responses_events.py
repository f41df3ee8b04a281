"""The events of a streamed response: OpenAI's names, in OpenAI's order, numbered. Made by that surface for one request.

A held answer and a live one are written by the same writer: the one in a single delta, the other as it comes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from server.api.errors import render_error
from server.api.gathering import Gathering
from server.api.render import render_reasons
from server.api.surfaces.base import Ask
from server.api.surfaces.responses_items import Item, suffix_of, text_part
from server.api.surfaces.responses_render import (
    call_item,
    message_item,
    render_begun,
    render_failed,
    render_logprobs,
    render_response,
)
from server.domain import Attempt, Episode, Reflection
from server.errors import MulliganError

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_BEGINNING = 2
"""How many events `begin` frames: it is asked for them once the first one after them is there."""


class OutputWriter:
    """Writes the items of an answer as events. `items` are whole once `close` was called."""

    def __init__(self, suffix: str) -> None:
        self.items: list[Item] = []
        self._suffix = suffix
        self._sequence = _BEGINNING
        self._frames: list[bytes] = []
        self._open: Item | None = None  # a message or what the engine calls reasoning
        self._texts: list[str] = []
        self._calls: dict[int, tuple[int, Item, list[str]]] = {}  # where it stands in the output, what it is, its parts

    def take(self) -> bytes:
        """Take what was framed since."""
        frames, self._frames = self._frames, []
        return b"".join(frames)

    def emit(self, name: str, **fields: Any) -> None:
        """Frame an event."""
        payload = _encode({"type": name, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        self._frames.append(b"event: " + name.encode() + b"\ndata: " + payload + b"\n\n")

    def add_text(self, delta: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> None:
        """Add to the answer's text."""
        if self._open is None or self._open["type"] != "message":
            names = {"id": f"msg_{self._suffix}", "type": "message", "role": "assistant"}
            self._begin_part({**names, "status": "in_progress", "content": []}, text_part(""))
        if delta:
            self._texts.append(delta)
            self.emit("response.output_text.delta", **self._part(), delta=delta, logprobs=_without_bytes(logprobs))

    def add_reasoning(self, delta: str) -> None:
        """Add to what the engine calls reasoning."""
        if self._open is None or self._open["type"] != "reasoning":
            names = {"id": f"rs_{self._suffix}", "type": "reasoning", "summary": [], "content": []}
            self._begin_part({**names, "status": "in_progress"}, {"type": "reasoning_text", "text": ""})
        self._texts.append(delta)
        self.emit("response.reasoning_text.delta", **self._part(), delta=delta)

    def add_call(self, index: int, part: Mapping[str, Any]) -> None:
        """Add to a call; its first part names the function. Calls may be written side by side."""
        function = part.get("function") or {}
        if index not in self._calls:
            self._close_open("completed")
            begun = {**part, "function": {"name": function.get("name") or "", "arguments": ""}}
            item = {**call_item(self._suffix, index, begun), "status": "in_progress"}
            self._calls[index] = (len(self.items), item, [])
            self._begin_item(item)
        at, item, parts = self._calls[index]
        if delta := function.get("arguments"):
            parts.append(delta)
            self.emit("response.function_call_arguments.delta", item_id=item["id"], output_index=at, delta=delta)

    def add_summary(self, number: int, texts: Sequence[str]) -> None:
        """Add a whole reasoning item that tells of a failed attempt and the reflection on it."""
        item: Item = {"id": f"rs_{self._suffix}_{number}", "type": "reasoning", "summary": []}
        at = len(self.items)
        self._begin_item(item)
        for index, text in enumerate(texts):
            where = {"item_id": item["id"], "output_index": at, "summary_index": index}
            part = {"type": "summary_text", "text": text}
            self.emit("response.reasoning_summary_part.added", **where, part={**part, "text": ""})
            self.emit("response.reasoning_summary_text.delta", **where, delta=text)
            self.emit("response.reasoning_summary_text.done", **where, text=text)
            self.emit("response.reasoning_summary_part.done", **where, part=part)
        self._end_item(at, {**item, "summary": [{"type": "summary_text", "text": text} for text in texts]})

    def close(self, last: Attempt) -> None:
        """End every item that is open; an answer without anything is an empty message."""
        if not self._calls and (self._open is None or self._open["type"] != "message"):
            self.add_text("")
        self._close_open("completed", last)
        for at, item, parts in self._calls.values():
            arguments = "".join(parts)
            names = {"item_id": item["id"], "output_index": at}
            self.emit("response.function_call_arguments.done", **names, arguments=arguments)
            self._end_item(at, {**item, "arguments": arguments, "status": "completed"})

    def _begin_item(self, item: Item) -> None:
        self.emit("response.output_item.added", output_index=len(self.items), item=item)
        self.items.append(item)

    def _end_item(self, at: int, item: Item) -> None:
        self.items[at] = item
        self.emit("response.output_item.done", output_index=at, item=item)

    def _begin_part(self, item: Item, part: dict[str, Any]) -> None:
        self._close_open("completed")
        self._begin_item(item)
        self._open, self._texts = item, []
        self.emit("response.content_part.added", **self._part(), part=part)

    def _part(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": self._place(), "content_index": 0}

    def _place(self) -> int:
        return next(index for index, item in enumerate(self.items) if item is self._open)

    def _close_open(self, status: str, last: Attempt | None = None) -> None:
        """End the message or reasoning that is open. `last` knows its logprobs, and whether it was cut off."""
        if self._open is None:
            return
        text, where, at = "".join(self._texts), self._part(), self._place()
        if self._open["type"] == "reasoning":
            part: dict[str, Any] = {"type": "reasoning_text", "text": text}
            self.emit("response.reasoning_text.done", **where, text=text)
            item = {**self._open, "content": [part], "status": status}
        else:
            item = {**self._open, "status": status, "content": [text_part(text)]}
            if last is not None:
                item = message_item(self._suffix, text, last)
            (part,) = item["content"]
            self.emit("response.output_text.done", **where, text=text, logprobs=_without_bytes(part["logprobs"]))
        self.emit("response.content_part.done", **where, part=part)
        self._open = None
        self._end_item(at, item)


class ResponsesEvents:
    """Implements `Events` with the events of a response."""

    def __init__(self, ask: Ask, episodes: Sequence[Episode]) -> None:
        (self._episode,) = episodes
        self._echo: Mapping[str, Any] = ask.choices[0].logged["responses"]
        self._writer = OutputWriter(suffix_of(self._episode.id))

    def begin(self) -> bytes:
        """Frame that the response is there, and in progress."""
        begun = render_begun(self._episode, self._echo)
        names = ("response.created", "response.in_progress")
        payloads = [
            _encode({"type": name, "sequence_number": number, "response": begun}) for number, name in enumerate(names)
        ]
        framed = zip(names, payloads, strict=True)
        return b"".join([b"event: " + name.encode() + b"\ndata: " + payload + b"\n\n" for name, payload in framed])

    def reasoning(self, index: int, failed: Attempt, reflection: Reflection) -> bytes:
        """Frame a failed attempt and its reflection as a reasoning item with two summaries."""
        self._writer.add_summary(failed.number, render_reasons(failed, reflection))
        return self._writer.take()

    def answer(self) -> bytes:
        """Frame the verified answer, each item in one delta."""
        last = self._episode.attempts[-1]
        answer = last.answer
        if reasoning := answer.get("reasoning_content"):
            self._writer.add_reasoning(reasoning)
        if text := answer.get("content"):
            self._writer.add_text(text, (last.logprobs or {}).get("content") or ())
        for index, call in enumerate(answer.get("tool_calls") or ()):
            self._writer.add_call(index, call)
        return self.finish()

    def passing(self, index: int, payload: bytes, gathering: Gathering) -> bytes:
        """Translate a chunk of the engine's chat."""
        for choice in _decode(payload).get("choices") or ():
            delta = choice.get("delta") or {}
            if reasoning := delta.get("reasoning_content"):
                self._writer.add_reasoning(reasoning)
            if text := delta.get("content"):
                self._writer.add_text(text, (choice.get("logprobs") or {}).get("content") or ())
            for part in delta.get("tool_calls") or ():
                self._writer.add_call(part.get("index") or 0, part)
        return self._writer.take()

    def finish(self) -> bytes:
        """Frame the ends of all items, and the whole response."""
        self._writer.close(self._episode.attempts[-1])
        response = render_response(self._episode, self._echo, self._writer.items)
        self._writer.emit(f"response.{response['status']}", response=response)
        return self._writer.take()

    def failure(self, error: MulliganError) -> bytes:
        """Frame the failed response, and then the error as SDKs raise it."""
        self._writer.emit("response.failed", response=render_failed(self._episode, self._echo, error))
        said = {"code": error.code, "message": error.message, "param": error.param}
        self._writer.emit("error", **said, **render_error(error))
        return self._writer.take()


def _without_bytes(logprobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Render logprobs as events have them."""
    return [
        {
            "token": one["token"],
            "logprob": one["logprob"],
            "top_logprobs": [{"token": top["token"], "logprob": top["logprob"]} for top in one["top_logprobs"]],
        }
        for one in render_logprobs(logprobs)
    ]

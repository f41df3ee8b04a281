"""Reads the engine's chunks as they pass by, so that a streamed answer can be logged and checked like any other.

Called by `server.api.streams`. It must never change a chunk.
"""

from typing import Any

from msgspec import DecodeError, Struct
from msgspec.json import Decoder, encode

from server.domain import Usage
from server.engine.base import Completion
from server.errors import EngineBroken


class _Choice(Struct):
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None
    text: str | None = None  # in place of a delta, where a raw text is completed


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = Decoder(_Chunk).decode
TOKEN_BYTES = 4
"""How many bytes of text a token is taken to have, where nobody says."""


class Gathering:
    """A streamed answer as far as it has come."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}  # content, and whatever else is text: reasoning_content, refusal
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[Any] = []
        self._text_logprobs: dict[str, list[Any]] = {}  # those of a raw text come in columns
        self.finish_reason = ""
        self.usage = Usage()
        self._pieces = 0
        self.carried = False
        """Whether the latest chunk held anything but the usage."""

    def add(self, payload: bytes) -> None:
        """Take in a chunk.

        Raises: EngineBroken for what is not a chunk, or where the engine reports an error in the stream.
        """
        try:
            chunk = _decode(payload)
        except DecodeError as error:
            raise EngineBroken(f"The engine sent a chunk that is not one: {error}") from None
        if chunk.error is not None:
            raise EngineBroken("The engine broke off the stream.")
        if chunk.usage is not None:
            self.usage = Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        for choice in chunk.choices:
            if choice.finish_reason == "abort":
                raise EngineBroken("The engine aborted the answer.")
            self.finish_reason = choice.finish_reason or self.finish_reason
            self._add_logprobs(choice.logprobs or {})
            if choice.text is not None:
                self._texts.setdefault("content", []).append(choice.text)
            for name, value in (choice.delta or {}).items():
                if name == "tool_calls":
                    for part in value or ():
                        self._add_call(part)
                elif isinstance(value, str) and name != "role":
                    self._texts.setdefault(name, []).append(value)
        self.carried = bool(chunk.choices)
        self._pieces += self.carried

    @property
    def begun(self) -> bool:
        """Whether anything of an answer has come."""
        return bool(self._texts or self._calls)

    def estimate_usage(self, prompt_tokens: int) -> None:
        """Guess what was used where the engine was cut off before it said so: every chunk is a token at least."""
        if not self.usage.total_tokens:
            written = len(encode([self._texts, self._calls])) // TOKEN_BYTES
            self.usage = Usage(prompt_tokens, max(self._pieces, written))

    def completion(self) -> Completion:
        """Put the answer together, whole or as far as it has come."""
        message: dict[str, Any] = {"role": "assistant", "content": None}
        message |= {name: "".join(parts) for name, parts in self._texts.items()}
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
            message["content"] = message["content"] or None
        logprobs = {"content": self._logprobs, "refusal": None} if self._logprobs else self._text_logprobs or None
        return Completion(message, self.finish_reason, self.usage, choice_logprobs=logprobs)

    def _add_logprobs(self, logprobs: dict[str, Any]) -> None:
        if "tokens" not in logprobs:
            self._logprobs += logprobs.get("content") or ()
            return
        for name, column in logprobs.items():
            self._text_logprobs.setdefault(name, []).extend(column or ())

    def _add_call(self, part: dict[str, Any]) -> None:
        call = self._calls.setdefault(
            part.get("index") or 0, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = part.get("id") or call["id"]
        function = part.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""

"""How values go between the tests' process and the answer's: as tagged JSON, by value, never as code.

Both ends use it. What the tests' end reads was written by hostile code: whatever it is, it comes out as plain values of
built-in types or as BadValue. Functions go as numbers, under which the other end may call them.
"""

import json
import math
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

MAX_FRAME_BYTES = 8 * 2**20
MAX_ITEMS = 1000
_SMALL = 2**53  # beyond, other readers of JSON would round, and ours would count digits


class BadValue(Exception):
    """What cannot go by value, or what the other end sent is no value."""


class Late(BaseException):
    """The other end gave no answer in its time. No Exception: the tests shall not catch it."""


class Ended(BaseException):
    """The other end's process ended, or what it sends is no frame."""


Export = Callable[[Any], list[Any]]
Import = Callable[[str, Any], Any]


def encode(value: Any, export: Export) -> Any:
    """Write a value; `export` writes what does not go by value. Subclasses go as what they stand on.

    Raises: BadValue, RecursionError.
    """
    if value is None or isinstance(value, bool | str | int | float):
        return _encode_plain(value)
    for kind, tag in _ITEMS.items():
        if isinstance(value, kind):
            return [tag, *(encode(item, export) for item in kind.__iter__(value))]
    if isinstance(value, dict):
        return ["d", *([encode(key, export), encode(item, export)] for key, item in dict.items(value))]
    for kind, (tag, write, _) in _TEXTS.items():
        if isinstance(value, kind):
            return [tag, write(value)]
    if isinstance(value, Iterator):
        items = list(islice(value, MAX_ITEMS + 1))
        return ["it", len(items) > MAX_ITEMS, *(encode(item, export) for item in items[:MAX_ITEMS])]
    return export(value)


def _encode_plain(value: Any) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        value = float.__float__(value)
        return value if math.isfinite(value) else ["f", repr(value)]
    if value is None or isinstance(value, bool):
        return value
    value = int.__int__(value)
    return value if -_SMALL < value < _SMALL else ["i", hex(value)]


def decode(written: Any, take: Import) -> Any:
    """Read a value; `take` makes something of a tag that is not of this module, and of what follows it.

    Raises: BadValue.
    """
    try:
        return _decode(written, take)
    except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
        raise BadValue(f"no value: {type(error).__name__}") from None


def _decode(written: Any, take: Import) -> Any:
    if isinstance(written, dict):
        raise BadValue("no value")
    if not isinstance(written, list):
        return written
    tag, *rest = written
    if tag in _BY_TAG:
        return _BY_TAG[tag](_decode(item, take) for item in rest)
    if tag == "d":
        return {_decode(key, take): _decode(item, take) for key, item in rest}
    if tag == "it":
        return _iterate([_decode(item, take) for item in rest[1:]], more=bool(rest[0]))
    return _READERS[tag](rest[0]) if tag in _READERS else take(tag, rest[0])


def _read_fraction(text: str) -> Fraction:
    above, _, below = text.partition("/")
    return Fraction(int(above, 16), int(below, 16))


def _iterate(items: list[Any], *, more: bool) -> Iterator[Any]:
    yield from items
    if more:
        raise BadValue(f"iterators go {MAX_ITEMS} items far")


_ITEMS: dict[type, str] = {
    list: "l", tuple: "t", set: "s", frozenset: "fs", deque: "q",
    type({}.keys()): "l", type({}.values()): "l", type({}.items()): "l",
}  # fmt: skip
_BY_TAG: dict[str, Callable[[Iterator[Any]], Any]] = {
    "l": list, "t": tuple, "s": set, "fs": frozenset, "q": deque,
}  # fmt: skip
_TEXTS: dict[type, tuple[str, Callable[[Any], str], Callable[[str], Any]]] = {
    bytes: ("b", bytes.hex, bytes.fromhex),
    bytearray: ("ba", bytearray.hex, bytearray.fromhex),
    complex: ("c", repr, complex),
    Decimal: ("de", Decimal.__str__, Decimal),
    Fraction: ("fr", lambda value: f"{value.numerator:x}/{value.denominator:x}", _read_fraction),
    datetime: ("dt", datetime.isoformat, datetime.fromisoformat),
    date: ("da", date.isoformat, date.fromisoformat),
    timedelta: ("td", lambda value: repr(value / timedelta(microseconds=1)), lambda text: timedelta(0, 0, float(text))),
    range: (
        "r",
        lambda value: f"{value.start},{value.stop},{value.step}",
        lambda text: range(*map(int, text.split(","))),
    ),
}
_READERS: dict[str, Callable[[Any], Any]] = {tag: read for tag, _, read in _TEXTS.values()}
_READERS |= {"i": lambda text: int(text, 16), "f": float}


class Wire:
    """Frames over a pair of pipes: four bytes of length, then JSON. `deadline` is monotonic; None waits for ever."""

    def __init__(self, incoming: int, outgoing: int, deadline: float | None = None) -> None:
        self._incoming, self._outgoing, self.deadline = incoming, outgoing, deadline
        # Bound now: the answer may replace what stands in these modules, in its own process only.
        self._read_some, self._write_some = os.read, os.write

    def send(self, frame: dict[str, Any]) -> None:
        """Send a frame.

        Raises: BadValue for one that is too large, Ended.
        """
        body = json.dumps(frame).encode()
        if len(body) > MAX_FRAME_BYTES:
            raise BadValue(f"a value of {len(body):,} bytes is too large")
        rest = memoryview(len(body).to_bytes(4, "big") + body)
        while rest:
            self._wait(self._outgoing, select.POLLOUT)
            try:
                rest = rest[self._write_some(self._outgoing, rest[:4096]) :]  # so much fits when poll says so
            except OSError:
                raise Ended from None

    def receive(self) -> dict[str, Any]:
        """Receive a frame.

        Raises: Late, Ended.
        """
        length = int.from_bytes(self._read(4), "big")
        if length > MAX_FRAME_BYTES:
            raise Ended
        try:
            frame = json.loads(self._read(length))
        except (ValueError, RecursionError):
            raise Ended from None
        if not isinstance(frame, dict):
            raise Ended
        return frame

    def _read(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            self._wait(self._incoming, select.POLLIN)
            part = self._read_some(self._incoming, min(count, 2**16))
            if not part:
                raise Ended
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _wait(self, fd: int, events: int) -> None:
        if self.deadline is None:
            return
        poll = select.poll()
        poll.register(fd, events)
        if not poll.poll(max(0.0, self.deadline - time.monotonic()) * 1000):
            raise Late

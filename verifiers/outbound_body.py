"""Writes what `verifiers.outbound` sends and reads what comes back, in threads: either may be a megabyte of JSON."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from verifiers.answers import MAX_DEPTH, NotJson, read_json, scrub

MAX_SENT_CHARS = 1_000_000


class TooMuch(Exception):
    """What is to be sent is too long, nested too deeply, or no JSON."""


def write(value: Any) -> bytes:
    """Write a value as JSON, surrogates as U+FFFD. Blocks for some milliseconds a megabyte.

    Raises: TooMuch.
    """
    check_size(value, MAX_SENT_CHARS)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_open)
    except (TypeError, ValueError, RecursionError):
        raise TooMuch("request and answer hold something that is not JSON") from None
    return scrub(text).encode()


def check_size(value: Any, most_chars: int) -> None:
    """Walk through a value until it is too much, so that nothing larger is ever written in one go.

    Raises: TooMuch.
    """
    left = most_chars
    for size in _measure(value, 0):
        left -= size
        if left < 0:
            raise TooMuch(f"request and answer are longer than {most_chars:,} characters")


def read(body: bytes) -> Any:
    """Read strict JSON in UTF-8.

    Raises: NotJson.
    """
    try:
        return read_json(body.decode())
    except UnicodeDecodeError:
        raise NotJson("not UTF-8") from None


def _measure(value: Any, depth: int) -> Iterator[int]:
    """Walk through a value and give the sizes of its parts.

    Raises: TooMuch where it is nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise TooMuch(f"request and answer are nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        yield len(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield len(str(key)) + 1
            yield from _measure(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield 1
            yield from _measure(item, depth + 1)
    else:
        yield 1


def _open(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)

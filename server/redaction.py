"""The redaction hook: a function of the operator's own that every text goes through before anything is written down.

Named by `MULLIGAN_LOG__REDACT`, loaded by the roots, applied by the episode log (`server.store.redacting`), to answers
that could be repeated, to feedback and to the lines of our logs. It never sees or changes what a client is sent. What a
redactor raises must never reach a log: it may hold the very text. `docs/privacy.md` is the same in words.
"""

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import msgspec

from server.errors import InvalidRequest

Redact = Callable[[str], str]

SETTING = "MULLIGAN_LOG__REDACT"
STRUCTURE = frozenset({"role", "type", "id", "tool_call_id", "call_id", "object", "finish_reason", "detail", "format"})
"""Fields that say how a conversation is built: their values are no text of anybody's."""

FREE = frozenset({"metadata", "args", "arguments"})
"""Fields below which all is the client's own, whatever it is called."""

WITHHELD = "(withheld: the redactor failed)"


class RedactionFailed(Exception):
    """The redactor raised, or gave something that is no text. Says of the error its type alone."""


def load_redactor(place: str) -> Redact | None:
    """Load the function at `package.module:function`; None where none is named. Raises: InvalidRequest."""
    if not place:
        return None
    module, separator, name = place.partition(":")
    if not (module and separator and name):
        raise InvalidRequest(f"{SETTING} wants package.module:function, not {place!r}")
    found: Any = None
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        hint = "it has to be importable by the server: install its package, or set PYTHONPATH"
        raise InvalidRequest(f"{SETTING}={place}: {error} ({hint})") from error
    if not callable(found):
        raise InvalidRequest(f"{SETTING}={place} is no function")
    return cast("Redact", found)


def redact_text(text: str, redact: Redact) -> str:
    """Put one text through the redactor. Raises: RedactionFailed."""
    try:
        redacted = redact(text)
    except Exception as error:  # noqa: BLE001 - it is somebody else's code
        raise RedactionFailed(type(error).__name__) from None
    if not isinstance(redacted, str):
        raise RedactionFailed(f"it gave a {type(redacted).__name__}")
    return redacted


def redact_value(value: Any, redact: Redact, *, free: bool = False) -> Any:
    """Put every text in a JSON value through the redactor, the names of fields too.

    STRUCTURE's values stay, but for where the client is `free` to call things what it likes.

    Raises: RedactionFailed.
    """
    if isinstance(value, str):
        return _redact_said(value, redact)
    if isinstance(value, Mapping):
        return {
            redact_text(str(name), redact): part
            if not free and name in STRUCTURE and isinstance(part, str)
            else redact_value(part, redact, free=free or name in FREE)
            for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_value(part, redact, free=free) for part in value]
    return value


def _redact_said(text: str, redact: Redact) -> str:
    """Redact what a text says where it is JSON with escapes, as a call's arguments often are, and then the text."""
    if "\\" in text and text.lstrip()[:1] in ("{", "["):
        with suppress(msgspec.DecodeError):
            text = _redact_json(text, redact)
    return redact_text(text, redact)


def _redact_json(text: str, redact: Redact) -> str:
    """Redact JSON in a text; as it is where there is nothing to take out. Raises: DecodeError, RedactionFailed."""
    try:
        said = msgspec.json.decode(text)
        plain = redact_value(said, redact, free=True)
    except RecursionError:
        raise RedactionFailed("RecursionError") from None
    return text if plain == said else msgspec.json.encode(plain).decode()


def is_clean(body: bytes, redact: Redact) -> bool:
    """Say whether a whole answer, JSON or a stream of events, has nothing that the redactor would change.

    What a stream says in pieces is put together first. Raises: RedactionFailed.
    """
    texts: dict[tuple[Any, ...], list[str]] = {}
    try:
        for document in _read_documents(body):
            _gather(document, (), texts)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return all(_redact_said(text, redact) == text for text in ("".join(parts) for parts in texts.values()))


def _read_documents(body: bytes) -> list[Any]:
    if not body.lstrip().startswith((b"data:", b"event:", b":")):
        return [msgspec.json.decode(body)] if body.strip() else []
    lines = (line[5:].strip() for line in body.splitlines() if line.startswith(b"data:"))
    return [msgspec.json.decode(line) for line in lines if line and line != b"[DONE]"]


def _gather(value: Any, place: tuple[Any, ...], texts: dict[tuple[Any, ...], list[str]], *, free: bool = False) -> None:
    """Put together the texts at each place; the pieces of a stream stand at the same one, choices and items apart."""
    if isinstance(value, str):
        texts.setdefault(place, []).append(value)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if free or not (name in STRUCTURE and isinstance(part, str)):
                _gather(part, (*place, name), texts, free=free or name in FREE)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            index = part.get("index", number) if isinstance(part, Mapping) else number
            _gather(part, (*place, index), texts, free=free)


def make_log_redactor(place: str) -> Callable[[Any], Any] | None:
    """Make what log lines go through for the hook at `place`; None where none is named. Raises: InvalidRequest."""
    redact = load_redactor(place)
    return None if redact is None else lambda value: redact_line(value, redact)


def redact_line(value: Any, redact: Redact) -> Any:
    """Put what a log line says through the redactor; what it fails on is withheld."""
    try:
        return redact_value(value if isinstance(value, str | Mapping | list | tuple) else _plain(value), redact)
    except RedactionFailed:
        return WITHHELD


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | bool) else str(value)

"""Sets up structured logs, once per process, from a root (app, cli, worker, local engine).

What was said in a request stands in no line, unless the level is `debug`: exceptions of verifiers, engines and drivers
quote it freely, so a traceback shows where and which class, and not the words.
"""

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

import structlog
from structlog.typing import EventDict

SHOWN = (OSError, ImportError)
"""Exceptions whose words tell of files, addresses and modules, and of nothing that was said."""

_SERVERS = ("uvicorn", "uvicorn.error", "uvicorn.access")
_WITHHELD = "(words withheld: MULLIGAN_LOG_LEVEL=debug shows them)"


def configure_logs(
    level: str = "info",
    *,
    json: bool = False,
    worker: int | None = None,
    redact: Callable[[Any], Any] | None = None,
) -> None:
    """Send every log line to standard error: coloured text on a terminal, JSON where asked for.

    `worker` is the number of this process among several that log together; every line says it. `redact` takes out of a
    text, or of what is put together of texts, what may not be written; it raises nothing.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    words = number <= logging.DEBUG

    def mark(_logger: object, _method: str, event: EventDict) -> EventDict:
        return event if worker is None else {**event, "worker": worker}

    def take_out(_logger: object, _method: str, event: EventDict) -> EventDict:
        if redact is None:
            return event
        ours = ("level", "timestamp")
        return {name: value if name in ours else redact(value) for name, value in event.items()}

    first: list[Any] = [
        mark,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(lambda exc_info: describe_error(exc_info[1], words=words)),
    ]
    structlog.configure(
        processors=[
            *first,
            take_out,
            structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # a line is one write: others may log beside us
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    if json:
        handler.setFormatter(_JSONLines(first, take_out, words=words))
    else:
        handler.setFormatter(_PlainLines("" if worker is None else f"worker={worker} ", redact, words=words))
    logging.basicConfig(level=number, handlers=[handler], force=True)
    for name in _SERVERS:  # whoever serves us from a command line of its own has given these a voice already
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def describe_error(error: BaseException | None, *, words: bool = False) -> str:
    """Describe an exception and what led to it: the frames and the classes, and with `words` what each says."""
    if error is None:
        return ""
    if words:
        return "".join(traceback.format_exception(error)).rstrip("\n")
    parts, seen, led_to = [], set(), error
    while led_to is not None and id(led_to) not in seen:
        seen.add(id(led_to))
        kind = f"{type(led_to).__module__}.{type(led_to).__qualname__}".removeprefix("builtins.")
        says = str(led_to) if isinstance(led_to, SHOWN) else _WITHHELD
        parts.append("".join([*traceback.format_tb(led_to.__traceback__), f"{kind}: {says}"]))
        led_to = led_to.__cause__ or (None if led_to.__suppress_context__ else led_to.__context__)
    return "\nwhich led to\n".join(reversed(parts))


def _read_message(record: logging.LogRecord, *, words: bool) -> str:
    """Read a record's message; asyncio's own shows, below its first line, the exceptions of tasks with their words."""
    message = record.getMessage()
    return message if words or record.name != "asyncio" else message.partition("\n")[0]


class _PlainLines(logging.Formatter):
    """Lines of text for what libraries log; a whole line, traceback included, goes through the redactor."""

    def __init__(self, prefix: str, redact: Callable[[Any], Any] | None, *, words: bool) -> None:
        super().__init__()
        self._prefix, self._redact, self._words = prefix, redact, words

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line = f"{self._prefix}{record.levelname} {record.name}: {_read_message(record, words=self._words)}"
        if record.exc_info and record.exc_info[1] is not None:
            line += "\n" + describe_error(record.exc_info[1], words=self._words)
        return line if self._redact is None else str(self._redact(line))


class _JSONLines(logging.Formatter):
    """Lines of JSON for what libraries log, with the same fields as our own."""

    def __init__(self, first: list[Any], take_out: Any, *, words: bool) -> None:
        super().__init__()
        self._steps = [*first, take_out]
        self._render = structlog.processors.JSONRenderer()
        self._words = words

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        event: Any = {"event": _read_message(record, words=self._words), "logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            event["exc_info"] = record.exc_info
        for step in self._steps:
            event = step(None, record.levelname.lower(), event)
        return str(self._render(None, record.levelname.lower(), event))

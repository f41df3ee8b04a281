"""Sets up structured logs, once per process, from a root (app, cli, worker, local engine)."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import structlog


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
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )

    def mark(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return event if worker is None else {**event, "worker": worker}

    def take_out(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if redact is None:
            return event
        ours = ("level", "timestamp")
        return {name: value if name in ours else redact(value) for name, value in event.items()}

    structlog.configure(
        processors=[
            mark,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            take_out,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # a line is one write: others may log beside us
        cache_logger_on_first_use=True,
    )
    prefix = "" if worker is None else f"worker={worker} "
    logging.basicConfig(
        level=number, stream=sys.stderr, format=f"{prefix}%(levelname)s %(name)s: %(message)s", force=True
    )
    if redact is not None:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_RedactingFormatter(handler.formatter, redact))


class _RedactingFormatter(logging.Formatter):
    """Takes out of a whole line, tracebacks included, what may not be written."""

    def __init__(self, inner: logging.Formatter | None, redact: Callable[[Any], Any]) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return str(self._redact(self._inner.format(record)))

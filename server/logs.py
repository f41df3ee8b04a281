"""Sets up structured logs, once per process, from a root (app, cli, worker, local engine)."""

import logging
import sys

import structlog


def configure_logs(level: str = "info", *, json: bool = False, worker: int | None = None) -> None:
    """Send every log line to standard error: coloured text on a terminal, JSON where asked for.

    `worker` is the number of this process among several that log together; every line says it.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )

    def mark(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return event if worker is None else {**event, "worker": worker}

    structlog.configure(
        processors=[
            mark,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
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

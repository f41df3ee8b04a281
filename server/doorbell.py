"""Rings for the worker: sends jobs by name. Called by the API and the command line; never waits for a job.

The rounds table is the truth and this only the doorbell. A broker that is away is logged and otherwise ignored, for the
worker's scheduler looks for queued rounds every few seconds and finds this one too.
"""

from typing import Any

import structlog
from celery import Celery

from server.broker import FILESYSTEM, PREFLIGHT, RUN_ROUND, TICK, celery_config, queue_of
from server.domain import DEFAULT_POOL
from server.settings import Settings

log = structlog.get_logger(__name__)

TIMEOUT_S = 2.0
PREFLIGHT_EXPIRES_S = 120.0  # a worker in a round takes no jobs, and nobody waits so long for its look
__all__ = ["Doorbell", "celery_config"]


class Doorbell:
    """Sends the jobs. Blocking, for as long as 2 s if the broker does not answer: use a thread in a coroutine."""

    def __init__(self, settings: Settings) -> None:
        config = celery_config(settings)
        if not settings.broker_url.startswith(FILESYSTEM):
            # For sending alone; a worker waits longer than this on its socket by design.
            config["broker_transport_options"] = {
                "socket_timeout": TIMEOUT_S,
                "socket_connect_timeout": TIMEOUT_S,
                "max_retries": 0,
            }
        self._celery = Celery("mulligan", set_as_current=False)
        self._celery.config_from_object(config)

    def ring_round(self, round_id: str, pool: str = DEFAULT_POOL) -> None:
        """Ask for a queued round to be run, by the workers of its pool."""
        self._send(RUN_ROUND, round_id, queue=queue_of(pool))

    def ring_tick(self) -> None:
        """Ask for a look at what is due: queued rounds, lost workers, tasks with enough new failures."""
        self._send(TICK)

    def ring_preflight(self, pool: str = DEFAULT_POOL) -> None:
        """Ask a worker of a pool to look whether what it makes can be served."""
        self._send(PREFLIGHT, queue=queue_of(pool), expires=PREFLIGHT_EXPIRES_S)

    def find_fault(self) -> str:
        """Say why the broker cannot be reached; "" where it can."""
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - brokers raise errors of their own libraries
            return f"{type(error).__name__}: {error}"
        return ""

    def _send(self, job: str, *args: Any, **options: Any) -> None:
        try:
            # No retry: the next tick is the retry, and the caller should not wait for it.
            self._celery.send_task(job, args=args, retry=False, **options)
        except Exception as error:  # noqa: BLE001 - brokers raise errors of their own libraries; none of them matters here
            log.error("The broker is away; the scheduler will find the work", job=job, error=str(error))  # noqa: TRY400

    def close(self) -> None:
        """Close the connections to the broker."""
        self._celery.close()

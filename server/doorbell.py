"""Rings for the worker: sends jobs by name. Called by the API and the command line; never waits for a job.

The rounds table is the truth and this only the doorbell. A broker that is away is logged and otherwise ignored, for the
worker's scheduler looks for queued rounds every few seconds and finds this one too.
"""

from typing import Any

import structlog
from celery import Celery

from server.broker import FILESYSTEM, RUN_ROUND, TICK, celery_config
from server.settings import Settings

log = structlog.get_logger(__name__)

TIMEOUT_S = 2.0
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

    def ring_round(self, round_id: str) -> None:
        """Ask for a queued round to be run."""
        self._send(RUN_ROUND, round_id)

    def ring_tick(self) -> None:
        """Ask for a look at what is due: queued rounds, lost workers, tasks with enough new failures."""
        self._send(TICK)

    def _send(self, job: str, *args: Any) -> None:
        try:
            # No retry: the next tick is the retry, and the caller should not wait for it.
            self._celery.send_task(job, args=args, retry=False)
        except Exception as error:  # noqa: BLE001 - brokers raise errors of their own libraries; none of them matters here
            log.error("The broker is away; the scheduler will find the work", job=job, error=str(error))  # noqa: TRY400

    def close(self) -> None:
        """Close the connections to the broker."""
        self._celery.close()

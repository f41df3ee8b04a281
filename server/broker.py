"""Says where the queue of jobs is and how both ends of it are configured.

Pure: no Celery here. Used by the doorbell, which only sends, and by the worker and the scheduler, which build their
application from the same dict.
"""

from typing import Any

from server import file_queue
from server.settings import Settings

RUN_ROUND = "mulligan.run_round"
TICK = "mulligan.tick"
PREFLIGHT = "mulligan.preflight"
PANEL = "mulligan.panel"
QUEUE = "mulligan"  # of the default pool
FILESYSTEM = "filesystem://"
POLL_S = 0.2


def queue_of(pool: str) -> str:
    """Name the queue that a pool's workers listen to: a bell for one pool never wakes the workers of another."""
    return QUEUE if pool == Settings.model_fields["pool"].default else f"{QUEUE}.{pool}"


def celery_config(settings: Settings) -> dict[str, Any]:
    """Make the configuration of a Celery application on this broker; makes the folders of the filesystem transport.

    Jobs carry an id and nothing else, and no result is kept: the rounds table says what became of a round.
    """
    config: dict[str, Any] = {
        "broker_url": settings.broker_url,
        "broker_connection_retry_on_startup": True,
        "task_default_queue": queue_of(settings.pool),
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "enable_utc": True,
    }
    if settings.broker_url.startswith(FILESYSTEM):
        config["broker_url"] = f"{file_queue.SCHEME}://"
        config["broker_transport_options"] = _filesystem_options(settings)
    return config


def _filesystem_options(settings: Settings) -> dict[str, Any]:
    messages, control = settings.broker_dir / "messages", settings.broker_dir / "control"
    for folder in (messages, control):
        folder.mkdir(parents=True, exist_ok=True)
    # The same folder both ways: what one process sends another one receives.
    return {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        # Seconds between two looks into the folder. Kombu's own 1.0 would only delay jobs and the worker's stop.
        "polling_interval": POLL_S,
    }

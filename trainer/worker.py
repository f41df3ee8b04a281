"""The Celery application of the trainer: `celery --app trainer.worker:app worker --pool solo`, and beat.

The composition root of the worker: settings are read here and handed down. One job at a time: a round takes all that
the machine has. Celery is the doorbell; what has to be done and what was done stands in the rounds table, so a job may
ring twice, late or never. It must never import torch: the round's own process does.
"""

import asyncio
import sys

from celery import Celery
from celery.signals import beat_init, setup_logging, worker_ready
from celery.worker import state

from server.broker import QUEUE, RUN_ROUND, TICK, celery_config
from server.logs import configure_logs
from server.settings import Settings
from trainer import jobs

settings = Settings()
app = Celery("mulligan", set_as_current=False)
app.config_from_object(
    {
        **celery_config(settings),
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        # Acknowledged when it begins: what a lost worker leaves is found in the rounds table, not in the queue.
        "task_acks_late": False,
        "beat_schedule": {
            "tick": {
                "task": TICK,
                "schedule": settings.beat_interval_s,
                # A worker inside a round takes no jobs; the ticks that it missed are void, the next one does it all.
                "options": {"expires": settings.beat_interval_s, "queue": QUEUE},
            }
        },
    }
)


@setup_logging.connect(weak=False)
def set_up_logs(**_: object) -> None:
    """Log as the rest of the server does."""
    configure_logs(settings.log_level, json=settings.log_json)


@worker_ready.connect(weak=False)
@beat_init.connect(weak=False)
def say_ready(**_: object) -> None:
    """Tell the supervisor, which reads our output, that jobs are taken or sent from now on; at every log level."""
    sys.stderr.write("ready.\n")


@app.task(name=RUN_ROUND)
def run_round(round_id: str) -> str:
    """Run a queued round to its end."""
    return asyncio.run(jobs.run_round(round_id, settings, is_stopping))


@app.task(name=TICK)
def tick() -> dict[str, int]:
    """Take rounds from lost workers, start due rounds, ring for the queued."""
    return asyncio.run(jobs.tick(settings, ring))


def ring(round_id: str) -> None:
    """Ring for a queued round; the bell is void once the next ticks have rung again."""
    app.send_task(RUN_ROUND, (round_id,), expires=2 * settings.beat_interval_s)


def is_stopping() -> bool:
    """Say whether this worker was told to stop."""
    # Celery keeps the exit status here, and 0 is one: None and False alone mean that nothing was said.
    return any(told is not None and told is not False for told in (state.should_stop, state.should_terminate))

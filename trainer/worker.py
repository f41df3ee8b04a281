"""The Celery application of the trainer: `celery --app trainer.worker:app worker --pool solo`, and beat.

The composition root of the worker: settings are read here and handed down. One job at a time: a round takes all that
the machine has. Celery is the doorbell; what has to be done and what was done stands in the rounds table, so a job may
ring twice, late or never. It must never import torch: the round's own process does.
"""

import asyncio
import sys
import time

from celery import Celery
from celery.signals import beat_init, setup_logging, worker_ready, worker_shutdown
from celery.worker import state

from server.broker import PANEL, PREFLIGHT, RUN_ROUND, TICK, celery_config, queue_of
from server.domain import Round, Task
from server.logs import configure_logs
from server.redaction import make_log_redactor
from server.settings import Settings
from trainer import jobs
from trainer.auditing import Auditor
from trainer.canaries import CanaryWatch
from trainer.presence import Herald
from trainer.upkeep import Upkeep

settings = Settings()
auditor = Auditor(settings.audit_interval_s)
herald = Herald(settings)
panels_rung: dict[str, float] = {}
PANEL_EVERY_S = 60.0
upkeep = Upkeep(settings.log, settings.rounds_dir)
canaries = CanaryWatch(settings)
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
                "options": {"expires": settings.beat_interval_s, "queue": queue_of(settings.pool)},
            }
        },
    }
)


@setup_logging.connect(weak=False)
def set_up_logs(**_: object) -> None:
    """Log as the rest of the server does."""
    configure_logs(settings.log_level, json=settings.log_json, redact=make_log_redactor(settings.log.redact))


@worker_ready.connect(weak=False)
@beat_init.connect(weak=False)
def say_ready(**_: object) -> None:
    """Tell the supervisor, which reads our output, that jobs are taken or sent from now on; at every log level."""
    sys.stderr.write("ready.\n")


@worker_ready.connect(weak=False)
def begin_to_herald(**_: object) -> None:
    """Say from now on that this worker lives."""
    herald.start()


@worker_shutdown.connect(weak=False)
def end_heralding(**_: object) -> None:
    """Say that this worker is gone."""
    herald.stop()


@app.task(name=PREFLIGHT)
def run_preflight() -> int:
    """Look whether what this worker makes can be served, for whoever asked the doctor."""
    return asyncio.run(jobs.run_preflight(settings))


@app.task(name=RUN_ROUND)
def run_round(round_id: str) -> str:
    """Run a queued round to its end."""
    return asyncio.run(jobs.run_round(round_id, settings, is_stopping, canaries))


@app.task(name=TICK)
def tick() -> dict[str, int]:
    """Take rounds from lost workers, start due rounds, ring for the queued, look at canaries, audit, prune the log."""
    return asyncio.run(jobs.tick(settings, ring, auditor, upkeep, canaries, ring_panel=ring_panel))


@app.task(name=PANEL)
def run_panel(task: str) -> str:
    """Ask a task's frozen panel while no round waits."""
    return asyncio.run(jobs.run_panel(task, settings, is_stopping))


def ring(queued: Round) -> None:
    """Ring for a queued round; the bell is void once the next ticks have rung again."""
    app.send_task(RUN_ROUND, (queued.id,), queue=queue_of(queued.pool), expires=2 * settings.beat_interval_s)


def ring_panel(task: Task) -> None:
    """Ring for a task's panel, once a minute at most: one that cannot be asked now would keep a worker busy."""
    now = time.monotonic()
    if now - panels_rung.get(task.name, -PANEL_EVERY_S) >= PANEL_EVERY_S:
        panels_rung[task.name] = now
        app.send_task(PANEL, (task.name,), queue=queue_of(task.training.pool), expires=PANEL_EVERY_S)


def is_stopping() -> bool:
    """Say whether this worker was told to stop."""
    # Celery keeps the exit status here, and 0 is one: None and False alone mean that nothing was said.
    return any(told is not None and told is not False for told in (state.should_stop, state.should_terminate))

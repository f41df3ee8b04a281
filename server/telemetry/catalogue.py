"""Every metric of `/metrics`: its name, kind, labels and meaning. Read by the exposition, the docs and the tests.

No label takes a value that clients make up. Tasks and registered verifiers are named by whoever administers them, and
past `MOST_NAMES` of them the rest is counted together, as `other`.
"""

from dataclasses import dataclass
from typing import Literal

MOST_NAMES = 200
"""How many tasks, and how many verifiers, a process tells apart."""

OTHER = "other"

WORKER = "worker"
"""The label of what each API process counts for itself: its number among those of one port, 0 where it is alone."""

_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_WAIT = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)
_VERIFY = (0.0001, 0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 30.0)
_COMMIT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0)

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `name` is without `_total`; `once`: it is of the whole server, and has no `worker`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    about: str
    bounds: tuple[float, ...] = ()
    once: bool = False

    @property
    def exposed(self) -> str:
        """The name that a query uses."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


REQUESTS = Metric(
    "mulligan_requests",
    "counter",
    ("surface", "status"),
    "HTTP requests that were answered, by what was asked and the status; 499: the client went away first",
)
REQUEST_S = Metric(
    "mulligan_request_duration_seconds",
    "histogram",
    ("surface",),
    "from a generating request's head to the last byte of its answer, whatever the status",
    _LONG,
)
EPISODES = Metric("mulligan_episodes", "counter", ("task", "outcome"), "episodes that ended, by outcome")
EPISODE_S = Metric("mulligan_episode_duration_seconds", "histogram", ("outcome",), "the loop of an episode", _LONG)
ATTEMPTS = Metric(
    "mulligan_attempts",
    "counter",
    ("task", "part", "status"),
    "answers of the model that were judged; part: `attempt` (the first) or `retry`",
)
REFLECTIONS = Metric("mulligan_reflections", "counter", ("task",), "reflections that were written")
TOKENS = Metric(
    "mulligan_tokens",
    "counter",
    ("task", "part", "kind"),
    "tokens; part: `attempt`, `reflection` or `retry`, kind: `prompt` or `completion`",
)
ENGINE_S = Metric(
    "mulligan_engine_duration_seconds", "histogram", ("part",), "the wait for one whole answer of the engine", _LONG
)
ERRORS = Metric(
    "mulligan_episode_errors",
    "counter",
    ("error", "fatal"),
    "errors in episodes by their class; fatal: the client got no answer, else a retry was given up",
)
VERDICTS = Metric(
    "mulligan_verdicts",
    "counter",
    ("verifier", "status", "mode"),
    "verdicts by verifier (`name@version`, or the kind of an inline one)",
)
ABSTENTIONS = Metric("mulligan_abstentions", "counter", ("verifier", "cause"), "verdicts that abstained, by cause")
VERIFY_S = Metric(
    "mulligan_verdict_duration_seconds", "histogram", ("verifier",), "verdicts that were really asked for", _VERIFY
)
QUEUE_S = Metric("mulligan_queue_duration_seconds", "histogram", (), "the wait of requests for room, 0 included", _WAIT)
QUEUED = Metric("mulligan_queue_requests", "gauge", (), "requests that wait for room")
RUNNING = Metric("mulligan_episodes_running", "gauge", (), "episodes for which room is taken")
RUNNING_MOST = Metric("mulligan_episodes_running_limit", "gauge", (), "episodes that may run at once")
STOPPED = Metric("mulligan_verifiers_stopped", "gauge", (), "verifiers that are stopped since they kept breaking")
ENGINE_UP = Metric(
    "mulligan_engine_up", "gauge", ("engine",), "1 where an engine takes requests of this process, else 0"
)
ENGINE_ADAPTERS = Metric(
    "mulligan_engine_adapters", "gauge", ("engine",), "adapters that an engine held at the last look"
)
LOGGED = Metric(
    "mulligan_log_episodes",
    "counter",
    ("place",),
    "episodes that were logged, to the `database` or the `spool`, or `refused` by both",
)
COMMIT_S = Metric(
    "mulligan_log_commit_duration_seconds", "histogram", ("place",), "one group commit of the log", _COMMIT
)
SPOOLING = Metric("mulligan_log_spooling", "gauge", (), "1 while the database is away and episodes go to the spool")
WITHHELD = Metric("mulligan_log_withheld", "counter", (), "episodes logged without content since the redactor failed")
LAG = Metric("mulligan_event_loop_lag_seconds", "gauge", (), "how late the event loop last was for what was due")
MEMORY = Metric("mulligan_process_resident_memory_bytes", "gauge", (), "memory of an API process")
CPU = Metric("mulligan_process_cpu_seconds", "counter", (), "CPU time of an API process")
STARTED = Metric("mulligan_process_start_time_seconds", "gauge", (), "Unix time at which an API process started")

BUILD = Metric("mulligan_build_info", "gauge", ("version",), "1, with the version", once=True)
DATABASE_UP = Metric("mulligan_database_up", "gauge", (), "1 where the database answered the scrape, else 0", once=True)
ROUNDS = Metric("mulligan_rounds", "gauge", ("state",), "rounds by state, those that ended included", once=True)
ROUND_QUEUED_S = Metric(
    "mulligan_round_queued_seconds", "gauge", ("pool", "task"), "how long a round has been waiting", once=True
)
ROUND_RUNNING_S = Metric(
    "mulligan_round_running_seconds", "gauge", ("pool", "task"), "how long a round has been running", once=True
)
ROUND_HEARTBEAT_S = Metric(
    "mulligan_round_heartbeat_age_seconds",
    "gauge",
    ("pool", "task"),
    "age of a running round's last heartbeat",
    once=True,
)
ROUND_PROGRESS_S = Metric(
    "mulligan_round_progress_age_seconds",
    "gauge",
    ("pool", "task"),
    "time since a running round began or ended its last step",
    once=True,
)
TRAINERS = Metric(
    "mulligan_trainers", "gauge", ("pool",), "workers that said in the last 20 s that they live", once=True
)
TRAINER_SEEN_S = Metric(
    "mulligan_trainer_heartbeat_age_seconds",
    "gauge",
    ("pool",),
    "age of the newest sign of life of a worker",
    once=True,
)
GENERATION = Metric(
    "mulligan_champion_generation",
    "gauge",
    ("task",),
    "grows with every flip of a task's champion or canary",
    once=True,
)
SPOOL = Metric("mulligan_log_spool_bytes", "gauge", (), "episodes in the spools of this machine", once=True)
SPOOL_MOST = Metric("mulligan_log_spool_limit_bytes", "gauge", (), "what one process may spool", once=True)
SET_ASIDE = Metric(
    "mulligan_log_set_aside_bytes",
    "gauge",
    ("kind",),
    "`rejected`: what the database refused for good; `torn`: ends of spools that cannot be read",
    once=True,
)
DISK_FREE = Metric("mulligan_disk_free_bytes", "gauge", ("folder",), "free for us on the disk of a folder", once=True)
DISK_SIZE = Metric("mulligan_disk_size_bytes", "gauge", ("folder",), "size of the disk of a folder", once=True)

CATALOGUE: tuple[Metric, ...] = (
    REQUESTS, REQUEST_S, QUEUED, QUEUE_S, RUNNING, RUNNING_MOST,
    EPISODES, EPISODE_S, ATTEMPTS, REFLECTIONS, TOKENS, ERRORS,
    VERDICTS, ABSTENTIONS, VERIFY_S, STOPPED,
    ENGINE_S, ENGINE_UP, ENGINE_ADAPTERS,
    ROUNDS, ROUND_QUEUED_S, ROUND_RUNNING_S, ROUND_HEARTBEAT_S, ROUND_PROGRESS_S, TRAINERS, TRAINER_SEEN_S, GENERATION,
    LOGGED, COMMIT_S, SPOOLING, SPOOL, SPOOL_MOST, SET_ASIDE, WITHHELD,
    DATABASE_UP, DISK_FREE, DISK_SIZE,
    LAG, MEMORY, CPU, STARTED, BUILD,
)  # fmt: skip
"""All of them, in the order in which the docs show them."""

BY_NAME = {metric.name: metric for metric in CATALOGUE}

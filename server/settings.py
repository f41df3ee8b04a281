"""Every setting of the server and of what it starts, from `MULLIGAN_*` variables and the command line.

Instantiated only in the roots (server.app, server.cli, trainer.worker), which hand the sections down; no other module
reads the environment. Nested names use two underscores: `MULLIGAN_ENGINE__URL=http://127.0.0.1:30000`.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.addresses import check_engine_url

POOL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "model"


EngineUrl = Annotated[str, AfterValidator(check_engine_url)]

COLOCATE_RESERVE = 0.1
"""Of a shared GPU's memory: the engine's activations and graphs, and what CUDA itself takes for two processes."""


class EngineSettings(BaseModel):
    """The engine that generates, and the LoRA limits that it is started with."""

    kind: Literal["local", "sglang"] = "local"
    url: EngineUrl = "http://127.0.0.1:30000"
    urls: tuple[EngineUrl, ...] = ()  # several engines with the same model and LoRA limits; they stand in for `url`
    model: str = str(DEMO_MODEL)
    model_name: str = "base"  # the id that clients use for the plain base model
    sglang_python: str = ".venv-sglang/bin/python"  # the interpreter of SGLang's own environment
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    context_tokens: int = Field(default=1024, ge=64)
    max_running_requests: int = Field(default=64, ge=1)
    max_lora_rank: int = Field(default=16, ge=1)
    max_loras_per_batch: int = Field(default=4, ge=1)
    max_loaded_loras: int = Field(default=12, ge=2)
    lora_target_modules: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    tool_call_parser: str = "qwen25"
    reasoning_parser: str = ""  # SGLang's: takes a model's thoughts out of its answer, as `reasoning_content`
    images: bool = False  # whether the model reads image parts; where not, they are refused by name
    colocate: bool = False  # engine and trainer share one GPU: its memory is split between them (docs/deployment.md)
    colocate_engine_share: float = Field(
        default=0.5, gt=0, le=0.8
    )  # of that GPU's memory, what the engine's weights and cache take; the trainer gets the rest but for a tenth
    threads: int = Field(default=0, ge=0)  # CPU threads of a local engine; 0 = half the cores
    request_timeout_s: float = Field(default=600.0, gt=0)
    start_timeout_s: float = Field(default=300.0, gt=0)

    @property
    def trainer_share(self) -> float:
        """What a trainer may take of its GPU's memory: all of it, where no engine is on it."""
        return 1.0 - self.colocate_engine_share - COLOCATE_RESERVE if self.colocate else 1.0

    @property
    def every_url(self) -> tuple[str, ...]:
        """The addresses of all engines, each once, without a slash at their ends."""
        return tuple(dict.fromkeys(url.rstrip("/") for url in self.urls or (self.url,)))


class LogSettings(BaseModel):
    """The episode log: one group-committing writer a process, and the spool it falls back to."""

    commit_interval_ms: float = Field(default=5.0, ge=0)  # how long a commit waits for company
    commit_max_episodes: int = Field(default=256, ge=1)
    spool_max_bytes: int = Field(default=256 * 2**20, ge=0)
    redact: str = ""  # package.module:function that takes out of every text what may not be written (docs/privacy.md)
    # Half a year: rounds look at the newest failures, and a log without an end outgrows its disk when nobody looks.
    retention_days: float = Field(default=180.0, ge=0)  # older episodes are deleted (docs/log.md); 0: kept for ever
    keep_problems: int = Field(default=200, ge=0)  # held-out problems a task that stay longer, for gates


class LimitSettings(BaseModel):
    """What a single request may ask for."""

    body_max_bytes: int = Field(default=8 * 2**20, ge=1024)
    max_messages: int = Field(default=2048, ge=1)
    max_retries: int = Field(default=8, ge=0)
    max_choices: int = Field(default=16, ge=1)  # the largest `n`
    max_images: int = Field(default=16, ge=0)  # in all messages of a request together
    remote_images: bool = False  # whether an image may be an address, which the engine fetches: it may reach inner ones
    max_concurrent: int = Field(default=256, ge=1)  # episodes in flight in one process; past it requests wait
    max_queued: int = Field(default=256, ge=0)  # requests that wait in one process; past it 429
    queue_timeout_s: float = Field(default=30.0, gt=0)  # how long a request waits; past it 429
    deadline_s: float = Field(default=600.0, gt=0)
    replay_s: float = Field(default=86400.0, gt=0)  # how long an answer can be repeated by its Idempotency-Key


class VerifierSettings(BaseModel):
    """What verifiers may reach. Configurations name what stands here, and never hold a secret themselves."""

    loopback: bool = False  # whether webhooks and judges may be on this machine's loopback addresses
    secrets: dict[str, str] = Field(default_factory=dict, repr=False)  # by the name that a configuration says
    secret_hosts: dict[str, list[str]] = Field(default_factory=dict)  # which hosts a secret may be used with
    ca_file: str = ""  # certificates that webhooks and judges may have beside those the system trusts
    databases: dict[str, str] = Field(default_factory=dict, repr=False)  # PostgreSQL URLs for the `sql` kind, by name
    stop_share: float = Field(default=0.5, gt=0, le=1)  # a verifier that abstains this often is stopped for a while
    stop_after: int = Field(default=20, ge=2)  # ... counted over so many of its latest verdicts
    stop_s: float = Field(default=30.0, gt=0)  # ... and for so long, before one is tried again


class TelemetrySettings(BaseModel):
    """What the API processes tell those who watch them: metrics, traces, a line for each episode."""

    metrics: bool = True  # whether `/metrics` is there and anything is counted for it
    metrics_token: str = Field(default="", repr=False)  # opens `/metrics` and nothing else; else a viewer's key does
    metrics_open: bool = False  # whether `/metrics` needs neither: for whoever reaches the port
    traces_url: str = ""  # where spans are sent, OTLP over HTTP (http://host:4318/v1/traces); "": there are no traces
    traces_headers: dict[str, str] = Field(default_factory=dict, repr=False)  # sent along with them
    traces_share: float = Field(default=1.0, ge=0, le=1)  # of episodes whose client did not decide it by `traceparent`
    traces_content: bool = False  # whether spans hold what was said
    traces_service: str = "mulligan"  # `service.name`
    episode_lines: bool = False  # whether each episode is a line of the process's log, at the level `info`


class RoundSizes(BaseSettings):
    """What the server tells of the trainer's settings, which are these and more: how much a round and its gate want."""

    model_config = SettingsConfigDict(env_prefix="MULLIGAN_TRAINER__", extra="ignore", frozen=True)

    min_failures: int = Field(default=8, ge=1)  # below so many usable ones a round does not train
    gate_problems: int = Field(default=200, ge=1)  # held-out problems at most, the newest
    gate_min_problems: int = Field(default=30, ge=2)  # below so many nothing is promoted by itself
    panel_problems: int = Field(default=500, ge=1)  # of a frozen panel at most
    panel_min_problems: int = Field(default=50, ge=2)  # held-out problems that are enough to freeze one
    lora_rank: int = Field(default=16, ge=1)  # of a fresh adapter; one that is continued keeps its own
    gate_samples: int = Field(default=2, ge=1)  # samples a problem and adapter that a gate begins with
    gate_max_samples: int = Field(default=8, ge=1)  # ... and takes at most, where answers vary much
    gate_effect: float = Field(default=0.05, gt=0, lt=1)  # the gain of the second try that a gate is planned to see
    gate_power: float = Field(default=0.8, gt=0.5, lt=1)  # ... and how surely, where there are problems enough


class Settings(BaseSettings):
    """The whole configuration. Paths are made absolute against the working directory."""

    model_config = SettingsConfigDict(env_prefix="MULLIGAN_", env_nested_delimiter="__", extra="forbid")

    data_dir: Path = Path("data")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=64)  # API processes that share the port
    database_url: str = ""  # "" = SQLite in the data folder; else sqlite:///... or postgresql://...
    broker_url: str = ""  # "" = filesystem transport in the data folder; else redis://...
    held_out_share: float = Field(default=0.2, gt=0, lt=1)  # of conversations, by a hash of the first user message
    pool: str = Field(default="default", pattern=POOL_NAME)  # whose rounds this worker trains, one at a time
    worker_heartbeat_s: float = Field(default=2.0, gt=0)
    worker_lost_after_s: float = Field(default=20.0, gt=0)  # a round whose heartbeat is older is taken from its worker
    beat_interval_s: float = Field(default=5.0, gt=0)  # how often the scheduler looks for due rounds and lost workers
    audit_interval_s: float = Field(default=600.0, gt=0)  # how often a task is audited, if something new was logged
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False
    engine: EngineSettings = EngineSettings()
    log: LogSettings = LogSettings()
    limits: LimitSettings = LimitSettings()
    verifiers: VerifierSettings = VerifierSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    def model_post_init(self, _context: object) -> None:
        """Fill what derives from the data folder."""
        self.data_dir = self.data_dir.expanduser().resolve()
        if not self.database_url:
            self.database_url = f"sqlite:///{self.data_dir / 'mulligan.db'}"
        if not self.broker_url:
            self.broker_url = "filesystem://"

    @property
    def adapters_dir(self) -> Path:
        """Where adapters are saved: `<task>/<name>/adapter_model.safetensors`. The engine reads it too."""
        return self.data_dir / "adapters"

    @property
    def spool_dir(self) -> Path:
        """Where episodes wait while the database is away."""
        return self.data_dir / "spool"

    @property
    def broker_dir(self) -> Path:
        """Where the filesystem transport keeps its messages."""
        return self.data_dir / "broker"

    @property
    def rounds_dir(self) -> Path:
        """Where rounds keep their logs, rollouts and checkpoints: `<round id>/`."""
        return self.data_dir / "rounds"

    def environment(self) -> dict[str, str]:
        """Render these settings as the variables that give a child process the same ones."""
        variables = {
            "MULLIGAN_DATA_DIR": str(self.data_dir),
            "MULLIGAN_HOST": self.host,
            "MULLIGAN_PORT": str(self.port),
            "MULLIGAN_DATABASE_URL": self.database_url,
            "MULLIGAN_BROKER_URL": self.broker_url,
            "MULLIGAN_ENGINE": self.engine.model_dump_json(),
            "MULLIGAN_LOG": self.log.model_dump_json(),
            "MULLIGAN_LIMITS": self.limits.model_dump_json(),
            "MULLIGAN_VERIFIERS": self.verifiers.model_dump_json(),
            "MULLIGAN_TELEMETRY": self.telemetry.model_dump_json(),
        }
        for name in (
            "held_out_share",
            "pool",
            "worker_heartbeat_s",
            "worker_lost_after_s",
            "beat_interval_s",
            "audit_interval_s",
            "log_level",
            "workers",
        ):
            variables[f"MULLIGAN_{name.upper()}"] = str(getattr(self, name))
        # What was decided here is handed on; an inherited MULLIGAN_ENGINE__URL would win over it in the child.
        kept = ("MULLIGAN_TRAINER", "MULLIGAN_TEST")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith("MULLIGAN_") or name.upper().startswith(kept)
        }
        return {**inherited, **variables, "MULLIGAN_LOG_JSON": str(self.log_json).lower()}

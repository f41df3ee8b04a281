"""Every setting of training: how a round selects, samples, learns, judges and promotes.

Instantiated only in the roots of the trainer (worker and round), from `MULLIGAN_TRAINER__*` variables; a task
overrides them by `training.options`, one round by its own options. The defaults are for real models of some billions
of parameters; the demo's tiny model brings its own. It must never import torch: the worker reads it too.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from server.errors import InvalidRequest
from server.settings import RoundSizes

OF_THE_MACHINE = frozenset({"accelerate_config", "rank_timeout_s"})
"""What is read from the worker's environment alone: no task or round may name files of its machine."""


class TrainerSettings(RoundSizes):
    """What can be set about a round, beside `RoundSizes`. Times in seconds, shares and margins as fractions."""

    model_config = SettingsConfigDict(env_prefix="MULLIGAN_TRAINER__", extra="forbid", frozen=True)

    # How much
    steps: int = Field(default=16, ge=1)  # steps of one round
    seed: int = 0
    gate_only: bool = False  # train nothing: gate the champion anew, against the base model

    # Budgets of a round, gate included (None: no limit; docs/round-life.md). Training stops so that the gate still fits
    max_minutes: float | None = Field(default=None, gt=0)  # from its first lease
    max_tokens: int | None = Field(default=None, ge=1)  # of rollouts and gate, prompts included
    max_disk_mb: float | None = Field(default=None, gt=0)  # MiB of the round's folder: log and pushes

    # Selection
    max_failures: int = Field(default=2048, ge=1)  # the newest so many logged failures
    replay_share: float = Field(
        default=0.25, ge=0, le=1
    )  # of the selection, most that failures from before the last round may make up; 1 = all there are
    settled_after: int = Field(
        default=8, ge=2
    )  # logged retries of one problem under the champion that all ended alike, from which it is left out

    # Rollouts
    step_failures: int = Field(default=32, ge=1)  # failures that one step may draw
    step_groups: int | None = Field(
        default=None, ge=1
    )  # groups with signal that are enough for a step (None: draw all)
    group_size: int = Field(default=8, ge=2)  # fresh reflections a failure
    logged_share: float = Field(
        default=0.25, ge=0, le=0.5
    )  # most that logged reflections may make up of a whole group; they stay outside its baseline
    concurrency: int = Field(default=64, ge=1)  # engine requests in flight
    push_every: int = Field(default=1, ge=1)  # steps between two pushes of the candidate to the engine

    # Learning (docs/training.md gives the reasons)
    loss_type: Literal["dapo", "grpo", "dr_grpo", "cispo"] = "dapo"  # how tokens are clipped and averaged
    learning_rate: float = Field(default=2e-5, gt=0)
    minibatch_sequences: int = Field(default=64, ge=1)  # sequences of one optimiser update
    microbatch_sequences: int = Field(default=0, ge=0)  # of one forward and backward pass; 0 = 8 on a GPU, 32 on a CPU
    passes: int = Field(default=1, ge=1)  # times that each step's reflections are gone through
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    cispo_max_ratio: float = Field(default=5.0, gt=1)  # cispo alone: where a token's ratio, its weight there, is cut
    dr_grpo_tokens: int = Field(default=512, ge=1)  # dr_grpo alone: the constant length that a member's loss is over
    importance: Literal["none", "truncated"] = "truncated"  # what mends that engine and trainer differ in logprobs
    importance_cap: float = Field(default=2.0, ge=1)  # most that a token may weigh by it
    kl_beta: float = Field(default=0.001, ge=0)  # weight of the KL to the base model; 0 leaves it out
    kl_clamp: float = Field(default=4.0, gt=0)  # bound of the log-ratio inside the KL
    objective: Literal["reflection", "reflection+first_try"] = (
        "reflection"  # what is trained: reflections alone, or successful retries as first answers beside them
    )
    first_try_weight: float = Field(default=0.1, gt=0)  # reflection+first_try alone: weight of the first answers' loss
    max_grad_norm: float = Field(default=1.0, gt=0)
    adam_beta2: float = Field(default=0.95, gt=0, lt=1)

    # Guards (what ends the training early; the gate still judges the candidate)
    max_logprob_gap: float = Field(
        default=0.3, gt=0
    )  # nats a token between engine and trainer on fresh reflections; past it the round fails
    max_mismatch_kl: float = Field(default=0.02, gt=0)  # the same as a KL, in nats a token
    mismatch_steps: int = Field(default=3, ge=1)  # steps running over max_mismatch_kl that stop the training
    skip_gradient_over: float = Field(
        default=10.0, ge=0
    )  # an update with so many times the usual gradient norm is left out; 0 = none is
    max_skipped_updates: int = Field(default=3, ge=1)  # updates running left out by it that stop the training
    min_entropy_share: float = Field(
        default=0.05, ge=0, lt=1
    )  # of the first step's entropy a token; under it the training stops; 0 = never
    patience: int = Field(default=0, ge=0)  # steps without a gain in reward that stop the training; 0 = never

    # The adapter (one that is continued keeps the shape it was made with)
    lora_alpha: int = Field(default=32, ge=1)

    # The machine
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: float32 on a CPU, bfloat16 on a GPU
    threads: int = Field(default=0, ge=0)  # CPU threads; 0 = all cores, but one for a model of a few million weights
    accelerate_config: str = ""  # a file of `accelerate config`: rounds train on several GPUs; "" = on one
    rank_timeout_s: float = Field(default=600.0, gt=0)  # of several GPUs: how long one may keep another waiting

    # Gate
    gate_looks: int = Field(default=3, ge=1, le=10)  # how often a gate looks whether it is decided; 1: at its end alone
    first_try_margin: float = Field(default=0.05, ge=0)  # what first-try accuracy may fall by
    first_try_samples: int = Field(default=2, ge=1)  # first tries a problem and adapter that are asked for it at least
    other_tasks_margin: float | None = Field(
        default=0.05, ge=0
    )  # ... and that on other tasks' held-out problems (None: not asked)
    probes_margin: float | None = Field(default=0.05, ge=0)  # ... and that on plain problems (None: not asked)
    probes_file: str = ""  # JSON Lines of plain problems of your own; "" = those that are shipped
    length_margin: float | None = Field(default=0.25, ge=0)  # what answers may grow by (None: as they like)
    latency_margin: float | None = Field(default=0.5, ge=0)  # what an episode's time may grow by (None: as it likes)
    guard_problems: int = Field(default=100, ge=1)  # held-out problems of other tasks that are asked, of all together
    guard_max_samples: int = Field(default=32, ge=1)  # first tries a problem and adapter that a guard takes at most
    control_problems: int = Field(default=60, ge=0)  # failures that are retried without, and with others', reflections
    control_samples: int = Field(default=2, ge=1)  # retries of each
    bootstrap_draws: int = Field(default=10_000, ge=100)

    # Panel
    panel_concurrency: int = Field(default=8, ge=1)  # problems of a panel that are asked at once, behind users

    # Promotion
    drain_timeout_s: float = Field(default=30.0, ge=0)

    @property
    def distils(self) -> bool:
        """Whether successful retries are distilled into first answers."""
        return self.objective == "reflection+first_try"

    @property
    def most_logged(self) -> int:
        """How many logged reflections may join a group of `group_size` fresh ones."""
        return int(self.group_size * self.logged_share / (1 - self.logged_share) + 1e-9)

    def override(self, *layers: Mapping[str, Any]) -> "TrainerSettings":
        """Return these settings with the options of a task, then of a round, laid over them.

        Raises: InvalidRequest that names the option and says what is wrong with it.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            merged.update(layer)
        known = set(type(self).model_fields) - OF_THE_MACHINE
        for name in merged:
            if name in OF_THE_MACHINE:
                raise InvalidRequest(
                    f"{name!r} is no training option of a task or a round: set MULLIGAN_TRAINER__{name.upper()} where "
                    "the worker runs",
                    param=name,
                )
            if name not in known:
                alike = get_close_matches(name, sorted(known), 1)
                remedy = f"did you mean {alike[0]!r}?" if alike else f"the options are {', '.join(sorted(known))}"
                raise InvalidRequest(f"unknown training option {name!r}: {remedy}", param=name)
        try:
            return TrainerSettings.model_validate({**self.model_dump(), **merged})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "options"
            raise InvalidRequest(
                f"training option {name!r} is {first.get('input')!r}: {first['msg']}", param=name
            ) from error

"""Every setting of training: how a round selects, samples, learns, judges and promotes.

Instantiated only in the roots of the trainer (worker and round), from `MULLIGAN_TRAINER__*` variables; a task
overrides them by `training.options`, one round by its own options. The defaults are for real models of some billions
of parameters; the demo's tiny model brings its own. It must never import torch: the worker reads it too.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.errors import InvalidRequest


class TrainerSettings(BaseSettings):
    """What can be set about a round. Times in seconds, shares and margins as fractions."""

    model_config = SettingsConfigDict(env_prefix="MULLIGAN_TRAINER__", extra="forbid", frozen=True)

    # How much
    steps: int = Field(default=16, ge=1)  # steps of one round
    train_max_s: float | None = Field(default=None, gt=0)  # past it no further step is begun; the gate still runs
    seed: int = 0

    # Selection
    max_failures: int = Field(default=2048, ge=1)  # the newest so many logged failures
    min_failures: int = Field(default=8, ge=1)  # below so many usable ones a round does not train

    # Rollouts
    step_failures: int = Field(default=32, ge=1)  # failures that one step may draw
    step_groups: int | None = Field(
        default=None, ge=1
    )  # groups with signal that are enough for a step (None: draw all)
    group_size: int = Field(default=8, ge=2)  # fresh reflections a failure
    logged_per_group: int = Field(default=1, ge=0)  # logged reflections that join a group, outside its baseline
    concurrency: int = Field(default=64, ge=1)  # engine requests in flight
    push_every: int = Field(default=1, ge=1)  # steps between two pushes of the candidate to the engine

    # Learning
    learning_rate: float = Field(default=2e-5, gt=0)
    minibatch_sequences: int = Field(default=64, ge=1)  # sequences of one optimiser update
    microbatch_sequences: int = Field(default=0, ge=0)  # of one forward and backward pass; 0 = 8 on a GPU, 32 on a CPU
    passes: int = Field(default=1, ge=1)  # times that each step's reflections are gone through
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    kl_beta: float = Field(default=0.001, ge=0)  # weight of the KL to the base model; 0 leaves it out
    kl_clamp: float = Field(default=4.0, gt=0)  # bound of the log-ratio inside the KL
    max_grad_norm: float = Field(default=1.0, gt=0)
    adam_beta2: float = Field(default=0.95, gt=0, lt=1)
    max_logprob_gap: float = Field(default=0.3, gt=0)  # nats a token between engine and trainer on fresh reflections

    # The adapter (one that is continued keeps the shape it was made with)
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=32, ge=1)

    # The machine
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: float32 on a CPU, bfloat16 on a GPU
    threads: int = Field(default=0, ge=0)  # CPU threads; 0 = all cores, but one for a model of a few million weights

    # Gate
    gate_problems: int = Field(default=200, ge=1)  # held-out problems at most, the newest
    gate_min_problems: int = Field(default=30, ge=2)  # below so many nothing is promoted by itself
    gate_samples: int = Field(default=2, ge=1)  # samples a problem and adapter
    first_try_margin: float = Field(default=0.05, ge=0)  # what first-try accuracy may fall by
    bootstrap_draws: int = Field(default=10_000, ge=100)

    # Promotion
    drain_timeout_s: float = Field(default=30.0, ge=0)

    def override(self, *layers: Mapping[str, Any]) -> "TrainerSettings":
        """Return these settings with the options of a task, then of a round, laid over them.

        Raises: InvalidRequest that names the option and says what is wrong with it.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            merged.update(layer)
        known = type(self).model_fields
        for name in merged:
            if name not in known:
                raise InvalidRequest(
                    f"unknown training option {name!r}; the options are {', '.join(sorted(known))}", param=name
                )
        try:
            return TrainerSettings.model_validate({**self.model_dump(), **merged})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "options"
            raise InvalidRequest(
                f"training option {name!r} is {first.get('input')!r}: {first['msg']}", param=name
            ) from error

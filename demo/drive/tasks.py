"""What the demo sets for each of its tasks: verifier, budgets and the trainer's options for the tiny model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DemoTask:
    """One line of the demo.

    `training_problems` are sent before the first round: those that fail are trained on, and a fifth of all (by a hash,
    the server's choice) is kept for the gate. There are 534 of Countdown; more would repeat.
    """

    name: str
    verifier: str  # the kind; registered under the same name
    answer_max_tokens: int
    reflection_max_tokens: int
    training_problems: int
    training: Mapping[str, Any] = field(default_factory=dict)


# For a model of a few million parameters; a real one wants a hundredth of this learning rate.
_TINY = {
    "max_minutes": 10,  # of a round: a slow machine takes fewer steps, so that the gate still fits
    "step_failures": 64,
    "group_size": 8,
    "logged_share": 0.125,  # one of nine
    "importance": "none",  # the embedded engine and the trainer agree to 1e-4 nats: the extra reading buys nothing
    "learning_rate": 4e-3,
    "minibatch_sequences": 64,
    "lora_rank": 8,
    "lora_alpha": 16,
    "gate_problems": 120,
    "gate_samples": 2,
    "gate_max_samples": 3,
    "gate_effect": 0.1,  # it gains more than this or nothing
    "first_try_margin": 0.1,  # over runs the first try falls by up to five points; with six samples that is within it
    "first_try_samples": 6,
    "other_tasks_margin": 0.2,  # so small a model pays for one task with the other: four points were seen
    "guard_problems": 40,
    "guard_max_samples": 6,
    "length_margin": 0.5,
    "latency_margin": 2.0,  # a reflection that works is two to three times as long as the base's
    "control_problems": 30,
    "control_samples": 1,
}

DEMO_TASKS: Mapping[str, DemoTask] = {
    "countdown": DemoTask("countdown", "countdown", 32, 160, 530, {**_TINY, "steps": 6, "kl_beta": 0.1}),
    "function_call": DemoTask("function_call", "function_call", 96, 160, 700, {**_TINY, "steps": 6, "kl_beta": 0.02}),
}


def choose_tasks(name: str) -> list[DemoTask]:
    """Return the tasks that a name or `both` stands for. Raises ValueError."""
    if name == "both":
        return list(DEMO_TASKS.values())
    if name not in DEMO_TASKS:
        raise ValueError(f"unknown demo task {name!r}: choose one of {', '.join(DEMO_TASKS)}, both")
    return [DEMO_TASKS[name]]

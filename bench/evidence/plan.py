"""Says what is measured: subjects, problems, sizes, and the variants of the loop that are run.

A *subject* is a kind of problem that is measured by itself: a task, and for Countdown how many numbers it gives. A
*variant* is one way to run the loop of a seed, on a server of its own: the loop as the demo has it, or with something
changed. Everything here is fixed before anything is measured.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from demo import countdown, function_call
from demo.drive.tasks import DEMO_TASKS, DemoTask
from demo.problem import Problem
from demo.splits import Split

PROBLEM_SEED = 0
"""Every seed is measured on the same problems, so that what differs between seeds is not which problems they drew."""

PLAIN_TRIES = 8
WORKED_TRIES = 3
SHOW_WORK = "Show your work."
PROMPTS = (
    "Your answer did not pass the check. Show your work.",
    "Your answer did not pass the check. Work the problem out step by step, so that your next answer is right.",
    "Your answer did not pass the check. Reflect on what went wrong, and show your work.",
    "That is not right. Reflect on what went wrong. Show your work.",
    "Show your work.",
)
"""The hand-written reflection prompts; the best of them on development problems is measured."""

FINE_TUNING_RATES = (1e-3, 4e-3)
"""Of supervised fine-tuning; the better on development problems is measured. The second is that of the rounds."""


@dataclass(frozen=True)
class Subject:
    """A kind of problem that is measured by itself."""

    name: str
    task: str
    numbers: int = 3

    def draw(self, split: Split, count: int, seed: int = PROBLEM_SEED) -> list[Problem]:
        """Draw problems of a split. Raises ValueError where it has fewer different ones."""
        stream = (
            countdown.problems(split, seed, self.numbers)
            if self.task == "countdown"
            else function_call.problems(split, seed)
        )
        drawn = list(islice(stream, count))
        if len({problem.key for problem in drawn}) < count:
            raise ValueError(f"{split} has fewer than {count} problems of {self.name}")
        return drawn


SUBJECTS = {
    one.name: one
    for one in (
        Subject("countdown3", "countdown", 3),
        Subject("countdown4", "countdown", 4),
        Subject("function_call", "function_call"),
    )
}
HEADLINES = {"countdown": SUBJECTS["countdown3"], "function_call": SUBJECTS["function_call"]}


def subjects_of(task: str) -> list[Subject]:
    """Return a task's subjects, the headline first."""
    return [subject for subject in SUBJECTS.values() if subject.task == task]


@dataclass(frozen=True)
class Variant:
    """One way to run the loop. `options` are the trainer's, over the demo's; `shared`: both tasks train one task."""

    name: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 1
    shared: bool = False
    rate_factor: float = 1.0

    def change(self, task: DemoTask) -> DemoTask:
        """Return a demo task as this variant trains it."""
        training = {**task.training, **self.options}
        return replace(task, training={**training, "learning_rate": training["learning_rate"] * self.rate_factor})


LOOP = "loop"
VARIANTS = {
    one.name: one
    for one in (
        Variant(LOOP, "the demo's loop, with all controls"),
        Variant("first_try", "objective reflection+first_try", {"objective": "reflection+first_try"}),
        Variant("rate_x10", "ten times the learning rate", rate_factor=10),
        Variant("shared", "one task for both kinds of problem, one adapter", shared=True),
        Variant("rounds", "three rounds", rounds=3),
        Variant("group_4", "groups of 4", {"group_size": 4}),
        Variant("group_16", "groups of 16", {"group_size": 16}),
        Variant("rank_2", "LoRA rank 2", {"lora_rank": 2, "lora_alpha": 4}),
        Variant("rank_16", "LoRA rank 16", {"lora_rank": 16, "lora_alpha": 32}),
        Variant("fresh", "no logged reflection in a group", {"logged_share": 0}),
        Variant("replay", "a quarter of a group is logged", {"logged_share": 0.25}),
    )
}
TABLE = (LOOP, "first_try", "rate_x10", "shared")
CURVES = ("rounds", "group_4", "group_16", "rank_2", "rank_16", "fresh", "replay")


@dataclass(frozen=True)
class Plan:
    """What one run measures. A folder belongs to one plan: only `seeds` and `variants` may grow."""

    split: Split = "test"
    problems: int = 500
    choosing_problems: int = 200  # of development, on which prompts and rates are chosen
    training_problems: int = 0  # of each task; 0: as the demo has it
    options: Mapping[str, Any] = field(default_factory=dict)  # the trainer's, over all else
    tasks: tuple[str, ...] = tuple(HEADLINES)
    seeds: tuple[int, ...] = (0, 1, 2)
    variants: tuple[str, ...] = TABLE

    def fixed(self) -> dict[str, Any]:
        """Return what must stay the same for parts to belong to one run."""
        return {name: value for name, value in asdict(self).items() if name not in ("seeds", "variants")}

    def demo_task(self, name: str, variant: Variant) -> DemoTask:
        """Return a demo task as a variant of this plan trains it."""
        task = variant.change(DEMO_TASKS[name])
        training = {**task.training, **self.options}
        return replace(task, training=training, training_problems=self.training_problems or task.training_problems)


QUICK = Plan(
    split="development",
    problems=20,
    choosing_problems=8,
    training_problems=80,
    options={"steps": 2, "step_failures": 12, "group_size": 4, "control_problems": 0},
    tasks=("countdown",),
    seeds=(0,),
    variants=(LOOP,),
)
"""A trial of every part, in minutes. It never looks at the test split, and its figures mean nothing."""

"""Where a part belongs: one variant and seed of a run, with what it may read of the parts before it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from bench.evidence.folder import RunFolder, name_part
from bench.evidence.plan import Plan, Subject, Variant
from bench.evidence.serving import Site
from demo.drive.display import Phase
from demo.drive.tasks import DemoTask
from demo.problem import Problem

BASE = "base"
SHARED = "both"
"""The one task of the variant that trains both kinds of problem together; BASE is the model's own name."""


@dataclass(frozen=True)
class Part:
    """One part: `weight` is about how many requests it takes."""

    name: str
    weight: int
    work: Callable[[Site, Phase], Awaitable[Any]]


@dataclass(frozen=True)
class Scene:
    """Where parts belong: one variant and seed of a run."""

    plan: Plan
    folder: RunFolder
    variant: Variant
    seed: int

    def name(self, subject: str, arm: str) -> str:
        """Name a part of this scene."""
        return name_part(self.variant.name, self.seed, subject, arm)

    def read(self, subject: str, arm: str) -> Any:
        """Read a part of this scene that is done."""
        return self.folder.read(self.name(subject, arm))

    def task(self, name: str) -> DemoTask:
        """Return the task that problems of a demo task are sent to."""
        task = self.plan.demo_task(name, self.variant)
        return replace(task, name=SHARED) if self.variant.shared else task

    def champion(self, task: str) -> str:
        """Return the model's name of what serves a task after its first round: an adapter, or the base model."""
        return self.read(task, "round_1")["champion"] or BASE

    def draw(self, subject: Subject) -> list[Problem]:
        """Draw the problems that a subject is measured on."""
        return subject.draw(self.plan.split, self.plan.problems)

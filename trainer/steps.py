"""The steps of a round as the trainer walks them: what is drawn, the updates that it fills, and what is told of it.

Called by trainer.grpo. Plain numbers: no torch, no TRL.
"""

import random
import time
from collections import defaultdict, deque
from collections.abc import Callable

from trainer.first_try import count_tokens, deal_answers, pick_answers
from trainer.groups import Weighed, cut_updates, describe_groups, weigh_groups
from trainer.guards import Guards
from trainer.samples import Member
from trainer.settings import TrainerSettings

Sample = Callable[[int], list[Member] | None]
"""Draws the groups of one step, by its number from 1, under the current candidate; None: no further step is taken."""

StepDone = Callable[[int, dict[str, float], bool], None]
"""Told after each step: its number, its figures, and whether the weights changed."""

TOLD = {
    "loss": "loss",
    "kl": "kl",
    "entropy": "entropy",
    "logprob_gap": "logprob_gap",
    "mismatch_kl": "mismatch_kl",
    "grad_norm": "grad_norm",
    "first_try_loss": "first_try_loss",
    "clip_ratio/region_mean": "clipped",
    "cispo_clip_ratio": "clipped",
    "completions/mean_length": "reflection_tokens",
    "completions/clipped_ratio": "truncated",
}
"""The names under which TRL's loss and ours note the figures that a step tells, and how it tells them."""


class Steps:
    """Draws step after step until they are used up, or there are to be no more, or a guard says stop."""

    def __init__(self, settings: TrainerSettings, sample: Sample, step_done: StepDone) -> None:
        self.guards = Guards(settings)
        self.number = 0  # of the step
        self.updates = 0  # of all steps
        self.step_updates = 0
        self.notes: defaultdict[str, list[float]] = defaultdict(list)  # of the step, by the names in TOLD
        self.kept: list[Weighed] = []  # the step's members with signal
        self._settings, self._sample, self._step_done = settings, sample, step_done
        self._queue: deque[list[Weighed]] = deque()  # the step's updates
        self._answers: deque[list[Weighed]] = deque()  # what each of them distils
        self._rng = random.Random(settings.seed)
        self._figures: dict[str, float] = {}
        self._skipped = 0  # updates of the step
        self._update_started = 0.0

    def draw(self) -> bool:
        """Sample until a step has signal and queue its updates. False when there are no steps left."""
        scaled = self._settings.loss_type != "dr_grpo"
        while self.number < self._settings.steps and not self.guards.stopped:
            started = time.monotonic()
            self.notes.clear()
            members = self._sample(self.number + 1)
            if members is None:
                return False
            self.number += 1
            self.step_updates = self._skipped = 0
            self.kept = weigh_groups(members, scaled=scaled)
            self._figures = describe_groups(members, self.kept)
            self._update_started = time.monotonic()
            self._figures["rollout_s"] = self._update_started - started
            if self.kept:
                answers = pick_answers(members) if self._settings.distils else []
                if self._settings.distils:
                    self._figures |= {"first_try_answers": len(answers), "first_try_tokens": count_tokens(answers)}
                for _ in range(self._settings.passes):
                    updates = cut_updates(self.kept, self._settings.minibatch_sequences, self._rng)
                    self._queue.extend(updates)
                    self._answers.extend(deal_answers(answers, len(updates)))
                return True
            self.finish({})
        return False

    @property
    def queued(self) -> int:
        """How many of the step's updates are still to be made."""
        return len(self._queue)

    def take_update(self) -> tuple[list[Weighed], list[Weighed]]:
        """Take the next update of the step, and the answers that it distils: none where the objective does not."""
        return self._queue.popleft(), self._answers.popleft()

    def admit_gradient(self, norm: float) -> bool:
        """Note the gradient of an update and say whether it may be used; if so, the update counts as made."""
        self.notes["grad_norm"].append(norm)
        admitted = self.guards.admit_gradient(self.number, norm)
        self.step_updates += admitted
        self.updates += admitted
        self._skipped += not admitted
        return admitted

    def finish(self, more: dict[str, float]) -> None:
        """Tell the figures of the step that is over, `more` among them, and let the guards look at them."""
        self._queue.clear()
        self._answers.clear()
        figures = dict(self._figures)
        for name, values in self.notes.items():
            finite = [v for v in values if v == v]  # noqa: PLR0124 (not a number)
            if finite and name in TOLD:
                figures[TOLD[name]] = sum(finite) / len(finite)
        figures |= more
        figures["updates"] = self.step_updates
        figures["skipped"] = self._skipped
        figures["train_s"] = time.monotonic() - self._update_started
        self.guards.look_at_step(self.number, figures)
        self._step_done(self.number, figures, self.step_updates > 0)

"""What keeps a round from training on when it does harm: guards over gradients, entropy, the engine and the reward.

Asked by trainer.grpo after each update's gradient and after each step; decided here alone. A guard ends the training
early, never the round: the gate still judges the candidate. Plain numbers: no torch.
"""

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.settings import TrainerSettings

NORMS_KEPT = 32
NORMS_NEEDED = 8
"""Updates before the median says anything: the first ones of a fresh adapter grow by their nature."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the training ended before its last step."""

    step: int
    guard: str  # gradient, entropy, mismatch or reward
    words: str


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


class Guards:
    """The guards of one round. Once `stopped` is set it stays."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings
        self.stopped: Stop | None = None
        self._norms: deque[float] = deque(maxlen=NORMS_KEPT)  # of the updates that were made
        self._skipped = 0  # updates running
        self._first_entropy: float | None = None
        self._apart = 0  # steps running over max_mismatch_kl
        self._rewards: list[float] = []

    def admit_gradient(self, step: int, norm: float) -> bool:
        """Say whether an update with this gradient norm may be made; after several that may not, stop."""
        factor = self._settings.skip_gradient_over
        usual = statistics.median(self._norms) if len(self._norms) >= NORMS_NEEDED else None
        if not factor or usual is None or norm <= factor * usual:
            self._norms.append(norm)
            self._skipped = 0
            return True
        self._skipped += 1
        if self._skipped >= self._settings.max_skipped_updates:
            self._stop(
                step,
                "gradient",
                f"{_count(self._skipped, 'update')} running had a gradient more than {factor:g} times the usual norm "
                f"({norm:.3g}, usually {usual:.3g}): lower learning_rate, or raise minibatch_sequences",
            )
        return False

    def look_at_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Look at the figures of a step that is over, and stop where they say so."""
        self._look_at_mismatch(step, figures)
        self._look_at_entropy(step, figures)
        self._look_at_reward(step, figures)

    def _look_at_mismatch(self, step: int, figures: Mapping[str, float]) -> None:
        mismatch, most = figures.get("mismatch_kl"), self._settings.max_mismatch_kl
        if mismatch is None:
            return
        self._apart = self._apart + 1 if mismatch > most else 0
        if self._apart >= self._settings.mismatch_steps:
            self._stop(
                step,
                "mismatch",
                f"in {_count(self._apart, 'step')} running the engine's logprobs were {mismatch:.3g} nats a token (KL) "
                f"from the trainer's, over max_mismatch_kl = {most:g}: let both compute in the same precision, or "
                "lower push_every",
            )

    def _look_at_entropy(self, step: int, figures: Mapping[str, float]) -> None:
        entropy, share = figures.get("entropy"), self._settings.min_entropy_share
        if entropy is None:
            return
        if self._first_entropy is None:
            self._first_entropy = entropy
        if entropy < share * self._first_entropy:
            self._stop(
                step,
                "entropy",
                f"the reflections' entropy fell to {entropy:.3g} nats a token from {self._first_entropy:.3g}, under "
                f"min_entropy_share = {share:g} of it: they are all alike by now and nothing is tried out any more; "
                "lower learning_rate, or raise kl_beta",
            )

    def _look_at_reward(self, step: int, figures: Mapping[str, float]) -> None:
        patience = self._settings.patience
        if not patience or "reward" not in figures:
            return
        self._rewards.append(figures["reward"])
        if len(self._rewards) < 2 * patience:
            return
        before = statistics.fmean(self._rewards[-2 * patience : -patience])
        after = statistics.fmean(self._rewards[-patience:])
        if after <= before:
            self._stop(
                step,
                "reward",
                f"the reward of the last {patience} steps was {after:.3f}, of the {patience} before them {before:.3f}: "
                "no gain within patience",
            )

    def _stop(self, step: int, guard: str, words: str) -> None:
        if self.stopped is None:
            self.stopped = Stop(step, guard, words)

"""What a round may use: minutes, tokens and disk. Training stops in time, so that the gate still fits.

Made by trainer.round, asked before each step and before the gate. It measures and decides; it must never end a round
itself, but for the call that would go beyond the tokens (`count`), which raises.

How much the gate will take is told from the rollouts: a rollout is two answers, and a gate's sample up to three (the
first try, the reflection, the retry), so each counts one and a half rollouts. What the dearest step so far took is
what the next one is given. The first step of a round has nothing to be told from, and is always begun.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from server.domain import Usage
from trainer.errors import RoundFailed
from trainer.settings import TrainerSettings

GATE_SAMPLE = 1.5
"""What a sample of the gate takes, in rollouts."""

MIB = 2**20
_MINUTE_S = 60.0


@dataclass
class Budget:
    """The limits of one round (None: no limit) and what it has used of them.

    `seconds_before` and `tokens` begin with what earlier leases of the round took. `gate_samples` is how many samples
    the gate will take of both adapters together at most, `gate_least` how many before it may stop.
    """

    options: TrainerSettings
    folder: Path
    seconds_before: float = 0.0
    tokens: int = 0
    gate_samples: int = 0
    gate_least: int = 0
    clock: Callable[[], float] = time.monotonic
    stopped: str = ""  # why training stopped before its steps were done
    _began: float = field(init=False)
    _rollouts: int = 0
    _rollout_s: float = 0.0
    _rollout_tokens: int = 0
    _dearest_s: float = 0.0
    _dearest_tokens: int = 0

    def __post_init__(self) -> None:
        self._began = self.clock()

    @property
    def seconds(self) -> float:
        """How long the round has run, earlier leases included."""
        return self.seconds_before + self.clock() - self._began

    @property
    def seconds_left(self) -> float | None:
        """How long it may still run; None where there is no limit."""
        minutes = self.options.max_minutes
        return None if minutes is None else max(0.0, minutes * _MINUTE_S - self.seconds)

    @property
    def seconds_for_step(self) -> float | None:
        """How long a step may sample, so that the gate still fits; None where there is no limit."""
        left = self.seconds_left
        return None if left is None else max(0.0, left - self.gate_seconds)

    @property
    def gate_seconds(self) -> float:
        """What the gate will take, as far as rollouts tell."""
        each = self._rollout_s / self._rollouts if self._rollouts else 0.0
        return self.gate_samples * GATE_SAMPLE * each

    @property
    def gate_tokens(self) -> int:
        """What the gate will take, as far as rollouts tell."""
        each = self._rollout_tokens / self._rollouts if self._rollouts else 0.0
        return round(self.gate_samples * GATE_SAMPLE * each)

    def count(self, usage: Usage) -> None:
        """Count what one answer of the engine took. Raises: RoundFailed past `max_tokens`."""
        self.tokens += usage.total_tokens
        most = self.options.max_tokens
        if most is not None and self.tokens > most:
            raise RoundFailed(f"max_tokens is used up: {self.tokens} of {most} tokens, {_MORE}")

    def note_sampled(self, rollouts: int, seconds: float, tokens: int) -> None:
        """Learn from a step's sampling what rollouts take."""
        self._rollouts += rollouts
        self._rollout_s += seconds
        self._rollout_tokens += tokens
        self._dearest_tokens = max(self._dearest_tokens, tokens)

    def note_step(self, seconds: float) -> None:
        """Learn what a whole step took: sampling, optimising and pushing."""
        self._dearest_s = max(self._dearest_s, seconds)

    def allows_step(self, push_bytes: int = 0) -> bool:
        """Say whether another step fits, with the gate behind it and a push of `push_bytes`; if not, why stands here.

        Two pushes lie in the folder while one follows the other.
        """
        left, most = self.seconds_left, self.options.max_tokens
        if left is not None and self._dearest_s + self.gate_seconds > left:
            self.stopped = (
                f"max_minutes: {self.seconds / _MINUTE_S:.1f} of {self.options.max_minutes:g} were used, and another "
                f"step ({self._dearest_s:.0f} s) and the gate (about {self.gate_seconds:.0f} s) did not fit any more"
            )
        elif most is not None and self.tokens + self._dearest_tokens + self.gate_tokens > most:
            self.stopped = (
                f"max_tokens: {self.tokens} of {most} were used, and another step ({self._dearest_tokens}) and the "
                f"gate (about {self.gate_tokens}) did not fit any more"
            )
        elif (disk := self.find_disk_excess(push_bytes)) is not None:
            self.stopped = disk
        return not self.stopped

    def find_disk_excess(self, more_bytes: int) -> str | None:
        """Say, if so many more bytes in the round's folder are too many, that they are."""
        most = self.options.max_disk_mb
        if most is None:
            return None
        used = measure_folder(self.folder)
        if used + more_bytes <= most * MIB:
            return None
        return (
            f"max_disk_mb: {used / MIB:.1f} of {most:g} MiB were used, and a push of {more_bytes / MIB:.1f} MiB did "
            "not fit any more"
        )

    def check_gate(self) -> None:
        """Say before the gate whether it still fits. Raises: RoundFailed by the budget's name where it does not."""
        left, most = self.seconds_left, self.options.max_tokens
        least = self.gate_least / self.gate_samples if self.gate_samples else 0.0
        seconds, tokens = self.gate_seconds * least, round(self.gate_tokens * least)
        if left is not None and seconds > left:
            raise RoundFailed(
                f"max_minutes is used up: {self.seconds / _MINUTE_S:.1f} of {self.options.max_minutes:g} minutes, and "
                f"the gate would take {seconds / _MINUTE_S:.1f} more at least; {_MORE}"
            )
        if most is not None and self.tokens + tokens > most:
            raise RoundFailed(
                f"max_tokens is used up: {self.tokens} of {most} tokens, and the gate would take {tokens} more at "
                f"least; {_MORE}"
            )

    def describe(self) -> dict[str, object]:
        """Say what was used, of how much, and whether a limit stopped the training."""
        options = self.options
        limits = {name: getattr(options, name) for name in ("max_minutes", "max_tokens", "max_disk_mb")}
        return {
            "minutes": round(self.seconds / _MINUTE_S, 2),
            "tokens": self.tokens,
            "disk_mb": round(measure_folder(self.folder) / MIB, 2),
            **{name: limit for name, limit in limits.items() if limit is not None},
            **({"stopped": self.stopped} if self.stopped else {}),
        }


_MORE = "raise it, or lower steps, step_failures, group_size or gate_problems"


def measure_folder(folder: Path) -> int:
    """Add up the bytes of all files in a folder; 0 where it is not there. What vanishes meanwhile counts nothing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(path) / name).stat().st_size
            except OSError:
                continue
    return total

"""Fits forward passes into memory: where it runs out, half as many sequences at once, and the same work again.

Called by trainer.grpo. What it repeats must leave nothing behind when it is broken off. Where memory runs out on one of
several ranks, all halve, and all begin again.
"""

import gc
from collections.abc import Callable
from typing import TypeVar

import structlog
import torch

from trainer.errors import RoundFailed
from trainer.ranks import ALONE, Ranks

T = TypeVar("T")

_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
"""What the errors of CUDA, of the CPU's allocator and of cuBLAS say, in small letters."""

_log = structlog.get_logger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def take_share(share: float, device: torch.device) -> None:
    """Hold this process to a share of its GPU's memory, where an engine needs the rest; past it memory is out."""
    if share < 1 and device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share)


class Microbatch:
    """How many sequences one forward and backward pass holds; it only shrinks, and stays so for the round."""

    def __init__(self, sequences: int, ranks: Ranks = ALONE) -> None:
        self.sequences = sequences
        self._ranks = ranks

    def fit(self, rows: int, work: Callable[[int], T]) -> T:
        """Do `work` on `rows` sequences, told how many a pass may hold at once; halve that until it fits on every rank.

        `rows` are those of all ranks, and `work` must not wait for another rank.

        Raises: RoundFailed where one sequence is too much already, RankLost.
        """
        while True:
            done, said = self._try(work)
            told = [word.decode() for word in self._ranks.exchange(said.encode())]
            if not any(told):
                return done[0]
            done.clear()
            self._halve(-(-rows // self._ranks.size), next(filter(None, told)))

    def _try(self, work: Callable[[int], T]) -> tuple[list[T], str]:
        """Do the work and give what came of it, or how memory ran out.

        When this returns the error is gone, and with its traceback what the broken pass held.
        """
        try:
            return [work(self.sequences)], ""
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return [], " ".join(str(error).split())[:200] or type(error).__name__

    def _halve(self, rows: int, said: str) -> None:
        held = min(self.sequences, rows)
        if held <= 1:
            raise RoundFailed(
                f"out of memory with a single sequence in a forward pass ({said}): lower the task's "
                "reflection_max_tokens or lora_rank, set dtype to bfloat16, or leave the trainer more memory"
            )
        self.sequences = held // 2
        if self._ranks.number == 0:
            _log.warning("out_of_memory", microbatch=self.sequences, was=held, error=said)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

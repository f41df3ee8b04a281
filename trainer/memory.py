"""Fits forward passes into memory: where it runs out, half as many sequences at once, and the same work again.

Called by trainer.grpo. What it repeats must leave nothing behind when it is broken off.
"""

import gc
from collections.abc import Callable
from typing import TypeVar

import structlog
import torch

from trainer.errors import RoundFailed

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

    def __init__(self, sequences: int) -> None:
        self.sequences = sequences

    def fit(self, rows: int, work: Callable[[int], T]) -> T:
        """Do `work` on `rows` sequences, told how many it may hold at once; halve that until it fits.

        Raises: RoundFailed where one sequence is too much already.
        """
        while True:
            try:
                return work(self.sequences)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                said = " ".join(str(error).split())[:200] or type(error).__name__
            # Only here is the error gone, and with its traceback what the broken pass held.
            self._halve(rows, said)

    def _halve(self, rows: int, said: str) -> None:
        held = min(self.sequences, rows)
        if held <= 1:
            raise RoundFailed(
                f"out of memory with a single sequence in a forward pass ({said}): lower the task's "
                "reflection_max_tokens or lora_rank, set dtype to bfloat16, or leave the trainer more memory"
            )
        self.sequences = held // 2
        _log.warning("out_of_memory", microbatch=self.sequences, was=held, error=said)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

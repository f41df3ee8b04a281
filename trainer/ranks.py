"""The ranks of one trainer, seen from one of them: what they tell each other, and what they add up.

Used by trainer.round (rank 0), trainer.following (the others) and trainer.grpo. Every word and every sum between ranks
goes through here, over gloo on the loopback address: torch.distributed has no default group, so no library beneath us
can begin to wait for another rank. Ranks meet only where none is inside a forward or backward pass, so whatever breaks
in one of these finds no other rank half-way through it. Words are bytes that we read ourselves, never pickles.

Ranks are numbered from 0. Rank 0 alone talks to the engine and the database.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from trainer.errors import RoundFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLING_MOST = timedelta(days=30)
"""How long a rank waits for rank 0's next word, which samples between two: the launcher ends it if rank 0 dies."""


class RankLost(RoundFailed):
    """Another rank is gone or silent. If it failed, the reason is what it said; this is only the echo."""


class Ranks:
    """A trainer of a single rank: what is told is heard by nobody, and sums are what they were."""

    number = 0
    size = 1

    def tell(self, word: bytes) -> None:
        """Tell all other ranks a word; they `hear` it. Rank 0 alone does. Raises: RankLost."""

    def hear(self) -> bytes:
        """Wait for rank 0's next word. Every rank but 0 does. Raises: RankLost."""
        raise AssertionError("a lone rank hears nothing")

    def exchange(self, word: bytes) -> list[bytes]:
        """Give every rank the words of all, by their numbers; all have to. Raises: RankLost."""
        return [word]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the ranks; all have to, with like shapes. Raises: RankLost."""

    def share_out(self, parts: Sequence[Any]) -> list[Any]:
        """Give of what all ranks know in the same order what this one has to do."""
        return list(parts[self.number :: self.size])


ALONE = Ranks()

End = Callable[[Exception], None]
"""Is told of the error that ends a rank, before the rank ends."""


class GlooRanks(Ranks):
    """Several ranks of one machine. What may take longer than `timeout_s` is waited for by `hear` alone."""

    def __init__(self, number: int, size: int, store: Any, timeout_s: float) -> None:
        self.number, self.size, self._timeout_s = number, size, timeout_s
        self._sums = _open_group(store, "sums", number, size, timedelta(seconds=timeout_s))
        self._words = _open_group(store, "words", number, size, SAMPLING_MOST)

    def tell(self, word: bytes) -> None:
        """Tell all other ranks: first the length, then the word."""
        with self._in_touch():
            self._words.broadcast(torch.tensor([len(word)]), 0).wait()
            if word:
                self._sums.broadcast(_to_tensor(word), 0).wait()

    def hear(self) -> bytes:
        """Wait as long as rank 0 takes to say something, and read it."""
        length = torch.zeros(1, dtype=torch.int64)
        with self._in_touch():
            self._words.broadcast(length, 0).wait()  # so short that rank 0 never waits for who does not read it
            word = torch.empty(int(length), dtype=torch.uint8)
            if length:
                self._sums.broadcast(word, 0).wait()
        return word.numpy().tobytes()

    def exchange(self, word: bytes) -> list[bytes]:
        """Add up rows of which each rank fills its own."""
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.number] = len(word)
        with self._in_touch():
            self._sums.allreduce(lengths).wait()
            if not lengths.any():
                return [b""] * self.size
            words = torch.zeros(self.size, int(lengths.max()), dtype=torch.uint8)
            words[self.number, : len(word)] = _to_tensor(word)
            self._sums.allreduce(words).wait()
        return [row[:length].numpy().tobytes() for row, length in zip(words, lengths.tolist(), strict=True)]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Add them up as one, in the CPU's memory: an adapter is small."""
        joined = torch.cat([one.detach().reshape(-1).cpu() for one in tensors])
        with self._in_touch():
            self._sums.allreduce(joined).wait()
        for one, total in zip(tensors, joined.split([one.numel() for one in tensors]), strict=True):
            one.copy_(total.view_as(one))

    @contextmanager
    def _in_touch(self) -> "Iterator[None]":
        """Turn what gloo says when another rank is gone or late into words."""
        try:
            yield
        except RuntimeError as error:
            said = " ".join(str(error).split())[:200]
            raise RankLost(
                f"rank {self.number} of {self.size} lost touch with another one, which ended or was silent for "
                f"{self._timeout_s:g} s (MULLIGAN_TRAINER__RANK_TIMEOUT_S): {said}"
            ) from error


def meet(number: int, size: int, address: str, port: int, *, timeout_s: float) -> GlooRanks:
    """Meet the other ranks at the launcher's store. Raises: RankLost where they do not come within `timeout_s`."""
    try:
        store = TCPStore(
            address, port, size, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False
        )
        return GlooRanks(number, size, store, timeout_s)
    except RuntimeError as error:
        raise RankLost(f"rank {number} of {size} did not meet the others: {' '.join(str(error).split())}") from error


def _open_group(store: Any, name: str, number: int, size: int, timeout: timedelta) -> Any:
    gloo: Any = ProcessGroupGloo
    options = gloo._Options()  # noqa: SLF001 -- torch has no public name for it
    options._devices = [gloo.create_device(hostname="127.0.0.1")]  # noqa: SLF001
    options._timeout = timeout  # noqa: SLF001
    return gloo(PrefixStore(f"mulligan/{name}/", store), number, size, options)


def _to_tensor(word: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(word), dtype=torch.uint8) if word else torch.empty(0, dtype=torch.uint8)

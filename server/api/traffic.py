"""Counts the episodes in flight in this process, by adapter.

A hot swap unloads an adapter only where every process reports zero; the chat endpoint asks it for room.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import TooManyRequests


class Traffic:
    """The episodes in flight."""

    def __init__(self, max_concurrent: int) -> None:
        self._max_concurrent = max_concurrent
        self._by_adapter: Counter[str] = Counter()

    @contextmanager
    def episode(self, adapter: str) -> Iterator[None]:
        """Count an episode as long as it runs. Enter in the same step, without an await, that chose the adapter.

        Raises: TooManyRequests.
        """
        if self._by_adapter.total() >= self._max_concurrent:
            raise TooManyRequests(f"{self._max_concurrent} requests are in flight here. Try again shortly.")
        self._by_adapter[adapter] += 1
        try:
            yield
        finally:
            self._by_adapter[adapter] -= 1
            if not self._by_adapter[adapter]:
                del self._by_adapter[adapter]

    def in_flight(self) -> dict[str, int]:
        """Count the episodes by adapter; "" is the base model."""
        return dict(self._by_adapter)

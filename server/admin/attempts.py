"""Counts failed logins by address, so that nobody may try keys at leisure, nor fill the audit log with it.

In memory, so each API process counts for itself. Behind a proxy all clients have its address, and share one count: a
key has 256 random bits and needs no such bound to be safe.
"""

import ipaddress
import time
from collections import deque
from collections.abc import Callable

from server.errors import TooManyRequests

MOST = 10
WITHIN_S = 300.0
_MOST_ADDRESSES = 4096


class FailedLogins:
    """The failed logins of the last minutes."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, deque[float]] = {}

    def check(self, address: str) -> None:
        """Refuse an address that failed too often. Raises: TooManyRequests, saying when to come back."""
        failed, now = self._failed.get(_network_of(address)), self._clock()
        while failed and failed[0] <= now - WITHIN_S:
            failed.popleft()
        if failed and len(failed) >= MOST:
            error = TooManyRequests(f"{MOST} logins from your address failed. Wait a few minutes, then try again.")
            error.retry_after_s = max(1, round(failed[0] + WITHIN_S - now))
            raise error

    def note(self, address: str) -> None:
        """Count a failed login."""
        network = _network_of(address)
        failed = self._failed.pop(network, deque(maxlen=MOST))
        failed.append(self._clock())
        if len(self._failed) >= _MOST_ADDRESSES:
            del self._failed[next(iter(self._failed))]  # whose last one is the oldest
        self._failed[network] = failed


def _network_of(address: str) -> str:
    """Name what one client has of addresses: of IPv6 a whole /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address

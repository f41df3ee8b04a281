"""Where the API processes of one port lay down what they counted, so that a scrape of any of them tells of all.

One region of memory with a slot for each process, made by the parent and handed on like the listening socket. Each
process writes its own slot once a second and reads the others'. Nothing is locked: a slot that is being written while
it is read does not match its checksum, and is read again. It dies with the processes, so there is nothing to clean up.
"""

import mmap
import os
import tempfile
import zlib
from struct import Struct

import structlog

SLOT_BYTES = 2**20
"""Address space; only what is written takes memory."""

_HEAD = Struct("=dII")  # monotonic seconds, length and CRC-32 of what follows
_TRIES = 8

_log = structlog.get_logger(__name__)


class SharedSlots:
    """The region. Processes are numbered from 1."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._region = mmap.mmap(descriptor, 0)
        self.processes = len(self._region) // SLOT_BYTES

    @classmethod
    def open(cls, processes: int) -> "SharedSlots":
        """Make an empty region. Raises OSError."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("mulligan-metrics")
        else:  # a file without a name, as good but for the writes to disk
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, SLOT_BYTES * processes)
        return cls(descriptor)

    def write(self, number: int, payload: bytes, now: float) -> bool:
        """Lay down what a process counted, at `now` (monotonic seconds); False where it is too much for a slot."""
        start = (number - 1) * SLOT_BYTES
        if _HEAD.size + len(payload) > SLOT_BYTES:
            return False
        self._region[start + _HEAD.size : start + _HEAD.size + len(payload)] = payload
        _HEAD.pack_into(self._region, start, now, len(payload), zlib.crc32(payload))
        return True

    def read(self, number: int) -> tuple[float, bytes] | None:
        """Read what a process laid down last, and when; None where it never did, or is always in the middle of it."""
        start = (number - 1) * SLOT_BYTES
        for _ in range(_TRIES):
            at, length, checksum = _HEAD.unpack_from(self._region, start)
            if not length or length > SLOT_BYTES - _HEAD.size:
                return None
            payload = self._region[start + _HEAD.size : start + _HEAD.size + length]
            if zlib.crc32(payload) == checksum:
                return at, payload
        _log.debug("metrics_torn", of=number)
        return None

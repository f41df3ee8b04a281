"""The spool: an append-only file in which episodes wait while the database is away.

Owns the file's format, its lock and its size; knows nothing of episodes or of the database. Called by the episode log,
always in a thread, for every call may wait for the disk. A record is lost by no crash once `append` has returned.

A file is a row of frames: length and CRC-32 of the payload (little endian, 4 bytes each), then the payload. The first
frame is a header that says what the records look like. Each process writes a file of its own and holds a lock on it,
which the kernel drops when the process dies; whoever gets the lock then adopts the file.
"""

import contextlib
import fcntl
import os
import secrets
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Self

import structlog

log = structlog.get_logger(__name__)

SUFFIX = ".spool"
TORN = ".torn"
_FRAME = Struct("<II")


def frame(payload: bytes) -> bytes:
    """Wrap a payload with its length and checksum."""
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


class TornFrame(Exception):
    """A frame that was not written to its end, or was damaged since. `place` is where it starts."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


class SpoolFile:
    """One spool file, open and locked by this process."""

    def __init__(self, path: Path, descriptor: int, *, max_bytes: int = 0) -> None:
        self.path = path
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._lock = threading.Lock()  # appending and emptying happen in different threads
        self._start = 0  # where the records begin

    @classmethod
    def create(cls, folder: Path, header: bytes, *, max_bytes: int) -> Self:
        """Make this process's file. Raises: OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = folder / f"episodes-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            if _lock(path, descriptor):  # else another process adopted it before we could lock it
                break
        file = cls(path, descriptor, max_bytes=max_bytes)
        try:
            file._write(frame(header))
            _sync_folder(folder)
        except OSError:
            file.discard()
            raise
        file._start = file.size
        return file

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """Take over a file whose process is gone; None while that process lives. Raises: OSError."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        return cls(path, descriptor) if _lock(path, descriptor) else None

    def append(self, payloads: Sequence[bytes]) -> list[bool]:
        """Write and sync as many payloads as the limit allows; says of each whether it is safe. Raises: OSError."""
        with self._lock:
            taken: list[bool] = []
            frames = bytearray()
            for payload in payloads:
                fits = self.size + len(frames) + _FRAME.size + len(payload) <= self._max_bytes
                taken.append(fits)
                if fits:
                    frames += frame(payload)
            if frames:
                self._write(bytes(frames))
            return taken

    def _write(self, content: bytes) -> None:
        try:
            written = 0
            while written < len(content):
                written += os.pwrite(self._descriptor, content[written:], self.size + written)
            os.fsync(self._descriptor)
        except OSError:
            # Whatever got there must not stand between the whole frames before and after it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(content)

    def read(self) -> Iterator[tuple[int, bytes]]:
        """Read the frames that are there now, the header first: where each one ends, and its payload.

        Raises: TornFrame where a frame is cut off or does not match its checksum; OSError.
        """
        place, size = 0, self.size
        while place < size:
            head = os.pread(self._descriptor, _FRAME.size, place)
            if len(head) < _FRAME.size:
                raise TornFrame(place)
            length, checksum = _FRAME.unpack(head)
            payload = os.pread(self._descriptor, length, place + _FRAME.size)
            if len(payload) < length or zlib.crc32(payload) != checksum:
                raise TornFrame(place)
            place += _FRAME.size + length
            yield place, payload

    @property
    def empty(self) -> bool:
        """Whether no record is waiting in it."""
        return self.size <= self._start

    def clear(self, end: int) -> bool:
        """Drop all records if none lies beyond `end`. Raises: OSError."""
        with self._lock:
            if self.size > end:
                return False
            os.ftruncate(self._descriptor, self._start)
            self.size = self._start
            return True

    def set_aside(self, place: int) -> None:
        """Keep a file that is unreadable from `place` on under another name, for a human, and say so."""
        torn = self.path.with_suffix(TORN)
        log.error("The end of a spool file cannot be read", kept_as=str(torn), at_byte=place, bytes=self.size - place)
        self.path.rename(torn)
        self.release()

    def discard(self) -> None:
        """Delete the file and drop the lock."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self.release()

    def release(self) -> None:
        """Close the file and so drop the lock. What is appended later fails with an OSError."""
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1


def read_header_bytes(path: Path) -> int:
    """Say how large a spool file is that holds no record: its header. Raises: OSError."""
    with path.open("rb") as file:
        head = file.read(_FRAME.size)
    return _FRAME.size + _FRAME.unpack(head)[0] if len(head) == _FRAME.size else _FRAME.size


def leftovers(folder: Path, *, own: Path | None) -> list[Path]:
    """List the spool files of other processes, dead or alive, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.glob(f"*{SUFFIX}") if path != own]
    return sorted(found, key=lambda path: path.name)


def _lock(path: Path, descriptor: int) -> bool:
    """Lock a file that was just opened, unless someone holds it or it was deleted or renamed meanwhile."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        named, opened = path.stat(), os.fstat(descriptor)
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        return False
    if (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino):
        os.close(descriptor)
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Make a new file's name as durable as its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

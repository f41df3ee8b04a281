"""Reads the kernel's accounting of a gateway: the CPU time and the memory of a process and all its children.

CPU time comes from each process's own clock (nanoseconds; threads that ended are in it), plus that of children which
ended and were waited for (hundredths of a second). Called by `bench.gateway.measure`.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """CPU time in seconds and resident memory in bytes of a process tree."""

    cpu_s: float
    rss_bytes: int
    members: int


def walk_tree(root: int) -> Iterator[int]:
    """Yield a process and all its descendants, those of every thread."""
    yield root
    with suppress(OSError):
        for thread in Path(f"/proc/{root}/task").iterdir():
            with suppress(OSError):
                for child in (thread / "children").read_text().split():
                    yield from walk_tree(int(child))


def read_usage(root: int) -> Usage:
    """Read what a process tree has used so far, and holds now."""
    cpu_s, rss_bytes, count = 0.0, 0, 0
    for pid in walk_tree(root):
        with suppress(OSError):  # it has ended since
            rss_bytes += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
            cpu_s += read_clock_s(pid) + read_ended_children_s(pid)
            count += 1
    return Usage(cpu_s, rss_bytes, count)


def read_clocks_s(pids: list[int]) -> dict[int, float]:
    """Read the CPU clocks of processes that are no children of ours; what is gone is left out."""
    clocks: dict[int, float] = {}
    for pid in pids:
        with suppress(OSError):
            clocks[pid] = read_clock_s(pid)
    return clocks


def read_clock_s(pid: int) -> float:
    """Read the CPU clock of a process, all its threads together. Raises: OSError if it is gone."""
    return time.clock_gettime((~pid << 3) | 2)  # how Linux names the scheduler's clock of another process


def read_ended_children_s(pid: int) -> float:
    """Read the CPU time of the children that ended and were waited for. Raises: OSError if it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / _TICKS_PER_S

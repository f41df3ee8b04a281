"""What every isolated process is limited to by the operating system. Called inside worker processes only."""

import contextlib
import ctypes
import os
import resource
import signal

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
MAX_OPEN_FILES = 64


def die_with(parent_pid: int) -> bool:
    """Be killed when the parent ends. Returns whether the system knows how; exits if the parent is gone already."""
    known = _tell_kernel(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
    return known


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent ended, where the system knows how."""
    _tell_kernel(PR_SET_CHILD_SUBREAPER, 1)


def limit(*, memory_bytes: int, cpu_s: int, open_files: int = MAX_OPEN_FILES) -> bool:
    """Limit this process: address space, CPU-seconds, open files, no file may grow, no core.

    Returns whether the system limits memory; some know RLIMIT_AS and refuse it.
    """
    _set(resource.RLIMIT_CPU, cpu_s)
    _set(resource.RLIMIT_NOFILE, open_files)
    _set(resource.RLIMIT_FSIZE, 0)
    _set(resource.RLIMIT_CORE, 0)
    return _set(resource.RLIMIT_AS, memory_bytes)


def _set(which: int, value: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(which, (value, value))
        return True
    return False


def _tell_kernel(option: int, value: int) -> bool:
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0
    return False

"""Puts limits on one sandbox worker, then becomes it. Run by `verifiers.sandbox` as a script; imported by nobody.

Arguments: the process id of the host, the limits in CPU-seconds and bytes of address space, then the command. The
worker is killed with its host (where the system knows how), however busy it is; it writes no file and no core.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
MAX_OPEN_FILES = 32
NICENESS = 5  # code that spins on every core leaves the API its turn


def main(host_pid: int, cpu_s: int, memory_bytes: int, command: list[str]) -> None:
    """Limit this process and run the command in its place. Never returns."""
    with contextlib.suppress(OSError, AttributeError):  # not on every system; there the pipes' end is what stops it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != host_pid:
        sys.exit("the host is gone")
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        with contextlib.suppress(OSError, ValueError):  # macOS knows RLIMIT_AS but refuses it
            resource.setrlimit(limit, (value, value))
    os.nice(NICENESS)
    os.chdir("/")
    os.execv(command[0], command)  # noqa: S606 - becoming the worker is the point


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])

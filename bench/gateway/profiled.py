"""Runs a module under cProfile, switched on by SIGUSR1, and off again (and written) by SIGUSR2.

    python profiled.py FILE MODULE [ARGUMENT ...]

So that a profile holds the measured requests only, not the start. Started by `bench.gateway.profiling`; it runs in the
peers' environment too, so it imports nothing but the standard library.
"""

import cProfile
import runpy
import signal
import sys
import time
from pathlib import Path
from types import FrameType


def main() -> None:
    """Install the switches and become the module."""
    written, module, *arguments = sys.argv[1:]
    profiler = cProfile.Profile(time.thread_time_ns, 1e-9)  # not the wall: on a shared machine others run in between

    def switch_on(_number: int, _frame: FrameType | None) -> None:
        profiler.enable()

    def switch_off(_number: int, _frame: FrameType | None) -> None:
        profiler.disable()
        profiler.dump_stats(written + ".part")
        Path(written + ".part").rename(written)

    signal.signal(signal.SIGUSR1, switch_on)
    signal.signal(signal.SIGUSR2, switch_off)
    sys.path[0] = str(Path.cwd())  # as `python -m` has it
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

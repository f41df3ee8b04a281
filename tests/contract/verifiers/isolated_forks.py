"""Jobs for workers that fork for each. Imported in the worker; `test_isolation.py` names them."""

import gc
import os

SECRET = "what a job must not see of the one before"


def prepare():
    """Run in the fork, before the job is read."""
    return os.getpid()


def find_others(mark, prepared):
    """Say whether this process is the prepared one, and how often another job's mark is in its memory."""
    marks = [item for item in gc.get_objects() if isinstance(item, list) and item[:1] == ["mark"]]
    kept = ["mark", mark]
    return [prepared == os.getpid(), len(marks), kept]


def end(status, _prepared):
    os._exit(status)


def leave_child(_value, _prepared):
    """Leave a child behind that would sleep for ever."""
    pid = os.fork()
    if pid == 0:
        os.closerange(0, 64)
        while True:
            os.sched_yield()
    return pid

"""One isolated worker. Run by `verifiers.isolation` as a script; imported by nobody.

It is our own code that works on hostile input. Frames on stdin and stdout are four bytes of length, then JSON. The
first that it writes tells what holds it (`hardening`), or why it cannot work (`broken`). Then each job is answered by
`{"value": ...}` or `{"cause": ..., "reason": ...}`. With `fork_each` a job runs in a fork of its own, which reads it
itself: this process never sees a job, so that nothing of one is left in the memory of the next.
"""

import gc
import importlib
import json
import os
import select
import sys
from collections.abc import Callable
from typing import Any, NoReturn

NICENESS = 5  # work on every core leaves the API its turn
REASON_CHARS = 500
_SERVED = 17  # not 0: whoever ends a fork from within did not answer


def main(options: dict[str, Any]) -> None:
    """Limit this process, import the function, say so, and serve until stdin ends."""
    sys.path.insert(0, options["path"])
    from verifiers import isolation_limits, isolation_seccomp  # noqa: PLC0415 -- the path is known only now

    children = options["fork_each"]
    hardening = {
        "dies_with_host": isolation_limits.die_with(options["host_pid"]),
        "memory": isolation_limits.limit(memory_bytes=options["memory_bytes"], cpu_s=options["cpu_s"]),
    }
    os.nice(NICENESS)
    requests, replies = _take_pipes()
    try:
        for module in options["preload"]:
            importlib.import_module(module)
        module, _, name = options["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        before = getattr(importlib.import_module(module), "prepare", None) if children else None
    except BaseException as error:  # noqa: BLE001 -- whatever it is, the host has to hear of it
        _write(replies, {"broken": _tell(error)}, 2**20)
        return
    if children:
        isolation_limits.adopt_orphans()
    gc.collect()
    gc.freeze()
    hardening["seccomp"] = isolation_seccomp.refuse_harm(children=children)
    _write(replies, {"hardening": hardening}, 2**20)
    if children:
        _serve_in_forks(requests, replies, function, before, options["max_result_bytes"])
    else:
        _serve(requests, replies, function, options["max_result_bytes"])


def _take_pipes() -> tuple[int, int]:
    """Keep the pipes for ourselves: what any library prints or reads goes nowhere."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    os.close(nothing)
    return requests, replies


def _serve(requests: int, replies: int, function: Callable[[Any], Any], max_bytes: int) -> None:
    while (job := _read(requests)) is not None:
        _write(replies, _answer(function, job), max_bytes)


def _serve_in_forks(
    requests: int, replies: int, function: Callable[..., Any], before: Callable[[], Any] | None, max_bytes: int
) -> None:
    """Serve each job in a fork; end with the first that did not answer, for the stream may be cut anywhere."""
    status = _SERVED
    while status == _SERVED:
        select.select([requests], [], [])
        pid = os.fork()
        if pid == 0:
            _serve_one(requests, replies, function, before, max_bytes)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        _reap()


def _serve_one(
    requests: int, replies: int, function: Callable[..., Any], before: Callable[[], Any] | None, max_bytes: int
) -> NoReturn:
    """Serve one job in this fork. `before` runs before the job is read, and the function gets what it returns."""
    from verifiers import isolation_limits  # noqa: PLC0415

    status = 1
    try:
        isolation_limits.die_with(os.getppid())
        given = (before(),) if before else ()
        job = _read(requests)
        if job is not None:
            _write(replies, _answer(lambda job: function(job, *given), job), max_bytes)
            status = _SERVED
    finally:
        os._exit(status)


def _reap() -> None:
    """Collect what a job left behind and the kernel killed with it."""
    try:
        while os.waitpid(-1, 0)[0]:
            pass
    except ChildProcessError:
        pass


def _answer(function: Callable[[Any], Any], job: bytes) -> dict[str, Any]:
    try:
        return {"value": function(json.loads(job))}
    except MemoryError:
        return {"cause": "crashed", "reason": "it ran out of memory"}
    except Exception as error:  # noqa: BLE001 -- of whatever kind, it is told and not died of
        return {"cause": "broke", "reason": _tell(error)}


def _tell(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:REASON_CHARS]
    except Exception:  # noqa: BLE001 -- its own __str__ may fail
        return type(error).__name__


def _read(fd: int) -> bytes | None:
    """Read one frame's JSON; None at the end."""
    head = _read_exactly(fd, 4)
    return _read_exactly(fd, int.from_bytes(head, "big")) if head else None


def _read_exactly(fd: int, count: int) -> bytes | None:
    parts: list[bytes] = []
    while count:
        part = os.read(fd, min(count, 2**20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _write(fd: int, reply: dict[str, Any], max_bytes: int) -> None:
    try:
        body = json.dumps(reply, ensure_ascii=True).encode()
    except (TypeError, ValueError, RecursionError) as error:
        body = json.dumps({"cause": "bad_return", "reason": _tell(error)}).encode()
    if len(body) > max_bytes:
        body = json.dumps({"cause": "bad_return", "reason": f"the result has {len(body):,} bytes"}).encode()
    rest = memoryview(len(body).to_bytes(4, "big") + body)
    while rest:
        rest = rest[os.write(fd, rest) :]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""Isolated workers hold: against jobs that hang, die or reach out, their host's death, many loops, their own end."""

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import warnings

import psutil
import pytest

from verifiers.base import Cause
from verifiers.isolation import Isolation, IsolationFailed, close_all

JOBS = "tests.contract.verifiers.isolated_jobs"
FORKS = "tests.contract.verifiers.isolated_forks"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux filters system calls")


@pytest.fixture
def open_isolation():
    opened = []

    def open_one(name, jobs=JOBS, **options):
        opened.append(Isolation(f"{jobs}:{name}", **{"workers": 1, **options}))
        return opened[-1]

    yield open_one
    for isolation in opened:
        isolation.close()


def workers():
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("isolation_worker" in part for part in child.cmdline())]


async def fail(isolation, argument=None, timeout_s=20.0, **more):
    with pytest.raises(IsolationFailed) as caught:
        await isolation.call(argument, timeout_s=timeout_s, **more)
    assert len(caught.value.reason) < 1000
    return caught.value


@pytest.mark.parametrize("value", [None, 0, "x\0\U0001f600", "\ud800", [1, {"a": [None, True, 1e300]}], "x" * 10**6])
async def test_json_goes_in_and_comes_out(open_isolation, value):
    assert await open_isolation("echo", max_result_bytes=2**24).call(value, timeout_s=20) == value


async def test_a_worker_is_kept_and_then_recycled(open_isolation):
    isolation = open_isolation("count", runs_per_worker=3)
    assert [await isolation.call(None, timeout_s=20) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


async def test_a_worker_leaves_the_api_its_turn(open_isolation):
    pid = await open_isolation("tell_pid").call(None, timeout_s=20)
    assert psutil.Process(pid).nice() == min(19, psutil.Process().nice() + 5)


async def test_slow_jobs_of_one_name_do_not_hold_up_another(open_isolation):
    isolation = open_isolation("sleep", workers=2)
    await isolation.call(0, timeout_s=20)
    slow = [asyncio.create_task(isolation.call(0.5, timeout_s=20, name="slow")) for _ in range(8)]
    await asyncio.sleep(0.1)
    assert [await isolation.call(0, timeout_s=20, name="quick") for _ in range(3)] == ["slept"] * 3
    assert not any(task.done() for task in slow[6:])
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


@pytest.mark.parametrize(
    ("name", "argument", "cause"),
    [
        ("sleep", 1000, Cause.TIMEOUT),
        ("spin", None, Cause.TIMEOUT),
        ("end", 0, Cause.CRASHED),
        ("end", 7, Cause.CRASHED),
    ],
)
async def test_what_hangs_or_dies_is_replaced(open_isolation, name, argument, cause):
    isolation = open_isolation(name)
    for _ in range(2):
        assert (await fail(isolation, argument, 0.3 if cause is Cause.TIMEOUT else 20)).cause is cause
        assert workers() == []


async def test_memory_is_limited_from_outside(open_isolation):
    assert (await fail(open_isolation("eat", memory_bytes=256 * 2**20))).cause is Cause.CRASHED


@pytest.mark.parametrize(
    ("name", "argument", "cause", "word"),
    [
        ("recurse", 1, Cause.BROKE, "RecursionError"),
        ("give_much", 10_000, Cause.BAD_RETURN, "bytes"),
        ("give_odd", None, Cause.BAD_RETURN, "set"),
    ],
)
async def test_errors_of_a_job_are_told_and_the_worker_lives(open_isolation, name, argument, cause, word):
    isolation = open_isolation(name, max_result_bytes=5000)
    failed = await fail(isolation, argument)
    assert failed.cause is cause
    assert word in failed.reason
    assert len(workers()) == 1


async def test_prints_do_not_reach_the_pipe(open_isolation):
    assert await open_isolation("print_much").call(None, timeout_s=20) == "printed"


async def test_a_worker_has_no_environment_no_stdin_and_no_folder(open_isolation, monkeypatch):
    monkeypatch.setenv("MULLIGAN_SECRET", "x")
    environment, folder, typed = await open_isolation("read_environment").call(None, timeout_s=20)
    assert set(environment) <= {"LC_CTYPE"}
    assert folder == "/"
    assert typed == ""


@LINUX
@pytest.mark.parametrize("name", ["write_file", "append_file", "make_folder", "remove_file"])
async def test_no_file_is_written(open_isolation, tmp_path, name):
    path = tmp_path / "kept"
    if name != "make_folder":
        path.write_text("kept")
    assert "PermissionError" in (await fail(open_isolation(name), str(path))).reason
    assert name == "make_folder" or path.read_text() == "kept"
    assert (await open_isolation("read_file").call(str(path), timeout_s=20) if path.exists() else "kept") == "kept"


@LINUX
async def test_nothing_is_reached_or_started(open_isolation):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "PermissionError" in (await fail(open_isolation("connect"), server.getsockname()[1])).reason
    assert (await fail(open_isolation("run_program"))).cause is Cause.BROKE
    assert "PermissionError" in (await fail(open_isolation("fork"))).reason
    assert "PermissionError" in (await fail(open_isolation("kill"), os.getpid())).reason


@LINUX
def test_the_hardening_is_told(open_isolation):
    assert open_isolation("echo").hardening() == {"dies_with_host": True, "memory": True, "seccomp": True}


async def test_a_function_that_is_not_there_is_told():
    isolation = Isolation(f"{JOBS}:nothing")
    failed = await fail(isolation)
    assert failed.cause is Cause.BROKE
    assert "nothing" in failed.reason
    with pytest.raises(IsolationFailed):
        isolation.hardening()
    isolation.close()


async def test_jobs_that_are_no_json_or_too_large_are_refused(open_isolation):
    isolation = open_isolation("echo")
    assert (await fail(isolation, {1, 2})).cause is Cause.BROKE
    assert (await fail(isolation, "x" * (17 * 2**20))).cause is Cause.TOO_COSTLY
    assert workers() == []


async def test_who_waits_too_long_is_told_that_all_are_busy(open_isolation):
    isolation = open_isolation("sleep")
    first = asyncio.create_task(isolation.call(2, timeout_s=20))
    await asyncio.sleep(0)  # the first has to be the first in the queue
    assert (await fail(isolation, 0, queue_s=0.05)).cause is Cause.BUSY
    assert await first == "slept"


async def test_a_caller_that_leaves_gives_its_place_up(open_isolation):
    isolation = open_isolation("sleep")
    first = asyncio.create_task(isolation.call(0.5, timeout_s=20))
    await asyncio.sleep(0)
    leaving = [asyncio.create_task(isolation.call(1000, timeout_s=0.2)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    assert all(
        isinstance(ended, asyncio.CancelledError) for ended in await asyncio.gather(*leaving, return_exceptions=True)
    )
    assert await first == "slept"
    assert await isolation.call(0, timeout_s=20) == "slept"


async def test_jobs_run_side_by_side_on_as_many_workers(open_isolation):
    isolation = open_isolation("tell_pid", workers=2)
    pids = await asyncio.gather(*(isolation.call(None, timeout_s=20) for _ in range(20)))
    assert 1 <= len(set(pids)) <= 2
    assert len(workers()) == len(set(pids))


def test_it_belongs_to_no_loop(open_isolation):
    isolation = open_isolation("echo")
    for number in range(3):
        assert asyncio.run(isolation.call(number, timeout_s=20)) == number
    assert isolation.call_blocking("x", timeout_s=20) == "x"


async def test_the_loop_runs_on_while_a_job_hangs(open_isolation):
    isolation = open_isolation("spin")
    stalls = []

    async def tick():
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            stalls.append(time.perf_counter() - before - 0.005)

    ticking = asyncio.create_task(tick())
    await fail(isolation, timeout_s=0.5)
    ticking.cancel()
    print(f"longest stall of the loop: {max(stalls) * 1000:.1f} ms")
    assert len(stalls) > 10
    assert max(stalls) < 0.25


async def test_fork_each_gives_every_job_its_own_process(open_isolation):
    isolation = open_isolation("find_others", jobs=FORKS, fork_each=True)
    for number in range(3):
        assert await isolation.call(number, timeout_s=20) == [True, 0, ["mark", number]]


async def test_a_fork_that_dies_costs_its_worker_and_no_more(open_isolation):
    isolation = open_isolation("end", jobs=FORKS, fork_each=True)
    for status in (0, 7):
        assert (await fail(isolation, status)).cause is Cause.CRASHED


async def test_what_a_fork_leaves_behind_is_killed_with_the_worker(open_isolation):
    isolation = open_isolation("leave_child", jobs=FORKS, fork_each=True)
    left = psutil.Process(await isolation.call(None, timeout_s=20))
    isolation.close()
    gone, _ = psutil.wait_procs([left], timeout=20)
    assert gone or left.status() == psutil.STATUS_ZOMBIE


async def test_close_ends_the_workers_and_the_next_call_starts_others(open_isolation):
    isolation = open_isolation("tell_pid")
    first = await isolation.call(None, timeout_s=20)
    isolation.close()
    assert workers() == []
    assert await isolation.call(None, timeout_s=20) != first
    close_all()
    assert workers() == []


async def test_a_pool_that_is_forgotten_ends_its_workers():
    isolation = Isolation(f"{JOBS}:tell_pid", workers=1)
    pid = await isolation.call(None, timeout_s=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del isolation
        gc.collect()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=20)
    assert not psutil.pid_exists(pid)


async def test_a_worker_killed_between_jobs_is_replaced(open_isolation):
    isolation = open_isolation("tell_pid")
    first = await isolation.call(None, timeout_s=20)
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert await isolation.call(None, timeout_s=20) != first


def test_a_fork_of_the_host_does_without(open_isolation):
    isolation = open_isolation("echo")
    assert isolation.call_blocking(1, timeout_s=20) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of threads
        pid = os.fork()
    if pid == 0:
        try:
            isolation.call_blocking(1, timeout_s=20)
        except IsolationFailed:
            isolation.close()
            os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    assert isolation.call_blocking(2, timeout_s=20) == 2


@LINUX
def test_workers_die_with_their_host():
    program = (
        f"from verifiers.isolation import Isolation\n"
        f"import sys, time\n"
        f"pool = Isolation('{JOBS}:tell_pid', workers=1)\n"
        f"print(pool.call_blocking(None, timeout_s=60), flush=True)\n"
        f"time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as host:
        worker = psutil.Process(int(host.stdout.readline()))
        host.kill()
        host.wait()
        gone, _ = psutil.wait_procs([worker], timeout=20)
    assert gone or worker.status() == psutil.STATUS_ZOMBIE  # where nobody waits for orphans

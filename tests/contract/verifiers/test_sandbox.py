"""The sandbox holds: against hostile code, its host's death, many event loops, its own end."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from verifiers.base import Cause, InvalidVerifier, Status
from verifiers.python import make_kind
from verifiers.sandbox import ADDRESS_SPACE_BYTES, KILL_GRACE_S, MAX_RUN_S, Sandbox

TIMEOUT_S = 0.2
FINE = "def verify(request, answer, args): return True"


@pytest.fixture(scope="module")
def sandbox():
    sandbox = Sandbox(workers=1)
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def fine(sandbox):
    return compile_in(sandbox, FINE)


def compile_in(sandbox, code, timeout_s=TIMEOUT_S):
    return make_kind(sandbox).compile_checked({"code": code, "timeout_s": timeout_s})


def inside(body):
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"def verify(request, answer, args):\n{lines}"


async def judge(verifier):
    return await verifier.verify({"messages": []}, {"content": "x"}, {})


def workers():
    """List the sandbox's workers; other tests of this process have children of their own, engines for example."""
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in children if child.name() == "monty"]


HOSTILE = {
    "endless loop": "while True: pass",
    "endless loop that catches all": ("while True:\n  try:\n    while True: pass\n  except BaseException:\n    pass"),
    "memory": "x = [0]\nwhile True: x = x + x",
    "many objects": "x = {}\nwhile True: x[len(x)] = [len(x)]",
    "long text": "return 'a' * 10**12",
    "joined texts": "s = 'a' * 10**6\nwhile True: s = s.join([s] * 1000)",
    "replaced text": "return ('a' * 10**6).replace('a', 'b' * 10**6)",
    "huge power": "return 2 ** 10**9 > 0",
    "huge shift": "return 1 << 10**10",
    "squares": "x = 10**1000\nwhile True: x = x * x",
    "factorial": "import math\nreturn math.factorial(10**7) > 0",
    "recursion": "def f(n): return f(n + 1)\nreturn f(0)",
    "wide format": "return f'{1:1000000000}'",
    "sorting": "return sorted(range(10**9))",
    "printing": "while True: print('spam' * 1000)",
    "one long line": "print('x' * 10**8)",
    "deep source": "return eval('(' * 5000 + ')' * 5000)",
    "deep JSON": "import json\nreturn json.loads('[' * 100000)",
    "long return": "return {'passed': True, 'reason': 'x' * 60_000_000}",
    "deep return": "x = []\nfor _ in range(5000): x = [x]\nreturn x",
    "return of itself": "x = []\nx.append(x)\nreturn x",
    "exit": "raise SystemExit(0)",
    "interrupt": "raise KeyboardInterrupt",
    "file": "return bool(open('/etc/passwd').read())",
    "write": "open('/tmp/mulligan', 'w').write('x')\nreturn True",
    "environment": "import os\nreturn bool(os.environ)",
    "shell": "import os\nreturn os.system('id') == 0",
    "subprocess": "import subprocess\nreturn True",
    "socket": "import socket\nreturn True",
    "subclasses": "return bool(().__class__.__base__.__subclasses__())",
    "globals of a function": "return bool(verify.__globals__)",
    "ctypes": "import ctypes\nreturn True",
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_code_abstains_and_the_next_verdict_comes(sandbox, fine, name):
    verifier = compile_in(sandbox, inside(HOSTILE[name]))
    started = time.perf_counter()
    verdict = await judge(verifier)
    took_s = time.perf_counter() - started
    assert verdict.status is Status.ABSTAINED
    assert verdict.reason
    assert len(verdict.reason) + len(verdict.stdout) < 10_000
    assert took_s < TIMEOUT_S + KILL_GRACE_S + 3  # a busy machine takes its time to start the next worker
    assert (await judge(fine)).status is Status.PASSED


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("while True: pass", Cause.TIMEOUT),
        ("x = 10**1000\nwhile True: x = x * x", Cause.TIMEOUT),  # the watchdog's, not the interpreter's
        ("x = [0]\nwhile True: x = x + x", Cause.CRASHED),
        ("raise ValueError('no')", Cause.BROKE),
        ("return 'yes'", Cause.BAD_RETURN),
        ("return {'passed': True, 'score': 2}", Cause.BAD_RETURN),
    ],
)
async def test_an_abstention_says_its_cause(sandbox, body, cause):
    # Time enough to use up the memory, or to be loaded, on a busy machine; only what never ends is to be late.
    timeout_s = TIMEOUT_S if cause is Cause.TIMEOUT else MAX_RUN_S
    verdict = await judge(compile_in(sandbox, inside(body), timeout_s))
    assert (verdict.status, verdict.cause) == (Status.ABSTAINED, cause)


async def test_the_loop_runs_on_while_code_hangs(sandbox):
    verifier = compile_in(sandbox, inside(HOSTILE["squares"]))
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await judge(verifier)
    ticking.cancel()
    assert ticks >= 10


async def test_what_nobody_waits_for_any_more_is_never_begun(sandbox, fine):
    hog = compile_in(sandbox, inside("while True: pass"), timeout_s=1.0)
    judging = [asyncio.create_task(judge(hog)) for _ in range(100)]
    await asyncio.sleep(0)  # all of them are in the queue
    for task in judging:
        task.cancel()
    await asyncio.wait(judging)
    started = time.perf_counter()
    assert (await judge(fine)).status is Status.PASSED
    assert time.perf_counter() - started < 25  # of the hundred seconds only those of one or two that were begun


async def test_sleeping_takes_no_time(sandbox):
    started = time.perf_counter()
    verdict = await judge(compile_in(sandbox, inside("import time\ntime.sleep(1000)\nreturn True")))
    assert verdict.status is Status.PASSED
    assert time.perf_counter() - started < 5


async def test_no_state_is_left_for_the_next_verdict(sandbox):
    verifier = compile_in(
        sandbox, "seen = []\ndef verify(request, answer, args):\n    seen.append(1)\n    return len(seen) == 1"
    )
    assert [(await judge(verifier)).status for _ in range(3)] == [Status.PASSED] * 3


async def test_chance_is_the_same_every_time(sandbox):
    verifier = compile_in(
        sandbox,
        "import random\ndef verify(request, answer, args):\n    return {'passed': True, 'score': random.random()}",
    )
    assert len({(await judge(verifier)).score for _ in range(5)}) == 1


async def test_stdout_is_kept_short(sandbox):
    verdict = await judge(compile_in(sandbox, inside("for i in range(5000): print(i)\nprint('\\0')\nreturn True")))
    assert verdict.status is Status.PASSED
    assert verdict.stdout.startswith("0\n1\n2\n")
    assert verdict.stdout.endswith("more characters]")
    assert len(verdict.stdout) < 4200


async def test_code_that_prints_without_end_is_killed_at_once(sandbox, fine):
    started = time.perf_counter()
    verdict = await judge(compile_in(sandbox, inside("while True: print('spam' * 1000)"), timeout_s=10))
    assert time.perf_counter() - started < 5  # it would have ten seconds
    assert (verdict.status, verdict.cause) == (Status.ABSTAINED, Cause.CRASHED)
    assert verdict.reason == "the code printed more than 1,000,000 characters"
    assert verdict.stdout.startswith("spamspam")
    assert (await judge(fine)).status is Status.PASSED


async def test_what_was_printed_before_an_error_is_kept(sandbox):
    verdict = await judge(compile_in(sandbox, inside("print('here')\nreturn 1 / 0")))
    assert verdict.stdout == "here\n"
    assert verdict.reason == "ZeroDivisionError: division by zero (line 3 in verify)"


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("code", "says", "where"),
    [
        ("def verify(:\n  pass", "SyntaxError", "/code line 1 column 12"),
        ("def verify(request, answer, args):\n  return (1 +", "SyntaxError", "/code line 2 column 14"),
        ("x = 1\n  y = 2", "SyntaxError", "/code line 2 column 1"),
        ("def verify(request, answer, args):\n  yield 1", "yield", "/code line 2 column 3"),
        ("import numpy\n" + FINE, "No module named 'numpy'", "/code line 1 column 1"),
        ("x = 1 / 0\n" + FINE, "ZeroDivisionError", "/code line 1 column 5"),
        ("def check(request, answer, args): return True", "defines no function verify", "/code"),
        ("verify = 3", "verify is no function", "/code"),
        ("class verify:\n  x = 1", "verify is no function", "/code"),
        ("while True: pass", "ran longer than its time", "/code"),
        ("x = '\ud800'\n" + FINE, "surrogates", "/code"),
        ("(" * 10_000, "deeply nested", "/code line 1 column 201"),
        ("\0", "SyntaxError", "/code line 1 column 1"),
    ],
)
def test_bad_code_is_refused_with_its_place(sandbox, code, says, where):
    with pytest.raises(InvalidVerifier, match=says) as caught:
        compile_in(sandbox, code)
    assert caught.value.where == where


async def test_a_worker_is_limited_by_the_system(sandbox, fine):
    await judge(fine)
    assert workers()
    for worker in workers():  # those that other tests of this process have started too
        listed = Path(f"/proc/{worker.pid}/limits").read_text()
        limits = {line[:26].strip(): line[26:].split()[0] for line in listed.splitlines()}
        assert limits["Max address space"] == str(ADDRESS_SPACE_BYTES)
        assert limits["Max file size"] == "0"
        assert limits["Max core file size"] == "0"
        assert worker.cwd() == "/"
        assert worker.nice() > psutil.Process().nice() or worker.nice() == 19
        assert worker.environ().keys().isdisjoint(os.environ.keys() - {"PWD", "LC_CTYPE"})


async def test_a_cancelled_verdict_leaves_the_pool_usable(sandbox, fine):
    task = asyncio.create_task(judge(compile_in(sandbox, inside("while True: pass"))))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await judge(fine)).status is Status.PASSED


async def test_a_full_queue_abstains():
    sandbox = Sandbox(workers=1, queue_s=0.0)
    slow = compile_in(sandbox, inside("while True: pass"), timeout_s=1.0)
    hurried = compile_in(sandbox, FINE, timeout_s=0.05)
    first = asyncio.create_task(judge(slow))
    await asyncio.sleep(0.1)
    assert (await judge(hurried)).reason == "all workers of the sandbox are busy"
    assert (await first).status is Status.ABSTAINED
    sandbox.close()


async def test_a_slow_program_does_not_hold_up_another():
    sandbox = Sandbox(workers=2)
    slow, quick = compile_in(sandbox, inside("while True: pass"), timeout_s=0.5), compile_in(sandbox, FINE)
    waiting = [asyncio.create_task(judge(slow)) for _ in range(8)]
    await asyncio.sleep(0.1)
    assert [(await judge(quick)).status for _ in range(3)] == [Status.PASSED] * 3
    assert not any(task.done() for task in waiting[6:])
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    sandbox.close()


def test_the_pool_serves_several_loops_one_after_another_and_at_once(sandbox, fine):
    for _ in range(3):
        assert asyncio.run(judge(fine)).status is Status.PASSED

    async def in_threads():
        return await asyncio.gather(*(asyncio.to_thread(asyncio.run, judge(fine)) for _ in range(4)))

    assert [verdict.status for verdict in asyncio.run(in_threads())] == [Status.PASSED] * 4


async def test_close_ends_the_workers_and_the_next_use_starts_new_ones():
    before = {worker.pid for worker in workers()}
    sandbox = Sandbox(workers=2)
    sandbox.close()  # nothing to close yet
    verifier = compile_in(sandbox, FINE)
    await asyncio.gather(*(judge(verifier) for _ in range(10)))
    assert {worker.pid for worker in workers()} - before
    sandbox.close()
    assert {worker.pid for worker in workers()} == before
    assert (await judge(verifier)).status is Status.PASSED
    sandbox.close()


def test_a_forked_child_abstains_and_leaves_its_parents_pool_alone(sandbox, fine):
    assert asyncio.run(judge(fine)).status is Status.PASSED
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # it must not hang, nor outlive the test
        verdict = asyncio.run(judge(fine))
        sandbox.close()
        os._exit(0 if "forked" in verdict.reason else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert asyncio.run(judge(fine)).status is Status.PASSED


@pytest.mark.parametrize("tidy", [shutil.rmtree, lambda folder: (folder / "worker").unlink()])
async def test_workers_start_again_after_their_program_was_tidied_away(monkeypatch, tmp_path, tidy):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sandbox = Sandbox(workers=1)
    fine = compile_in(sandbox, FINE)
    (folder,) = tmp_path.iterdir()
    tidy(folder)
    assert (await judge(compile_in(sandbox, inside(HOSTILE["squares"])))).status is Status.ABSTAINED
    assert (await judge(fine)).status is Status.PASSED
    sandbox.close()
    assert not list(tmp_path.iterdir())


async def test_a_worker_that_cannot_start_abstains(monkeypatch):
    monkeypatch.setenv("MONTY_BIN", "/nonexistent/monty")
    sandbox = Sandbox(workers=1)
    with pytest.raises(InvalidVerifier, match="ended with status"):
        compile_in(sandbox, FINE)
    sandbox.close()


HOST = """
import asyncio, psutil, sys, threading
from verifiers.python import make_kind
from verifiers.sandbox import Sandbox
code = "def verify(request, answer, args):\\n  x = 10**1000\\n  while True: x = x * x"
verifier = make_kind(Sandbox(workers=1)).compile_checked({"code": code, "timeout_s": 10})
def tell():
    print(*(child.pid for child in psutil.Process().children()), flush=True)
threading.Timer(0.3, tell).start()
asyncio.run(verifier.verify({}, {}, {}))
"""


def test_workers_die_with_their_host(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # who is killed tidies nothing up
    host = subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True, env=environment)
    pids = [int(pid) for pid in host.stdout.readline().split()]
    assert pids
    host.send_signal(signal.SIGKILL)
    host.wait()
    host.stdout.close()
    deadline = time.monotonic() + 5
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

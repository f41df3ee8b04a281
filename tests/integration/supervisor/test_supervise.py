"""The supervisor, with small stand-in children: real processes, no server."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from server.errors import PartFailed
from server.supervisor.child import Child, ChildSpec
from server.supervisor.supervise import ChildEvent, Happening, supervise

PATIENT = "import time; print('ready.', flush=True); time.sleep(600)"
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready.', flush=True); time.sleep(600)"
)
BROKEN = "raise SystemExit('no such model')"
SILENT = "import time; time.sleep(600)"
OWING = textwrap.dedent(
    """
    import signal, subprocess, sys, time
    helping = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    def stop(*_):
        time.sleep(0.2)
        print("helper", "died" if helping.poll() is not None else "lives", flush=True)
        raise SystemExit
    signal.signal(signal.SIGTERM, stop)
    print("ready.", flush=True)
    time.sleep(600)
    """
)
PARENT = textwrap.dedent(
    """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(f"child {child.pid} ready.", flush=True)
    time.sleep(600)
    """
)


async def says_ready(child: Child) -> bool:
    return "ready." in child.read_log()


def spec(name: str, code: str, **more) -> ChildSpec:
    return ChildSpec(name, [sys.executable, "-S", "-c", code], dict(os.environ), says_ready, **more)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def wait_until(condition, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_children_start_become_ready_and_are_gone_afterwards(tmp_path: Path):
    events: list[ChildEvent] = []
    async with supervise(
        [spec("one", PATIENT), spec("two", PATIENT, stop_stage=1)], tmp_path, events.append
    ) as running:
        pids = [child.pid for child in running.children]
        assert all(child.runs for child in running.children)
        assert running.waiting_for == []
        assert "ready." in (tmp_path / "one.log").read_text()
    assert all(is_gone(pid) for pid in pids)
    assert [event.happening for event in events].count(Happening.READY) == 2


async def test_a_child_that_ends_before_it_is_ready_is_an_error_with_its_log(tmp_path: Path):
    with pytest.raises(PartFailed, match=r"(?s)exit status 1.*no such model"):
        async with supervise([spec("engine", BROKEN), spec("other", PATIENT)], tmp_path, lambda _: None):
            pytest.fail("it must not come to life")


async def test_a_child_that_is_never_ready_is_an_error(tmp_path: Path):
    with pytest.raises(PartFailed, match="the mute is not ready after"):
        async with supervise([spec("mute", SILENT, start_timeout_s=0.3)], tmp_path, lambda _: None):
            pytest.fail("it must not come to life")


async def test_a_killed_child_is_announced_and_started_again(tmp_path: Path):
    events: list[ChildEvent] = []
    async with supervise([spec("worker", PATIENT)], tmp_path, events.append) as running:
        (child,) = running.children
        first = child.pid
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: any(event.happening is Happening.BACK for event in events))
        assert child.runs
        assert child.pid != first
    died = next(event for event in events if event.happening is Happening.DIED)
    assert "killed by SIGKILL; starting it again in 0.5 s" in died.detail


async def test_a_deaf_child_is_killed_when_the_stop_is_in_a_hurry(tmp_path: Path):
    hurried = asyncio.Event()
    async with supervise([spec("deaf", DEAF)], tmp_path, lambda _: None, hurried) as running:
        pid = running.children[0].pid
        hurried.set()
        started = time.monotonic()
    assert time.monotonic() - started < 3
    assert is_gone(pid)


async def test_what_a_child_started_in_a_session_of_its_own_goes_too(tmp_path: Path):
    async with supervise([spec("worker", PARENT)], tmp_path, lambda _: None):
        grandchild = int((tmp_path / "worker.log").read_text().split()[1])
        assert not is_gone(grandchild)
    assert is_gone(grandchild)


async def test_a_stop_is_told_to_the_child_alone_for_what_it_started_may_be_needed(tmp_path: Path):
    async with supervise([spec("owing", OWING)], tmp_path, lambda _: None) as running:
        helper = psutil.Process(running.children[0].pid).children()[0].pid
    assert "helper lives" in (tmp_path / "owing.log").read_text()
    assert is_gone(helper)


async def test_a_child_without_a_log_inherits_our_output_and_the_files_it_is_passed(capfd):
    reading, writing = os.pipe()
    code = f"import os, time; os.write({writing}, b'here'); print('said aloud', flush=True); time.sleep(600)"

    async def has_written(_child: Child) -> bool:
        return os.read(reading, 4) == b"here"

    writes = ChildSpec("API 1", [sys.executable, "-S", "-c", code], dict(os.environ), has_written, pass_fds=[writing])
    try:
        async with supervise([writes], None, lambda _: None) as running:
            assert running.children[0].read_log() == ""
            said = ""

            def has_said() -> bool:
                nonlocal said
                said += capfd.readouterr().out
                return "said aloud" in said

            await wait_until(has_said)
    finally:
        os.close(reading)
        os.close(writing)
    with pytest.raises(PartFailed, match=r"ended before it was ready .* Its log is above"):
        async with supervise([spec("broken", BROKEN)], None, lambda _: None):
            pytest.fail("it must not come to life")


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_children_go_when_the_supervisor_is_killed(tmp_path: Path):
    script = textwrap.dedent(
        f"""
        import asyncio, os, signal, sys
        from pathlib import Path
        from server.supervisor.child import ChildSpec
        from server.supervisor.supervise import supervise
        async def ready(child): return "ready." in child.read_log()
        def spec(name, code, signal):
            return ChildSpec(name, [sys.executable, "-S", "-c", code], dict(os.environ), ready, parting_signal=signal)
        async def main():
            specs = [spec("polite", {PATIENT!r}, signal.SIGTERM), spec("deaf", {DEAF!r}, signal.SIGKILL)]
            async with supervise(specs, Path({str(tmp_path)!r}), lambda event: None) as running:
                print(*[child.pid for child in running.children], flush=True)
                await asyncio.sleep(600)
        asyncio.run(main())
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as supervisor:
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        assert len(pids) == 2
        supervisor.kill()
    await wait_until(lambda: all(is_gone(pid) for pid in pids))

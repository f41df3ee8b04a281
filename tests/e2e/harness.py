"""Starts `mulligan` commands as a user does, in processes of their own, and looks at the processes that they leave."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MULLIGAN_")}
    return {**clean, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


def mulligan(*words: str, timeout_s: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", *words],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, f"mulligan {' '.join(words)}: {done.stdout}\n{done.stderr}"
    return done


def mulligan_json(*words: str) -> Any:
    return json.loads(mulligan(*words, "--json").stdout)


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Up:
    """A `mulligan up`, or a `mulligan demo --keep`, that runs in a folder of its own."""

    def __init__(self, data_dir: Path, *options: str, command: str = "up", **variables: str) -> None:
        self.data_dir = data_dir
        data_dir.mkdir(parents=True, exist_ok=True)
        self.out_path = data_dir / f"{command}.out"
        self._seen: dict[int, psutil.Process] = {}
        with self.out_path.open("wb") as out:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "server.cli", command, "--data-dir", str(data_dir), "--port", "0", *options],
                cwd=ROOT, env=environment(**variables), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.out_path.read_text()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> "Up":
        try:
            wait_for(self._is_ready, timeout_s, "it is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.output}") from error
        self.family()
        return self

    def _is_ready(self) -> bool:
        assert self._popen.poll() is None, "it ended"
        return "Ctrl-C stops everything" in self.output

    @property
    def url(self) -> str:
        return re.search(r"(?:Mulligan serves at|API) (http\S+/v1)", self.output)[1]

    @property
    def key(self) -> str:
        return re.search(r"API key \(admin[^)]*\): ([^\s;]+)", self.output)[1]

    def family(self) -> list[psutil.Process]:
        """Every process that it has started so far and that still runs, itself included."""
        if self._popen.poll() is None:
            head = psutil.Process(self._popen.pid)
            for process in [head, *head.children(recursive=True)]:
                self._seen[process.pid] = process
        return [process for process in self._seen.values() if not is_gone(process)]

    def part(self, name: str) -> psutil.Process:
        """Find a child by its command line."""
        words = {
            "API": "server.cli serve", "engine": "local_engine", "worker": "trainer.worker:app --quiet worker",
            "beat": "trainer.worker:app --quiet beat", "trainer": "trainer.round",
        }[name]  # fmt: skip
        found = [process for process in self.family() if words in " ".join(_command_line(process))]
        assert found, f"no {name} among {[_command_line(process) for process in self.family()]}"
        return found[0]

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> float:
        """Stop it as Ctrl-C does; return how many seconds it took."""
        self.family()
        began = time.monotonic()
        self._popen.send_signal(number)
        self._popen.wait(timeout=30)
        return time.monotonic() - began

    def kill(self) -> None:
        self.family()
        self._popen.kill()
        self._popen.wait(timeout=10)

    def close(self) -> None:
        """End whatever is left; for the end of a test."""
        for process in self.family():
            if not is_gone(process):
                process.kill()
        self._popen.wait(timeout=10)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []

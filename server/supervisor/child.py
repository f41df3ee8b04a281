"""One child process: started in a process group of its own, tied to our life, logging to a file.

Called by the supervisor alone. On Linux the kernel sends each child `parting_signal` should we die without a word
(`kill -9`), so that nothing outlives us.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_TETHER = str(Path(__file__).with_name("tether.py"))
_LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class ChildSpec:
    """What to start and how to tell that it is ready.

    `ready` is asked again and again with the running child. `stop_stage`: children of a lower stage are told to stop,
    and waited for, before those of a higher one. `pass_fds` are open files of ours that it inherits.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready: Callable[["Child"], Awaitable[bool]]
    start_timeout_s: float = 60.0
    stop_stage: int = 0
    parting_signal: signal.Signals = signal.SIGTERM
    pass_fds: Sequence[int] = ()


class Child:
    """A child process that may be started again after it died. Without a log of its own it writes to ours."""

    def __init__(self, spec: ChildSpec, log_path: Path | None) -> None:
        self.spec = spec
        self.log_path = log_path
        self.started_at = 0.0  # time.monotonic()
        self._log_start_bytes = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The name of its specification."""
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """The id of the process that runs or ran last."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it; its output is appended to its log. Raises OSError where the program cannot be started."""
        if self.log_path is None:
            self._process = self._spawn(None)
        else:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            with self.log_path.open("ab") as log:
                self._log_start_bytes = log.tell()
                self._process = self._spawn(log)
        self.started_at = time.monotonic()

    def _spawn(self, log: BinaryIO | None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._tether(), *self.spec.argv],
            env=dict(self.spec.env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=self.spec.pass_fds,
            process_group=0,  # Ctrl-C in the terminal reaches the supervisor alone
        )

    def exit_code(self) -> int | None:
        """Return how it ended (negative: by that signal), or None while it runs."""
        return self._process.poll() if self._process else None

    @property
    def runs(self) -> bool:
        """Whether it is alive."""
        return self._process is not None and self._process.poll() is None

    def ask_to_stop(self) -> None:
        """Tell it, and nobody else in its group, to stop: what it started may be needed for answers it still owes."""
        if self.runs and self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to it and to what it started in its group. A group that is gone is no error."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def read_log(self) -> str:
        """Read what it has written to its own log since its last start."""
        if self.log_path is None:
            return ""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start_bytes)
            return log.read().decode(errors="replace")

    def log_tail(self) -> str:
        """Return the last lines that it has written since its last start."""
        return "\n".join(self.read_log().splitlines()[-_LOG_TAIL_LINES:])

    def _tether(self) -> list[str]:
        return [sys.executable, "-I", "-S", _TETHER, str(int(self.spec.parting_signal)), str(os.getpid())]


def describe_exit(code: int | None) -> str:
    """Say in words how a process ended."""
    if code is None:
        return "still runs"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"

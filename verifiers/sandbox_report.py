"""Turns what a sandbox worker reports into short, safe text. Called by `verifiers.sandbox` alone."""

from collections.abc import Callable

from pydantic_monty import MontyCrashedError, MontyError, MontyRuntimeError, MontySyntaxError

from verifiers.base import Cause

STDOUT_CHARS = 4096
MAX_PRINTED_CHARS = 1_000_000
TOO_MUCH = f"the code printed more than {MAX_PRINTED_CHARS:,} characters"
MAX_REASON_CHARS = 500
MAX_FRAMES = 3
_TIME_IS_UP = "TimeoutError: feed time limit exceeded"


class Printed:
    """Keeps the first STDOUT_CHARS that code prints; where it prints a million, `stop` is called, once."""

    def __init__(self) -> None:
        self.stop: Callable[[], None] | None = None
        self.too_much = False
        self._parts: list[str] = []
        self._kept = 0
        self._seen = 0

    def __call__(self, _stream: str, text: str) -> None:
        """Take what was printed.

        Raises: MemoryError where it is too much; by itself that is only told when the code ends.
        """
        self._seen += len(text)
        if self._kept < STDOUT_CHARS:
            part = text[: STDOUT_CHARS - self._kept]
            self._parts.append(part)
            self._kept += len(part)
        if self._seen > MAX_PRINTED_CHARS:
            if not self.too_much:
                self.too_much = True
                if self.stop:
                    self.stop()
            raise MemoryError(TOO_MUCH)

    @property
    def text(self) -> str:
        """What was kept, with a mark where more was printed."""
        kept = clean("".join(self._parts))
        return f"{kept}\n[{self._seen - self._kept} more characters]" if self._seen > self._kept else kept


def clean(text: str) -> str:
    """Replace NUL characters, which databases refuse in text."""
    return text.replace("\0", "\ufffd")


def explain(error: Exception, lines: int) -> str:
    """Say what went wrong, and where in the code's own `lines` lines."""
    if isinstance(error, MontyCrashedError) and error.exit_status is not None:
        return f"the sandbox's worker ended with status {error.exit_status}"
    if isinstance(error, MontyCrashedError):
        return "the code ran out of time or memory and was killed"
    if not isinstance(error, MontyError):
        return _shorten(f"the sandbox failed: {type(error).__name__}: {error}")
    if not isinstance(error, MontyRuntimeError | MontySyntaxError):
        return _shorten(str(error))
    frames = [frame for frame in error.traceback() if frame.line <= lines]
    steps = [f"line {frame.line} in {frame.function_name or '<module>'}" for frame in frames[-MAX_FRAMES:]]
    message = _shorten(error.display("type-msg"))
    if message.startswith(_TIME_IS_UP):
        return "the code ran longer than its time"
    return f"{message} ({', '.join(steps)})" if steps else message


def classify(error: Exception, *, late: bool) -> Cause:
    """Say which cause of an abstention it is; `late`: whether the code had run for all of its time."""
    if isinstance(error, MontyCrashedError):  # the watchdog kills who is late, without a status
        return Cause.TIMEOUT if late and error.exit_status is None else Cause.CRASHED
    if isinstance(error, MontyRuntimeError):
        message = error.display("type-msg")
        if message.startswith(_TIME_IS_UP):
            return Cause.TIMEOUT
        return Cause.CRASHED if message.startswith("MemoryError") else Cause.BROKE
    if isinstance(error, TimeoutError):  # no worker was free
        return Cause.BUSY
    return Cause.BROKE if isinstance(error, MontyError) else Cause.CRASHED


def place(error: MontyRuntimeError | MontySyntaxError) -> str | None:
    """Say which line and column is to blame."""
    frames = error.traceback()
    return f"line {frames[-1].line} column {frames[-1].column}" if frames else None


def _shorten(message: str) -> str:
    message = clean(message)
    return message if len(message) <= MAX_REASON_CHARS else f"{message[:MAX_REASON_CHARS]}..."

"""The data folder of a running `mulligan up`: its lock, and the note that says where its parts listen.

Other commands in the same folder read the note, so that `mulligan adapters promote` finds the engine without options.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from server.errors import Conflict
from server.settings import Settings

NOTE = "up.json"


@dataclass(frozen=True)
class Note:
    """Where the parts of a running server are."""

    pid: int
    api_url: str
    engine_urls: tuple[str, ...]
    engine_kind: str
    model: str
    database_url: str
    broker_url: str


@contextmanager
def hold_folder(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this process. Raises Conflict where another `mulligan up` or `demo` holds it."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise Conflict(
                f"process {lock.read().strip() or '?'} already serves from {data_dir}: stop it, or choose another "
                "folder with --data-dir"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def leave_note(settings: Settings, api_url: str) -> Iterator[None]:
    """Write the note for as long as the block runs."""
    path = settings.data_dir / NOTE
    note = Note(
        pid=os.getpid(),
        api_url=api_url,
        engine_urls=settings.engine.every_url,
        engine_kind=settings.engine.kind,
        model=settings.engine.model,
        database_url=settings.database_url,
        broker_url=settings.broker_url,
    )
    path.touch(mode=0o600)  # the database address may carry a password
    path.write_text(json.dumps(asdict(note), indent=2))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def read_note(data_dir: Path) -> Note | None:
    """Read the note of a server that runs now, or None. A note left by one that was killed does not count."""
    try:
        note = Note(**json.loads((data_dir / NOTE).read_text()))
        os.kill(note.pid, 0)
    except (FileNotFoundError, ProcessLookupError, PermissionError, ValueError, TypeError):
        return None
    return note

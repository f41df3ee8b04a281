"""Writes a file that is there as a whole or not at all, and never in the place of another unless that is said."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import Conflict, InvalidRequest


@contextmanager
def write_new_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Give the place to write to; it becomes `path` at the end of the block, and vanishes if that raises.

    Raises: Conflict where `path` is there already, now or by then, and `force` is not said; InvalidRequest.
    """
    refusal = Conflict(f"{path} is there already: choose another name, or say --force to replace it")
    if not force and (path.exists() or path.is_symlink()):
        raise refusal
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror}") from error
    try:
        yield part
        _sync(part)
        if force:
            part.replace(path)
        else:
            try:
                os.link(part, path)  # fails where another one made it meanwhile, as a rename would not
            except FileExistsError as error:
                raise refusal from error
            except OSError:  # a file system without links
                part.rename(path)
        _sync(path.absolute().parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

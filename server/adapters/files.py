"""Compares an adapter's files with what was saved. Called by whatever loads one, by the preflights and the trainer."""

import hashlib
from pathlib import Path

from server.domain import Adapter
from server.errors import AdapterRefused


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(adapter: Adapter) -> None:
    """Compare an adapter's files with the hashes it was registered with. Reads them whole: use a thread.

    Raises: AdapterRefused.
    """
    for file, digest in adapter.files.items():
        path = Path(adapter.path) / file
        if not path.is_file():
            raise AdapterRefused(f"Adapter {adapter.name!r} lacks its file {file!r}.")
        if hash_file(path) != digest:
            raise AdapterRefused(f"The file {file!r} of adapter {adapter.name!r} is not the one that was registered.")

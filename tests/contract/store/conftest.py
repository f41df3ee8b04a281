"""What the stores' contract runs on: the database of `tests.fixtures.databases`, and an episode log on it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.settings import LogSettings
from server.store.database import Database
from server.store.episode_log import EpisodeLog


@pytest.fixture
async def log(database: Database, tmp_path: Path) -> AsyncIterator[EpisodeLog]:
    opened = EpisodeLog(database, LogSettings(), tmp_path / "spool")
    await opened.start()
    yield opened
    await opened.stop()

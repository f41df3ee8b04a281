"""The backlog, without a database: what it keeps, and how it reads what another version wrote."""

from pathlib import Path

import msgspec
import pytest

from server.store.backlog import Backlog, _arrange
from server.store.episode_rows import COLUMNS, EpisodeRows, encode_episode
from server.store.spool import SpoolFile
from tests.fixtures.episodes import make_episode


class Taking:
    """Stands for the inserter."""

    def __init__(self) -> None:
        self.taken: list[EpisodeRows] = []

    async def insert(self, batch: list[EpisodeRows]) -> None:
        self.taken += batch


def open_backlog(folder: Path) -> tuple[Backlog, Taking]:
    inserter = Taking()
    return Backlog(folder, 2**20, inserter), inserter  # type: ignore[arg-type]


async def test_what_waits_is_replayed_and_forgotten(tmp_path: Path) -> None:
    backlog, inserter = open_backlog(tmp_path / "spool")
    await backlog.replay_own()
    assert backlog.empty
    assert not (tmp_path / "spool").exists()  # nothing is made before it is needed
    rows = [encode_episode(make_episode()) for _ in range(450)]
    assert await backlog.append(rows) == [True] * 450
    assert not backlog.empty
    await backlog.replay_own()
    assert inserter.taken == rows
    assert backlog.empty
    await backlog.close()
    assert list((tmp_path / "spool").iterdir()) == []


async def test_closing_leaves_what_waits_for_another_process(tmp_path: Path) -> None:
    first, _ = open_backlog(tmp_path)
    rows = [encode_episode(make_episode()) for _ in range(3)]
    await first.append(rows)
    second, inserter = open_backlog(tmp_path)
    await second.adopt()
    assert inserter.taken == []  # its process still lives
    await first.close()
    await second.adopt()
    assert inserter.taken == rows
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_no_longer_reads_is_put_by(tmp_path: Path) -> None:
    first, _ = open_backlog(tmp_path)
    rows = [encode_episode(make_episode()) for _ in range(2)]
    await first.append(rows)
    await first.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    second, inserter = open_backlog(tmp_path)
    await second.adopt()
    assert inserter.taken == rows[:1]
    assert [left.suffix for left in tmp_path.iterdir()] == [".torn"]


async def test_a_file_without_a_header_holds_nothing(tmp_path: Path) -> None:
    """A process may die between making its file and writing to it."""
    (tmp_path / "episodes-1-00.spool").write_bytes(b"")
    backlog, inserter = open_backlog(tmp_path)
    await backlog.adopt()
    assert inserter.taken == []
    assert list(tmp_path.iterdir()) == []


async def test_a_record_of_another_shape_is_kept_for_a_human(tmp_path: Path) -> None:
    file = SpoolFile.create(tmp_path, msgspec.msgpack.encode(COLUMNS), max_bytes=1000)
    file.append([msgspec.msgpack.encode({"not": "rows"})])
    file.release()
    backlog, inserter = open_backlog(tmp_path)
    await backlog.adopt()
    assert inserter.taken == []
    assert [left.suffix for left in tmp_path.iterdir()] == [".torn"]


@pytest.mark.parametrize("trains", [True, False])
def test_what_was_spooled_before_keys_could_opt_out_may_be_trained_on(trains: bool) -> None:
    rows = encode_episode(make_episode(trains=trains))
    assert _arrange(rows, COLUMNS).episode[COLUMNS[0].index("trains")] is trains
    older = (tuple(column for column in COLUMNS[0] if column != "trains"), *COLUMNS[1:])
    values = dict(zip(COLUMNS[0], rows.episode, strict=True))
    record = EpisodeRows(tuple(values[column] for column in older[0]), rows.attempts, rows.reflections)
    assert _arrange(record, older).episode[COLUMNS[0].index("trains")] is True


def test_columns_of_another_version_are_brought_into_order() -> None:
    rows = encode_episode(make_episode())
    older = tuple(tuple(reversed([column for column in columns if column != "adapter"])) for columns in COLUMNS)

    def rewrite(row, table: int):
        values = dict(zip(COLUMNS[table], row, strict=True))
        return (*(values[column] for column in older[table]), "of a column that is gone")

    record = EpisodeRows(
        rewrite(rows.episode, 0),
        tuple(rewrite(row, 1) for row in rows.attempts),
        tuple(rewrite(row, 2) for row in rows.reflections),
    )
    arranged = _arrange(record, tuple((*columns, "gone") for columns in older))

    def without_adapter(row, table: int):
        return tuple(None if column == "adapter" else value for column, value in zip(COLUMNS[table], row, strict=True))

    assert arranged == EpisodeRows(
        without_adapter(rows.episode, 0),
        tuple(without_adapter(row, 1) for row in rows.attempts),
        tuple(without_adapter(row, 2) for row in rows.reflections),
    )

"""Exports: one schema in two formats, which others read and which `mulligan episodes import` takes back."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app, exporting
from server.cli.show import to_json
from server.domain import Feedback, Outcome, Task, TaskVerifier
from server.settings import LogSettings
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.feedback import FeedbackStore
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore
from tests.fixtures.episodes import make_episode
from tests.fixtures.server import with_database

runner = CliRunner()


@pytest.fixture
def folder(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's folder with four episodes of one task and one of another."""
    monkeypatch.setenv("MULLIGAN_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("MULLIGAN_DATABASE_URL", sqlite_url)

    async def fill(database: Database) -> None:
        await VerifierStore(database).add("countdown", "countdown", {"strict": True})
        await TaskStore(database).create(Task("countdown", (TaskVerifier("countdown", 1),)))
        log = EpisodeLog(database, LogSettings(), tmp_path / "spool")
        await log.start()
        named = {"messages": [{"role": "user", "content": "Make 6."}], "user": "ann"}
        made = [
            make_episode(question="\N{SNOWMAN} 1", created_at=100.0),
            make_episode(Outcome.EXHAUSTED, question="2", key="key_2", created_at=200.0),
            make_episode(Outcome.PASSED, store=False, adapter="countdown@2"),
            make_episode(request=named),
            make_episode(task="other"),
        ]
        for episode in made:
            await log.record(episode)
        await log.stop()
        await FeedbackStore(database).give(Feedback(made[0].id, "nightly", "k", passed=True))

    with_database(sqlite_url, fill)
    return tmp_path


def run(*words: str) -> str:
    result = runner.invoke(app, words)
    if result.exception:
        raise result.exception
    return result.stdout


def read_log(url: str) -> list[dict]:
    async def read(database: Database) -> list[dict]:
        return [to_json(one) async for one in EpisodeStore(database).iterate()]

    return with_database(url, read)


def export_lines(*words: str) -> list[dict]:
    return [json.loads(line) for line in run("episodes", "export", *words).splitlines()]


def test_lines_hold_everything(folder: Path, sqlite_url: str):
    lines = export_lines()
    assert [{k: v for k, v in line.items() if k not in ("object", "version")} for line in lines] == read_log(sqlite_url)
    assert {(line["object"], line["version"]) for line in lines} == {("mulligan.episode", 1)}


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["--task", "other"], {4}),
        (["--outcome", "exhausted"], {1}),
        (["--key", "key_2"], {1}),
        (["--user", "ann"], {3}),
        (["--adapter", "countdown@2"], {2}),
        (["--until", "1970-01-01T00:03:20"], {0}),
        (["--since", "1970-01-01T00:03:20", "--task", "countdown"], {1, 2, 3}),
        (["--user", "nobody"], set()),
    ],
)
def test_filters_narrow(folder: Path, sqlite_url: str, words: list[str], chosen: set[int]):
    everything = [one["id"] for one in read_log(sqlite_url)]
    assert [one["id"] for one in export_lines(*words)] == [everything[place] for place in sorted(chosen)]


def test_a_file_is_whole_or_not_there_and_never_overwritten(folder: Path, monkeypatch):
    out = folder / "x.jsonl"
    run("episodes", "export", "--out", str(out))
    written = out.read_bytes()
    assert len(written.splitlines()) == 5
    with pytest.raises(Exception, match="is there already"):
        run("episodes", "export", "--task", "other", "--out", str(out))
    assert out.read_bytes() == written
    run("episodes", "export", "--task", "other", "--out", str(out), "--force")
    assert len(out.read_bytes().splitlines()) == 1
    render, seen = exporting.render_line, []

    def break_off(episode):
        seen.append(episode.id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return render(episode)

    monkeypatch.setattr(exporting, "render_line", break_off)
    runner.invoke(app, ["episodes", "export", "--out", str(folder / "y.jsonl")])
    assert len(seen) == 3
    assert list(folder.glob("*y.jsonl*")) == []


def test_parquet_is_read_by_datasets(folder: Path, sqlite_url: str, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from datasets import load_dataset  # noqa: PLC0415 - seconds

    monkeypatch.setattr(exporting, "GROUP_ROWS", 2)
    out = folder / "x.parquet"
    run("episodes", "export", "--format", "parquet", "--out", str(out))
    read = load_dataset("parquet", data_files=str(out), split="train", cache_dir=str(folder / "cache"))
    log = read_log(sqlite_url)
    assert read["id"][:] == [one["id"] for one in log]
    for row, one in zip(read, log, strict=True):
        assert json.loads(row["request"] or "null") == one["request"]
        assert [attempt["score"] for attempt in row["attempts"]] == [attempt["score"] for attempt in one["attempts"]]
        for part, was in zip(row["reflections"], one["reflections"], strict=True):
            assert (part["token_ids"], part["logprobs"]) == (was["token_ids"], was["logprobs"])
            assert json.loads(part["sampling"]) == was["sampling"]
    assert [len(row["feedback"]) for row in read] == [1, 0, 0, 0, 0]
    with pytest.raises(Exception, match="say --out"):
        run("episodes", "export", "--format", "parquet")


def test_an_export_is_imported_as_problems(folder: Path, tmp_path: Path, monkeypatch):
    out = folder / "x.jsonl"
    run("episodes", "export", "--task", "countdown", "--out", str(out))
    result = runner.invoke(app, ["episodes", "import", str(out), "--task", "countdown", "--dry-run", "--json"])
    report = json.loads(result.stdout)
    assert (report["lines"], len(report["bad"])) == (4, 1)  # one was asked with `store: false`
    assert "its content was not kept" in report["bad"][0]["error"]
    assert (report["known"], report["new"]) == (3, 0)  # they are the very problems that the log has

    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.copy(tmp_path / "mulligan.db", other / "mulligan.db")
    monkeypatch.setenv("MULLIGAN_DATABASE_URL", f"sqlite:///{other / 'mulligan.db'}")

    async def forget(database: Database) -> None:
        async with database.write() as connection:
            await connection.exec_driver_sql("DELETE FROM episodes")

    with_database(f"sqlite:///{other / 'mulligan.db'}", forget)
    result = runner.invoke(app, ["episodes", "import", str(out), "--task", "countdown", "--dry-run", "--json"])
    assert json.loads(result.stdout)["new"] == 3

"""`mulligan episodes export`: the log as JSON lines or Parquet, in the one schema of docs/privacy.md."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from server.cli.named import find_task
from server.cli.new_file import write_new_file
from server.cli.options import DatabaseUrl, DataDir, load_settings, open_database
from server.cli.show import error_console, to_json
from server.domain import Episode, Outcome
from server.errors import InvalidRequest
from server.settings import Settings
from server.store.export import Wanted, count_wanted, iterate_wanted

VERSION = 1
"""Of the schema: it grows where a field changes its meaning or goes."""

FREE = frozenset({"request", "bindings", "retry", "prompts", "answer", "verdicts", "sampling"})
"""Fields whose shape is their writer's: in Parquet they are JSON text, and `logprobs` of attempts with them."""

GROUP_ROWS = 500
_BAR_AFTER_S = 2.0

Write = Callable[[dict[str, Any]], None]


class Format(StrEnum):
    """What file is written."""

    JSONL = "jsonl"
    PARQUET = "parquet"


def export(
    *,
    file_format: Annotated[Format, typer.Option("--format", help="JSON lines, or Parquet.")] = Format.JSONL,
    out: Annotated[
        Path | None, typer.Option("--out", "--output", "-o", help="The file. [default: standard output]")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only those of one task.")] = None,
    outcome: Annotated[Outcome | None, typer.Option(help="Only those that ended so.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Only those that one adapter answered.")] = None,
    key: Annotated[str | None, typer.Option(metavar="ID", help="Only those asked with one API key.")] = None,
    user: Annotated[str | None, typer.Option(help="Only those whose request names this user.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only those from then on (UTC).")] = None,
    until: Annotated[datetime | None, typer.Option(help="Only those before then (UTC).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Even in the place of a file that is there.")] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Write episodes in full, oldest first; the file is there as a whole or not at all.

    A file of JSON lines can be imported again: `mulligan episodes import FILE --task TASK`.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    wanted = Wanted(task, outcome, adapter, key, user, _seconds(since), _seconds(until))
    if out is None:
        if file_format is Format.PARQUET:
            raise InvalidRequest("Parquet is written into a file: say --out")
        asyncio.run(_export(settings, wanted, lambda line: _write_line(sys.stdout, line)))
        return
    with write_new_file(out, force=force) as part, _open(part, file_format) as write:
        written = asyncio.run(_export(settings, wanted, write))
    error_console().print(f"{written} episodes written to {out}", markup=False)


def _seconds(at: datetime | None) -> float:
    return 0.0 if at is None else at.replace(tzinfo=at.tzinfo or UTC).timestamp()


@contextmanager
def _open(part: Path, file_format: Format) -> Iterator[Write]:
    if file_format is Format.JSONL:
        with part.open("w", encoding="utf-8") as file:
            yield lambda line: _write_line(file, line)
    else:
        with _open_parquet(part) as write:
            yield write


def _write_line(file: Any, line: Mapping[str, Any]) -> None:
    file.write(json.dumps(line, ensure_ascii=False) + "\n")


async def _export(settings: Settings, wanted: Wanted, write: Write) -> int:
    """Write the episodes, with a bar on standard error once it takes longer than two seconds."""
    columns = (TextColumn("exporting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    written, began = 0, time.monotonic()
    async with open_database(settings) as database:
        total, newest = await count_wanted(database, wanted)
        if wanted.task and not total:
            await find_task(database, wanted.task)
        bar = Progress(*columns, console=error_console(), disable=not sys.stderr.isatty())
        job = bar.add_task("exporting", total=total)
        try:
            async for episode in iterate_wanted(database, wanted, newest):
                write(render_line(episode))
                written += 1
                bar.update(job, completed=written)
                if not bar.live.is_started and time.monotonic() - began > _BAR_AFTER_S:
                    bar.start()
        finally:
            bar.stop()
    return written


def render_line(episode: Episode) -> dict[str, Any]:
    """Render an episode as one line of an export."""
    return {"object": "mulligan.episode", "version": VERSION, **to_json(episode)}


def make_schema() -> Any:
    """Make the Arrow schema: the fields of a line, with those of FREE as JSON text."""
    import pyarrow as pa  # noqa: PLC0415 - a second, and only for this

    text, number, count, flag = pa.string(), pa.float64(), pa.int64(), pa.bool_()
    usage = pa.struct({"prompt_tokens": count, "completion_tokens": count})
    attempt = {"number": count, "answer": text, "finish_reason": text, "usage": usage, "status": text}
    attempt |= {"score": number, "reason": text, "verdicts": text, "sampling": text, "started_at": number}
    attempt |= {"engine_ms": number, "verify_ms": number, "logprobs": text}
    reflection = {"attempt": count, "text": text, "usage": usage, "prompt_ids": pa.list_(pa.int32())}
    reflection |= {"token_ids": pa.list_(pa.int32()), "logprobs": pa.list_(pa.float32()), "adapter": text}
    reflection |= {"template_hash": text, "sampling": text, "finish_reason": text, "started_at": number}
    reflection |= {"engine_ms": number}
    said = {"episode_id": text, "source": text, "key": text, "passed": flag, "score": number, "comment": text}
    said |= {"trains": flag, "created_at": number}
    names = ("id", "task", "model", "base_model", "adapter", "key", "request", "bindings", "verify", "retry", "prompts")
    fields = {"object": text, "version": count, **dict.fromkeys(names, text), "store": flag, "outcome": text}
    fields |= {"attempts": pa.list_(pa.struct(attempt)), "reflections": pa.list_(pa.struct(reflection))}
    fields |= {"error": text, "created_at": number, "duration_ms": number, "split": text, "trains": flag}
    fields |= {"feedback": pa.list_(pa.struct(said))}
    return pa.schema(fields)


@contextmanager
def _open_parquet(part: Path) -> Iterator[Write]:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet  # noqa: PLC0415

    schema = make_schema()
    rows: list[dict[str, Any]] = []
    with pyarrow.parquet.ParquetWriter(part, schema, compression="zstd") as writer:

        def flush() -> None:
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows.clear()

        def write(line: dict[str, Any]) -> None:
            rows.append(_flatten(line))
            if len(rows) >= GROUP_ROWS:
                flush()

        yield write
        flush()


def _flatten(line: Mapping[str, Any]) -> dict[str, Any]:
    """Write what is of no fixed shape as JSON text, in an episode and in its attempts and reflections."""
    flat = {name: _as_text(value) if name in FREE else value for name, value in line.items()}
    for name in ("attempts", "reflections"):
        flat[name] = [_flatten_part(part, name) for part in line[name]]
    return flat


def _flatten_part(part: Mapping[str, Any], of: str) -> dict[str, Any]:
    free: Sequence[str] = (*FREE, "logprobs") if of == "attempts" else (*FREE,)
    return {name: _as_text(value) if name in free else value for name, value in part.items()}


def _as_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)

"""`mulligan episodes`: the log."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings, open_database
from server.cli.show import error_console, print_fields, print_json, print_things, standard_console, to_json, when
from server.domain import Episode, Outcome
from server.errors import InvalidRequest, NotFound
from server.settings import Settings
from server.store.episodes import EpisodeStore

app = typer.Typer(help="List, show and export episodes.", no_args_is_help=True)

_BAR_AFTER_S = 2.0

COLUMNS = {
    "id": lambda episode: episode.id,
    "task": lambda episode: episode.task,
    "outcome": lambda episode: episode.outcome.value,
    "attempts": lambda episode: len(episode.attempts),
    "adapter": lambda episode: episode.adapter or "(base)",
    "split": lambda episode: episode.split,
    "tokens": lambda episode: episode.usage.total_tokens,
    "ms": lambda episode: round(episode.duration_ms),
    "at": lambda episode: when(episode.created_at),
}


@app.command("list", epilog="Example: mulligan episodes list --task sql --outcome recovered")
def list_episodes(
    *,
    task: Annotated[str | None, typer.Option(help="Only those of one task.")] = None,
    outcome: Annotated[Outcome | None, typer.Option(help="Only those that ended so.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    before: Annotated[str | None, typer.Option(metavar="ID", help="Only those older than this one.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List episodes, the newest first."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    episodes = ask_database(
        settings,
        lambda database: EpisodeStore(database).list(task=task, outcome=outcome, limit=limit, before=before),
    )
    print_things(episodes, COLUMNS, as_json=as_json)


@app.command(epilog="Example: mulligan episodes show ep_0193...")
def show(
    episode_id: Annotated[str, typer.Argument(metavar="ID", help="As `x-mulligan-episode` told the client.")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show one episode: the request, every attempt with its verdict, every reflection."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    episode = ask_database(settings, lambda database: EpisodeStore(database).get(episode_id))
    if episode is None:
        raise NotFound(f"there is no episode {episode_id!r}: `mulligan episodes list` shows the newest")
    if as_json:
        print_json(episode)
    else:
        _print_episode(episode)


@app.command(
    epilog="Examples: mulligan episodes export --task sql --output sql.jsonl | mulligan episodes export | gzip"
)
def export(
    task: Annotated[str | None, typer.Option(help="Only those of one task.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file. [default: standard output]")] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Write episodes in full, one JSON object a line, oldest first."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    if output is None:
        asyncio.run(_export(settings, task, sys.stdout))
        return
    try:
        with output.open("w", encoding="utf-8") as file:
            written = asyncio.run(_export(settings, task, file))
    except OSError as error:
        raise InvalidRequest(f"cannot write {output}: {error.strerror}") from error
    error_console().print(f"{written} episodes written to {output}")


async def _export(settings: Settings, task: str | None, file: TextIO) -> int:
    """Write the lines, with a bar on standard error once it takes longer than two seconds."""
    columns = (TextColumn("exporting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    written, began = 0, time.monotonic()
    async with open_database(settings) as database:
        episodes = EpisodeStore(database)
        bar = Progress(*columns, console=error_console(), disable=not sys.stderr.isatty())
        job = bar.add_task("exporting", total=await episodes.count(task=task))
        try:
            async for episode in episodes.iterate(task=task):
                file.write(json.dumps(to_json(episode), ensure_ascii=False) + "\n")
                written += 1
                bar.update(job, completed=written)
                if not bar.live.is_started and time.monotonic() - began > _BAR_AFTER_S:
                    bar.start()
        finally:
            bar.stop()
    return written


def _print_episode(episode: Episode) -> None:
    print_fields(
        {
            "episode": episode.id,
            "task": episode.task,
            "outcome": episode.outcome.value,
            "adapter": episode.adapter or f"(base: {episode.base_model})",
            "verifiers": ", ".join(binding.pin for binding in episode.bindings) or "none",
            "split": episode.split,
            "tokens": episode.usage.total_tokens,
            "took": f"{episode.duration_ms:.0f} ms, at {when(episode.created_at)}",
            "error": episode.error,
        }
    )
    console = standard_console()
    for message in (episode.request or {}).get("messages", []):
        console.print(f"\n[dim]{message.get('role')}[/dim]")
        console.print(str(message.get("content") or message.get("tool_calls") or ""), markup=False)
    reflections = {reflection.attempt: reflection for reflection in episode.reflections}
    for attempt in episode.attempts:
        style = {"passed": "green", "failed": "red"}.get(attempt.status, "yellow")
        console.print(f"\n[dim]attempt {attempt.number}[/dim] [{style}]{attempt.status}[/{style}]")
        console.print(str(attempt.answer.get("content") or attempt.answer.get("tool_calls") or ""), markup=False)
        console.print(attempt.reason, style="dim", markup=False)
        if attempt.number in reflections:
            console.print("\n[dim]reflection[/dim]")
            console.print(reflections[attempt.number].text, markup=False)

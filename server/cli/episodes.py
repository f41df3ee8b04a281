"""`mulligan episodes`: the log."""

from enum import StrEnum
from typing import Annotated

import typer

from server.cli.deleting import delete, deletions
from server.cli.exporting import export
from server.cli.importing import import_problems
from server.cli.named import find_task
from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.show import print_fields, print_json, print_things, standard_console, when
from server.domain import Episode, Outcome
from server.errors import NotFound
from server.store.database import Database
from server.store.episodes import EpisodeStore

app = typer.Typer(help="List, show, import, export and delete episodes.", no_args_is_help=True)

_BAR_AFTER_S = 2.0


class Said(StrEnum):
    """What feedback there is."""

    PASSED = "passed"
    FAILED = "failed"
    NONE = "none"


COLUMNS = {
    "id": lambda episode: episode.id,
    "task": lambda episode: episode.task,
    "outcome": lambda episode: episode.outcome.value,
    "attempts": lambda episode: len(episode.attempts),
    "adapter": lambda episode: episode.adapter or "(base)",
    "split": lambda episode: episode.split,
    "tokens": lambda episode: episode.usage.total_tokens,
    "ms": lambda episode: round(episode.duration_ms),
    "feedback": lambda episode: ", ".join("passed" if one.passed else "failed" for one in episode.feedback),
    "at": lambda episode: when(episode.created_at),
}


@app.command("list", epilog="Example: mulligan episodes list --task sql --outcome recovered")
def list_episodes(
    *,
    task: Annotated[str | None, typer.Option(help="Only those of one task.")] = None,
    outcome: Annotated[Outcome | None, typer.Option(help="Only those that ended so.")] = None,
    feedback: Annotated[
        Said | None, typer.Option(help="Only those that some feedback calls so, or those that have none.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    before: Annotated[str | None, typer.Option(metavar="ID", help="Only those older than this one.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List episodes, the newest first."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def read(database: Database) -> list[Episode]:
        store = EpisodeStore(database)
        found = await store.list(task=task, outcome=outcome, said=feedback, limit=limit, before=before)
        if task and not found:
            await find_task(database, task)
        return found

    print_things(ask_database(settings, read), COLUMNS, as_json=as_json)


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


app.command(
    epilog="Examples: mulligan episodes delete --user u-17 --dry-run | "
    "mulligan episodes delete --key key_0193... --yes | mulligan episodes delete --before 2026-01-31 --yes"
)(delete)
app.command(epilog="Example: mulligan episodes deletions")(deletions)


app.command(
    "import",
    epilog="Examples: mulligan episodes import problems.jsonl --task sql --dry-run | "
    "mulligan episodes import problems.jsonl --task sql --concurrency 16",
)(import_problems)


app.command(
    epilog="Examples: mulligan episodes export --task sql --out sql.jsonl | mulligan episodes export | gzip | "
    "mulligan episodes export --format parquet --out log.parquet --since 2026-01-01"
)(export)


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
    for one in episode.feedback:
        said = "[green]passed[/green]" if one.passed else "[red]failed[/red]"
        score = "" if one.score is None else f" (score {one.score:g})"
        console.print(f"\n[dim]feedback from {one.source}, {when(one.created_at)}[/dim] {said}{score}")
        console.print(one.comment, markup=False)

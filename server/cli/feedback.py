"""`mulligan feedback`: what turned out later about answers."""

import re
from collections.abc import Mapping
from dataclasses import replace as replace_fields
from typing import Annotated, Any

import typer

from server.cli.named import find_task
from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.show import print_fields, print_json, print_things, when
from server.domain import Feedback, TrainingPolicy
from server.errors import InvalidRequest, NotFound
from server.redaction import load_redactor, redact_line
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.feedback import FeedbackStore
from server.store.keys import KeyStore

app = typer.Typer(help="Say later whether an answer was right, and list what was said.", no_args_is_help=True)

MOST_COMMENT = 4000
_SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

COLUMNS = {
    "episode": lambda one: one.episode_id,
    "source": lambda one: one.source,
    "said": lambda one: "passed" if one.passed else "failed",
    "score": lambda one: one.score,
    "trains": lambda one: "yes" if one.trains else "",
    "comment": lambda one: one.comment,
    "key": lambda one: one.key,
    "at": lambda one: when(one.created_at),
}


@app.command(
    epilog='Examples: mulligan feedback add ep_0193... --failed --source support --comment "wrong year" | '
    "mulligan feedback add ep_0193... --passed --source support --replace"
)
def add(
    episode_id: Annotated[str, typer.Argument(metavar="EPISODE", help="As `x-mulligan-episode` told the client.")],
    *,
    passed: Annotated[bool, typer.Option("--passed/--failed", help="Whether its answer was right.")],
    source: Annotated[str, typer.Option(help="Where this comes from: one word a source.")],
    score: Annotated[float | None, typer.Option(min=0, max=1, help="How right, from 0 to 1.")] = None,
    comment: Annotated[str, typer.Option(help="For people.")] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Instead of what this source said before; that is kept in the audit log.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Say whether an episode's answer was right. Rounds do not heed it: a task trusts keys, and this has none."""
    if not _SOURCE.fullmatch(source):
        raise InvalidRequest("a source has letters, digits, '_', '.', '-' and at most 64 of them")
    if len(comment) > MOST_COMMENT:
        raise InvalidRequest(f"a comment has at most {MOST_COMMENT} characters")

    settings = load_settings(data_dir=data_dir, database_url=database_url)
    kept = comment if (redact := load_redactor(settings.log.redact)) is None else redact_line(comment, redact)

    async def give(database: Database) -> Feedback:
        found = await EpisodeStore(database).find_owner(episode_id)
        if found is None:
            raise NotFound(f"there is no episode {episode_id!r}: `mulligan episodes list` shows the newest")
        given = Feedback(episode_id, source, "", passed=passed, score=score, comment=kept if found.store else "")
        return await FeedbackStore(database).give(given, overwrite=replace)

    given = ask_database(settings, give)
    if as_json:
        print_json(given)
    else:
        print_fields({name: render(given) for name, render in COLUMNS.items()})


@app.command("list", epilog="Example: mulligan feedback list --task sql")
def list_feedback(
    *,
    task: Annotated[str | None, typer.Option(help="Only that on episodes of one task.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How much, that on the newest episodes first.")] = 20,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List feedback, that on the newest episodes first."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def read(database: Database) -> list[Feedback]:
        found = await FeedbackStore(database).list(task=task, limit=limit)
        if task and not found:
            await find_task(database, task)
        return found

    print_things(ask_database(settings, read), COLUMNS, as_json=as_json)


async def apply_trust(database: Database, training: TrainingPolicy, given: Mapping[str, Any]) -> TrainingPolicy:
    """Apply what the command line says of whose feedback a task trusts and which signals its audit leaves out."""
    changes: dict[str, Any] = {}
    for field, drop in (("trust_feedback", "no_trust_feedback"), ("audit_off", "audit_all")):
        if given.get(drop) and given[field]:
            raise InvalidRequest(f"--{field.replace('_', '-')} and --{drop.replace('_', '-')} do not go together")
        if given[field] or given.get(drop):
            changes[field] = tuple(str(one) for one in given[field] or ())
    known = {key.id for key in await KeyStore(database).list()} if changes.get("trust_feedback") else set()
    if missing := [key_id for key_id in changes.get("trust_feedback", ()) if key_id not in known]:
        raise NotFound(f"there is no key {missing[0]!r}: `mulligan keys list` shows those there are")
    return replace_fields(training, **changes)

"""`mulligan episodes import`: a cold start from problems in a file.

A problem has no answer yet, and all that learns or judges needs one: rounds need failed attempts, and a gate asks again
what was asked before. So each problem is sent through the running server, as a client would send it, and becomes an
ordinary episode, on the side of the split that its first message has anyway. The database is only read.
"""

import asyncio
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from server.cli.named import find_task
from server.cli.options import AsJson, DatabaseUrl, DataDir, load_settings, open_database
from server.cli.show import error_console, print_fields, print_json, tame
from server.domain import Binding, BindingMode, Task, VerifyMode, new_id
from server.errors import EngineUnavailable, InvalidRequest, Unauthorized
from server.orchestration.selection import split_of
from server.settings import Settings
from server.store.database import Database
from server.store.episode_rows import identify_problem
from server.store.keys import KeyStore
from server.store.progress import ProgressStore
from server.store.verifiers import VerifierStore
from server.supervisor.folder import read_note
from verifiers.base import InvalidArgs
from verifiers.registry import check_args

_RETRIES = 5
_TIMEOUT_S = 600.0
_LONGEST_KEY = 512
_MOST_SHOWN = 20
_VERIFIED_ANYWAY = {"verification_failed": "exhausted", "verification_abstained": "unverified"}
"""Errors that a task may answer with, by code: the episode is in the log all the same, and how it ended."""

_FIELDS = frozenset({"messages", "tools", "args", "key"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One good line: where it stood, what the server is asked, the hash that the log knows it by, and its split."""

    line: int
    body: Mapping[str, Any]
    id: str
    split: str


@dataclass(slots=True)
class Report:
    """What became of a file's lines. `bad` ones were not asked; `failed` ones were, and got no answer."""

    task: str
    lines: int = 0
    bad: list[dict[str, Any]] = field(default_factory=list)
    repeated: int = 0  # in the file
    known: int = 0  # in the log already
    new: int = 0
    new_held_out: int = 0
    asked: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failed: list[dict[str, Any]] = field(default_factory=list)


def import_problems(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="One JSON object a line: messages, and perhaps tools, args and key.")
    ],
    *,
    task: Annotated[str, typer.Option(help="The task that they are problems of.")],
    url: Annotated[
        str | None,
        typer.Option(help="The running server, http://HOST:PORT. [default: the one of the data folder]",
                     show_default=False),
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="MULLIGAN_API_KEY", help="The secret of a key that may use the task.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Problems that are asked at the same time.")] = 8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every line and ask nothing.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:  # fmt: skip
    """Ask the running server the problems of a file: failures to learn from, and held-out problems for a gate.

    What the log has is not asked again, so the same command can be given again at any time. A bad line is reported with
    its number and left out. Exit status 1 if a line was bad or was not answered.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    if not (dry_run or key):
        raise InvalidRequest("give a key with --key or MULLIGAN_API_KEY: `mulligan keys create import` makes one")
    report, problems = asyncio.run(_prepare(settings, file, task, None if dry_run else key))
    if not dry_run and problems:
        note = read_note(settings.data_dir)
        base = url or (note.api_url if note else f"http://{settings.host}:{settings.port}")
        asyncio.run(_ask_all(problems, report, base.rstrip("/").removesuffix("/v1"), key or "", concurrency))
    if as_json:
        print_json(report)
    else:
        _print_report(report, dry_run=dry_run)
    if report.bad or report.failed:
        raise typer.Exit(1)


async def _prepare(settings: Settings, file: Path, name: str, key: str | None) -> tuple[Report, list[Problem]]:
    """Check the task, the key and every line, and leave out what is in the log already."""
    report = Report(name)
    async with open_database(settings) as database:
        task = await find_task(database, name)
        if key:
            await _check_key(database, key)
        bindings = await _bind(database, task)
        new: dict[str, Problem] = {}
        for number, line in _read_lines(file):
            report.lines += 1
            try:
                problem = read_problem(number, line, name, bindings, settings)
            except InvalidRequest as error:
                report.bad.append({"line": number, "error": str(error)})
                continue
            report.repeated += problem.id in new
            new.setdefault(problem.id, problem)
        known = await ProgressStore(database).find_logged(name, list(new))
    problems = [problem for problem in new.values() if problem.id not in known]
    report.known, report.new = len(known), len(problems)
    report.new_held_out = sum(problem.split == "held_out" for problem in problems)
    return report, problems


def _read_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Read the lines that are not empty, with their numbers from 1. Raises: InvalidRequest."""
    try:
        with file.open("rb") as lines:
            yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    except OSError as error:
        raise InvalidRequest(f"cannot read {file}: {error.strerror}") from error


async def _check_key(database: Database, secret: str) -> None:
    """Refuse a key whose episodes would be of no use."""
    found = await KeyStore(database).by_sha256(hashlib.sha256(secret.encode()).hexdigest())
    if found is not None and not found.trains:
        raise InvalidRequest(f"the key {found.name!r} opted out of training: rounds and gates use nothing of it")


async def _bind(database: Database, task: Task) -> tuple[Binding, ...]:
    """Bind the task's verifiers that count. Raises: InvalidRequest where nothing would be judged."""
    found = []
    for pin in task.verifiers:
        version = await VerifierStore(database).get(pin.name, pin.version)
        if pin.mode == BindingMode.ENFORCE and version is not None:
            found.append(Binding(version.kind, version.config, pin.name, pin.version, pin.args, pin.when))
    if not found or task.verify is VerifyMode.OFF:
        raise InvalidRequest(f"the task {task.name!r} verifies nothing, and rounds and gates need verdicts")
    return tuple(found)


def read_problem(number: int, line: bytes, task: str, bindings: Sequence[Binding], settings: Settings) -> Problem:
    """Read one line and check it as the server will. Raises: InvalidRequest."""
    from server.api.chat_request import decode_json, read_chat  # noqa: PLC0415 - the other commands start faster

    given = decode_json(line)
    if given.get("object") == "mulligan.episode":
        given = read_exported(given)
    if unknown := sorted(set(given) - _FIELDS):
        raise InvalidRequest(f"unknown field {unknown[0]!r}: a line has {', '.join(sorted(_FIELDS))}")
    body = {"model": task, **{name: given[name] for name in ("messages", "tools") if given.get(name) is not None}}
    if (key := given.get("key")) is not None:
        if not isinstance(key, str) or len(key) > _LONGEST_KEY:
            raise InvalidRequest(f"key: a text of at most {_LONGEST_KEY} characters is wanted")
        body["metadata"] = {"key": key}
    read_chat(body, settings.limits, images=settings.engine.images)
    bound = bindings
    if given.get("args") is not None:
        shares = share_args(given["args"], bindings)
        body["verifiers"] = [{"name": name, "args": args} for name, args in shares.items()]
        bound = tuple(replace(one, args={**one.args, **shares[one.name]}) for one in bindings)
    for one in bound:
        try:
            check_args(one.kind, one.config, one.args)
        except InvalidArgs as error:
            raise InvalidRequest(f"args: {one.pin} cannot check with these: {error}") from None
    split = split_of(body["messages"], settings.held_out_share)
    return Problem(number, body, identify_problem(body, bound), split)


def read_exported(episode: Mapping[str, Any]) -> dict[str, Any]:
    """Read an exported episode's problem: what was asked, what its verifiers were told. Raises: InvalidRequest."""
    request = episode.get("request")
    if not isinstance(request, dict) or "messages" not in request or "prompt" in request:
        raise InvalidRequest("an exported episode without a conversation: its content was not kept, or it was raw text")
    bound = [one for one in episode.get("bindings", ()) if one.get("mode") == BindingMode.ENFORCE]
    args = {one["name"]: one["args"] for one in bound}
    given = {name: request.get(name) for name in ("messages", "tools")}
    return {**given, "args": next(iter(args.values())) if len(args) == 1 else args or None}


def share_args(args: Any, bindings: Sequence[Binding]) -> dict[str, dict[str, Any]]:
    """Share out a line's arguments: to the only verifier, or to several by their names. Raises: InvalidRequest."""
    names = [binding.name for binding in bindings]
    if not isinstance(args, dict):
        raise InvalidRequest("args: a JSON object is wanted")
    if len(names) == 1:
        return {names[0]: args}
    if set(args) - set(names) or not all(isinstance(one, dict) for one in args.values()):
        raise InvalidRequest(f"args: the task has several verifiers, so by name: {', '.join(names)}")
    return {name: args.get(name, {}) for name in names}


async def _ask_all(problems: Sequence[Problem], report: Report, base: str, key: str, concurrency: int) -> None:
    """Ask every problem, so many at a time, with a bar on standard error. Raises: StoreUnavailable, Unauthorized."""
    from openai import AsyncOpenAI  # noqa: PLC0415 - a second

    columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    run, queue = new_id("im"), iter(problems)
    with Progress(*columns, console=error_console(), disable=not sys.stderr.isatty()) as bar:
        job = bar.add_task("asking", total=len(problems))
        async with AsyncOpenAI(base_url=f"{base}/v1", api_key=key, max_retries=_RETRIES, timeout=_TIMEOUT_S) as client:

            async def work() -> None:
                for problem in queue:
                    await _ask(client, problem, report, f"{run}-{problem.id}")
                    bar.advance(job)

            try:
                async with asyncio.TaskGroup() as workers:
                    for _ in range(min(concurrency, len(problems))):
                        workers.create_task(work())
            except ExceptionGroup as group:
                raise group.exceptions[0] from None


async def _ask(client: Any, problem: Problem, report: Report, idempotency_key: str) -> None:
    """Ask one problem and note how it ended. Raises: EngineUnavailable, Unauthorized where it is no use to go on."""
    from openai import APIConnectionError, APIStatusError, AuthenticationError  # noqa: PLC0415

    options = {"headers": {"Idempotency-Key": idempotency_key}}
    try:
        answer = await client.post("/chat/completions", cast_to=object, body=dict(problem.body), options=options)
        outcome = answer["mulligan"]["outcome"]
    except AuthenticationError as error:
        raise Unauthorized(_read_message(error)) from error
    except APIConnectionError as error:
        again = "once it does, give the same command again: what was asked is not asked twice"
        raise EngineUnavailable(f"the server at {client.base_url} does not answer; {again}") from error
    except APIStatusError as error:
        if error.code not in _VERIFIED_ANYWAY:
            report.failed.append({"line": problem.line, "error": _read_message(error)})
            return
        outcome = _VERIFIED_ANYWAY[error.code]
    report.asked += 1
    report.outcomes[outcome] += 1


def _read_message(error: Any) -> str:
    said = error.body.get("message") if isinstance(error.body, Mapping) else None
    return str(said or error)


def _print_report(report: Report, *, dry_run: bool) -> None:
    console = error_console()
    for word, lines in (("left out", report.bad), ("not answered", report.failed)):
        for one in lines[:_MOST_SHOWN]:
            console.print(f"line {one['line']} {word}: {tame(one['error'])}", style="red", markup=False)
        if len(lines) > _MOST_SHOWN:
            console.print(f"and {len(lines) - _MOST_SHOWN} more lines {word}: --json has them all", style="red")
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(report.outcomes.items()))
    print_fields(
        {
            "task": report.task,
            "lines": report.lines,
            "bad": len(report.bad),
            "repeated in the file": report.repeated,
            "in the log already": report.known,
            "new": f"{report.new}, {report.new_held_out} of them held out",
            "asked": "nothing: a dry run" if dry_run else f"{report.asked}{f': {outcomes}' if outcomes else ''}",
            "not answered": len(report.failed),
        }
    )

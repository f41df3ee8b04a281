"""`mulligan tasks`: named lines of work."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

import typer

from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings, parse_pairs, split_pin
from server.cli.show import print_fields, print_json, print_things, when
from server.domain import RetryPolicy, Task, TaskVerifier, TrainingPolicy, VerifyMode
from server.errors import InvalidRequest, NotFound
from server.store.database import Database
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore

app = typer.Typer(help="Create, list, show and change tasks.", no_args_is_help=True)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Show(StrEnum):
    """What of a verdict the model is shown."""

    VERDICT = "verdict"
    REASON = "reason"


class OnFailure(StrEnum):
    """What a client gets when no attempt passed."""

    RETURN_LAST = "return_last"
    ERROR = "error"


class OnAbstain(StrEnum):
    """What a client gets when the verifiers could not judge."""

    RETURN = "return"
    ERROR = "error"


class UnknownFields(StrEnum):
    """What becomes of request fields that nobody knows."""

    REFUSE = "refuse"
    IGNORE = "ignore"


class Promotion(StrEnum):
    """Who promotes an adapter that passed the gate."""

    AUTO = "auto"
    APPROVE = "approve"


Name = Annotated[str, typer.Argument(help="The task's name: what clients send as `model`.")]
Verifiers = Annotated[
    list[str] | None,
    typer.Option("--verifier", help="NAME@VERSION, or NAME for the latest now. May be repeated: all have to pass."),
]
Verify = Annotated[VerifyMode | None, typer.Option(help="off, observe (check and log) or enforce (retry).")]
MaxRetries = Annotated[int | None, typer.Option(min=0, help="Retries of one request.")]
MaxSeconds = Annotated[float | None, typer.Option(min=0, help="Seconds that one request may take.")]
ReflectionTokens = Annotated[int | None, typer.Option(min=1, help="The longest reflection, in tokens.")]
ShowOption = Annotated[Show | None, typer.Option("--show", help="What of a verdict the model is shown.")]
OnFailureOption = Annotated[OnFailure | None, typer.Option(help="What a client gets when no attempt passed.")]
OnAbstainOption = Annotated[OnAbstain | None, typer.Option(help="What a client gets when verifiers cannot judge.")]
NewFailures = Annotated[
    int | None, typer.Option("--train-on-new-failures", min=1, help="Start a round after so many new failures.")
]
IntervalS = Annotated[float | None, typer.Option("--interval-s", min=1, help="Start a round so often.")]
PromotionOption = Annotated[Promotion | None, typer.Option(help="auto: the gate promotes; approve: a human does.")]
TrainingOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="KEY=VALUE of the trainer, e.g. steps=8; KEY= drops one. May be repeated."),
]
UnknownFieldsOption = Annotated[
    UnknownFields | None, typer.Option(help="What becomes of request fields that nobody knows.")
]
ReflectPrompt = Annotated[str | None, typer.Option(help="The words that ask for a reflection.")]
RetryPrompt = Annotated[str | None, typer.Option(help="The words that ask for the retry.")]

COLUMNS = {
    "name": lambda task: task.name,
    "verifiers": lambda task: ", ".join(f"{entry.name}@{entry.version}" for entry in task.verifiers),
    "verify": lambda task: task.verify.value,
    "retries": lambda task: task.retry.max_retries,
    "champion": lambda task: task.champion or "(base)",
    "created": lambda task: when(task.created_at),
}


@app.command(
    epilog="Examples: mulligan tasks create sql --verifier sql@1 | "
    "mulligan tasks create support --verifier polite --verify observe"
)
def create(
    name: Name,
    *,
    verifier: Verifiers = None,
    verify: Verify = None,
    max_retries: MaxRetries = None,
    max_seconds: MaxSeconds = None,
    reflection_max_tokens: ReflectionTokens = None,
    show: ShowOption = None,
    on_failure: OnFailureOption = None,
    on_abstain: OnAbstainOption = None,
    train_on_new_failures: NewFailures = None,
    interval_s: IntervalS = None,
    promotion: PromotionOption = None,
    option: TrainingOptions = None,
    reflect_prompt: ReflectPrompt = None,
    retry_prompt: RetryPrompt = None,
    unknown_fields: UnknownFieldsOption = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Create a task. Clients then name it as their model; nothing else changes for them."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest("a task's name has letters, digits, '_', '.', '-' and at most 64 of them")
    given = dict(locals())

    async def add(database: Database) -> Task:
        return await TaskStore(database).create(await _apply(database, Task(name=name), given))

    _print_task(ask_database(load_settings(data_dir=data_dir, database_url=database_url), add), as_json=as_json)


@app.command(epilog="Example: mulligan tasks update sql --verifier sql@2 --max-retries 2")
def update(
    name: Name,
    *,
    verifier: Verifiers = None,
    verify: Verify = None,
    max_retries: MaxRetries = None,
    max_seconds: MaxSeconds = None,
    reflection_max_tokens: ReflectionTokens = None,
    show: ShowOption = None,
    on_failure: OnFailureOption = None,
    on_abstain: OnAbstainOption = None,
    train_on_new_failures: NewFailures = None,
    interval_s: IntervalS = None,
    promotion: PromotionOption = None,
    option: TrainingOptions = None,
    reflect_prompt: ReflectPrompt = None,
    retry_prompt: RetryPrompt = None,
    unknown_fields: UnknownFieldsOption = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Change a task: what is not named stays. Requests that run keep what they began with."""
    given = dict(locals())

    async def change(database: Database) -> Task:
        before = await _get(database, name)
        after = await _apply(database, before, given)
        changes = {
            field: getattr(after, field)
            for field in ("verifiers", "verify", "retry", "training", "prompts", "unknown_fields")
            if getattr(after, field) != getattr(before, field)
        }
        if not changes:
            raise InvalidRequest("nothing to change: see `mulligan tasks update --help`")
        return await TaskStore(database).update(name, **changes)

    _print_task(ask_database(load_settings(data_dir=data_dir, database_url=database_url), change), as_json=as_json)


@app.command("list", epilog="Example: mulligan tasks list --json")
def list_tasks(as_json: AsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """List the tasks and the adapters that serve them."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    print_things(ask_database(settings, lambda database: TaskStore(database).list()), COLUMNS, as_json=as_json)


@app.command(epilog="Example: mulligan tasks show sql")
def show(name: Name, as_json: AsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Show one task in full."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    _print_task(ask_database(settings, lambda database: _get(database, name)), as_json=as_json)


async def _get(database: Database, name: str) -> Task:
    task = await TaskStore(database).get(name)
    if task is None:
        raise NotFound(f"there is no task {name!r}: `mulligan tasks list` shows those there are")
    return task


async def _apply(database: Database, task: Task, given: Mapping[str, Any]) -> Task:
    """Apply what the command line says to a task."""
    said = {name: _plain(value) for name, value in given.items() if value is not None}
    retry_fields = {name: said[name] for name in RetryPolicy.__dataclass_fields__ if name in said}
    training_names = ("train_on_new_failures", "interval_s", "promotion")
    training: TrainingPolicy = replace(task.training, **{name: said[name] for name in training_names if name in said})
    if "option" in said:
        options = {**training.options, **parse_pairs(said["option"], "--option")}
        training = replace(training, options={name: value for name, value in options.items() if value != ""})
    words = {"reflect": said.get("reflect_prompt"), "retry": said.get("retry_prompt")}
    return replace(
        task,
        verifiers=await _pin(database, said["verifier"]) if "verifier" in said else task.verifiers,
        verify=VerifyMode(said.get("verify", task.verify)),
        retry=replace(task.retry, **retry_fields),
        training=training,
        prompts={**task.prompts, **{name: text for name, text in words.items() if text}},
        unknown_fields=said.get("unknown_fields", task.unknown_fields),
    )


async def _pin(database: Database, names: Sequence[str]) -> tuple[TaskVerifier, ...]:
    """Pin each verifier to a version that exists."""
    pinned = []
    for pin in names:
        name, version = split_pin(pin)
        found = await VerifierStore(database).get(name, version)
        if found is None:
            raise NotFound(f"there is no verifier {pin!r}: `mulligan verifiers list` shows those there are")
        pinned.append(TaskVerifier(found.name, found.version))
    return tuple(pinned)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def _print_task(task: Task, *, as_json: bool) -> None:
    if as_json:
        print_json(task)
        return
    retry, training = task.retry, task.training
    print_fields(
        {
            "task": task.name,
            "verifiers": ", ".join(f"{entry.name}@{entry.version}" for entry in task.verifiers) or "none",
            "verify": task.verify.value,
            "retries": f"{retry.max_retries}, shown: {retry.show}, on failure: {retry.on_failure}",
            "reflection": f"at most {retry.reflection_max_tokens} tokens",
            "unknown fields": task.unknown_fields,
            "rounds": _describe_rounds(training),
            "training options": training.options,
            "champion": f"{task.champion or '(base)'} (generation {task.generation})",
            "created": when(task.created_at),
        }
    )


def _describe_rounds(training: TrainingPolicy) -> str:
    causes = []
    if training.train_on_new_failures:
        causes.append(f"after {training.train_on_new_failures} new failures")
    if training.interval_s:
        causes.append(f"every {training.interval_s:g} s")
    return f"{' or '.join(causes) or 'by hand'}; promotion: {training.promotion}"

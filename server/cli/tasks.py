"""`mulligan tasks`: named lines of work."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

import typer

from server.cli.audit import audit as audit_command
from server.cli.canaries import CanaryOption, NoCanary, apply_canary
from server.cli.feedback import apply_trust
from server.cli.named import find_task
from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings, parse_pairs
from server.cli.pins import describe_pins, pin_verifiers
from server.cli.show import error_console, print_fields, print_json, print_things, to_json, when
from server.domain import (
    DEFAULT_POOL,
    BindingMode,
    RetryPolicy,
    Task,
    TaskProgress,
    TaskVerifier,
    TrainingPolicy,
    VerifyMode,
)
from server.errors import InvalidRequest
from server.orchestration.canary_policy import describe_canary_policy
from server.orchestration.fingerprints import list_doubts
from server.orchestration.progress import read_progress
from server.orchestration.signals import Signal
from server.orchestration.slots import find_room, plan_slots
from server.orchestration.training_options import check_options
from server.settings import POOL_NAME, RoundSizes, Settings
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.tasks import TaskStore

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
Observe = Annotated[
    list[str] | None,
    typer.Option("--observe", help="Likewise, but only logged and shown beside them: a version on trial."),
]
Audit = Annotated[
    list[str] | None,
    typer.Option("--audit", help="Likewise, and never shown to clients: it measures whether the others are gamed."),
]
NoVerifiers = Annotated[bool, typer.Option("--no-verifiers", help="Drop those that enforce.")]
NoObserve = Annotated[bool, typer.Option("--no-observe", help="Drop those that observe.")]
NoAudit = Annotated[bool, typer.Option("--no-audit", help="Drop those that audit.")]
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
Pool = Annotated[
    str | None,
    typer.Option(help="The pool whose workers train it (their MULLIGAN_POOL); one round of a pool runs at a time."),
]
TrainingOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="KEY=VALUE of the trainer, e.g. steps=8; KEY= drops one. May be repeated."),
]
UnknownFieldsOption = Annotated[
    UnknownFields | None, typer.Option(help="What becomes of request fields that nobody knows.")
]
TrustFeedback = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-feedback", metavar="KEY", help="The id of a key whose feedback rounds heed. May be repeated."
    ),
]
NoTrust = Annotated[bool, typer.Option("--no-trust-feedback", help="Trust no key's feedback.")]
AuditOff = Annotated[
    list[Signal] | None,
    typer.Option("--audit-off", help="A signal of the audit that means nothing for this task. May be repeated."),
]
AuditAll = Annotated[bool, typer.Option("--audit-all", help="Look at every signal of the audit again.")]
ReflectPrompt = Annotated[str | None, typer.Option(help="The words that ask for a reflection.")]
RetryPrompt = Annotated[str | None, typer.Option(help="The words that ask for the retry.")]

COLUMNS = {
    "name": lambda task: task.name,
    "verifiers": lambda task: describe_pins(task.verifiers, BindingMode.ENFORCE),
    "observe": lambda task: describe_pins(task.verifiers, BindingMode.OBSERVE),
    "audit": lambda task: describe_pins(task.verifiers, BindingMode.AUDIT),
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
    observe: Observe = None,
    audit: Audit = None,
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
    canary: CanaryOption = None,
    pool: Pool = None,
    option: TrainingOptions = None,
    trust_feedback: TrustFeedback = None,
    audit_off: AuditOff = None,
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

    settings = load_settings(data_dir=data_dir, database_url=database_url)
    _print_task(ask_database(settings, add), as_json=as_json)
    if remedy := ask_database(settings, lambda database: _plan(database, name, settings)):
        error_console().print(remedy, style="yellow", markup=False)


async def _plan(database: Database, name: str, settings: Settings) -> str:
    """Say which flag to raise where the engine has no room for the first champion of a new task."""
    tasks = await TaskStore(database).list()
    promoting = next(task for task in tasks if task.name == name)
    plan = plan_slots(tasks, await find_room(settings.engine), promoting=promoting)
    return "" if plan.fits else f"{plan.says}. Before {name} trains, {plan.remedy}"


@app.command(
    epilog="Examples: mulligan tasks update sql --observe sql@2 | mulligan tasks update sql --verifier sql@2 | "
    "mulligan tasks update sql --audit hidden@1"
)
def update(
    name: Name,
    *,
    verifier: Verifiers = None,
    observe: Observe = None,
    audit: Audit = None,
    no_verifiers: NoVerifiers = False,
    no_observe: NoObserve = False,
    no_audit: NoAudit = False,
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
    canary: CanaryOption = None,
    no_canary: NoCanary = False,
    pool: Pool = None,
    option: TrainingOptions = None,
    trust_feedback: TrustFeedback = None,
    no_trust_feedback: NoTrust = False,
    audit_off: AuditOff = None,
    audit_all: AuditAll = False,
    reflect_prompt: ReflectPrompt = None,
    retry_prompt: RetryPrompt = None,
    unknown_fields: UnknownFieldsOption = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Change a task: what is not named stays. Requests that run keep what they began with.

    Each of --verifier, --observe and --audit replaces those of its kind. A version that observed and now enforces
    observes no more, and keeps its arguments and conditions.
    """
    given = dict(locals())

    async def change(database: Database) -> Task:
        before = await find_task(database, name)
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
    """Show one task in full, and how far it is from its next round and from a gate that may promote."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def find(database: Database) -> tuple[Task, TaskProgress, list[str]]:
        task = await find_task(database, name)
        return task, await read_progress(task, database, RoundSizes()), await _find_doubts(database, task)

    task, progress, doubts = ask_database(settings, find)
    _print_task(task, progress, doubts, as_json=as_json)


app.command("audit", epilog="Example: mulligan tasks audit sql")(audit_command)


async def _find_doubts(database: Database, task: Task) -> list[str]:
    champion = await AdapterStore(database).get(task.champion) if task.champion else None
    return list_doubts(champion, task) if champion else []


async def _apply(database: Database, task: Task, given: Mapping[str, Any]) -> Task:
    """Apply what the command line says to a task."""
    said = {name: _plain(value) for name, value in given.items() if value is not None}
    retry_fields = {name: said[name] for name in RetryPolicy.__dataclass_fields__ if name in said}
    training_names = ("train_on_new_failures", "interval_s", "promotion", "pool")
    if not re.match(POOL_NAME, said.get("pool") or DEFAULT_POOL):
        raise InvalidRequest("a pool's name has letters, digits, '_', '.', '-' and at most 64 of them", param="--pool")
    training: TrainingPolicy = replace(task.training, **{name: said[name] for name in training_names if name in said})
    if "option" in said:
        options = {**training.options, **parse_pairs(said["option"], "--option")}
        training = replace(training, options={name: value for name, value in options.items() if value != ""})
        await check_options(training.options)
    training = apply_canary(await apply_trust(database, training, given), given)
    words = {"reflect": said.get("reflect_prompt"), "retry": said.get("retry_prompt")}
    return replace(
        task,
        verifiers=await _change_verifiers(database, task.verifiers, given),
        verify=VerifyMode(said.get("verify", task.verify)),
        retry=replace(task.retry, **retry_fields),
        training=training,
        prompts={**task.prompts, **{name: text for name, text in words.items() if text}},
        unknown_fields=said.get("unknown_fields", task.unknown_fields),
    )


async def _change_verifiers(
    database: Database, before: Sequence[TaskVerifier], given: Mapping[str, Any]
) -> tuple[TaskVerifier, ...]:
    """Replace the verifiers of each mode that the command line names."""
    words = {BindingMode.ENFORCE: "verifier", BindingMode.OBSERVE: "observe", BindingMode.AUDIT: "audit"}
    drops = {BindingMode.ENFORCE: "no_verifiers", BindingMode.OBSERVE: "no_observe", BindingMode.AUDIT: "no_audit"}
    after: list[TaskVerifier] = []
    for mode, word in words.items():
        if given.get(drops[mode]) and given[word]:
            raise InvalidRequest(f"--{word} and --{drops[mode].replace('_', '-')} do not go together")
        if given[word]:
            after += await pin_verifiers(database, given[word], mode, before)
        elif not given.get(drops[mode]):
            after += [pin for pin in before if pin.mode == mode]
    if given["observe"]:
        return tuple(after)
    enforced = {(pin.name, pin.version) for pin in after if pin.mode == BindingMode.ENFORCE}
    return tuple(pin for pin in after if pin.mode != BindingMode.OBSERVE or (pin.name, pin.version) not in enforced)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def _print_task(task: Task, progress: TaskProgress | None = None, doubts: Sequence[str] = (), *, as_json: bool) -> None:
    if as_json:
        print_json({**to_json(task), "progress": progress, "doubts": list(doubts)} if progress else task)
        return
    retry, training = task.retry, task.training
    print_fields(
        {
            "task": task.name,
            "verifiers": describe_pins(task.verifiers, BindingMode.ENFORCE) or "none",
            "observe": describe_pins(task.verifiers, BindingMode.OBSERVE),
            "audit": describe_pins(task.verifiers, BindingMode.AUDIT),
            "verify": task.verify.value,
            "retries": f"{retry.max_retries}, shown: {retry.show}, on failure: {retry.on_failure}",
            "reflection": f"at most {retry.reflection_max_tokens} tokens",
            "unknown fields": task.unknown_fields,
            "rounds": _describe_rounds(training),
            "progress": progress.says if progress else "",
            "training options": training.options,
            "trusts feedback of": ", ".join(training.trust_feedback),
            "audit leaves out": ", ".join(training.audit_off),
            "champion": f"{task.champion or '(base)'} (generation {task.generation})",
            "doubts": "; ".join(doubts),
            "pool": "" if training.pool == DEFAULT_POOL else training.pool,
            "canary": f"{task.canary} on {100 * task.canary_share:g} % of conversations" if task.canary else "",
            "created": when(task.created_at),
        }
    )


def _describe_rounds(training: TrainingPolicy) -> str:
    causes = []
    if training.train_on_new_failures:
        causes.append(f"after {training.train_on_new_failures} new failures")
    if training.interval_s:
        causes.append(f"every {training.interval_s:g} s")
    canary = describe_canary_policy(training.canary)
    return f"{' or '.join(causes) or 'by hand'}; promotion: {training.promotion}, {canary}"

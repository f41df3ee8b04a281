"""`mulligan keys`: API keys."""

import datetime
import re
import time
from typing import Annotated, Any

import typer

from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.pins import describe_pins, pin_verifiers
from server.cli.show import print_json, print_things, standard_console, to_json, when
from server.domain import ApiKey, BindingMode, KeyLimits, Role, Scope
from server.errors import InvalidRequest
from server.store.database import Database
from server.store.key_limits import KeyLimitStore
from server.store.keys import KeyStore

app = typer.Typer(help="Create, list, change and revoke API keys.", no_args_is_help=True)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHORT = {
    "requests_per_minute": "requests/min",
    "tokens_per_minute": "tokens/min",
    "max_concurrent": "at once",
    "token_budget": "tokens",
}

COLUMNS = {
    "id": lambda key: key.id,
    "name": lambda key: key.name,
    "role": lambda key: key.role.value,
    "scopes": lambda key: ", ".join(key.scopes),
    "tasks": lambda key: ", ".join(key.tasks),
    "verifiers": lambda key: describe_pins(key.verifiers, BindingMode.ENFORCE),
    "limits": lambda key: describe_limits(key.limits),
    "trains": lambda key: "" if key.trains else "no",
    "created": lambda key: when(key.created_at),
    "last used": lambda key: when(key.last_used_at),
    "expires": lambda key: when(key.expires_at),
    "revoked": lambda key: when(key.revoked_at),
}

RoleOption = Annotated[
    Role,
    typer.Option(help="client: asks models; viewer: sees all; approver: also moves adapters; admin: everything."),
]
ScopeOption = Annotated[
    list[Scope] | None,
    typer.Option("--scope", help="What a client may do besides; in place of inline_verifiers. May be repeated."),
]
NoScopes = Annotated[bool, typer.Option("--no-scopes", help="A client without any scope, inline_verifiers neither.")]
TaskOption = Annotated[
    list[str] | None, typer.Option("--task", help="A task that it may use. May be repeated. [default: all tasks]")
]
PerMinute = Annotated[int | None, typer.Option(min=1, help="Requests in any minute, over all processes.")]
TokensPerMinute = Annotated[int | None, typer.Option(min=1, help="Tokens in any minute, over all processes.")]
MaxConcurrent = Annotated[int | None, typer.Option(min=1, help="Requests at the same time, over all processes.")]
OrNone = Annotated[int | None, typer.Option(min=0, help="As at creation; 0 for no limit.")]
TokenBudget = Annotated[int | None, typer.Option(min=1, help="Tokens in all, or in each --budget-period.")]
BudgetPeriod = Annotated[str, typer.Option(help="What --token-budget is for: total, day or month (UTC).")]
Expires = Annotated[
    str | None, typer.Option(metavar="WHEN", help="30d, 12h, 90m, or a date: 2030-01-31. [default: never]")
]
VerifierOption = Annotated[
    list[str] | None,
    typer.Option("--verifier", help="NAME@VERSION that checks it where request and task name none. May be repeated."),
]
NoTrain = Annotated[bool, typer.Option("--no-train", help="Nothing that it asks is ever trained on.")]


@app.command(
    epilog="Examples: mulligan keys create my-app | mulligan keys create ci --scope register_verifiers --task sql | "
    "mulligan keys create trial --requests-per-minute 60 --token-budget 100000 --budget-period day --expires 30d"
)
def create(
    name: Annotated[str, typer.Argument(help="Who or what uses it.")],
    *,
    role: RoleOption = Role.CLIENT,
    scope: ScopeOption = None,
    no_scopes: NoScopes = False,
    task: TaskOption = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    max_concurrent: MaxConcurrent = None,
    token_budget: TokenBudget = None,
    budget_period: BudgetPeriod = "total",
    expires: Expires = None,
    no_train: NoTrain = False,
    verifier: VerifierOption = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Create a key and print its secret, this once: only a hash of it is kept."""
    if scope and no_scopes:
        raise InvalidRequest("--scope and --no-scopes do not go together")
    limits = KeyLimits(requests_per_minute, tokens_per_minute, max_concurrent, token_budget, budget_period)
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def make(database: Database) -> tuple[str, ApiKey]:
        return await KeyStore(database).create(
            name,
            role,
            scopes=() if no_scopes else scope or None,
            tasks=task or (),
            limits=limits,
            trains=not no_train,
            expires_at=parse_expiry(expires, time.time()),
            verifiers=await pin_verifiers(database, verifier or (), BindingMode.ENFORCE),
        )

    secret, key = ask_database(settings, make)
    if as_json:
        print_json({**to_json(key), "secret": secret})
    else:
        standard_console().print(f"{secret}   (shown only now; id {key.id}, {describe_key(key)})")


@app.command(
    epilog="Examples: mulligan keys update key_0193... --task sql --task sums | "
    "mulligan keys update key_0193... --token-budget 0 --expires never | "
    "mulligan keys update key_0193... --verifier shape@2"
)
def update(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `mulligan keys list` shows it.")],
    *,
    name: Annotated[str | None, typer.Option(help="Who or what uses it.")] = None,
    scope: ScopeOption = None,
    no_scopes: NoScopes = False,
    task: TaskOption = None,
    all_tasks: Annotated[bool, typer.Option("--all-tasks", help="It may use every task.")] = False,
    requests_per_minute: OrNone = None,
    tokens_per_minute: OrNone = None,
    max_concurrent: OrNone = None,
    token_budget: OrNone = None,
    budget_period: Annotated[str | None, typer.Option(help="What the budget is for: total, day or month.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="30d, 12h, 90m, a date: 2030-01-31, or never.")
    ] = None,
    train: Annotated[bool | None, typer.Option(help="Whether what it asks from now on may be trained on.")] = None,
    verifier: VerifierOption = None,
    no_verifiers: Annotated[bool, typer.Option("--no-verifiers", help="It has none of its own.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Change a key: what is not named stays. Its role stays, and a revoked one is not changed any more."""
    for one, other, said in (
        (scope, no_scopes, "--scope and --no-scopes"),
        (task, all_tasks, "--task and --all-tasks"),
        (verifier, no_verifiers, "--verifier and --no-verifiers"),
    ):
        if one and other:
            raise InvalidRequest(f"{said} do not go together")
    numbers = (requests_per_minute, tokens_per_minute, max_concurrent, token_budget)
    limits: dict[str, Any] = {
        field: value or None for field, value in zip(_SHORT, numbers, strict=True) if value is not None
    }
    if budget_period is not None or token_budget == 0:
        limits["budget_period"] = budget_period or KeyLimits().budget_period
    changes: dict[str, Any] = {
        **({"name": name} if name else {}),
        **({"scopes": scope or ()} if scope or no_scopes else {}),
        **({"tasks": task or ()} if task or all_tasks else {}),
        **({"limits": limits} if limits else {}),
        **({"trains": train} if train is not None else {}),
    }
    if expires is not None:
        changes["expires_at"] = None if expires == "never" else parse_expiry(expires, time.time())
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def change(database: Database) -> ApiKey:
        store = KeyStore(database)
        if verifier or no_verifiers:
            before = await store.get(key_id)
            known = before.verifiers if before else ()
            changes["verifiers"] = await pin_verifiers(database, verifier or (), BindingMode.ENFORCE, known)
        if not changes:
            raise InvalidRequest("nothing to change: see `mulligan keys update --help`")
        return await store.update(key_id, **changes)

    print_things([ask_database(settings, change)], COLUMNS, as_json=as_json)


@app.command("list", epilog="Example: mulligan keys list --json")
def list_keys(as_json: AsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """List the keys; never their secrets."""

    async def read(database: Database) -> tuple[list[ApiKey], dict[str, int]]:
        return await KeyStore(database).list(), await KeyLimitStore(database).spent()

    keys, spent = ask_database(load_settings(data_dir=data_dir, database_url=database_url), read)
    budgets = {key.id: spent.get(key.id, 0) for key in keys if key.limits.token_budget is not None}
    if as_json:
        print_json([{**to_json(key), "budget_spent": budgets.get(key.id)} for key in keys])
    else:
        print_things(keys, {**COLUMNS, "spent": lambda key: budgets.get(key.id)}, as_json=False)


@app.command(epilog="Example: mulligan keys revoke key_0193...")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `mulligan keys list` shows it.")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke a key. Every server refuses it within a second."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    print_things([ask_database(settings, lambda database: KeyStore(database).revoke(key_id))], COLUMNS, as_json=as_json)


def parse_expiry(text: str | None, now: float) -> float | None:
    """Turn `30d`, `12h`, `90m`, `600s` or a date or time of ISO 8601 into Unix seconds. Raises: InvalidRequest."""
    if text is None:
        return None
    if matched := re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text):
        return now + int(matched[1]) * _SECONDS[matched[2]]
    try:
        at = datetime.datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidRequest(f"--expires wants 30d, 12h, 90m or a date like 2030-01-31, not {text!r}") from None


def describe_limits(limits: KeyLimits) -> str:
    """Say in one line what a key may use."""
    said = [f"{value} {unit}" for name, unit in _SHORT.items() if (value := getattr(limits, name)) is not None]
    if limits.token_budget is not None and limits.budget_period != "total":
        said[-1] += f" a {limits.budget_period}"
    return ", ".join(said)


def describe_key(key: ApiKey) -> str:
    """Say in one line what a key is for."""
    said = [f"role {key.role.value}"]
    said += [f"scopes {', '.join(key.scopes)}"] if key.scopes else []
    said += [f"tasks {', '.join(key.tasks)}"] if key.tasks else []
    said += [f"verifiers {describe_pins(key.verifiers, BindingMode.ENFORCE)}"] if key.verifiers else []
    said += [f"at most {describe_limits(key.limits)}"] if key.limits.any else []
    said += [] if key.trains else ["never trained on"]
    said += [f"expires {when(key.expires_at)}"] if key.expires_at else []
    return ", ".join(said)

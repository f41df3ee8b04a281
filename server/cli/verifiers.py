"""`mulligan verifiers`: what checks answers."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.backtests import backtest, backtests, stats
from server.cli.options import (
    AsJson,
    DatabaseUrl,
    DataDir,
    ask_database,
    load_settings,
    parse_object,
)
from server.cli.pins import find_verifier
from server.cli.show import error_console, print_fields, print_json, print_things, to_json, when
from server.cli.verifier_files import Draft, SampleFile, read_draft, read_request, read_sample, read_text, to_message
from server.cli.withdrawing import agreement, archive, revoke
from server.domain import Binding, VerifierVersion
from server.errors import InvalidRequest, NotFound
from server.orchestration.verification import allow, bind
from server.store.database import Database
from server.store.verifiers import VerifierStore
from verifiers.base import InvalidArgs, InvalidVerifier, Status
from verifiers.registry import check_args, compile_verifier, kinds

app = typer.Typer(help="List, add, try, compare and withdraw verifiers.", no_args_is_help=True)

_SHOWN_CONFIG_CHARS = 200

COLUMNS = {
    "name": lambda version: f"{version.name}@{version.version}",
    "kind": lambda version: version.kind,
    "description": lambda version: version.description,
    "state": lambda version: "revoked" if version.revoked_at else "archived" if version.archived_at else "",
    "created": lambda version: when(version.created_at),
}


@app.command("list", epilog="Examples: mulligan verifiers list | mulligan verifiers list --name sql")
def list_verifiers(
    *,
    name: Annotated[str | None, typer.Option(help="All versions of one verifier.")] = None,
    archived: Annotated[bool, typer.Option("--archived", help="Those that are archived, too.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List the verifiers, the latest version of each."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def read(database: Database) -> list[VerifierVersion]:
        store = VerifierStore(database)
        return await store.versions(name) if name else await store.list(archived=archived)

    print_things(ask_database(settings, read), COLUMNS, as_json=as_json)


@app.command("kinds", epilog="Examples: mulligan verifiers kinds | mulligan verifiers kinds json_schema")
def list_kinds(
    name: Annotated[str | None, typer.Argument(help="One kind, with the schemas of what it takes.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the kinds of verifiers, or show one: its configuration, and the arguments that come with a request."""
    known = kinds()
    if name is not None and name not in known:
        raise NotFound(f"there is no kind {name!r}, only {', '.join(known)}")
    chosen = [known[name]] if name else list(known.values())
    rows = [{"name": kind.name, "summary": kind.summary, "config_schema": kind.config_schema,
             "args_schema": kind.args_schema} for kind in chosen]  # fmt: skip
    if name is None:
        columns = {"kind": lambda row: row["name"], "what it checks": lambda row: row["summary"]}
        print_things(rows, columns, as_json=as_json)
    elif as_json:
        print_json(rows[0])
    else:
        schemas = {"config_schema": "configuration", "args_schema": "arguments"}
        shown = {title: json.dumps(rows[0][field], indent=2) for field, title in schemas.items()}
        print_fields({"kind": name, "what it checks": rows[0]["summary"], **shown})


@app.command(
    epilog="Examples: mulligan verifiers add --file check.py --run sample.json | "
    'mulligan verifiers add short --kind regex --config \'{"pattern": "^.{1,200}$"}\''
)
def add(
    name: Annotated[
        str | None, typer.Argument(help="Its name; adding it again makes the next version. [default: the file's]")
    ] = None,
    *,
    file: Annotated[
        Path | None, typer.Option(help="A .py with the code of kind python, or a .json with kind and config.")
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help="A sample to try it on before: JSON with answer and, if wanted, request, args and expect "
            "(passed or failed). May be repeated."
        ),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="One of `mulligan verifiers kinds`.")] = None,
    config: Annotated[str, typer.Option(help="Its configuration: a JSON object, or @FILE.")] = "{}",
    code: Annotated[Path | None, typer.Option(help="As --file, for code.", hidden=True)] = None,
    description: Annotated[str, typer.Option(help="One line for people.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Check a verifier, try it on samples, and register it as the next version of its name.

    Nothing is added where a sample does not get the verdict that it expects, or the newest version says the same.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    allow(settings.verifiers)
    built = parse_object(config, "--config")
    if code is not None:
        built["code"] = read_text(code)
    draft = read_draft(name, file, kind=kind, config=built, description=description)
    _compile(draft.kind, draft.config, draft.source)
    trials = [_try(draft, read_sample(path), as_json=as_json) for path in run or ()]
    version, made = ask_database(
        settings,
        lambda database: VerifierStore(database).register(draft.name, draft.kind, draft.config, draft.description),
    )
    if as_json:
        print_json({**to_json(version), "registered": made, "trials": trials})
    else:
        said = version.pin if made else f"{version.pin}, which says the same already: nothing was added"
        print_fields({"verifier": said, "kind": version.kind, "config": _shorten(version.config)})


def _shorten(config: Mapping[str, Any]) -> str:
    text = json.dumps(to_json(config), ensure_ascii=False)
    return text if len(text) <= _SHOWN_CONFIG_CHARS else f"{text[:_SHOWN_CONFIG_CHARS]}... (--json has all of it)"


def _try(draft: Draft, sample: SampleFile, *, as_json: bool) -> dict[str, Any]:
    """Judge a sample, show what came of it, and refuse to go on where that is not what it expects."""
    binding = Binding(kind=draft.kind, config=draft.config, args=sample.args)
    _check_args(binding, f"--run {sample.path}: args")
    status, score, reason, (verdict,) = asyncio.run(bind([binding]).judge(sample.request, sample.answer))
    trial = {"sample": str(sample.path), "status": status.value, "score": score, "reason": reason,
             "duration_ms": verdict.duration_ms, "cause": str(verdict.cause), "stdout": verdict.stdout}  # fmt: skip
    if not as_json:
        shown = {"sample": str(sample.path), "verdict": status.value, "expected": sample.expect, "score": score}
        told = {"cause": str(verdict.cause), "reason": reason, "took": f"{verdict.duration_ms:.1f} ms"}
        print_fields({**shown, **told, "printed": verdict.stdout})
    if sample.expect is not None and status.value != sample.expect:
        why = f": {reason}" if reason else ""
        raise InvalidRequest(
            f"{sample.path} expects {sample.expect}, but the verdict is {status.value}{why}. Nothing was added."
        )
    if status is Status.ABSTAINED:
        message = f"warning: {sample.path}: the verifier abstained ({verdict.cause}): {reason}"
        error_console().print(f'{message}. With an "expect" in the sample nothing would be added.', markup=False)
    return trial


@app.command(
    epilog="Example: mulligan verifiers run countdown --config '{}' --answer '12*3-12' "
    '--args \'{"numbers": [12, 3, 12], "target": 24}\''
)
def run(
    pin: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A registered verifier; with --config, a kind.")],
    *,
    answer: Annotated[str, typer.Option(help="The answer: text, or an assistant message as JSON, or @FILE.")],
    args: Annotated[str, typer.Option(help="The arguments of the request: a JSON object, or @FILE.")] = "{}",
    request: Annotated[str, typer.Option(help="The request, with `messages` and `tools`: JSON, or @FILE.")] = "{}",
    config: Annotated[str | None, typer.Option(help="Try a kind with this configuration, without adding it.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Judge one answer, on the path that judges requests. Exit status 1 unless it passed."""
    given_args = parse_object(args, "--args")
    asked = read_request(parse_object(request, "--request"), "--request")
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    allow(settings.verifiers)
    if config is not None:
        binding = Binding(kind=pin, config=parse_object(config, "--config"), args=given_args)
    else:
        binding = ask_database(settings, lambda database: _bind_pin(database, pin, given_args))
    _check(binding)
    status, score, reason, verdicts = asyncio.run(bind([binding]).judge(asked, _parse_answer(answer)))
    if as_json:
        print_json({"status": status.value, "score": score, "reason": reason, "verdicts": to_json(verdicts)})
    else:
        took = ", ".join(f"{verdict.duration_ms:.1f} ms" for verdict in verdicts)
        printed = "\n".join(verdict.stdout for verdict in verdicts if verdict.stdout)
        causes = ", ".join(str(verdict.cause) for verdict in verdicts if verdict.cause)
        told = {"verdict": status.value, "score": score, "cause": causes, "reason": reason, "took": took}
        print_fields({**told, "printed": printed})
    if status.value != "passed":
        raise typer.Exit(1)


async def _bind_pin(database: Database, pin: str, args: dict[str, Any]) -> Binding:
    try:
        found = await find_verifier(database, pin)
    except NotFound as error:
        if pin not in kinds():
            raise
        raise NotFound(f"{error}; to try the kind {pin!r} say its --config, if only '{{}}'") from None
    return Binding(kind=found.kind, config=found.config, name=found.name, version=found.version, args=args)


def _compile(kind: str, config: Mapping[str, Any], source: str = "") -> None:
    try:
        compile_verifier(kind, config)
    except InvalidVerifier as error:
        raise InvalidRequest(f"{source}: {error}" if source else str(error)) from error


def _check(binding: Binding) -> None:
    _compile(binding.kind, binding.config)
    _check_args(binding, "--args")


def _check_args(binding: Binding, source: str) -> None:
    try:
        check_args(binding.kind, binding.config, binding.args)
    except InvalidArgs as error:
        raise InvalidRequest(f"{source}: {error}") from error


def _parse_answer(text: str) -> dict[str, Any]:
    """Take JSON objects as an assistant message and everything else as its content."""
    if text.startswith("@"):
        text = read_text(Path(text[1:]))
    if text.lstrip().startswith("{"):
        message = parse_object(text, "--answer")
        if "content" in message or "tool_calls" in message:
            return to_message(message)
    return to_message(text)


app.command(epilog="Examples: mulligan verifiers archive sql | mulligan verifiers archive sql@1")(archive)
app.command(epilog='Example: mulligan verifiers revoke sql@2 --reason "it accepts DROP TABLE"')(revoke)
app.command(epilog="Example: mulligan verifiers backtest sql@2 --task sql --sample 500")(backtest)
app.command(
    epilog="Examples: mulligan verifiers backtests --verifier sql | mulligan verifiers backtests bt_0193... --cancel"
)(backtests)
app.command(epilog="Examples: mulligan verifiers stats sql | mulligan verifiers stats sql@2 --hours 168 --json")(stats)
app.command(epilog="Examples: mulligan verifiers agreement sql | mulligan verifiers agreement sql@3 --with 1")(
    agreement
)

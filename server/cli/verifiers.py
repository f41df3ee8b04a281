"""`mulligan verifiers`: what checks answers."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.options import (
    AsJson,
    DatabaseUrl,
    DataDir,
    ask_database,
    load_settings,
    parse_object,
    split_pin,
)
from server.cli.show import print_fields, print_json, print_things, to_json, when
from server.domain import Binding, VerifierVersion
from server.errors import InvalidRequest, NotFound
from server.orchestration.verification import bind
from server.store.database import Database
from server.store.verifiers import VerifierStore
from verifiers.base import InvalidArgs, InvalidVerifier
from verifiers.registry import check_args, compile_verifier, kinds

app = typer.Typer(help="List, add and try verifiers.", no_args_is_help=True)

COLUMNS = {
    "name": lambda version: f"{version.name}@{version.version}",
    "kind": lambda version: version.kind,
    "description": lambda version: version.description,
    "created": lambda version: when(version.created_at),
}


@app.command("list", epilog="Examples: mulligan verifiers list | mulligan verifiers list --name sql | "
             "mulligan verifiers list --kinds")  # fmt: skip
def list_verifiers(
    name: Annotated[str | None, typer.Option(help="All versions of one verifier.")] = None,
    show_kinds: Annotated[bool, typer.Option("--kinds", help="The built-in kinds and what they check.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List the verifiers, the latest version of each."""
    if show_kinds:
        rows = [{"kind": kind.name, "summary": kind.summary, "config": kind.config_schema, "args": kind.args_schema}
                for kind in kinds().values()]  # fmt: skip
        columns = {"kind": lambda row: row["kind"], "what it checks": lambda row: row["summary"]}
        print_things(rows, columns, as_json=as_json)
        return
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def read(database: Database) -> list[VerifierVersion]:
        store = VerifierStore(database)
        return await store.versions(name) if name else await store.list()

    print_things(ask_database(settings, read), COLUMNS, as_json=as_json)


@app.command(
    epilog='Examples: mulligan verifiers add short --kind regex --config \'{"pattern": "^.{1,200}$"}\' | '
    "mulligan verifiers add sql --kind python --code sql.py"
)
def add(
    name: Annotated[str, typer.Argument(help="Its name; adding it again makes the next version.")],
    *,
    kind: Annotated[str, typer.Option(help="One of `mulligan verifiers list --kinds`.")],
    config: Annotated[str, typer.Option(help="Its configuration: a JSON object, or @FILE.")] = "{}",
    code: Annotated[Path | None, typer.Option(help="For kind python: the file with the code.")] = None,
    description: Annotated[str, typer.Option(help="One line for people.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Check a verifier's configuration and register it as the next version of its name."""
    built = parse_object(config, "--config")
    if code is not None:
        built["code"] = _read(code)
    _compile(kind, built)
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    version = ask_database(settings, lambda database: VerifierStore(database).add(name, kind, built, description))
    if as_json:
        print_json(version)
    else:
        print_fields({"verifier": f"{version.name}@{version.version}", "kind": version.kind, "config": version.config})


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
    if config is not None:
        binding = Binding(kind=pin, config=parse_object(config, "--config"), args=given_args)
    else:
        settings = load_settings(data_dir=data_dir, database_url=database_url)
        binding = ask_database(settings, lambda database: _bind_pin(database, pin, given_args))
    _check(binding)
    asked = {"messages": [], **parse_object(request, "--request")}
    status, score, reason, verdicts = asyncio.run(bind([binding]).judge(asked, _parse_answer(answer)))
    if as_json:
        print_json({"status": status.value, "score": score, "reason": reason, "verdicts": to_json(verdicts)})
    else:
        took = ", ".join(f"{verdict.duration_ms:.1f} ms" for verdict in verdicts)
        printed = "\n".join(verdict.stdout for verdict in verdicts if verdict.stdout)
        print_fields({"verdict": status.value, "score": score, "reason": reason, "took": took, "printed": printed})
    if status.value != "passed":
        raise typer.Exit(1)


async def _bind_pin(database: Database, pin: str, args: dict[str, Any]) -> Binding:
    name, version = split_pin(pin)
    found = await VerifierStore(database).get(name, version)
    if found is None:
        raise NotFound(f"there is no verifier {pin!r}: `mulligan verifiers list` shows those there are")
    return Binding(kind=found.kind, config=found.config, name=found.name, version=found.version, args=args)


def _compile(kind: str, config: dict[str, Any]) -> None:
    try:
        compile_verifier(kind, config)
    except InvalidVerifier as error:
        raise InvalidRequest(str(error)) from error


def _check(binding: Binding) -> None:
    _compile(binding.kind, dict(binding.config))
    try:
        check_args(binding.kind, binding.config, binding.args)
    except InvalidArgs as error:
        raise InvalidRequest(f"--args: {error.message}") from error


def _parse_answer(text: str) -> dict[str, Any]:
    """Take JSON objects as an assistant message and everything else as its content."""
    if text.startswith("@"):
        text = _read(Path(text[1:]))
    if text.lstrip().startswith("{"):
        message = parse_object(text, "--answer")
        if "content" in message or "tool_calls" in message:
            return {"role": "assistant", "content": None, **message}
    return {"role": "assistant", "content": text}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error

"""`mulligan keys`: API keys."""

from enum import StrEnum
from typing import Annotated

import typer

from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.show import print_json, print_things, standard_console, to_json, when
from server.store.keys import KeyStore

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

COLUMNS = {
    "id": lambda key: key.id,
    "name": lambda key: key.name,
    "scopes": lambda key: ", ".join(key.scopes),
    "created": lambda key: when(key.created_at),
    "revoked": lambda key: when(key.revoked_at),
}


class Scope(StrEnum):
    """What a key may do."""

    INFERENCE = "inference"
    VERIFIERS = "verifiers"
    ADMIN = "admin"


@app.command(
    epilog="Examples: mulligan keys create my-app | mulligan keys create ci --scope inference --scope verifiers"
)
def create(
    name: Annotated[str, typer.Argument(help="Who or what uses it.")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="inference: ask models; verifiers: register code; admin: everything. May be repeated."),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Create a key and print its secret, this once: only a hash of it is kept."""
    scopes = tuple(dict.fromkeys(entry.value for entry in scope or [Scope.INFERENCE]))
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    secret, key = ask_database(settings, lambda database: KeyStore(database).create(name, scopes))
    if as_json:
        print_json({**to_json(key), "secret": secret})
    else:
        standard_console().print(f"{secret}   (shown only now; id {key.id}, scopes {', '.join(key.scopes)})")


@app.command("list", epilog="Example: mulligan keys list --json")
def list_keys(as_json: AsJson = False, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """List the keys; never their secrets."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    print_things(ask_database(settings, lambda database: KeyStore(database).list()), COLUMNS, as_json=as_json)


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

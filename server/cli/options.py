"""The options that commands share, and how they, `MULLIGAN_*` and a running server's note become settings.

Precedence: the option, the environment, the note that a running `mulligan up` left in the data folder, the default.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from server.addresses import hide_password
from server.errors import InvalidRequest, NotFound, StoreUnavailable
from server.settings import EngineSettings, Settings
from server.store.database import Database
from server.supervisor.first_run import name_cause
from server.supervisor.folder import read_note

T = TypeVar("T")

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of the database, adapters and logs. [default: data]", show_default=False),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="sqlite:///FILE or postgresql://... [default: SQLite in the data folder]", show_default=False),
]
BrokerUrl = Annotated[
    str | None,
    typer.Option(help="redis://... [default: files in the data folder]", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def load_settings(*, engine: EngineSettings | None = None, note: bool = True, **options: Any) -> Settings:
    """Build the settings from options (None: not given) and everything below them.

    Raises InvalidRequest where a value, of the environment for example, is not valid.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        place = "__".join(str(part) for part in first["loc"]).upper()
        shown = hide_password(first["input"]) if isinstance(first["input"], str) else first["input"]
        says = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"MULLIGAN_{place}: {says} (got {shown!r})") from error
    _check_scheme("--database-url", settings.database_url, ("sqlite:///", "postgresql://"))
    _check_scheme("--broker-url", settings.broker_url, ("filesystem://", "redis://", "rediss://"))
    if engine is not None:
        settings = settings.model_copy(update={"engine": engine})
    return _follow_note(settings) if note else settings


def _check_scheme(option: str, url: str, schemes: tuple[str, ...]) -> None:
    if not url.startswith(schemes):
        raise InvalidRequest(f"{option} is {hide_password(url)}: it has to start with {' or '.join(schemes)}")


def _follow_note(settings: Settings) -> Settings:
    """Take what was not said from the server that runs in the data folder."""
    note = read_note(settings.data_dir)
    if note is None:
        return settings
    derived = {"database_url": f"sqlite:///{settings.data_dir / 'mulligan.db'}", "broker_url": "filesystem://"}
    update: dict[str, Any] = {}
    for name, value in derived.items():
        if getattr(settings, name) == value:
            update[name] = getattr(note, name)
    if not {"url", "urls"} & settings.engine.model_fields_set:
        urls = tuple(note.engine_urls)
        told = {"url": urls[0], "urls": urls if len(urls) > 1 else (), "kind": note.engine_kind, "model": note.model}
        update["engine"] = settings.engine.model_copy(update=told)
    return settings.model_copy(update=update)


def _check_there(database_url: str) -> None:
    path = database_url.removeprefix("sqlite:///")
    if path != database_url and not Path(path).exists():
        raise NotFound(f"there is no database at {path}: run `mulligan up` or `mulligan db upgrade`, or say --data-dir")


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Open the database of a server that was set up before.

    Raises NotFound where there is none yet, StoreUnavailable where it cannot be reached.
    """
    _check_there(settings.database_url)
    database = Database(settings.database_url)
    try:
        try:
            await database.ping()
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"the database {hide_password(settings.database_url)}: {name_cause(error)}"
            ) from error
        yield database
    finally:
        await database.close()


def ask_database(settings: Settings, ask: Callable[[Database], Awaitable[T]]) -> T:
    """Run one question to the database of a server that was set up before.

    Raises NotFound where there is none yet, StoreUnavailable where it cannot be reached.
    """

    async def run() -> T:
        async with open_database(settings) as database:
            return await ask(database)

    return asyncio.run(run())


def parse_pairs(pairs: Sequence[str], param: str) -> dict[str, Any]:
    """Parse `KEY=VALUE` words; a value that is JSON is taken as JSON. Raises InvalidRequest."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not (key and separator):
            raise InvalidRequest(f"{param} wants KEY=VALUE, not {pair!r}")
        try:
            parsed[key] = json.loads(value)
        except ValueError:
            parsed[key] = value
    return parsed


def parse_object(text: str, param: str) -> dict[str, Any]:
    """Parse a JSON object, or read one from the file named after `@`. Raises InvalidRequest."""
    try:
        parsed = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except OSError as error:
        raise InvalidRequest(f"{param}: cannot read {text[1:]}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidRequest(f"{param} wants a JSON object or @FILE: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"{param} wants a JSON object, not {text[:40]!r}")
    return parsed


def split_pin(pin: str) -> tuple[str, int | None]:
    """Split `name@version`; the version may be missing. Raises InvalidRequest."""
    name, separator, version = pin.partition("@")
    if not name or (separator and not version.isdigit()):
        raise InvalidRequest(f"a verifier is named NAME or NAME@VERSION, not {pin!r}")
    return name, int(version) if separator else None

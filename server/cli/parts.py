"""`mulligan serve | worker | beat | engine`: the parts of a server, each started alone."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from server.cli.options import BrokerUrl, DatabaseUrl, DataDir, load_settings
from server.cli.show import error_console
from server.engine.launch import engine_command
from server.logs import configure_logs
from server.redaction import make_log_redactor
from server.settings import EngineSettings, Settings
from server.supervisor.plan import Command, beat_command, check_engine, worker_command
from server.supervisor.ports import claim_port

Host = Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]", show_default=False)]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one. [default: 8000]",
                             show_default=False),
]  # fmt: skip
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=64, help="API processes that share the port. [default: 1]", show_default=False),
]
EngineUrl = Annotated[
    list[str] | None,
    typer.Option(help="An engine that runs already: http://HOST:PORT. Repeat it for several.", show_default=False),
]
Model = Annotated[
    str | None, typer.Option(help="Folder or Hugging Face id of the model. [default: the demo model]",
                             show_default=False),
]  # fmt: skip
EngineKind = Annotated[
    Literal["local", "sglang"] | None,
    typer.Option("--engine", help="The embedded engine, or the real SGLang. [default: local]", show_default=False),
]


def serve(
    *,
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    engine_url: EngineUrl = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
) -> None:
    """Serve the API alone. The engine has to run, and the schema to be up to date (`mulligan db upgrade`).

    With --workers N it is N processes: a connection goes to the one with the fewest, one that dies is started again
    while the others go on, and each line of the log says which one wrote it. SIGTERM lets requests end first.
    """
    from server.cli import serving  # noqa: PLC0415 - the other commands start faster without

    settings = load_settings(
        data_dir=data_dir, host=host, port=port, workers=workers, database_url=database_url, broker_url=broker_url
    )
    settings = with_engine(settings, urls=engine_url)
    configure_logs(settings.log_level, json=settings.log_json, redact=make_log_redactor(settings.log.redact))
    settings, listener = serving.open_port(settings)
    if settings.workers > 1:
        serving.serve_together(settings, listener)
    elif not serving.serve_alone(settings, listener):
        raise typer.Exit(1)


def worker(data_dir: DataDir = None, database_url: DatabaseUrl = None, broker_url: BrokerUrl = None) -> None:
    """Run the worker alone. It trains, one round at a time."""
    _become(worker_command(load_settings(data_dir=data_dir, database_url=database_url, broker_url=broker_url)))


def beat(data_dir: DataDir = None, database_url: DatabaseUrl = None, broker_url: BrokerUrl = None) -> None:
    """Run the scheduler alone. It starts rounds that are due and takes them from workers that died; run only one."""
    _become(beat_command(load_settings(data_dir=data_dir, database_url=database_url, broker_url=broker_url)))


def engine(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 30000,
    model: Model = None,
    kind: EngineKind = None,
) -> None:
    """Run the engine alone. Its LoRA limits are those of our settings."""
    settings = with_engine(load_settings(note=False), kind=kind, model=model)
    check_engine(settings.engine)
    free = claim_port("127.0.0.1", port)
    error_console().print(f"engine {settings.engine.kind} on http://127.0.0.1:{free}, model {settings.engine.model}")
    _become(engine_command(settings.engine, free))


def with_engine(settings: Settings, *, urls: Sequence[str] | None = None, **changes: object) -> Settings:
    """Change the engine's settings by what was said (None: not said). Raises ValidationError."""
    said = {name: value for name, value in changes.items() if value is not None}
    if urls:
        said |= {"url": urls[0], "urls": tuple(urls) if len(urls) > 1 else ()}
    if not said:
        return settings
    return settings.model_copy(update={"engine": EngineSettings(**{**settings.engine.model_dump(), **said})})


def _become(command: Command) -> None:
    """Replace this process by the part."""
    argv, env = command
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(argv[0], argv, env)  # noqa: S606 - a program of our own plan

"""`mulligan demo`: everything that `mulligan up` starts, and a client that shows the loop working."""

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from demo.drive.tasks import DemoTask, choose_tasks
from server.cli.options import BrokerUrl, DatabaseUrl, load_settings, parse_pairs
from server.cli.parts import EngineKind, EngineUrl, Model, with_engine
from server.cli.running import run_server, run_until_signal
from server.cli.show import standard_console
from server.errors import InvalidRequest, PartFailed
from server.settings import Settings
from server.supervisor.first_run import make_key

_INTERRUPTED = 130


@dataclass(frozen=True)
class DemoPlan:
    """What is asked of one demo."""

    tasks: Sequence[DemoTask]
    rounds: int
    seed: int
    held_out: int
    json_file: Path | None
    keep: bool


def demo(
    *,
    task: Annotated[Literal["countdown", "function_call", "both"], typer.Option(help="What to train.")] = "both",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each task.")] = 1,
    seed: Annotated[int, typer.Option(help="Another seed draws other problems, held-out ones too.")] = 0,
    problems: Annotated[int, typer.Option(min=2, help="Held-out problems of each task that are measured.")] = 300,
    training_problems: Annotated[
        int | None, typer.Option(min=20, help="Problems of each task to learn from. [default: by task]")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of the trainer, e.g. steps=2. May be repeated.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures there.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it serving afterwards, until Ctrl-C.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="A new or empty folder. [default: data/demo-TIME]", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0: a free one.")] = 0,
    engine: EngineKind = None,
    engine_url: EngineUrl = None,
    model: Model = None,
    database_url: DatabaseUrl = None,
    broker_url: BrokerUrl = None,
) -> None:
    """Show that the model learns.

    Measures held-out problems, sends others, trains on the failures, hot-swaps the adapter and measures again.
    Takes about ten minutes on two cores. Exit status 1 if a step of the loop did not happen, whatever the figures are.
    """
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise InvalidRequest(f"--json: there is no folder {json_file.absolute().parent}")
    settings = load_settings(
        note=False,
        data_dir=data_dir or Path(f"data/demo-{time.strftime('%Y%m%d-%H%M%S')}"),
        port=port,
        database_url=database_url,
        broker_url=broker_url,
    )
    settings = with_engine(settings, kind=engine, urls=engine_url, model=model)
    plan = DemoPlan(
        tasks=[_adjust(chosen, training_problems, option or []) for chosen in choose_tasks(task)],
        rounds=rounds,
        seed=seed,
        held_out=problems,
        json_file=json_file,
        keep=keep,
    )
    console = standard_console()
    done = run_until_signal(lambda hurried: _run(settings, plan, console, hurried, own_engine=not engine_url))
    if not done:
        raise typer.Exit(_INTERRUPTED)


def _adjust(task: DemoTask, training_problems: int | None, options: Sequence[str]) -> DemoTask:
    return replace(
        task,
        training_problems=training_problems or task.training_problems,
        training={**task.training, **parse_pairs(options, "--option")},
    )


async def _run(
    settings: Settings, plan: DemoPlan, console: Console, hurried: asyncio.Event, *, own_engine: bool
) -> bool:
    """Run the demo; return whether it came to its end (and was not interrupted while it still had to)."""
    began = time.monotonic()
    async with run_server(settings, own_engine=own_engine, console=console, hurried=hurried) as running:
        seconds = {"start": time.monotonic() - began}
        key = running.first_key or await make_key(running.settings, "demo")
        figures = await _play(running.url, key, plan, console, seconds)
        say = partial(console.print, markup=False, soft_wrap=True)
        say(f"API {running.url}/v1; database, adapters and logs in {running.settings.data_dir}")
        if plan.json_file is not None:
            plan.json_file.write_text(json.dumps(figures, indent=2) + "\n")
            say(f"figures in {plan.json_file}")
        if plan.keep:
            say(f"serving on; API key (admin): {key}; Ctrl-C stops everything")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        else:
            say(f"serve it again with: mulligan up --data-dir {running.settings.data_dir}")
    return True


async def _play(url: str, key: str, plan: DemoPlan, console: Console, seconds: dict[str, float]) -> dict[str, Any]:
    """Play the demo, print its tables and return its figures.

    Raises PartFailed where a step of the loop did not happen.
    """
    # The SDK takes half a second to import, and the other commands do not need it.
    from demo.drive.client import Client, DemoBroken  # noqa: PLC0415
    from demo.drive.display import Display  # noqa: PLC0415
    from demo.drive.play import play  # noqa: PLC0415
    from demo.drive.report import build_figures, print_report  # noqa: PLC0415

    client, display = Client(f"{url}/v1", key), Display(console)
    try:
        results = await play(client, plan.tasks, display, held_out=plan.held_out, rounds=plan.rounds, seed=plan.seed)
        figures = build_figures(results, {**seconds, **display.seconds}, plan.seed)
    except (DemoBroken, ValueError) as error:
        raise PartFailed(f"the demo did not get to its end: {error}") from error
    finally:
        display.close()
        await client.close()
    print_report(console, figures)
    return figures

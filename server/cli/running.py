"""Runs all parts around a block of work, shows how they come up, and turns Ctrl-C into a clean stop.

Used by `mulligan up` and `mulligan demo`.
"""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from server.settings import Settings
from server.supervisor.first_run import make_first_key, prepare
from server.supervisor.folder import hold_folder, leave_note
from server.supervisor.plan import api_url, check_engine, find_broker, find_engines, plan_children, resolve_addresses
from server.supervisor.supervise import ChildEvent, Happening, supervise

T = TypeVar("T")

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class RunningServer:
    """A server whose parts are all ready. `first_key` is the admin key made just now, if there was none before."""

    settings: Settings
    first_key: str | None

    @property
    def url(self) -> str:
        """The address of the API, without `/v1`."""
        return api_url(self.settings)


class StartDisplay:
    """Shows the parts as they come up: spinners on a terminal, one line each elsewhere; later, one line an event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, TaskID] = {}
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]\u2713[/green]"),
            TextColumn("{task.description:<8}"),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "StartDisplay":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, event: ChildEvent) -> None:
        """Show one event."""
        if event.happening is Happening.STARTING:
            self._rows[event.name] = self._bars.add_task(event.name, total=1, detail="waiting until it is ready")
        elif event.happening is Happening.READY:
            self._bars.update(self._rows[event.name], completed=1, detail="ready")
            if not self._console.is_terminal:
                self._console.print(f"{event.name}: ready {event.detail}", markup=False)
        else:
            verb = {Happening.DIED: "died", Happening.BACK: "is back", Happening.KILLED: "was killed"}[event.happening]
            at = time.strftime("%H:%M:%S")
            self._console.print(f"{at} {event.name} {verb}: {event.detail}", markup=False, soft_wrap=True)


@asynccontextmanager
async def run_server(
    settings: Settings, *, own_engine: bool, console: Console, hurried: asyncio.Event
) -> AsyncIterator[RunningServer]:
    """Yield a server with all its parts; they are stopped after the block.

    Raises MulliganError, saying what to do, where it cannot be started.
    """
    with hold_folder(settings.data_dir):
        settings = resolve_addresses(settings, own_engine=own_engine)
        if own_engine:
            check_engine(settings.engine)
        else:
            await find_engines(settings.engine.every_url)
        await find_broker(settings.broker_url)
        await prepare(settings)
        specs = plan_children(settings, own_engine=own_engine)
        with leave_note(settings, api_url(settings)), contextlib.ExitStack() as until_ready:
            display = until_ready.enter_context(StartDisplay(console))
            async with supervise(specs, settings.data_dir / "logs", display, hurried):
                until_ready.close()
                # Only now, when it will be shown: a key that was made for a start that failed would be lost.
                yield RunningServer(settings, await make_first_key(settings))


def run_until_signal(work: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T | None:
    """Run the work; the first Ctrl-C, SIGTERM or hang-up cancels it, the second sets the event that it was given.

    Returns None where it was cancelled.
    """

    async def run() -> T | None:
        hurried = asyncio.Event()
        task = asyncio.create_task(work(hurried))

        def stop() -> None:
            if task.cancelling():
                hurried.set()
            else:
                sys.stderr.write("\nstopping (once more: kill at once)\n")
                task.cancel()

        for number in _STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, stop)
        try:
            return await task
        except asyncio.CancelledError:
            return None

    return asyncio.run(run())

"""Serves the API on one port: in this process, or in several that it starts and keeps alive.

Called by `mulligan serve`; run as a script, `python -m server.cli.serving NUMBER LISTENER TABLE SLOTS`, it is one of
several. They share the port, what they count for `/metrics`, the database and the data folder, and nothing else.
"""

import asyncio
import faulthandler
import gc
import os
import signal
import socket
import sys
from functools import partial
from typing import Any

import structlog
import uvicorn

from server.app import create_app
from server.cli.arrival import BoundedProtocol
from server.cli.running import run_until_signal
from server.errors import Conflict
from server.logs import configure_logs
from server.redaction import make_log_redactor
from server.settings import Settings
from server.supervisor.child import Child, ChildSpec
from server.supervisor.plan import api_url, part_environment
from server.supervisor.sharing import Acceptor, SharedPort, listen
from server.supervisor.supervise import ChildEvent, Happening, supervise
from server.telemetry.meter import Meter
from server.telemetry.sharing import SharedSlots

_COLLECT_AT = (20_000, 20, 20)
DRAIN_S = 4
"""How long a stopping process waits for answers that are being made; then it cancels and logs them."""

CLOSE_S = 20.0
"""How long all of stopping may take; then the process ends as it is, and says what it waited for."""
_SLOW_START_S = 45.0
"""After so long a process that does not serve yet writes down where it is; the one that supervises it gives it 60."""

_log = structlog.get_logger(__name__)


def open_port(settings: Settings) -> tuple[Settings, socket.socket]:
    """Listen where the settings say; port 0 becomes the one that was found. Raises Conflict, naming `--port`."""
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        raise Conflict(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}): choose another port with --port, or "
            "--port 0 for a free one"
        ) from error
    return settings.model_copy(update={"port": listener.getsockname()[1]}), listener


def serve_alone(settings: Settings, listener: socket.socket) -> bool:
    """Serve in this process until a signal comes; say whether it ever served."""
    _log.info("api_listens", url=api_url(settings))
    server = uvicorn.Server(_configure(settings))
    server.run(sockets=[listener])
    return server.started


def serve_together(settings: Settings, listener: socket.socket) -> None:
    """Serve in `settings.workers` processes until a signal comes; one that dies is started again.

    Raises MulliganError where one of them does not start.
    """
    run_until_signal(partial(_keep_together, settings, listener))


async def _keep_together(settings: Settings, listener: socket.socket, hurried: asyncio.Event) -> None:
    port, slots = SharedPort.open(listener, settings.workers), SharedSlots.open(settings.workers)
    names = {f"API {number}": number for number in range(1, settings.workers + 1)}

    def announce(event: ChildEvent) -> None:
        number = names[event.name]
        if event.happening is Happening.DIED:
            port.mark_away(number)
        bad = event.happening in (Happening.DIED, Happening.KILLED)
        details = {"detail": event.detail} if event.detail else {}
        (_log.warning if bad else _log.info)(f"worker_{event.happening}", worker=number, **details)

    specs = [_specify(settings, port, slots, name, number) for name, number in names.items()]
    _log.info("api_listens", url=api_url(settings), workers=settings.workers)
    async with supervise(specs, None, announce, hurried):
        try:
            await asyncio.Event().wait()
        finally:
            listener.close()  # whoever connects from now on is refused at once, and need not wait for the drain


def _specify(settings: Settings, port: SharedPort, slots: SharedSlots, name: str, number: int) -> ChildSpec:
    files = (*port.files, slots.descriptor)

    async def accepts(_child: Child) -> bool:
        return port.is_there(number)

    return ChildSpec(
        name,
        [sys.executable, "-m", "server.cli.serving", str(number), *map(str, files)],
        part_environment(settings),
        accepts,
        pass_fds=files,
        # Told politely should we vanish: what was asked is answered, or logged as cancelled.
        parting_signal=signal.SIGTERM,
    )


class SharingServer(uvicorn.Server):
    """uvicorn's server, accepting its share of the connections of a port that others serve, too."""

    def __init__(self, config: uvicorn.Config, port: SharedPort, number: int) -> None:
        super().__init__(config)
        self._port = port
        self._number = number
        self._acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept."""
        await super().startup(sockets=[])
        self._acceptor = Acceptor(
            self._port,
            self._number,
            count=lambda: len(self.server_state.connections),
            make_protocol=self._make_protocol,
        )
        self._acceptor.start()
        faulthandler.cancel_dump_traceback_later()
        _log.info("worker_serves", pid=os.getpid())

    async def on_tick(self, counter: int) -> bool:
        """Do what is done ten times a second."""
        if self._acceptor is not None:
            self._acceptor.report()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, let requests end up to a bound, and close the application."""
        if self._acceptor is not None:
            self._acceptor.stop()
        try:
            async with asyncio.timeout(CLOSE_S):
                await super().shutdown(sockets=[])
        except TimeoutError:  # whoever supervises waits for the end of this process before it starts another
            _log.error("worker_stuck", waits_for=_describe_tasks())

    def _make_protocol(self) -> asyncio.Protocol:
        protocol_class: Any = self.config.http_protocol_class
        return protocol_class(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def _describe_tasks() -> list[str]:
    """Say of each task where it stands."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    frames = [(task, task.get_stack(limit=1)) for task in others]
    return [
        f"{task.get_coro()} at {stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" for task, stack in frames if stack
    ]


def main(arguments: list[str]) -> bool:
    """Serve as one of several processes until a signal comes; say whether it ever served."""
    faulthandler.dump_traceback_later(_SLOW_START_S)
    number, *files = map(int, arguments)
    settings = Settings()
    redact = make_log_redactor(settings.log.redact)
    configure_logs(settings.log_level, json=settings.log_json, worker=number, redact=redact)
    *port, slots = files
    meter = Meter(number, SharedSlots(slots))
    server = SharingServer(_configure(settings, meter), SharedPort.take_up(port), number)
    server.run()
    return server.started


def _configure(settings: Settings, meter: Meter | None = None) -> uvicorn.Config:
    app = create_app(settings, meter=meter)
    # What is there now stays to the end; walking over it again and again would be a tenth of what a request costs.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AT)
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level=settings.log_level,
        server_header=False,
        proxy_headers=False,  # nothing here asks for the client's address
        timeout_graceful_shutdown=DRAIN_S,
    )


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1:]) else 1)

"""One listening socket that several API processes accept from, each its fair share.

The parent opens a `SharedPort` and hands its two files on to its children; each child takes it up and accepts with an
`Acceptor`. The socket outlives every child, so that no connection is refused while one of them is away: the others
accept it. Left to the kernel, one process often takes a whole burst of connections, which pooled clients then keep;
sockets of their own (SO_REUSEPORT) spread better, but lose what waits at one that dies (docs/decisions/0009). So each
process writes into a shared table how many connections it has, and one that has more than another lets that one go
first, for a moment. It must never refuse a connection, nor wait for a process that is gone.
"""

import asyncio
import errno
import mmap
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from struct import Struct

import structlog

GIVE_WAY_S = 0.002
"""How long a process with more connections waits for one with fewer. Longer than another needs to wake up, shorter than
a client notices."""

_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_OUT_OF_FILES_PAUSE_S = 1.0
_BACKLOG = 2048
_COUNT = Struct("=q")
_AWAY = -1

_log = structlog.get_logger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 is a free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


class SharedPort:
    """The listening socket, and how many connections each of its processes has. Processes are numbered from 1."""

    def __init__(self, listener: socket.socket, table: int) -> None:
        self.listener = listener
        self._table = table
        self._counts = mmap.mmap(table, 0)
        self._processes = len(self._counts) // _COUNT.size

    @classmethod
    def open(cls, listener: socket.socket, processes: int) -> "SharedPort":
        """Make the table beside a socket; all processes are away. Raises OSError."""
        with tempfile.TemporaryFile() as file:
            file.write(_COUNT.pack(_AWAY) * processes)
            file.flush()
            return cls(listener, os.dup(file.fileno()))  # open to the end of the process, for children to come

    @classmethod
    def take_up(cls, files: Sequence[int]) -> "SharedPort":
        """Take up, in a child, what `files` handed on. Raises OSError."""
        listener = socket.socket(fileno=files[0])
        listener.set_inheritable(False)  # nothing that this process starts may keep the port
        listener.setblocking(False)
        return cls(listener, files[1])

    @property
    def files(self) -> tuple[int, int]:
        """The descriptors that a child has to inherit."""
        return self.listener.fileno(), self._table

    def write_count(self, number: int, connections: int) -> None:
        """Say how many connections a process has; the first time says that it is there."""
        _COUNT.pack_into(self._counts, (number - 1) * _COUNT.size, connections)

    def mark_away(self, number: int) -> None:
        """Say that a process is gone."""
        self.write_count(number, _AWAY)

    def is_there(self, number: int) -> bool:
        """Say whether a process accepts connections."""
        return self._read_count(number) != _AWAY

    def has_more_than_another(self, number: int, connections: int) -> bool:
        """Say whether another process that is there has fewer connections than these."""
        others = (self._read_count(other) for other in range(1, self._processes + 1) if other != number)
        return any(count != _AWAY and count < connections for count in others)

    def _read_count(self, number: int) -> int:
        return _COUNT.unpack_from(self._counts, (number - 1) * _COUNT.size)[0]


class Acceptor:
    """Accepts one process's share of the connections, one at each turn of its event loop.

    `count` tells how many it has now, `make_protocol` serves the next one.
    """

    def __init__(
        self, port: SharedPort, number: int, *, count: Callable[[], int], make_protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        self._port = port
        self._number = number
        self._count = count
        self._make_protocol = make_protocol
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept."""
        self.report()
        self._loop.add_reader(self._port.listener.fileno(), self._accept_politely)

    def report(self) -> None:
        """Tell the others how many connections there are; to be repeated, for nobody says when one closes."""
        self._port.write_count(self._number, self._count() + len(self._opening))

    def stop(self) -> None:
        """Accept no more; the others go on."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._port.listener.fileno())
        self._port.mark_away(self._number)
        self._port.listener.close()

    def _accept_politely(self) -> None:
        if self._port.has_more_than_another(self._number, self._count() + len(self._opening)):
            self._rest(GIVE_WAY_S)
        else:
            self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._port.listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was quicker, or the client has gone
        except OSError as error:
            if error.errno not in _OUT_OF_FILES:
                raise
            _log.error("no_connection_accepted", error=str(error), remedy="raise the limit of open files (ulimit -n)")
            self._rest(_OUT_OF_FILES_PAUSE_S)
            return
        connection.setblocking(False)
        with suppress(OSError):  # it is closed already; whoever reads it will see
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opening = self._loop.create_task(self._open(connection))
        self._opening.add(opening)
        opening.add_done_callback(self._forget)
        self.report()

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:
            connection.close()

    def _forget(self, opening: "asyncio.Task[object]") -> None:
        self._opening.discard(opening)

    def _rest(self, pause_s: float) -> None:
        self._loop.remove_reader(self._port.listener.fileno())
        self._pause = self._loop.call_later(pause_s, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._port.listener.fileno(), self._accept_politely)
        self._accept()  # whoever was to go first has had the time; nobody waits for ever

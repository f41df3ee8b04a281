"""A TCP proxy in front of a real server, that can be closed, opened again and made deaf."""

import asyncio
import contextlib


class Proxy:
    """Forwards a port of this machine to a server, which may listen on a socket in a folder."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.host_port = port
        self.port = 0
        self.deaf = False  # bytes are swallowed, connections stay open
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse new connections and cut those that are there."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in list(self._writers):
            writer.transport.abort()
        self._tasks.clear()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.host.startswith("/"):
            opening = asyncio.open_unix_connection(f"{self.host}/.s.PGSQL.{self.host_port}")
        else:
            opening = asyncio.open_connection(self.host, self.host_port)
        server_reader, server_writer = await opening
        self._writers |= {writer, server_writer}
        for source, sink in ((reader, server_writer), (server_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(65536):
                if not self.deaf:
                    sink.write(chunk)
                    await sink.drain()
        sink.close()

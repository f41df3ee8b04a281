"""Free ports, taken ports, and a question to an HTTP address. Used by the supervisor's plan and by `mulligan serve`."""

import asyncio
import socket
from urllib.parse import urlsplit

from server.errors import Conflict


def pick_free_port(host: str) -> int:
    """Return a port that nothing listens on now."""
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def claim_port(host: str, port: int) -> int:
    """Return `port`, or a free one for 0. Raises Conflict, naming `--port`, where it is taken or not allowed."""
    if port == 0:
        return pick_free_port(host)
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            raise Conflict(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another port with --port, or --port 0 "
                "for a free one"
            ) from error
    return port


async def can_connect(url: str, default_port: int, timeout_s: float = 3.0) -> bool:
    """Say whether something listens at the address."""
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(parts.hostname or "127.0.0.1", parts.port or default_port)
            writer.close()
    except (OSError, TimeoutError):
        return False
    return True


async def ask_status(url: str, timeout_s: float = 2.0) -> int | None:
    """Return the status of a GET, or None where nothing answers in time."""
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
            try:
                path = parts.path or "/"
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
                words = (await reader.readline()).split()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET

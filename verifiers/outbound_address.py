"""Where a connection may go. Called by `verifiers.outbound_url` at registration, and at every connection made.

Owns the judgement of addresses and the look-up of names. A name is resolved here, once for each connection, and the
connection goes to what was judged: no name is ever handed on to something that would resolve it again.
"""

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
LookUp = Callable[[str], Sequence[str]]
"""Resolves a name to all its addresses, as text; blocks. Raises OSError."""

MAX_LOOK_UPS = 16

# Not public, whatever the standard library of this Python version says of it.
_NEVER = [
    ipaddress.ip_network(block)
    for block in (
        "100.64.0.0/10",  # shared by carriers and clouds; Alibaba's metadata
        "168.63.129.16/32",  # Azure's own services inside every virtual machine
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.88.99.0/24",  # relays of 6to4
        "198.18.0.0/15",  # benchmarks
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",  # documentation
    )
]
_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class NotAllowed(Exception):
    """The address may not be connected to. The message never tells which one it is: it may be an inner one."""


class NotFound(Exception):
    """The name has no address, or could not be looked up."""


class TooMany(Exception):
    """Too many names are being looked up."""


def parse_address(host: str) -> IPAddress | None:
    """Read an address in its usual form; None for a name. A zone (`%eth0`) makes it no address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host) if "%" not in host else None
    return None


def is_loopback(address: IPAddress) -> bool:
    """Say whether an address is this machine's own: 127.0.0.0/8, ::1."""
    return _unwrap(address).is_loopback


def is_public(address: IPAddress) -> bool:
    """Say whether an address lies in the public internet; what holds an IPv4 address is judged by that one."""
    address = _unwrap(address)
    if address.version == 6 and address not in _UNICAST_V6:
        return False
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address.version == block.version and address in block for block in _NEVER)


def _unwrap(address: IPAddress) -> IPAddress:
    """Take the IPv4 address out of a mapped (::ffff:a.b.c.d) or a translated (64:ff9b::a.b.c.d) one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def check_addresses(addresses: Sequence[str], *, plain: bool, loopback: bool) -> list[str]:
    """Check all addresses of a host; one that is not allowed spoils all of them.

    `plain`: the connection is not encrypted, so only this machine may be at its end. `loopback`: whether this machine
    may be.

    Raises: NotAllowed, NotFound where there is none.
    """
    found = [parse_address(address) for address in addresses]
    if not found:
        raise NotFound("the host has no address")
    if loopback and all(address is not None and is_loopback(address) for address in found):
        return list(addresses)
    if plain or not all(address is not None and is_public(address) for address in found):
        raise NotAllowed("the host is at an address that is not public")
    return list(addresses)


def look_up(name: str) -> list[str]:
    """Ask the system for the addresses of a name; blocks. Raises: OSError, UnicodeError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Names:
    """Looks names up in threads of its own, which end with the process: a slow name server holds nobody else's."""

    def __init__(self, look_up: LookUp = look_up, *, most: int = MAX_LOOK_UPS) -> None:
        self._look_up = look_up
        self._room = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._running: dict[str, Future[Sequence[str]]] = {}

    async def resolve(self, host: str) -> Sequence[str]:
        """List the addresses of a host; an address is its own. Whoever asks for the same name waits for one look-up.

        Raises: NotFound, TooMany.
        """
        if parse_address(host) is not None:
            return [host]
        try:
            return await asyncio.wrap_future(self._start(host))
        except (OSError, UnicodeError):
            raise NotFound("the name of the host cannot be resolved") from None

    def _start(self, name: str) -> "Future[Sequence[str]]":
        with self._lock:
            running = self._running.get(name)
            if running is not None:
                return running
            if not self._room.acquire(blocking=False):
                raise TooMany("too many names are being looked up")
            future: Future[Sequence[str]] = Future()
            future.set_running_or_notify_cancel()  # who gives up waiting takes it from nobody else
            thread = threading.Thread(target=self._run, args=(name, future), name="verifier-names", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                self._room.release()
                raise TooMany("no thread can be started") from None
            self._running[name] = future
        return future

    def _run(self, name: str, future: "Future[Sequence[str]]") -> None:
        try:
            found, error = self._look_up(name), None
        except Exception as caught:  # noqa: BLE001 -- whatever it is, somebody waits for it
            found, error = (), caught
        with self._lock:
            del self._running[name]
            self._room.release()
        if error is None:
            future.set_result(found)
        else:
            future.set_exception(error)

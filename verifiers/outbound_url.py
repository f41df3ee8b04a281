"""Reads the addresses (URLs) that clients register. Strict: what two readers might understand differently is refused.

Called when a configuration is compiled. It looks nothing up; where a name leads is judged at every connection.
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from verifiers.outbound_address import is_loopback, is_public, parse_address
from verifiers.policy import Policy

MAX_CHARS = 2048
HTTPS_PORT = 443
FIRST_FREE_PORT = 1024  # below it stand the well-known services, of which only HTTPS is meant

_ALLOWED = re.compile(r"[!-~]+")  # printable ASCII without spaces
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last label it makes the name an address to some readers
_OWN = (
    "the URL's host is this machine, which is not allowed here: "
    "the operator allows it with MULLIGAN_VERIFIERS__LOOPBACK=true"
)


class BadUrl(ValueError):
    """The URL cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in its parts: what the connection, the certificate and the request are each made from."""

    scheme: str
    host: str  # lower case; an IPv6 address without its brackets
    port: int
    path: str  # with the query

    @property
    def authority(self) -> str:
        """Render what the `host` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


def read_url(url: str, policy: Policy) -> Target:
    """Read a URL that verifiers shall call.

    Raises: BadUrl.
    """
    if len(url) > MAX_CHARS:
        raise BadUrl(f"the URL is longer than {MAX_CHARS:,} characters")
    if not _ALLOWED.fullmatch(url) or "\\" in url:
        raise BadUrl("the URL holds other characters than URLs do: write a host's name as xn--..., the rest as %XX")
    if url.count("://") < 1 or "#" in url:
        raise BadUrl("the URL is none without a scheme, and none with a fragment (#...)")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadUrl(f"the URL cannot be read: {error}") from None
    if "@" in parts.netloc:
        raise BadUrl("the URL holds a user or password: name a secret instead")
    if parts.scheme not in ("https", "http"):
        raise BadUrl("the URL has to start with https://")
    host = _read_host(parts.netloc)
    is_local = _check_host(host, policy)
    if parts.scheme == "http" and not is_local:
        raise BadUrl("the URL has to start with https://: plain HTTP is for this machine alone, where that is allowed")
    port = (HTTPS_PORT if parts.scheme == "https" else 80) if port is None else port
    if not (port == HTTPS_PORT or port >= FIRST_FREE_PORT or (is_local and port == 80)):
        raise BadUrl(f"port {port} is not allowed: use {HTTPS_PORT}, or one from {FIRST_FREE_PORT}")
    path = parts.path or "/"
    return Target(parts.scheme, host, port, f"{path}?{parts.query}" if parts.query else path)


def _read_host(netloc: str) -> str:
    """Take the host out of `host`, `host:port`, `[host]` or `[host]:port`."""
    match = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^\[\]:]*))(?::[0-9]{1,5})?", netloc)
    if match is None:
        raise BadUrl("the URL's host cannot be read")
    bracketed, name = match.groups()
    if bracketed is None:
        return name.lower()
    address = parse_address(bracketed)
    if address is None or address.version != 6:
        raise BadUrl("the URL's host is in brackets and no IPv6 address")
    return str(address)


def _check_host(host: str, policy: Policy) -> bool:
    """Check a host and say whether it is this machine.

    Raises: BadUrl.
    """
    address = parse_address(host)
    if address is not None:
        if is_loopback(address) and policy.loopback:
            return True
        if not is_public(address):
            raise BadUrl(_OWN if is_loopback(address) else "the URL's host is at an address that is not public")
        return False
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadUrl("the URL's host is no name: labels of a-z, 0-9, - and _, with single dots between them")
    if _NUMBER.fullmatch(labels[-1]):
        raise BadUrl("the URL's host is an IP address in an unusual form: write four decimal numbers")
    if labels[-1] == "localhost":
        if not policy.loopback:
            raise BadUrl(_OWN)
        return True
    if len(labels) == 1:
        raise BadUrl("the URL's host is a name without a domain")
    return False

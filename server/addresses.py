"""Says what may be shown of an address, and what an engine's may hold."""

import re
from urllib.parse import urlsplit

_SAID = re.compile(r"([?&][^=&]*(?:pass|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def hide_password(url: str) -> str:
    """Return an address without the password that it may carry: before the host, or in its query."""
    scheme, separator, rest = url.partition("://")
    user, at, place = rest.rpartition("@")  # the last one, for a password may hold one, and a slash, too
    name, colon, _ = user.partition(":")
    shown = f"{name}:***@{place}" if at and colon else rest
    return scheme + separator + _SAID.sub(r"\1***", shown)


def check_engine_url(url: str) -> str:
    """Return an engine's address. Raises ValueError where it is none, or carries a password, which is not repeated."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("an engine's address takes no user or password: give http://HOST:PORT")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an engine's address: give http://HOST:PORT")
    return url

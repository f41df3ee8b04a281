"""Says what may be shown of an address. Used wherever one is printed, or stands in an error."""

import re

_SAID = re.compile(r"([?&][^=&]*(?:pass|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def hide_password(url: str) -> str:
    """Return an address without the password that it may carry: before the host, or in its query."""
    scheme, separator, rest = url.partition("://")
    user, at, place = rest.rpartition("@")  # the last one, for a password may hold one, and a slash, too
    name, colon, _ = user.partition(":")
    shown = f"{name}:***@{place}" if at and colon else rest
    return scheme + separator + _SAID.sub(r"\1***", shown)

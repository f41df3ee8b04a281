"""Makes text and JSON fit for both databases before they are written. Called by every store that writes.

PostgreSQL cannot hold U+0000 in text or JSONB, and no database can hold a lone surrogate, yet a model may emit both.
U+0000 becomes U+2400 (the visible sign for it) and a lone surrogate U+FFFD, on SQLite too, so that both dialects hold
the same. Token ids are never touched: what is trained on stays exactly what was sampled.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

NUL_SIGN = "\u2400"


def clean_text(text: str) -> str:
    """Replace what a database cannot hold; the same object where there is nothing to replace."""
    if "\0" in text:
        text = text.replace("\0", NUL_SIGN)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def finite(number: float) -> float:
    """Replace NaN and the infinities by 0: SQLite stores NaN as NULL and JSON has no word for either."""
    return number if math.isfinite(number) else 0.0


def _encode_unknown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # arrays and scalars of numpy, without importing it
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be logged as JSON")


_encoder = msgspec.json.Encoder(enc_hook=_encode_unknown)


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {_clean_value(name): _clean_value(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_clean_value(part) for part in value]
    return value


def encode_json(value: Any) -> str:
    """Encode as JSON that both databases take; the order of keys stays. NaN and the infinities become null.

    Raises: TypeError for what JSON cannot say.
    """
    try:
        encoded = _encoder.encode(value)
    except UnicodeEncodeError:
        encoded = b"\\u0000"  # a lone surrogate somewhere: take the slow way
    if b"\\u0000" in encoded:
        encoded = _encoder.encode(_clean_value(msgspec.to_builtins(value, enc_hook=_encode_unknown)))
    return encoded.decode()


decode_json = msgspec.json.decode
"""The other direction."""

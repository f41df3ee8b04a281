"""Packs token arrays into bytes and back: int32 and float32, little endian. Called by the episode rows only."""

import struct
from collections.abc import Sequence


def pack_ids(ids: Sequence[int]) -> bytes:
    """Pack token ids as int32. Raises: OverflowError for what does not fit."""
    try:
        return struct.pack(f"<{len(ids)}i", *ids)
    except struct.error as error:
        raise OverflowError(f"A token id is no int32: {error}") from error


def pack_logprobs(logprobs: Sequence[float]) -> bytes:
    """Pack natural-log probabilities as float32. Raises: OverflowError for what does not fit."""
    return struct.pack(f"<{len(logprobs)}f", *logprobs)


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    """Unpack what `pack_ids` packed."""
    return struct.unpack(f"<{len(packed) // 4}i", packed)


def unpack_logprobs(packed: bytes) -> tuple[float, ...]:
    """Unpack what `pack_logprobs` packed."""
    return struct.unpack(f"<{len(packed) // 4}f", packed)

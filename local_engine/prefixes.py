"""Remembers the keys and values of past sequences, so that a prompt that begins like one of them is not computed again.

A retry repeats the conversation that failed, and a group of rollouts shares its prompt: most prompt tokens were seen
before. One store for all models, so that it has one limit; an adapter changes keys and values, so each model's prefixes
are named with a salt of its own. Used by the decoding thread alone.
"""

from collections import OrderedDict
from hashlib import blake2b

import numpy as np
import torch

BLOCK_TOKENS = 16  # prefixes are found at multiples of this


def block_keys(tokens: list[int], salt: bytes = b"") -> list[bytes]:
    """Name each prefix of whole blocks, shortest first, by a digest of all its tokens and the salt."""
    raw = np.asarray(tokens, dtype=np.int32).tobytes()
    digest, keys = blake2b(salt, digest_size=16), []
    for start in range(0, len(raw) - 4 * BLOCK_TOKENS + 1, 4 * BLOCK_TOKENS):
        digest.update(raw[start : start + 4 * BLOCK_TOKENS])
        keys.append(digest.digest())
    return keys


class PrefixStore:
    """The most recently used sequences' keys and values, up to `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, tuple[list[bytes], torch.Tensor]] = OrderedDict()  # by the longest prefix
        self._owners: dict[bytes, bytes] = {}  # every prefix held -> the entry that holds it

    def find(self, keys: list[bytes]) -> tuple[int, torch.Tensor | None]:
        """Find the longest of these prefixes that is held: (tokens, what `KvRows.copy_out` gave), or (0, None)."""
        for blocks in range(len(keys), 0, -1):
            owner = self._owners.get(keys[blocks - 1])
            if owner is not None:
                self._entries.move_to_end(owner)
                return blocks * BLOCK_TOKENS, self._entries[owner][1]
        return 0, None

    def holds(self, key: bytes) -> bool:
        """Say whether a prefix is held."""
        return key in self._owners

    def keep(self, keys: list[bytes], prefix: torch.Tensor) -> None:
        """Remember a sequence that is not held yet, by the keys of all its prefixes."""
        if keys[-1] in self._entries:  # held, though its name went with a longer entry that had taken it over
            self._bytes -= self._entries.pop(keys[-1])[1].nbytes
        self._entries[keys[-1]] = (keys, prefix)
        for key in keys:
            self._owners[key] = keys[-1]
        self._bytes += prefix.nbytes
        while self._bytes > self._limit_bytes and len(self._entries) > 1:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        oldest, (keys, prefix) = self._entries.popitem(last=False)
        self._bytes -= prefix.nbytes
        for key in keys:
            # A prefix may be gone already: with the entry that had taken it over.
            if self._owners.get(key) == oldest:
                del self._owners[key]

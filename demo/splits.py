"""Decides which split a piece of content belongs to.

A split is chosen by a hash of the content itself (sorted numbers, a tool's name, a person's name), so it is the same
on every machine and for every seed, and nothing of one split can turn up in another, in whatever order it is written.
"""

import hashlib
from typing import Literal

Split = Literal["pretraining", "training", "held_out"]
SPLITS: tuple[Split, ...] = ("pretraining", "training", "held_out")

HELD_OUT_SHARE = 0.2
TRAINING_SHARE = 0.2


def split_of(content: str) -> Split:
    """Return the split of a canonical content string."""
    share = int(hashlib.sha256(content.encode()).hexdigest()[:12], 16) / 16**12
    if share < HELD_OUT_SHARE:
        return "held_out"
    return "training" if share < HELD_OUT_SHARE + TRAINING_SHARE else "pretraining"

"""Decides which split a piece of content belongs to.

A split is chosen by a hash of the content itself (sorted numbers, a tool's name, a person's name), so it is the same
on every machine and for every seed, and nothing of one split can turn up in another, in whatever order it is written.

The shipped weights were trained on `pretraining`: its share must never change. `development` was looked at while
settings were chosen. `test` is looked at by `make evidence` alone, and no setting may be chosen by it
(docs/decisions/0016-frozen-splits.md).
"""

import hashlib
from typing import Literal

Split = Literal["pretraining", "training", "development", "test"]
SPLITS: tuple[Split, ...] = ("pretraining", "training", "development", "test")

DEVELOPMENT_SHARE = 0.2
TRAINING_SHARE = 0.2  # with what became `test`, half of it by a hash of its own
TEST_SHARE_OF_TRAINING = 0.5


def split_of(content: str) -> Split:
    """Return the split of a canonical content string."""
    share = _hash_share(content)
    if share < DEVELOPMENT_SHARE:
        return "development"
    if share >= DEVELOPMENT_SHARE + TRAINING_SHARE:
        return "pretraining"
    return "test" if _hash_share(f"test {content}") < TEST_SHARE_OF_TRAINING else "training"


def _hash_share(content: str) -> float:
    """Return where in [0, 1) a text's hash falls."""
    return int(hashlib.sha256(content.encode()).hexdigest()[:12], 16) / 16**12

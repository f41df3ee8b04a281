"""Decides which conversations are held out of training. Called where an episode is made, and by the trainer.

The split hangs on content alone, so that the same problem lands on the same side on every machine, in every process
and in every round. It must never look at an outcome.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal


def read_text(content: Any) -> str:
    """Read the text of a message's content: a string, or OpenAI's list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, Mapping))
    return "\n".join(text for text in texts if isinstance(text, str))


def split_of(messages: Sequence[Mapping[str, Any]], held_out_share: float) -> Literal["held_out", "training"]:
    """Say on which side a conversation lies, by SHA-256 of its first user message (its first one, without any).

    `held_out_share` is the share of conversations to hold out, in (0, 1).
    """
    first = messages[0] if messages else {}
    for message in messages:
        if message.get("role") == "user":
            first = message
            break
    digest = hashlib.sha256(read_text(first.get("content")).encode("utf-8", "surrogatepass")).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") < held_out_share * 2**64 else "training"

"""Decides by hashes which conversations are held out of training, and which a canary answers.

Called where episodes begin, and by the trainer. The split hangs on content alone, so that the same problem lands on the
same side on every machine, in every process and in every round. A canary's share also hangs on who asks, so that it is
as if by chance, and stays with a conversation in every process. Neither may ever look at an outcome.
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
    digest = hashlib.sha256(_first_text(messages).encode("utf-8", "surrogatepass")).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") < held_out_share * 2**64 else "training"


def draw_conversation(canary: str, who: tuple[str, str], messages: Sequence[Mapping[str, Any]]) -> str:
    """Draw a number for a conversation, 16 hex digits, as if by chance: it says whether it begins with the canary.

    A conversation is known by its first user message and by `who` asks: the API key's id, and the user that the request
    names. Each canary draws anew.
    """
    text = "\0".join((canary, *who, _first_text(messages)))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def tries_canary(conversation: str, share: float) -> bool:
    """Say whether what was drawn for a conversation is within a share, in (0, 1); a larger one keeps those."""
    return int(conversation, 16) < share * 2**64


def _first_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Read the first user message, or the first one where there is none."""
    first = messages[0] if messages else {}
    for message in messages:
        if message.get("role") == "user":
            first = message
            break
    return read_text(first.get("content"))

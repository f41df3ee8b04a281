"""Chooses the replica that a request goes to: the least loaded, unless another one has read its beginning already.

Pure: no I/O, no clock. Only `server.engine.routing` and, for the beginnings, `server.engine.replicas` call it.

After the `cache_aware` policy of SGLang's router (sglang-router; its successor's page is
https://github.com/lightseekorg/smg, docs/concepts/routing/cache-aware.md). Taken from it: a request goes where its
beginning was read before, because that engine's prefix cache holds it, but only while that engine's load is not much
higher, by an absolute and a relative threshold (there 64 requests and 1.5 times); else the least loaded one gets it.
Left out: its tree of all texts that went to each engine, matched by the longest common beginning. A conversation's
beginning is hashed here instead, up to its first user message, with the adapter's name (SGLang's cache is an adapter's
own). That finds the turns of one conversation, the retries of one episode and the rollouts of one group; two
conversations that share no more than a system prompt count as strangers.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

SLACK_REQUESTS = 8
SLACK_SHARE = 0.5
"""A known beginning wins while its engine has at most so many requests more than the least loaded one."""

MOST_BEGINNINGS = 8192
_TEXT_BEGINNING = 256


class Loaded(Protocol):
    """What is chosen among."""

    in_flight: int


Candidate = TypeVar("Candidate", bound=Loaded)


class Beginnings:
    """Remembers which engine read the beginning of which conversation; the oldest of them are forgotten."""

    def __init__(self, most: int = MOST_BEGINNINGS) -> None:
        self._most = most
        self._read_by: OrderedDict[int, object] = OrderedDict()
        self._turn = 0

    def choose(self, beginning: int, among: Sequence[Candidate]) -> Candidate:
        """Choose one of `among` (at least one), and remember it. Equally loaded ones take turns."""
        least = min([one.in_flight for one in among])
        known = self._read_by.get(beginning)
        chosen = next((one for one in among if one is known), None)
        if chosen is None or chosen.in_flight > least + SLACK_REQUESTS + SLACK_SHARE * least:
            equal = [one for one in among if one.in_flight == least]
            self._turn += 1
            chosen = equal[self._turn % len(equal)]
        self._read_by[beginning] = chosen
        self._read_by.move_to_end(beginning)
        if len(self._read_by) > self._most:
            self._read_by.popitem(last=False)
        return chosen

    def forget(self, engine: object) -> None:
        """Forget what an engine read: it was away, and its cache may be empty."""
        self._read_by = OrderedDict((key, one) for key, one in self._read_by.items() if one is not engine)


def chat_beginning(body: Mapping[str, Any], adapter: str) -> int:
    """Hash a chat's messages up to its first user message, under its adapter."""
    words = [adapter]
    for message in body.get("messages") or ():
        words.append(_text_of(message.get("content")))
        if message.get("role") == "user":
            break
    return hash(tuple(words))


def text_beginning(body: Mapping[str, Any], adapter: str) -> int:
    """Hash the beginning of a raw text, or of a list of token ids, under its adapter."""
    prompt = body.get("prompt") or ""
    return hash((adapter, prompt[:_TEXT_BEGINNING] if isinstance(prompt, str) else tuple(prompt[:_TEXT_BEGINNING])))


def ids_beginning(prompt_ids: Sequence[int], adapter: str) -> int:
    """Hash a whole prompt of token ids under its adapter: the rollouts of a group share it."""
    return hash((adapter, tuple(prompt_ids)))


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join([part["text"] for part in content or () if isinstance(part, Mapping) and part.get("text")])

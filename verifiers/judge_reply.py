"""Reads what a judge replied: a vote, or none. Strict, since a reply is half made of what it judged.

A vote repeats the number that its question was asked with. That shows that the reply was made for this question, and is
not a verdict that stood ready in the answer. Nothing shows that the judge was not talked into it.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verifiers.answers import NotJson, read_json
from verifiers.base import Cause
from verifiers.judge_prompt import SCORE_TOP
from verifiers.outbound import Reply
from verifiers.outbound_body import read

MAX_OPENINGS = 64  # places where the last JSON object of a reply may begin
MAX_REASON_CHARS = 2000


class NoVote(Exception):
    """The judge gave no vote that counts."""

    def __init__(self, reason: str, cause: Cause = Cause.BAD_RETURN) -> None:
        super().__init__(reason, cause)
        self.reason = reason
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Vote:
    """What one judge said; `score` lies in [0, 1]."""

    score: float
    reason: str


def describe_vote(*, is_scored: bool) -> dict[str, Any]:
    """Describe a vote as a `response_format`, for the servers that can hold a model to it."""
    said = {"type": "integer", "minimum": 0, "maximum": SCORE_TOP} if is_scored else {"type": "boolean"}
    verdict = "score" if is_scored else "passed"
    schema = {
        "type": "object",
        "properties": {"nonce": {"type": "string"}, "reason": {"type": "string"}, verdict: said},
        "required": ["nonce", "reason", verdict],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "vote", "strict": True, "schema": schema}}


def read_vote(reply: Reply, nonce: str, *, is_scored: bool) -> Vote:
    """Read a chat completion whose message is a vote.

    Raises: NoVote.
    """
    if reply.status != 200:
        raise NoVote(f"the judge's server answered with status {reply.status}", Cause.UNREACHABLE)
    try:
        completion = read(reply.body)
    except NotJson as error:
        raise NoVote(f"the judge's server did not answer JSON: {error}") from None
    choices = completion.get("choices") if isinstance(completion, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(choice, Mapping) or not isinstance(message, Mapping):
        raise NoVote("the judge's server did not answer a chat completion")
    content = message.get("content")
    if message.get("refusal"):
        raise NoVote("the judge refused", Cause.UNDECIDED)
    if not isinstance(content, str) or not content.strip():
        raise NoVote("the judge's reply is empty")
    if choice.get("finish_reason") == "length":
        raise NoVote("the judge's reply was cut off: raise max_tokens")
    return _check_vote(find_last_object(content), nonce, is_scored=is_scored)


def find_last_object(text: str) -> dict[str, Any]:
    """Find the JSON object that a text ends with, inside a fence or not.

    Raises: NoVote.
    """
    text = text.strip().removesuffix("```").rstrip()
    end = len(text)
    for _ in range(MAX_OPENINGS if text.endswith("}") else 0):
        end = text.rfind("{", 0, end)
        if end < 0:
            break
        try:
            found = read_json(text[end:])
        except NotJson:
            continue
        if isinstance(found, dict):
            return found
    raise NoVote("the judge's reply does not end with a JSON object")


def _check_vote(said: dict[str, Any], nonce: str, *, is_scored: bool) -> Vote:
    verdict = "score" if is_scored else "passed"
    if said.keys() != {"nonce", "reason", verdict}:
        raise NoVote(f"the judge's reply is not an object of nonce, reason and {verdict}")
    if not isinstance(said["nonce"], str) or not hmac.compare_digest(said["nonce"].encode(), nonce.encode()):
        raise NoVote("the judge did not repeat the number of its question")
    value, reason = said[verdict], said["reason"]
    if not isinstance(reason, str):
        raise NoVote("the judge's reason is no text")
    reason = reason.replace("\0", "\ufffd")[:MAX_REASON_CHARS]
    if not is_scored:
        if not isinstance(value, bool):
            raise NoVote("the judge's verdict is neither true nor false")
        return Vote(float(value), reason)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= SCORE_TOP:
        raise NoVote(f"the judge's score is no whole number from 0 to {SCORE_TOP}")
    return Vote(value / SCORE_TOP, reason)

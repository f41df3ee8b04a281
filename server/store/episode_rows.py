"""Turns an episode into the rows of its three tables and back.

The episode log writes these rows, into the database or the spool; the episode store reads them. Pure: no database
here. Rows hold only text, numbers, bytes and None, in the order of the tables' columns, clean for both dialects.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import Table

from server.domain import (
    Attempt,
    Binding,
    BindingMode,
    Episode,
    LoggedVerdict,
    Outcome,
    Reflection,
    RetryPolicy,
    Usage,
    VerifyMode,
)
from server.store import tables
from server.store.cleaning import clean_text, encode_json, finite
from server.store.packing import pack_ids, pack_logprobs, unpack_ids, unpack_logprobs

Row = tuple[Any, ...]
Values = Mapping[str, Any]

TABLES: tuple[Table, ...] = (tables.episodes, tables.attempts, tables.reflections)
COLUMNS: tuple[tuple[str, ...], ...] = tuple(tuple(str(column.name) for column in table.columns) for table in TABLES)

SINCE: Mapping[str, Any] = {"trains": True}
"""What a column holds in a record that was spooled before there was such a column; None for any other."""

_in_order = [itemgetter(*columns) for columns in COLUMNS]
_deterministic = msgspec.json.Encoder(order="deterministic", enc_hook=dict)


class EpisodeRows(msgspec.Struct, array_like=True, frozen=True):
    """One episode, ready to be written: its row, its attempts' and its reflections'."""

    episode: Row
    attempts: tuple[Row, ...]
    reflections: tuple[Row, ...]


def identify_problem(request: Mapping[str, Any], bindings: Sequence[Binding]) -> str:
    """Hash what was asked: messages, tools and the verifiers' arguments, not how it was sampled or who watched."""
    args = [binding.args for binding in bindings if binding.mode == BindingMode.ENFORCE]
    problem = (request.get("messages"), request.get("tools"), args)
    try:
        encoded = _deterministic.encode(problem)
    except UnicodeEncodeError:
        encoded = encode_json(problem).encode()
    return hashlib.sha256(encoded).hexdigest()[:32]


def hash_user(name: object) -> str:
    """Hash what a request calls its user by; "" for nobody. So a user is found again, and no name is kept for it."""
    if not isinstance(name, str) or not name:
        return ""
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:32]


def hash_users(request: Mapping[str, Any] | None) -> tuple[str, str]:
    """Hash a request's `user` and its `safety_identifier`."""
    said = request or {}
    return hash_user(said.get("user")), hash_user(said.get("safety_identifier"))


def encode_episode(episode: Episode, users: tuple[str, str] | None = None) -> EpisodeRows:
    """Make the rows of an episode. With `store: false` everything that a client or the model wrote is left out.

    `users` are the hashes of whom the request named, where the episode's own request does not tell any more.

    Raises: TypeError for what JSON cannot say, OverflowError for a token id beyond int32.
    """
    keep = episode.store
    user_hash, safety_hash = (users or hash_users(episode.request)) if keep else ("", "")
    request = episode.request if keep else None
    bindings = (
        episode.bindings
        if keep
        else tuple(Binding(b.kind, {}, b.name, b.version, mode=b.mode) for b in episode.bindings)
    )
    values = {
        "id": clean_text(episode.id),
        "task": clean_text(episode.task),
        "model": clean_text(episode.model),
        "base_model": clean_text(episode.base_model),
        "adapter": clean_text(episode.adapter),
        "key": clean_text(episode.key),
        "request": None if request is None else encode_json(request),
        "bindings": _encode_some(bindings),
        "verify": str(episode.verify),
        "retry": _encode_policy(episode.retry),
        "prompts": _encode_some(episode.prompts),
        "store": keep,
        "outcome": str(episode.outcome),
        "error": clean_text(episode.error),
        "created_at": finite(episode.created_at),
        "duration_ms": finite(episode.duration_ms),
        "split": clean_text(episode.split),
        "problem": "" if request is None else identify_problem(request, bindings),
        "trains": episode.trains,
        "user_hash": user_hash,
        "safety_hash": safety_hash,
        "conversation": episode.conversation if keep else episode.conversation and clean_text(episode.id),
    }
    return EpisodeRows(
        _in_order[0](values),
        tuple([_in_order[1](_encode_attempt(attempt, episode)) for attempt in episode.attempts]),
        tuple([_in_order[2](_encode_reflection(reflection, episode)) for reflection in episode.reflections]),
    )


def _encode_attempt(attempt: Attempt, episode: Episode) -> dict[str, Any]:
    keep = episode.store
    return {
        "episode_id": clean_text(episode.id),
        "number": attempt.number,
        "answer": encode_json(attempt.answer if keep else {}),
        "finish_reason": clean_text(attempt.finish_reason),
        "prompt_tokens": attempt.usage.prompt_tokens,
        "completion_tokens": attempt.usage.completion_tokens,
        "status": clean_text(str(attempt.status)),
        "score": finite(attempt.score),
        "reason": clean_text(attempt.reason) if keep else "",
        "verdicts": _encode_some([_bound_verdict(verdict, keep=keep) for verdict in attempt.verdicts]),
        "sampling": encode_json(attempt.sampling if keep else {}),
        "adapter": clean_text(episode.adapter),
        "started_at": finite(attempt.started_at),
        "engine_ms": finite(attempt.engine_ms),
        "verify_ms": finite(attempt.verify_ms),
        "logprobs": None if attempt.logprobs is None or not keep else encode_json(attempt.logprobs),
    }


def _bound_verdict(verdict: LoggedVerdict, *, keep: bool) -> LoggedVerdict:
    """Make sure that a verdict can be read back: JSON would turn a score of NaN into null."""
    return LoggedVerdict(
        verifier=verdict.verifier,
        status=str(verdict.status),
        score=finite(verdict.score),
        reason=verdict.reason if keep else "",
        safe_for_model=verdict.safe_for_model,
        stdout=verdict.stdout if keep else "",
        duration_ms=finite(verdict.duration_ms),
        cause=verdict.cause,
        mode=verdict.mode,
    )


def _encode_reflection(reflection: Reflection, episode: Episode) -> dict[str, Any]:
    keep = episode.store
    return {
        "episode_id": clean_text(episode.id),
        "attempt": reflection.attempt,
        "text": clean_text(reflection.text) if keep else "",
        "prompt_tokens": reflection.usage.prompt_tokens,
        "completion_tokens": reflection.usage.completion_tokens,
        "prompt_ids": pack_ids(reflection.prompt_ids if keep else ()),
        "token_ids": pack_ids(reflection.token_ids if keep else ()),
        "logprobs": pack_logprobs(reflection.logprobs if keep else ()),
        "adapter": clean_text(reflection.adapter),
        "template_hash": clean_text(reflection.template_hash),
        "sampling": encode_json(reflection.sampling if keep else {}),
        "finish_reason": clean_text(reflection.finish_reason),
        "started_at": finite(reflection.started_at),
        "engine_ms": finite(reflection.engine_ms),
    }


@lru_cache(maxsize=256)
def _encode_policy(policy: RetryPolicy) -> str:
    return encode_json(policy)


def _encode_some(values: Any) -> str:
    return encode_json(values) if values else "{}" if isinstance(values, Mapping) else "[]"


def decode_episode(values: Values, attempts: list[Attempt], reflections: list[Reflection]) -> Episode:
    """Make the episode of a row of `episodes` and what belongs to it."""
    return Episode(
        id=values["id"],
        task=values["task"],
        model=values["model"],
        base_model=values["base_model"],
        adapter=values["adapter"],
        key=values["key"],
        request=values["request"],
        bindings=msgspec.convert(values["bindings"], tuple[Binding, ...]),
        verify=VerifyMode(values["verify"]),
        retry=msgspec.convert(values["retry"], RetryPolicy),
        prompts=values["prompts"],
        store=values["store"],
        outcome=Outcome(values["outcome"]),
        attempts=attempts,
        reflections=reflections,
        error=values["error"],
        created_at=values["created_at"],
        duration_ms=values["duration_ms"],
        split=values["split"],
        trains=values["trains"],
        conversation=values["conversation"] or "",
    )


def decode_attempt(values: Values) -> Attempt:
    """Make the attempt of a row of `attempts`; `logprobs` may have been left unread."""
    return Attempt(
        number=values["number"],
        answer=values["answer"],
        finish_reason=values["finish_reason"],
        usage=Usage(values["prompt_tokens"], values["completion_tokens"]),
        status=values["status"],
        score=values["score"],
        reason=values["reason"],
        verdicts=msgspec.convert(values["verdicts"], tuple[LoggedVerdict, ...]),
        sampling=values["sampling"],
        started_at=values["started_at"],
        engine_ms=values["engine_ms"],
        verify_ms=values["verify_ms"],
        logprobs=values.get("logprobs"),
    )


def decode_reflection(values: Values) -> Reflection:
    """Make the reflection of a row of `reflections`; the token arrays may have been left unread."""
    return Reflection(
        attempt=values["attempt"],
        text=values["text"],
        usage=Usage(values["prompt_tokens"], values["completion_tokens"]),
        prompt_ids=unpack_ids(values.get("prompt_ids", b"")),
        token_ids=unpack_ids(values.get("token_ids", b"")),
        logprobs=unpack_logprobs(values.get("logprobs", b"")),
        adapter=values["adapter"],
        template_hash=values["template_hash"],
        sampling=values["sampling"],
        finish_reason=values["finish_reason"],
        started_at=values["started_at"],
        engine_ms=values["engine_ms"],
    )

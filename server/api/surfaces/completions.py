"""`/v1/completions`: reads and renders OpenAI's raw text completions. See `server.api.surfaces.base`."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from server.api.binding import resolve_verifiers
from server.api.context import Context
from server.api.gathering import Gathering
from server.api.render import render_mulligan, render_usage, sum_usage
from server.api.resolution import resolve_target
from server.api.surfaces.base import Ask
from server.api.surfaces.completions_request import Wanted, read_completions
from server.api.surfaces.tolerance import read_tolerantly
from server.api.wire import DONE, frame_event, render_failure
from server.domain import ApiKey, Attempt, Episode, Reflection, VerifyMode
from server.errors import InvalidRequest, MulliganError

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class CompletionsSurface:
    """Implements `Surface` for raw text completions."""

    def read(self, body: bytes, key: ApiKey, context: Context) -> Ask:
        """Read a request. Raises: InvalidRequest, naming the field."""

        def read(ignore_unknown: bool) -> Ask:
            return read_completions(body, context.settings, ignore_unknown=ignore_unknown)

        return read_tolerantly(read, body, key, context)

    async def extend(self, ask: Ask, key: ApiKey, context: Context) -> Ask:
        """Refuse token ids where verifiers apply: neither they nor a reflection could read what was asked.

        Raises: InvalidRequest, and what names may raise.
        """
        if ask.original.token_ids:
            task = (await resolve_target(ask.request, key, context)).task
            mode = VerifyMode(ask.request.verify) if ask.request.verify else task.verify
            if mode is not VerifyMode.OFF and (await resolve_verifiers(ask.request, task, key, context)).enforces:
                message = "Token ids cannot be verified: send the prompt as text, or `verify: off`."
                raise InvalidRequest(message, param="prompt", code="unverifiable_prompt")
        return ask

    def render(self, ask: Ask, episodes: Sequence[Episode]) -> bytes:
        """Render the whole completion."""
        wanted: Wanted = ask.original
        choices = []
        for index, episode in enumerate(episodes):
            last = episode.attempts[-1]
            text = wanted.echoes[index] + _text_of(last)
            choices.append(_choice(index, text, last.finish_reason, render_text_logprobs(last.logprobs)))
        usage = {"usage": render_usage(sum_usage(episodes)), "mulligan": render_mulligan(episodes)}
        return _encode({**_head(episodes), "choices": choices, **usage})

    def open_events(self, ask: Ask, episodes: Sequence[Episode]) -> "CompletionsEvents":
        """Begin a stream of chunks."""
        return CompletionsEvents(ask, episodes)


class CompletionsEvents:
    """Implements `Events` with `text_completion` chunks; `mulligan` stands in the one that finishes and in the last."""

    def __init__(self, ask: Ask, episodes: Sequence[Episode]) -> None:
        self._ask, self._episodes = ask, episodes
        self._head = _head(episodes)
        self._echoes = list(ask.original.echoes)
        self._written = [0] * len(episodes)  # characters of each choice, for `text_offset`
        self._kept: list[dict[str, Any]] = []

    def begin(self) -> bytes:
        """Frame nothing."""
        return b""

    def reasoning(self, index: int, failed: Attempt, reflection: Reflection) -> bytes:
        """Frame nothing: a raw text has no place for it."""
        return b""

    def answer(self) -> bytes:
        """Frame the verified answers, each in one chunk, and their ends."""
        shown = []
        for index, episode in enumerate(self._episodes):
            last = episode.attempts[-1]
            logprobs = render_text_logprobs(last.logprobs)
            text = self._take_echo(index) + _text_of(last)
            shown.append(self._frame({**self._head, "choices": [_choice(index, text, None, logprobs)]}))
            self._kept.append({**self._head, "choices": [_choice(index, "", last.finish_reason)]})
        return b"".join(shown) + self.finish()

    def passing(self, index: int, payload: bytes, gathering: Gathering) -> bytes:
        """Pass a chunk on under the completion's own id and the choice's index, or keep it where it is the last."""
        if not gathering.carried:
            return b""  # the usage, which the log asked for
        choices = []
        for choice in _decode(payload).get("choices") or ():
            text = self._take_echo(index) + (choice.get("text") or "")
            logprobs = render_text_logprobs(choice.get("logprobs"), self._written[index])
            self._written[index] += len(choice.get("text") or "")
            choices.append(_choice(index, text, choice.get("finish_reason"), logprobs))
        chunk = {**self._head, "choices": choices}
        if gathering.finish_reason:
            self._kept.append(chunk)
            return b""
        return self._frame(chunk)

    def finish(self) -> bytes:
        """Frame what was kept, the usage where it was asked for, and what happened."""
        ours = {"mulligan": render_mulligan(self._episodes)}
        self._kept[-1] |= ours
        if self._ask.includes_usage:
            self._kept.append({**self._head, "choices": [], "usage": render_usage(sum_usage(self._episodes)), **ours})
        return b"".join(map(self._frame, self._kept)) + DONE

    def failure(self, error: MulliganError) -> bytes:
        """Frame an error; there is no `[DONE]` after it."""
        return render_failure(error)

    def _take_echo(self, index: int) -> str:
        echo, self._echoes[index] = self._echoes[index], ""
        return echo

    def _frame(self, chunk: Mapping[str, Any]) -> bytes:
        return frame_event(_encode(chunk))


def render_text_logprobs(logprobs: Mapping[str, Any] | None, offset: int = 0) -> dict[str, Any] | None:
    """Render logprobs in the columns of completions: a retry is a chat, and has them as rows.

    `offset` is where their first token stands in the text.
    """
    if not logprobs:
        return None
    if "tokens" in logprobs:
        tokens, token_logprobs = logprobs["tokens"], logprobs.get("token_logprobs")
        top = logprobs.get("top_logprobs") or None
    else:
        rows = logprobs.get("content") or ()
        tokens, token_logprobs = [row["token"] for row in rows], [row["logprob"] for row in rows]
        tops = [{one["token"]: one["logprob"] for one in row.get("top_logprobs") or ()} for row in rows]
        top = tops if any(tops) else None
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {"tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top, "text_offset": offsets}


def _text_of(last: Attempt) -> str:
    return last.answer.get("content") or ""


def _choice(
    index: int, text: str, finish_reason: str | None, logprobs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    # A raw text knows no other ends; a retry, which is a chat, might.
    known = finish_reason if finish_reason in (None, "length", "content_filter") else "stop"
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": known}


def _head(episodes: Sequence[Episode]) -> dict[str, Any]:
    first = episodes[0]
    names = {"id": "cmpl-" + first.id.partition("_")[2], "object": "text_completion"}
    return {**names, "created": int(first.created_at), "model": first.model}

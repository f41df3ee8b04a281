"""The kind `judge`: a model behind any OpenAI-compatible URL judges by a rubric, once or by the majority of several.

Owns how votes are asked for and counted. What is asked stands in `verifiers.judge_prompt`, what counts as a vote in
`verifiers.judge_reply`, and the way there is `verifiers.outbound`'s.
"""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from verifiers.base import Answer, Cause, InvalidVerifier, Request, Verdict
from verifiers.judge_prompt import SCORE_TOP, write_prompt
from verifiers.judge_reply import MAX_REASON_CHARS, NoVote, Vote, describe_vote, read_vote
from verifiers.kind import NETWORK, Kind
from verifiers.outbound import MAX_TIMEOUT_S, Headers, Outbound, Reply, Unanswered
from verifiers.outbound_body import TooMuch, write
from verifiers.outbound_secret import SECRET_NAME, NoSecret, find_secret
from verifiers.outbound_url import BadUrl, read_url
from verifiers.policy import current

NAME = "judge"
PATH = "/chat/completions"
VOTES = (1, 3, 5, 7, 9)
TIMEOUT_S = 20.0
MAX_TOKENS = 1024
THRESHOLD = 0.5
RETRIES = 1
_REFUSED = frozenset({400, 415, 422, 501})  # what servers answer to a field that they do not know


class JudgeVerifier:
    """Compiled. What it learns of its server, which fields it takes, is kept for its next questions.

    Raises: InvalidVerifier for a URL that may not be called and for a secret that the operator did not set for it.
    """

    def __init__(self, config: Mapping[str, Any], outbound: Outbound) -> None:
        self._config = config
        self._outbound = outbound
        self._is_scored = config.get("scale") == "score"
        self._is_structured = True  # until the server refuses it
        self._limit_name = "max_tokens"  # or max_completion_tokens, where the server asks for that
        try:
            target = read_url(config["url"], current())
        except BadUrl as error:
            raise InvalidVerifier(f"{NAME}: {error}", "/url") from None
        if "?" in target.path:
            raise InvalidVerifier(f"{NAME}: the URL ends before {PATH}, and has no query", "/url")
        self._target = replace(target, path=target.path.rstrip("/").removesuffix(PATH) + PATH)
        try:
            self._make_headers()
        except NoSecret as error:
            raise InvalidVerifier(f"{NAME}: {error}", "/api_key") from None

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Ask for all votes side by side; more than half of them decide, else it abstains."""
        votes: int = self._config.get("votes", 1)
        said = await asyncio.gather(*(self._ask(request, answer, args) for _ in range(votes)))
        return count_votes(said, self._config.get("threshold", THRESHOLD), self._config.get("safe_for_model", False))

    async def _ask(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Vote | NoVote:
        nonce = secrets.token_hex(16)
        try:
            async with asyncio.timeout(self._config.get("timeout_s", TIMEOUT_S)):
                reply = await self._call(request, answer, args, nonce)
                return await asyncio.to_thread(read_vote, reply, nonce, is_scored=self._is_scored)
        except NoVote as error:
            return error
        except Unanswered as error:
            reason, cause = error.reason, error.cause
        except TimeoutError:
            reason, cause = "no reply in time", Cause.TIMEOUT
        except NoSecret as error:
            reason, cause = str(error), Cause.UNREACHABLE
        except TooMuch as error:
            reason, cause = str(error), Cause.TOO_COSTLY
        return NoVote(reason, cause)

    async def _call(self, request: Request, answer: Answer, args: Mapping[str, Any], nonce: str) -> Reply:
        """Ask once, and again without what the server refuses; what it then takes is asked with from then on.

        Raises: NoSecret, TooMuch, Unanswered.
        """
        headers = self._make_headers()
        is_structured, limit_name = self._is_structured, self._limit_name
        while True:
            fields = self._choose_fields(limit_name, is_structured=is_structured)
            body = await asyncio.to_thread(self._write, fields, request, answer, args, nonce)
            timeout_s = self._config.get("timeout_s", TIMEOUT_S)
            reply = await self._outbound.post(self._target, body, lambda: headers, timeout_s=timeout_s, retries=RETRIES)
            if reply.status == 200:
                self._is_structured, self._limit_name = is_structured, limit_name
            if reply.status not in _REFUSED:
                return reply
            if limit_name == "max_tokens" and b"max_completion_tokens" in reply.body:
                limit_name = "max_completion_tokens"
            elif is_structured:
                is_structured = False
            else:
                return reply

    def _choose_fields(self, limit_name: str, *, is_structured: bool) -> dict[str, Any]:
        """Choose what a question says beside its messages."""
        config = self._config
        fields: dict[str, Any] = {"model": config["model"], limit_name: config.get("max_tokens", MAX_TOKENS)}
        if config.get("temperature", 0) is not None:
            fields["temperature"] = config.get("temperature", 0)
        if is_structured:
            fields["response_format"] = describe_vote(is_scored=self._is_scored)
        return fields

    def _make_headers(self) -> Headers:
        """Make the headers of a question. Raises: NoSecret."""
        name = self._config.get("api_key")
        if name is None:
            return {}
        key = find_secret(name, self._target, current(), is_shown=True)
        if not (key.isascii() and key.isprintable()):
            raise NoSecret(f"the secret {name!r} cannot be sent: it holds other characters than ASCII's")
        return {"authorization": f"Bearer {key}"}

    def _write(
        self, fields: dict[str, Any], request: Request, answer: Answer, args: Mapping[str, Any], nonce: str
    ) -> bytes:
        """Write the body of a question; for a thread. Raises: TooMuch."""
        messages, reference = request.get("messages"), args.get("reference")
        shows = self._config.get("show_messages", True) and isinstance(messages, list | tuple)
        prompt = write_prompt(
            self._config["rubric"],
            nonce,
            answer,
            messages=messages if shows else None,
            reference=reference if isinstance(reference, str) else None,
            is_scored=self._is_scored,
        )
        return write({**fields, "messages": prompt})


def count_votes(said: list[Vote | NoVote], threshold: float, safe_for_model: bool) -> Verdict:
    """Count votes: a verdict needs more than half of all that were asked for, those that did not come among them.

    The score is the mean of the votes: of passes and failures the share that passed.
    """
    votes = [vote for vote in said if isinstance(vote, Vote)]
    silent = [vote for vote in said if isinstance(vote, NoVote)]
    passes = [vote for vote in votes if vote.score >= threshold]
    fails = [vote for vote in votes if vote.score < threshold]
    for side, build in ((passes, Verdict.passed), (fails, Verdict.failed)):
        if 2 * len(side) > len(said):
            reason = side[0].reason if len(said) == 1 else f"{len(side)} of {len(said)} votes: {side[0].reason}"
            score = sum(vote.score for vote in votes) / len(votes)
            return build(reason[:MAX_REASON_CHARS], score, safe_for_model=safe_for_model)
    causes = {vote.cause for vote in silent}
    cause = causes.pop() if len(causes) == 1 and not votes else Cause.UNDECIDED
    if len(said) == 1:
        return Verdict.abstained(silent[0].reason, cause)
    counted = f"{len(passes)} passed, {len(fails)} failed, {len(silent)} gave no vote"
    return Verdict.abstained(f"no majority of {len(said)} votes: {counted} ({silent[0].reason})", cause)


_CONFIG: dict[str, Any] = {
    "type": "object",
    "properties": {
        "url": {
            "type": "string",
            "description": f"Of an OpenAI-compatible server, up to {PATH}: https://api.example.com/v1.",
        },
        "model": {"type": "string", "minLength": 1, "maxLength": 256},
        "api_key": {
            **SECRET_NAME,
            "description": "The name of the key's secret, which the operator set for this host.",
        },
        "rubric": {
            "type": "string",
            "minLength": 1,
            "maxLength": 8192,
            "description": "What a good answer is.",
        },
        "votes": {"enum": list(VOTES), "default": 1, "description": "How often the model is asked."},
        "scale": {
            "enum": ["pass_fail", "score"],
            "default": "pass_fail",
            "description": f"`score`: from 0 to {SCORE_TOP}; it counts as 0 to 1.",
        },
        "threshold": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "default": THRESHOLD,
            "description": "The score from which a vote is one to pass.",
        },
        "temperature": {
            "type": ["number", "null"],
            "minimum": 0,
            "maximum": 2,
            "default": 0,
            "description": "null: none is sent. With several votes one above 0 makes them differ.",
        },
        "timeout_s": {"type": "number", "minimum": 0.05, "maximum": MAX_TIMEOUT_S, "default": TIMEOUT_S},
        "max_tokens": {"type": "integer", "minimum": 16, "maximum": 16384, "default": MAX_TOKENS},
        "show_messages": {
            "type": "boolean",
            "default": True,
            "description": "Whether the judge sees the conversation, and not the answer alone.",
        },
        "safe_for_model": {
            "type": "boolean",
            "default": False,
            "description": "Whether the model may be shown the judge's reason; it may tell the reference.",
        },
    },
    "required": ["url", "model", "rubric"],
    "additionalProperties": False,
}
_ARGS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reference": {"type": "string", "maxLength": 32768, "description": "A right answer, to compare with."}
    },
    "additionalProperties": False,
}


def make_kind(outbound: Outbound) -> Kind:
    """Make the kind, whose verifiers call through `outbound`."""
    return Kind(
        name=NAME,
        summary="A model judges the answer by a rubric; of several votes the majority decides.",
        config_schema=_CONFIG,
        args_schema=_ARGS,
        compile=lambda config: JudgeVerifier(config, outbound),
        find_needs=lambda _config: frozenset({NETWORK}),
    )

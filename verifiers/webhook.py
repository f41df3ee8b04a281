"""The kind `webhook`: a service of the user's own judges, over HTTPS. `verifiers.outbound` is the way there.

Signed as Standard Webhooks are (https://www.standardwebhooks.com): HMAC-SHA256 of id, time and body, so that the
receiver knows who asks, that nothing was changed, and what it has been asked before. docs/webhooks.md shows a receiver.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from verifiers.answers import NotJson
from verifiers.base import Answer, Cause, InvalidVerifier, Request, Verdict
from verifiers.kind import NETWORK, Kind
from verifiers.outbound import MAX_TIMEOUT_S, Headers, Outbound, Reply, Unanswered
from verifiers.outbound_body import TooMuch, read, write
from verifiers.outbound_secret import SECRET_NAME, NoSecret, find_secret
from verifiers.outbound_url import BadUrl, read_url
from verifiers.policy import Policy, current

NAME = "webhook"
TYPE = "mulligan.verify"
TIMEOUT_S = 10.0
RETRIES = 1
MAX_RETRIES = 3
MAX_REASON_CHARS = 2000
PREFIX = "whsec_"
_RETURNS = "a webhook has to answer {'passed': bool, 'score': 0 to 1, 'reason': str, 'safe_for_model': bool}"


class WebhookVerifier:
    """Compiled.

    Raises: InvalidVerifier for a URL that may not be called and for a secret that the operator did not set.
    """

    def __init__(self, config: Mapping[str, Any], outbound: Outbound) -> None:
        self._outbound = outbound
        self._timeout_s = float(config.get("timeout_s", TIMEOUT_S))
        self._retries: int = config.get("retries", RETRIES)
        self._secret: str | None = config.get("secret")
        if (self._secret is None) != config.get("unsigned", False):
            raise InvalidVerifier(f"{NAME}: give the name of a secret, or else `unsigned: true`", "/secret")
        try:
            self._target = read_url(config["url"], current())
        except BadUrl as error:
            raise InvalidVerifier(f"{NAME}: {error}", "/url") from None
        try:
            self._find_keys(current())
        except NoSecret as error:
            raise InvalidVerifier(f"{NAME}: {error}", "/secret") from None

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the answer by what the service says of it."""
        asked = {"messages": request.get("messages"), "tools": request.get("tools")}
        question = {"type": TYPE, "request": asked, "answer": answer, "args": args}
        message_id = f"vrf_{secrets.token_hex(16)}"
        try:
            keys = self._find_keys(current())
            body = await asyncio.to_thread(write, question)
            reply = await self._outbound.post(
                self._target,
                body,
                lambda: sign(message_id, int(time.time()), body, keys),
                timeout_s=self._timeout_s,
                retries=self._retries,
            )
            return await asyncio.to_thread(read_reply, reply)
        except NoSecret as error:
            return Verdict.abstained(str(error), Cause.UNREACHABLE)
        except TooMuch as error:
            return Verdict.abstained(str(error), Cause.TOO_COSTLY)
        except Unanswered as error:
            return Verdict.abstained(error.reason, error.cause)

    def _find_keys(self, policy: Policy) -> list[bytes]:
        """List the keys to sign with, none where nothing is signed. Raises: NoSecret."""
        if self._secret is None:
            return []
        found = find_secret(self._secret, self._target, policy)
        try:
            return [_decode(value) for value in found.split()]
        except (binascii.Error, ValueError):
            raise NoSecret(f"the secret {self._secret!r} starts with {PREFIX} and is not base64 after it") from None


def sign(message_id: str, timestamp_s: int, body: bytes, keys: Sequence[bytes]) -> Headers:
    """Make the three headers of Standard Webhooks; without keys there is no signature among them."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp_s)}
    if keys:
        signed = f"{message_id}.{timestamp_s}.".encode() + body
        digests = (hmac.digest(key, signed, hashlib.sha256) for key in keys)
        headers["webhook-signature"] = " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
    return headers


def _decode(secret: str) -> bytes:
    if secret.startswith(PREFIX):
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    return secret.encode()


def read_reply(reply: Reply) -> Verdict:
    """Read what the service answered; anything but a verdict is an abstention."""
    if 300 <= reply.status < 400:
        return Verdict.abstained(f"the webhook redirects ({reply.status}), which is not followed", Cause.BAD_RETURN)
    if reply.status != 200:
        cause = Cause.BAD_RETURN if reply.status < 400 else Cause.UNREACHABLE
        return Verdict.abstained(f"the webhook answered with status {reply.status}", cause)
    try:
        said = read(reply.body)
    except NotJson as error:
        return Verdict.abstained(f"the webhook did not answer JSON: {error}", Cause.BAD_RETURN)
    return read_verdict(said)


def read_verdict(said: Any) -> Verdict:
    """Read the verdict that a service gives as JSON; one that is not exactly that is an abstention."""
    if not isinstance(said, dict) or not isinstance(said.get("passed"), bool):
        return _refuse("there is no `passed` that is true or false")
    unknown = next((key for key in said if key not in ("passed", "score", "reason", "safe_for_model")), None)
    if unknown is not None:
        return _refuse(f"{unknown[:100]!a} is not known")
    passed: bool = said["passed"]
    score = float(passed) if said.get("score") is None else said["score"]
    reason = "" if said.get("reason") is None else said["reason"]
    safe = said.get("safe_for_model", False)
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        return _refuse("the score is not from 0 to 1")
    if not isinstance(reason, str) or not isinstance(safe, bool):
        return _refuse("the reason is no text, or safe_for_model neither true nor false")
    build = Verdict.passed if passed else Verdict.failed
    return build(reason.replace("\0", "\ufffd")[:MAX_REASON_CHARS], float(score), safe_for_model=safe)


def _refuse(why: str) -> Verdict:
    return Verdict.abstained(f"{_RETURNS}: {why}", Cause.BAD_RETURN)


def make_kind(outbound: Outbound) -> Kind:
    """Make the kind, whose verifiers call through `outbound`."""
    return Kind(
        name=NAME,
        summary="A service of your own judges: it is sent request and answer, signed, and answers with a verdict.",
        config_schema={
            "type": "object",
            "properties": {
                "url": {
                    "type": "string",
                    "description": "https://..., at a public address; how addresses are checked stands in webhooks.md.",
                },
                "secret": {
                    **SECRET_NAME,
                    "description": "The name of the secret to sign with, as the operator set it.",
                },
                "unsigned": {"type": "boolean", "default": False, "description": "Send without a signature."},
                "timeout_s": {
                    "type": "number",
                    "minimum": 0.05,
                    "maximum": MAX_TIMEOUT_S,
                    "default": TIMEOUT_S,
                    "description": "For all tries together.",
                },
                "retries": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": MAX_RETRIES,
                    "default": RETRIES,
                    "description": "Further tries where there is no connection, or status 429, 502, 503 or 504.",
                },
            },
            "required": ["url"],
            "additionalProperties": False,
        },
        args_schema={"type": "object", "description": "Anything: it is sent as `args`."},
        compile=lambda config: WebhookVerifier(config, outbound),
        find_needs=lambda _config: frozenset({NETWORK}),
    )

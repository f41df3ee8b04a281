"""What is asked and what is answered in the benchmark: fixed texts, so that every answer can be checked.

Read by the mock engine, the load generator and the no-op peer; the peers' environment imports it too, so it needs the
standard library alone. All rows ask for the same text and get the same text: they differ only in what lies between.
"""

import json
from itertools import pairwise
from typing import Any

PIECES = 64
"""Pieces that a streamed answer has: one chunk each, as an engine sends one a token."""

CHUNKS = PIECES + 2
"""Chunks of a stream: the role, the pieces, the finish. The usage and the end of the stream are not counted."""

SCHEMA = {
    "type": "object",
    "properties": {
        "customer": {"type": "string", "minLength": 1},
        "items": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {"sku": {"type": "string"}, "count": {"type": "integer", "minimum": 1}},
                "required": ["sku", "count"],
            },
        },
        "note": {"type": "string"},
    },
    "required": ["customer", "items"],
    "additionalProperties": False,
}
"""What the verifier of the rows with one asks of an answer."""

_ORDER = {
    "customer": "Ada Lovelace",
    "items": [{"sku": "A-1001", "count": 2}, {"sku": "B-2002", "count": 1}, {"sku": "C-3003", "count": 12}],
    "note": "Leave it with the neighbour at number twelve if nobody opens the door before noon.",
}
PASSING = json.dumps(_ORDER, separators=(",", ":"))
"""An answer that the schema accepts."""

FAILING = PASSING.replace('"count":2', '"count":"two"')
"""An answer of about the same length that it does not accept."""

REFLECTION = (
    "The count of the first item was written as a word, but the request asks for a whole number. "
    "I will write every count as digits and keep the rest of the object as it was."
)
"""What the model writes about the failing answer."""

_PROMPT_TOKENS = 150
FAIL_ONCE = "This one is hard."
"""Where the user's message ends with it, the engine's first answer fails."""

_ASKED = (
    "Read the order below and write it as one JSON object with the fields customer, items (sku and count) and note. "
    "Order: Dear shop, this is Ada Lovelace. Please send me two pieces of A-1001, one of B-2002 and a dozen of C-3003. "
    "Leave it with the neighbour at number twelve if nobody opens the door before noon. Many thanks and kind regards. "
)
_SYSTEM = "You turn letters into orders. Answer with one JSON object and nothing else."


def request_body(model: str, *, stream: bool = False, fail_once: bool = False) -> bytes:
    """Encode a chat request as the openai SDK would."""
    asked = _ASKED + (FAIL_ONCE if fail_once else "This one is easy.")
    body: dict[str, Any] = {
        "messages": [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}],
        "model": model,
        "max_completion_tokens": 256,
        "temperature": 0.7,
    }
    return json.dumps(body | {"stream": True} if stream else body).encode()


def completion(model: str, text: str = PASSING, *, with_tokens: bool = False) -> bytes:
    """Encode a whole answer as SGLang does; `with_tokens` as it does when asked for token ids and log-probabilities."""
    count = PIECES if text != REFLECTION else 40
    usage = {"prompt_tokens": _PROMPT_TOKENS, "completion_tokens": count, "total_tokens": _PROMPT_TOKENS + count}
    message = {"role": "assistant", "content": text, "reasoning_content": None, "tool_calls": None}
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": "stop",
        "matched_stop": 151645,
    }
    if with_tokens:
        tokens = [1000 + index for index in range(count)]
        rows = [[-0.25, token, None] for token in tokens]
        choice |= {"prompt_token_ids": [*range(_PROMPT_TOKENS)], "response_token_ids": tokens}
        choice["meta_info"] = {**usage, "finish_reason": {"type": "stop"}, "output_token_logprobs": rows}
    head = {"id": "0123456789abcdef", "object": "chat.completion", "created": 1700000000, "model": model}
    return json.dumps({**head, "choices": [choice], "usage": usage}, separators=(",", ":")).encode()


def stream_events(model: str, *, include_usage: bool) -> list[bytes]:
    """Encode a streamed answer as SGLang does: the role, one event a piece, the finish, perhaps the usage, the end."""
    head = {"id": "0123456789abcdef", "object": "chat.completion.chunk", "created": 1700000000, "model": model}
    cuts = [index * len(PASSING) // PIECES for index in range(PIECES + 1)]
    texts = [PASSING[start:end] for start, end in pairwise(cuts)]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts)]
    chunks = [_chunk(head, delta, None) for delta in deltas]
    chunks.append(_chunk(head, {}, "stop"))
    if include_usage:
        usage = {"prompt_tokens": _PROMPT_TOKENS, "completion_tokens": PIECES, "total_tokens": _PROMPT_TOKENS + PIECES}
        chunks.append({**head, "choices": [], "usage": usage})
    encoded = [json.dumps(chunk, separators=(",", ":")).encode() for chunk in chunks]
    return [b"data: " + payload + b"\n\n" for payload in (*encoded, b"[DONE]")]


def _chunk(head: dict[str, Any], delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, "matched_stop": None}
    return {**head, "choices": [choice], "usage": None}

"""SGLang's wire shapes, as far as they are read: replies, errors and events. Only `server.engine.sglang` calls it.

What does not have the expected shape is an EngineBroken; nothing is guessed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from server.engine.base import EngineState
from server.errors import AdapterMissing, EngineBroken, EngineRefused, EngineUnavailable, MulliganError, Unsupported

NEUTRAL_SAMPLING: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
"""What is sent where a request is silent: otherwise SGLang applies the defaults in the model's folder."""

TEXT_TOKENS = 16
"""How long a raw text completion gets where nothing is said: OpenAI's default, sent so that no engine's own applies."""

_Shape = TypeVar("_Shape")


class MetaInfo(msgspec.Struct):
    """`meta_info` of a generated sequence."""

    prompt_tokens: int
    completion_tokens: int
    finish_reason: dict[str, Any]
    output_token_logprobs: list[tuple[float, int, str | None]] = []


class Choice(msgspec.Struct):
    """A choice of a chat completion."""

    message: dict[str, Any]
    finish_reason: str
    matched_stop: int | str | None = None
    logprobs: dict[str, Any] | None = None
    prompt_token_ids: list[int] | None = None
    response_token_ids: list[int] | None = None
    meta_info: MetaInfo | None = None


class ChatUsage(msgspec.Struct):
    """`usage` of a chat completion."""

    prompt_tokens: int
    completion_tokens: int


class ChatReply(msgspec.Struct):
    """A chat completion."""

    choices: list[Choice]
    usage: ChatUsage


class TextChoice(msgspec.Struct):
    """A choice of a raw text completion."""

    text: str
    finish_reason: str
    logprobs: dict[str, Any] | None = None


class TextReply(msgspec.Struct):
    """A raw text completion."""

    choices: list[TextChoice]
    usage: ChatUsage


class GenerationReply(msgspec.Struct):
    """What `/generate` gives for one prompt."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo


class AdapterReply(msgspec.Struct):
    """What loading and unloading give."""

    success: bool
    error_message: str = ""


class _Detokenized(msgspec.Struct):
    text: str


class _ModelInfo(msgspec.Struct):
    model_path: str
    has_image_understanding: bool = False


class _ModelCard(msgspec.Struct):
    id: str
    root: str = ""
    parent: str | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is None: it means "not given", and must not replace a neutral value."""
    return {name: value for name, value in fields.items() if value is not None}


def name_ids(prompt: Sequence[int], bias: Mapping[str, float] | None) -> dict[str, float]:
    """Make a `logit_bias` that names the lowest and the highest token id of a prompt, and changes nothing by it.

    SGLang does not look at the ids of a prompt: one that the model does not have kills the whole engine. It does check
    those of `logit_bias`, before anything is computed.
    """
    named = {str(token): 0.0 for token in (min(prompt), max(prompt))} if prompt else {}
    return {**named, **(bias or {})}


def check_inputs(inputs: Any) -> None:
    """Refuse token ids as the input of embeddings: nothing checks them, and one too high kills the whole engine.

    Raises: Unsupported.
    """
    if isinstance(inputs, list) and any(not isinstance(text, str) for text in inputs):
        raise Unsupported("embeddings are made of texts only: send strings instead of token ids", "input")


def decode_chat(raw: bytes) -> ChatReply:
    """Read a chat completion. Raises: EngineBroken, also where the engine aborted it."""
    reply = _decode(raw, ChatReply)
    _check_choices(reply.choices)
    return reply


def decode_completion(raw: bytes) -> TextReply:
    """Read a raw text completion. Raises: EngineBroken, also where the engine aborted it."""
    reply = _decode(raw, TextReply)
    _check_choices(reply.choices)
    return reply


def decode_generation(raw: bytes) -> GenerationReply:
    """Read what `/generate` gave. Raises: EngineBroken, also where the engine aborted it."""
    reply = _decode(raw, GenerationReply)
    if reply.meta_info.finish_reason.get("type") not in ("stop", "length"):
        raise EngineBroken("the engine aborted the answer")
    if len(reply.meta_info.output_token_logprobs) != len(reply.output_ids):
        raise EngineBroken("the engine gave another number of log-probabilities than of tokens")
    return reply


def decode_adapter_reply(raw: bytes) -> AdapterReply:
    """Read what loading or unloading gave. Raises: EngineBroken."""
    reply = _decode(raw, AdapterReply)
    if not reply.success and not reply.error_message:
        reply.error_message = "no reason given"
    return reply


def decode_text(raw: bytes) -> str:
    """Read what `/detokenize` gave. Raises: EngineBroken."""
    return _decode(raw, _Detokenized).text


def read_state(info: bytes, models: bytes) -> EngineState:
    """Read what is served. Raises: EngineBroken."""
    cards = _decode(models, _ModelList).data
    model = _decode(info, _ModelInfo)
    return EngineState(
        base_model=model.model_path,
        adapters={card.id: card.root for card in cards if card.parent is not None},
        images=model.has_image_understanding,
    )


def read_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Make OpenAI's assistant message of the engine's: no empty fields, and no text where there are only calls."""
    content = message.get("content")
    calls = message.get("tool_calls")
    read: dict[str, Any] = {"role": "assistant", "content": content or ("" if not calls else None)}
    if message.get("reasoning_content"):
        read["reasoning_content"] = message["reasoning_content"]
    if calls:
        read["tool_calls"] = [{name: value for name, value in call.items() if name != "index"} for call in calls]
    return read


def read_logprobs(choice: Choice) -> Sequence[float]:
    """Read the log-probabilities of the sampled tokens. Raises: EngineBroken where there is not one a token."""
    rows = choice.meta_info.output_token_logprobs if choice.meta_info else []
    if [token for _, token, _ in rows] != choice.response_token_ids:
        raise EngineBroken("the engine's log-probabilities are not those of its tokens")
    return [logprob for logprob, _, _ in rows]


def to_error(status: int, raw: bytes, adapter: str = "") -> MulliganError:
    """Make an error of a reply that is not a 200."""
    message = _error_message(raw)
    if status == 503:
        return EngineUnavailable(f"the engine is not ready: {message}")
    if status != 400:
        return EngineBroken(f"the engine answered {status}: {message}")
    if adapter and "lora" in message.lower() and "loaded" in message.lower():
        return AdapterMissing(f"adapter {adapter} is not loaded in the engine")
    if message.startswith(("logit_bias must has keys", "logit_bias must have keys")):
        return EngineRefused(f"a token id of the prompt or of logit_bias is not in the vocabulary ({message})")
    return EngineRefused(message)


def to_embedding_error(status: int, raw: bytes) -> MulliganError:
    """Make an error of what is no embedding: an engine without them has no such path, or says so."""
    if status == 404 or (status == 400 and "not appear to be an embedding model" in _error_message(raw)):
        return Unsupported(
            "the engine serves no embeddings: send this to a server whose engine was started with an embedding model"
        )
    return to_error(status, raw)


def _check_choices(choices: Sequence[Choice | TextChoice]) -> None:
    if not choices:
        raise EngineBroken("the engine's answer has no choices")
    if choices[0].finish_reason == "abort":
        raise EngineBroken("the engine aborted the answer")


def _error_message(raw: bytes) -> str:
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return raw[:500].decode(errors="replace")
    inner = body.get("error", body) if isinstance(body, dict) else body
    message = inner.get("message", inner) if isinstance(inner, dict) else inner
    return str(message)[:2000]


def _decode(raw: bytes, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise EngineBroken(f"the engine's answer cannot be read: {error}") from error


class EventReader:
    """Cuts a byte stream of server-sent events into their payloads."""

    def __init__(self) -> None:
        self._rest = b""
        self.done = False

    def push(self, chunk: bytes) -> Iterator[bytes]:
        """Add bytes, and give the payloads that they complete. `done` is set by `[DONE]`, which is not given."""
        *events, self._rest = (self._rest + chunk).split(b"\n\n")
        for event in events:
            if not event.startswith(b"data:"):
                continue
            payload = event[5:].strip()
            if payload == b"[DONE]":
                self.done = True
            else:
                yield payload

"""What Mulligan needs of an engine.

`SGLangEngine` fulfils it over SGLang's HTTP protocol, for SGLang and for `local_engine/` alike; one contract suite
runs on both.

Adapters are named here by their plain name; "" is the base model. Implementations never retry an answer that may have
been generated, never fall back to the base for an adapter that is not loaded, and raise only the errors of
`server.errors`.
"""

from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.domain import Usage


@dataclass(frozen=True, slots=True)
class Completion:
    """One whole answer.

    `message` is the OpenAI assistant message. `prompt_ids` (P,), `token_ids` (T,) and `logprobs` (T,) are filled when
    asked for with `with_tokens`; `logprobs` are natural-log probabilities of the sampled tokens at the sampling
    temperature 1 distribution. `token_ids` include the end-of-turn token where the model produced it.
    """

    message: Mapping[str, Any]
    finish_reason: str
    usage: Usage
    prompt_ids: Sequence[int] = ()
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    choice_logprobs: Mapping[str, Any] | None = None  # `choices[].logprobs` of the API that was asked, where asked for


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine says of itself."""

    base_model: str  # the path or id that it was started with
    adapters: Mapping[str, str] = field(default_factory=dict)  # name -> path
    images: bool = False  # whether the model reads image parts


class Engine(Protocol):
    """An inference engine with LoRA adapters that come and go."""

    def complete(
        self, body: Mapping[str, Any], adapter: str, *, with_tokens: bool = False
    ) -> Coroutine[Any, Any, Completion]:
        """Answer one chat request.

        `body` holds OpenAI chat fields that the server allows through (messages, tools, sampling parameters); it
        never holds `model`, `stream` or `n`. Cancelling the await aborts the generation on the engine.

        Raises: EngineUnavailable, EngineTimeout, EngineRefused (a 400 of the engine), AdapterMissing.
        """
        ...

    def complete_text(self, body: Mapping[str, Any], adapter: str) -> Coroutine[Any, Any, Completion]:
        """Continue a raw text, without a chat template (OpenAI's `/v1/completions`).

        `body` holds `prompt` (one text, or one list of token ids) and OpenAI's completion fields: `max_tokens` (16
        where it is missing, as OpenAI says), `temperature`, `top_p`, `frequency_penalty`, `presence_penalty`,
        `logit_bias`, `seed`, `stop`, `logprobs` (an integer from 0), `echo`, `stream_options`. It never holds `model`,
        `stream`, `n`, `best_of` or `suffix`: SGLang ignores the last two without a word.

        `message["content"]` is the text, after the prompt's own where `echo` asks for it. `choice_logprobs` is the
        completions API's object (`tokens`, `token_logprobs`, `top_logprobs`; SGLang fills `text_offset` with -1).
        Cancelling the await aborts the generation on the engine.

        Raises: EngineUnavailable, EngineTimeout, EngineRefused (also for token ids that the model does not have),
            AdapterMissing.
        """
        ...

    def stream_text(self, body: Mapping[str, Any], adapter: str) -> AsyncIterator[bytes]:
        """Yield the SSE payloads of a raw text completion, untouched; fields and errors as `complete_text`."""
        ...

    def embed(self, body: Mapping[str, Any]) -> Coroutine[Any, Any, bytes]:
        """Give the engine's own answer (JSON) to an OpenAI embeddings request.

        `body` holds `input` (a text or a list of texts), `encoding_format`, `dimensions`; never `model`. Cancelling
        the await closes the connection; there is nothing to abort.

        Raises: Unsupported where the engine serves no embeddings or `input` holds token ids, EngineUnavailable,
            EngineTimeout, EngineRefused.
        """
        ...

    def complete_ids(
        self, prompt_ids: Sequence[int], adapter: str, sampling: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Completion]:
        """Continue exactly these tokens (SGLang's `/generate`); always with tokens and logprobs.

        `sampling` holds SGLang's names: `max_new_tokens`, `temperature`, `top_p`, `top_k`, `stop_token_ids`, ...
        `message["content"]` is the text without special tokens.
        """
        ...

    def stream(self, body: Mapping[str, Any], adapter: str) -> AsyncIterator[bytes]:
        """Yield the engine's SSE `data:` payloads (JSON bytes, without framing, `[DONE]` left out), untouched.

        With tools, the text of a call that the engine could not read comes as one more `content` delta.
        """
        ...

    async def state(self) -> EngineState:
        """Say what is served. Raises EngineUnavailable."""
        ...

    async def ready(self) -> bool:
        """Say whether it takes traffic now. Never raises."""
        ...

    async def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter under a new name. Raises EngineUnavailable, AdapterRefused."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Unload; waits on the engine until its in-flight requests have drained. A name not loaded is no error."""
        ...

    def replicas(self) -> Mapping[str, "Engine"]:
        """Name the engines that take requests now, each by its address: one that stands alone is its own replica."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...

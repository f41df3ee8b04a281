"""What the endpoints share: the base, the decoder, the adapters, and the sequences in flight.

Made once the model is loaded. The endpoints hand it prompts and get finished sequences, or sequences to follow.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from local_engine.decoder import BASE, Decoder
from local_engine.errors import DecodingFailed, Refused
from local_engine.grammars import Grammar, GrammarBuilder, GrammarSource
from local_engine.models import AdapterLimits, Base, fold_adapter
from local_engine.sampling import Sampling
from local_engine.sequences import Sequence
from local_engine.text import TokenTexts

_ENDING = "the engine is shutting down"


class Client(Protocol):
    """The connection that a request came over."""

    def gone(self) -> Awaitable[None]:
        """Return once the client has gone away."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for beside the prompt and the sampling."""

    id: str | None = None
    priority: int = 0  # below 0, sequences that are not go first
    streams: bool = False
    logprobs: bool = False
    top_logprobs: int = 0


def read_priority(body: Mapping[str, Any]) -> int:
    """Read how urgent a request is. Raises: Refused."""
    priority = body.get("priority")
    if priority is not None and type(priority) is not int:
        raise Refused(f"priority must be an integer, got {priority!r}.")
    return priority or 0


class Service:
    """One model, served."""

    def __init__(
        self, base: Base, *, model_name: str, limits: AdapterLimits, max_running: int, max_adapters: int
    ) -> None:
        self.base = base
        self.model_name = model_name
        self.texts = TokenTexts(base.tokenizer)
        self.paths: dict[str, str] = {}  # of every adapter ever loaded; `adapters` says which are now
        self._limits = limits
        self._grammars = GrammarBuilder(base.tokenizer, base.vocabulary, base.eos_ids)
        self._decoder = Decoder(base, max_running=max_running, max_adapters=max_adapters)
        self._in_flight: dict[str, Sequence] = {}
        self._loading = asyncio.Lock()
        self._ending = False

    def drop_requests(self) -> None:
        """Abort what is in flight, because the engine ends."""
        self._ending = True
        self.abort("", everything=True)

    def stop(self) -> None:
        """End decoding."""
        self._decoder.stop()
        self._grammars.stop()

    @property
    def adapters(self) -> dict[str, str]:
        """The loaded adapters: name -> path."""
        return {name: self.paths[name] for name in self._decoder.adapters}

    def resolve_model(self, model: Any) -> str:
        """Say which adapter a request's `model` names (`base` or `base:adapter`).

        Raises: Refused where it names another model: serving the base instead would be a wrong answer.
        """
        if not isinstance(model, str):
            raise Refused("model must be a string.")
        name, _, adapter = model.partition(":")
        if name != self.model_name:
            raise Refused(f"no model {model!r}: this engine serves {self.model_name!r} and its adapters.")
        return adapter or BASE

    async def build_grammar(self, source: GrammarSource | None) -> Grammar | None:
        """Build what an answer is forced into, if into anything. Raises: Refused."""
        return await self._grammars.build(source) if source is not None else None

    def begin(
        self, prompt: list[int], adapter: str, sampling: Sampling, asked: Asked, grammar: Grammar | None = None
    ) -> Sequence:
        """Put a prompt into the decoder.

        Raises: Refused where it does not fit, or the adapter is not loaded; DecodingFailed where the engine ends.
        """
        if self._ending:
            raise DecodingFailed(_ENDING, 503)
        sequence = Sequence(
            id=asked.id or uuid.uuid4().hex,
            prompt=prompt,
            adapter=adapter,
            sampling=sampling,
            limit=self._limit(prompt, sampling),
            patient=asked.priority < 0,
            streams=asked.streams,
            wants_logprobs=asked.logprobs,
            top_logprobs=asked.top_logprobs,
            grammar=grammar,
        )
        self._decoder.submit(sequence)
        self._in_flight[sequence.id] = sequence
        return sequence

    async def finish(self, sequence: Sequence, client: Client) -> None:
        """Wait until a sequence has ended; abort it where the client goes away. Raises: DecodingFailed."""
        with self._watch(sequence, client):
            await sequence.changed.wait()
        self._check(sequence)

    async def follow(self, sequence: Sequence, client: Client) -> AsyncIterator[int]:
        """Give the number of tokens whenever it grew, and last when the sequence has ended. Raises: DecodingFailed."""
        with self._watch(sequence, client):
            ended = False
            while not ended:
                await sequence.changed.wait()
                sequence.changed.clear()
                ended = sequence.finish is not None  # looked at before the tokens: it is set after the last of them
                yield len(sequence.tokens)
        self._check(sequence)

    def abort(self, request_id: str, *, everything: bool = False) -> None:
        """Abort a request by its id, or all of them."""
        for sequence in list(self._in_flight.values()):
            if everything or sequence.id == request_id:
                sequence.aborted = True

    async def load_adapter(self, name: str, path: str) -> None:
        """Fold an adapter into a copy of the model and serve it. Raises: Refused."""
        if not name or not path:
            raise Refused("lora_name and lora_path must not be empty.")
        async with self._loading:
            self._decoder.check_free(name)
            model = await asyncio.to_thread(fold_adapter, self.base.model, path, self._limits)
            self._decoder.load(name, model)
            self.paths[name] = path

    async def unload_adapter(self, name: str) -> None:
        """Stop serving an adapter, once its sequences have ended. Raises: Refused where it is not loaded."""
        await self._decoder.unload(name)

    @contextlib.contextmanager
    def _watch(self, sequence: Sequence, client: Client) -> Iterator[None]:
        watcher = asyncio.ensure_future(client.gone())
        watcher.add_done_callback(lambda _: setattr(sequence, "aborted", True))
        try:
            yield
        finally:
            sequence.aborted = True  # no effect on one that has ended
            self._in_flight.pop(sequence.id, None)
            watcher.cancel()

    def _limit(self, prompt: list[int], sampling: Sampling) -> int:
        context = self.base.context_tokens
        if not prompt or not all(0 <= token < self.base.vocabulary for token in prompt):
            raise Refused(f"the prompt must be a list of token ids below {self.base.vocabulary}, and not empty.")
        if len(prompt) >= context:
            raise Refused(
                f"The input ({len(prompt)} tokens) is longer than the model's context length ({context} tokens)."
            )
        wanted = sampling.max_new_tokens
        if wanted is not None and len(prompt) + wanted > context:
            raise Refused(
                f"Requested token count exceeds the model's maximum context length of {context} tokens. You requested "
                f"a total of {len(prompt) + wanted} tokens: {len(prompt)} tokens from the input messages and {wanted} "
                "tokens for the completion."
            )
        return max(context - len(prompt) if wanted is None else wanted, 1)

    def _check(self, sequence: Sequence) -> None:
        finish = sequence.finish
        if finish is not None and finish.type == "error":
            raise DecodingFailed(str(finish.matched))
        if finish is not None and finish.type == "abort" and self._ending:
            raise DecodingFailed(_ENDING, 503)

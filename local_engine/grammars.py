"""Grammars: what an answer may go on with, token by token. Built by llguidance from Lark rules and JSON schemas.

The endpoints say what to build (`answer_shapes`) and wait for it beside the event loop; the decoding thread then asks
each grammar for the tokens that it allows, and tells it which was drawn. Building and every step are bounded.
"""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from local_engine.errors import Refused

_MOST_SCHEMA_BYTES = 64 * 1024  # of all schemas of one request
_BUILD_TIMEOUT_S = 10.0
_BUILDING_THREADS = 2
_LIMITS = LLParserLimits(max_grammar_size=100_000, max_lexer_states=50_000, verbose_errors=False)
# One space at most after a comma or a colon: where any white space is allowed, a small model may write nothing else.
_LAYOUT = {"item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": False}


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON schema inside a grammar. `place` is its name in the request; `exact`: nothing of it may be ignored."""

    place: str
    schema: dict[str, Any]
    exact: bool = True

    def write(self) -> dict[str, Any]:
        """Write it with the layout of its JSON, for llguidance."""
        return {**self.schema, "x-guidance": {**_LAYOUT, "lenient": not self.exact}}


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """What a grammar is built from: Lark rules, in which `@schema_0` is the first of the schemas."""

    rules: str
    schemas: tuple[Schema, ...]


class Grammar:
    """What one answer may go on with. Used by the decoding thread alone, once it is built.

    `failure` says why it cannot go on, where a limit was reached: the row ends with it, and no other row notices.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.failure: str | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing can follow any more but a token that ends the answer."""
        return self._matcher.is_stopped()

    def block(self, logits_V: torch.Tensor) -> None:
        """Set the logits of all tokens that cannot follow to minus infinity, in place."""
        bias = bytearray(self._matcher.compute_logit_bias())
        if self._look_for_failure():
            return
        # The tokenizer may know fewer tokens than the model has logits, or more.
        allowed_V = torch.zeros(logits_V.shape[0], dtype=torch.bool)
        count = min(len(bias), logits_V.shape[0])
        allowed_V[:count] = torch.frombuffer(bias, dtype=torch.uint8)[:count] > 0
        allowed_V = allowed_V.to(logits_V.device)
        # What was held back before (`min_new_tokens`) must not leave nothing: the grammar comes first.
        if not bool((torch.isfinite(logits_V) & allowed_V).any()):
            logits_V[allowed_V] = 0.0
        logits_V[~allowed_V] = -torch.inf

    def accept(self, token: int) -> None:
        """Go on with a token that was drawn."""
        if self.failure is None and not self.complete:  # what follows then ends the answer
            self._matcher.consume_token(token)
            self._look_for_failure()

    def _look_for_failure(self) -> bool:
        if self._matcher.is_error():
            self.failure = f"the grammar cannot go on: {_say_error(self._matcher)}"
        return self.failure is not None


class GrammarBuilder:
    """Builds grammars over one tokenizer, on threads of its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, eos_ids: frozenset[int]) -> None:
        self._tokenizer = _wrap_tokenizer(tokenizer, vocabulary, sorted(eos_ids))
        self._pool = ThreadPoolExecutor(_BUILDING_THREADS, thread_name_prefix="grammars")

    def stop(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def build(self, source: GrammarSource) -> Grammar:
        """Build a grammar.

        Raises: Refused where a schema is none, asks for what no grammar can force here, or costs too much.
        """
        written = [schema.write() for schema in source.schemas]
        if sum(len(json.dumps(schema)) for schema in written) > _MOST_SCHEMA_BYTES:
            raise Refused(f"the schemas of one request may have {_MOST_SCHEMA_BYTES} bytes together.")
        building = asyncio.get_running_loop().run_in_executor(self._pool, self._build, source, written)
        try:
            return await asyncio.wait_for(building, _BUILD_TIMEOUT_S)
        except TimeoutError as error:
            raise Refused(f"no grammar could be built in {_BUILD_TIMEOUT_S:.0f} s: simplify the schemas.") from error

    def _build(self, source: GrammarSource, written: Sequence[dict[str, Any]]) -> Grammar:
        grammars: list[dict[str, Any]] = [{"name": "answer", "lark_grammar": source.rules}]
        for index, (schema, text) in enumerate(zip(source.schemas, written, strict=True)):
            alone = LLMatcher(self._tokenizer, json.dumps({"grammars": [{"json_schema": text}]}), limits=_LIMITS)
            if alone.is_error():
                raise Refused(f"{schema.place} cannot be forced: {_say_error(alone)}")
            grammars.append({"name": f"schema_{index}", "json_schema": text})
        matcher = LLMatcher(self._tokenizer, json.dumps({"grammars": grammars}), limits=_LIMITS)
        matcher.compute_logit_bias()  # what is too complex shows here at the latest, and costs the most
        if matcher.is_error():
            raise Refused(f"no grammar can be built from these schemas: {_say_error(matcher)}")
        matcher.reset()
        return Grammar(matcher)


def _say_error(matcher: LLMatcher) -> str:
    return matcher.get_error().removesuffix("\n<non-verbose/>")


def _wrap_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary: int, eos_ids: list[int]) -> LLTokenizer:
    """Wrap a tokenizer so that only special tokens are special: llguidance takes any `<...>` for one."""
    known = set(tokenizer.get_vocab().values())
    size = max(vocabulary, *known) + 1
    raw = from_tokenizer(tokenizer, n_vocab=size, eos_token=eos_ids)  # pyright: ignore[reportArgumentType]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    encoder: Any = copy(tokenizer.backend_tokenizer)
    encoder.no_padding()
    encoder.no_truncation()
    encoder.encode_special_tokens = True  # as text: no name or value of a schema can write a mark of the chat

    class _Tokens:
        eos_token_id = eos_ids[0]
        bos_token_id = None
        tokens = tuple(raw.decode_bytes([token]) if token in known else b"" for token in range(size))
        special_token_ids = tuple(special | set(eos_ids))

        def __call__(self, text: str) -> list[int]:
            return encoder.encode(text, add_special_tokens=False).ids

    return LLTokenizer(TokenizerWrapper(_Tokens()), n_vocab=size, eos_token=eos_ids)

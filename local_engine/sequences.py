"""One request on its way through the decoder: what is written by the decoding thread and read by the HTTP side."""

import asyncio
import random
from dataclasses import dataclass, field

from local_engine.grammars import Grammar
from local_engine.sampling import Sampling


@dataclass(slots=True)
class Finish:
    """Why a sequence ended: `stop` (with what matched: a token id or a string), `length` or `abort`."""

    type: str
    matched: int | str | None = None


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt, how to sample from it, and the tokens drawn so far.

    Only the decoding thread appends; it sets `finish` last. `changed` is set on the HTTP side's loop: at the end, and
    after every token where `streams`.
    """

    id: str
    prompt: list[int]
    adapter: str
    sampling: Sampling
    limit: int  # the most new tokens that fit
    patient: bool = False  # whether others go first
    streams: bool = False
    wants_logprobs: bool = False
    top_logprobs: int = 0
    grammar: Grammar | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[list[tuple[float, int]]] = field(default_factory=list)
    finish: Finish | None = None
    aborted: bool = False
    cached_tokens: int = 0  # of the prompt, whose keys and values were there already
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    randomness: random.Random | None = None

    def __post_init__(self) -> None:
        if self.sampling.sampling_seed is not None and not self.sampling.greedy:
            self.randomness = random.Random(self.sampling.sampling_seed)

    @property
    def length(self) -> int:
        """Prompt and output tokens together."""
        return len(self.prompt) + len(self.tokens)

"""How the next token is drawn: one request's parameters, and the plan that draws for all rows of a batch at once.

Called by the running batch. Knows nothing of text; never loops over rows where no row asks for something special.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from local_engine.errors import Refused
from local_engine.grammars import Grammar

OPENAI_FIELDS = {
    # field of the OpenAI APIs -> SGLang's sampling parameter
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "min_tokens": "min_new_tokens",
    "seed": "sampling_seed",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "no_stop_trim": "no_stop_trim",
    "logit_bias": "logit_bias",
    "n": "n",
    "regex": "regex",
    "ebnf": "ebnf",
    "stop_regex": "stop_regex",
}
"""How the sampling parameters are called in chat requests and in raw text completions."""

_GREEDY_BELOW = 1e-6  # temperatures under this are greedy, as in SGLang
_DEFAULT_MAX_NEW_TOKENS = 128
_MAX_STOPS = 32


@dataclass(frozen=True, slots=True)
class Sampling:
    """One request's sampling parameters, by SGLang's names. `max_new_tokens` None: as many as fit the context."""

    max_new_tokens: int | None = _DEFAULT_MAX_NEW_TOKENS
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    sampling_seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < _GREEDY_BELOW or self.top_k == 1

    @property
    def divisor(self) -> float:
        """What logits are divided by."""
        return 1.0 if self.temperature < _GREEDY_BELOW else self.temperature

    @property
    def edits_logits(self) -> bool:
        """Whether a row's logits are changed before the softmax."""
        return bool(
            self.logit_bias
            or self.min_new_tokens
            or self.repetition_penalty != 1.0
            or self.frequency_penalty
            or self.presence_penalty
        )


_NUMBERS = {
    # name: (lowest, highest, whether the lowest itself is refused)
    "temperature": (0.0, math.inf, False),
    "top_p": (0.0, 1.0, True),
    "min_p": (0.0, 1.0, False),
    "repetition_penalty": (0.0, 2.0, True),
    "frequency_penalty": (-2.0, 2.0, False),
    "presence_penalty": (-2.0, 2.0, False),
}
_INTEGERS = {"max_new_tokens": 0, "min_new_tokens": 0, "top_k": -1, "sampling_seed": -(2**63)}
_FLAGS = ("ignore_eos", "skip_special_tokens", "no_stop_trim")
_UNSUPPORTED = ("json_schema", "regex", "ebnf", "structural_tag", "stop_regex")
_IGNORED = ("n", "spaces_between_special_tokens", "custom_params", "stream_interval")


def read_sampling(given: Mapping[str, Any], vocabulary: int) -> Sampling:
    """Check and complete one request's parameters; what is None counts as not given.

    `max_new_tokens` is the exception: given as None it means as many as fit.

    Raises: Refused.
    """
    if given.get("n") not in (None, 1):
        raise Refused("n must be 1.")
    if given.get("top_k") == 0:
        raise Refused("top_k must be -1 (disable) or at least 1, got 0.")
    values = {
        name: _read_value(name, value, vocabulary)
        for name, value in given.items()
        if value is not None and name not in _IGNORED
    }
    if "max_new_tokens" in given:
        values.setdefault("max_new_tokens", None)
    return Sampling(**values)


def _read_value(name: str, value: Any, vocabulary: int) -> Any:
    if name in _NUMBERS:
        return _read_number(name, value)
    if name in _INTEGERS:
        return _read_integer(name, value)
    if name in _FLAGS:
        return bool(value)
    if name == "logit_bias":
        return _read_bias(value, vocabulary)
    if name in _UNSUPPORTED:
        raise Refused(f"{name} is not supported: force a shape with response_format or tool_choice, in a chat.")
    readers = {"stop": _read_stop, "stop_token_ids": _read_token_ids}
    if name not in readers:
        raise Refused(f"unknown sampling parameter {name!r}")
    return readers[name](value)


def _read_number(name: str, value: Any) -> float:
    low, high, open_below = _NUMBERS[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"{name} must be a number, got {value!r}.")
    if not math.isfinite(value) or not low <= value <= high or (open_below and value == low):
        raise Refused(f"{name} must be in {'(' if open_below else '['}{low}, {high}], got {value}.")
    return float(value)


def _read_integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not _INTEGERS[name] <= value < 2**63:
        raise Refused(f"{name} must be an integer of at least {_INTEGERS[name]}, got {value!r}.")
    return value


def _read_stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise Refused("stop must be a string or a list of strings.")
    if len(stops) > _MAX_STOPS:
        raise Refused(f"at most {_MAX_STOPS} stop strings are allowed.")
    return tuple(stop for stop in stops if stop)


def _read_token_ids(value: Any) -> frozenset[int]:
    if not isinstance(value, list) or not all(isinstance(token, int) and token >= 0 for token in value):
        raise Refused("stop_token_ids must be a list of token ids.")
    return frozenset(value)


def _read_bias(value: Any, vocabulary: int) -> dict[int, float]:
    try:
        bias = {int(token): float(weight) for token, weight in value.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise Refused("logit_bias must map token ids to numbers.") from error
    if any(not 0 <= token < vocabulary for token in bias):
        raise Refused(f"logit_bias must have keys in [0, {vocabulary - 1}].")
    return {token: weight for token, weight in bias.items() if weight}


class SamplingPlan:
    """Draws the next token of every row. Built anew when rows join or leave; keeps nothing of the text.

    `samplings` are one per row (N). `streams` are a row's own random numbers, where it has a seed: drawn from in order,
    so that an answer is the same whatever company it decodes in. `eos_ids` are what `min_new_tokens` holds back.
    `grammars` are what rows are forced into: only those rows pay for it.
    """

    def __init__(
        self,
        samplings: Sequence[Sampling],
        streams: Sequence[random.Random | None],
        eos_ids: frozenset[int],
        device: torch.device,
        grammars: Sequence[Grammar | None] = (),
    ) -> None:
        self._eos_ids = sorted(eos_ids)
        self._streams = [(row, stream) for row, stream in enumerate(streams) if stream is not None]
        self._forced = [(row, grammar) for row, grammar in enumerate(grammars) if grammar is not None]
        self._edited = [(row, sampling) for row, sampling in enumerate(samplings) if sampling.edits_logits]
        self._all_greedy = all(sampling.greedy for sampling in samplings)
        self._no_greedy = not any(sampling.greedy for sampling in samplings)
        self._greedy_N = torch.tensor([sampling.greedy for sampling in samplings], device=device)
        self._divisor_N1 = _column([sampling.divisor for sampling in samplings], device)
        self._divides = any(sampling.divisor != 1.0 for sampling in samplings)
        drawn = [sampling for sampling in samplings if not sampling.greedy]
        self._filters = any(s.top_p < 1.0 or s.top_k > 0 or s.min_p > 0.0 for s in drawn)
        if self._filters:
            self._top_p_N1 = _column([sampling.top_p for sampling in samplings], device)
            self._min_p_N1 = _column([sampling.min_p for sampling in samplings], device)
            self._top_k_N1 = _column([s.top_k if s.top_k > 0 else 2**30 for s in samplings], device)

    def draw(
        self, logits_NV: torch.Tensor, histories: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw one token a row; give back the tokens (N,) and all log-probabilities (N, V).

        Log-probabilities are of the distribution at the row's temperature, before top-p, top-k and min-p cut it, and
        among the tokens that the row's grammar allows.
        `histories` are the prompt and output ids of each row, read only where penalties ask for them.
        """
        logits_NV = logits_NV.float()
        for row, sampling in self._edited:
            self._edit(logits_NV[row], sampling, *histories[row])
        for row, grammar in self._forced:
            grammar.block(logits_NV[row])
        if self._divides:
            logits_NV = logits_NV / self._divisor_N1
        logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
        if self._all_greedy:
            return logprobs_NV.argmax(-1), logprobs_NV
        weights_NV = logprobs_NV.exp()
        if self._filters:
            weights_NV = self._cut(weights_NV)
        drawn_N1 = self._invert(weights_NV)
        # Rounding at the upper end can hit a token without weight: never take that.
        sound_N = weights_NV.gather(1, drawn_N1)[:, 0] > 0
        if self._no_greedy and bool(sound_N.all()):
            return drawn_N1[:, 0], logprobs_NV
        return torch.where(sound_N & ~self._greedy_N, drawn_N1[:, 0], logprobs_NV.argmax(-1)), logprobs_NV

    def _invert(self, weights_NV: torch.Tensor) -> torch.Tensor:
        uniform_N1 = torch.rand(weights_NV.shape[0], 1, device=weights_NV.device)
        for row, stream in self._streams:
            uniform_N1[row] = stream.random()
        sums_NV = weights_NV.cumsum(-1)
        return torch.searchsorted(sums_NV, uniform_N1 * sums_NV[:, -1:], right=True).clamp_(max=sums_NV.shape[1] - 1)

    def _cut(self, weights_NV: torch.Tensor) -> torch.Tensor:
        sorted_NV, order_NV = weights_NV.sort(dim=-1, descending=True)
        before_NV = sorted_NV.cumsum(-1) - sorted_NV
        rank_V = torch.arange(sorted_NV.shape[1], device=sorted_NV.device)
        drop_NV = (
            (before_NV > self._top_p_N1) | (rank_V >= self._top_k_N1) | (sorted_NV < sorted_NV[:, :1] * self._min_p_N1)
        )
        return torch.zeros_like(weights_NV).scatter(1, order_NV, sorted_NV.masked_fill(drop_NV, 0.0))

    def _edit(self, logits_V: torch.Tensor, sampling: Sampling, prompt: Sequence[int], output: Sequence[int]) -> None:
        if sampling.repetition_penalty != 1.0:
            seen = torch.tensor(sorted({*prompt, *output}), device=logits_V.device)
            values = logits_V[seen]
            penalty = sampling.repetition_penalty
            logits_V[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if output and (sampling.frequency_penalty or sampling.presence_penalty):
            counts_V = torch.bincount(torch.tensor(output, device=logits_V.device), minlength=logits_V.shape[0])
            logits_V -= counts_V * sampling.frequency_penalty + (counts_V > 0) * sampling.presence_penalty
        for token, weight in sampling.logit_bias.items():
            logits_V[token] += weight
        if len(output) < sampling.min_new_tokens:
            logits_V[[*self._eos_ids, *sampling.stop_token_ids]] = -math.inf


def _column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device)[:, None]

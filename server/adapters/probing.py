"""Finds out whether an engine really answers with an adapter. Called by the hot swap.

SGLang serves the base model, or what files lie at a path by now, without a word: what it says it holds proves nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.base import Engine
from server.errors import AdapterRefused, EngineUnavailable


@dataclass(frozen=True, slots=True)
class Probe:
    """What an adapter must answer: greedy `token_ids` (T,) after `prompt_ids`, with their `logprobs` (T,).

    Made by a forward pass of the trainer. `tolerance` is in nats. `told_apart` says whether the base model's
    logprobs of these tokens lie further off than that: where they do, an engine that serves the base is found out. An
    adapter that hardly changes anything cannot be told apart; the event of its promotion says so.
    """

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    tolerance: float
    told_apart: bool = True


async def probe(engine: Engine, name: str, expected: Probe) -> float:
    """Ask the engine for the greedy continuation under `name` and compare it with what the trainer computed.

    Returns the largest difference of logprobs in nats.

    Raises: AdapterRefused where the engine answers with something else.
    """
    sampling = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "max_new_tokens": len(expected.token_ids)}
    answer = await engine.complete_ids(expected.prompt_ids, name, sampling)
    tokens = list(answer.token_ids)
    if tokens != list(expected.token_ids)[: len(tokens)] or not tokens or not answer.logprobs:
        raise AdapterRefused(
            f"The engine does not answer with {name!r}: it continued with the tokens {tokens}, "
            f"the adapter's own are {list(expected.token_ids)}."
        )
    gaps = [abs(ours - theirs) for ours, theirs in zip(expected.logprobs, answer.logprobs, strict=False)]
    gap = math.nan if any(math.isnan(one) for one in gaps) else max(gaps)
    if not gap <= expected.tolerance:  # NaN is no answer either
        raise AdapterRefused(
            f"The engine does not answer with {name!r} as it was trained: logprobs differ by {gap:.4f} nats, "
            f"{expected.tolerance:g} are allowed."
        )
    return gap


async def probe_everywhere(engine: Engine, name: str, expected: Probe) -> float:
    """Probe each engine in rotation; one that goes away meanwhile is left to the looks at it. Returns the largest gap.

    Raises: AdapterRefused where any of them answers with something else, EngineUnavailable where none answers.
    """
    gaps: list[float] = []
    away: list[EngineUnavailable] = []
    for one in engine.replicas().values():
        try:
            gaps.append(await probe(one, name, expected))
        except EngineUnavailable as error:
            away.append(error)
    if not gaps:
        raise away[0] if away else EngineUnavailable(f"no engine is there to probe {name!r} on")
    return max(gaps)

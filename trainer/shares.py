"""What the ranks of a trainer bring together of an update: figures, gradients, and whether their weights are alike.

Called by trainer.grpo, only between updates' passes (trainer.ranks says why). A lone rank goes the same way, and brings
together what is its own.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping

import msgspec
import torch

from trainer.errors import RoundFailed
from trainer.ranks import Ranks

Notes = Mapping[str, list[float]]
"""Figures of forward passes, by the names in trainer.steps.TOLD."""

_SUMS = frozenset({"loss", "first_try_loss"})
"""Each rank notes its share of these; of all others every pass has a figure of its own."""

_notes = msgspec.msgpack.Decoder(dict[str, list[float]])


def bring_together(ranks: Ranks, model: torch.nn.Module, notes: Notes) -> Notes:
    """Add up the gradients of an update and give the figures that it has as a whole. Raises: RankLost."""
    if ranks.size > 1:
        ranks.add_up([_find_gradient(one) for one in _list_trained(model)])
    told = [_notes.decode(word) for word in ranks.exchange(msgspec.msgpack.encode(dict(notes)))]
    joined: defaultdict[str, list[float]] = defaultdict(list)
    for one in told:
        for name, values in one.items():
            joined[name] += values
    return {name: [sum(values)] if name in _SUMS else values for name, values in joined.items()}


def compare_weights(ranks: Ranks, model: torch.nn.Module, step: int) -> None:
    """Make sure that all ranks have the same weights, to the bit. Raises: RoundFailed, RankLost."""
    if ranks.size == 1:
        return
    digest = hashlib.sha256()
    for one in _list_trained(model):
        digest.update(one.detach().reshape(-1).cpu().view(torch.uint8).numpy().tobytes())
    if len(set(ranks.exchange(digest.digest()))) > 1:
        raise RoundFailed(
            f"after step {step} the weights of the processes differ: train on GPUs of one kind, or on a single one"
        )


def _list_trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [one for one in model.parameters() if one.requires_grad]


def _find_gradient(weights: torch.nn.Parameter) -> torch.Tensor:
    """Find a gradient; a rank that had no members in an update has none yet."""
    if weights.grad is None:
        weights.grad = torch.zeros_like(weights)
    return weights.grad

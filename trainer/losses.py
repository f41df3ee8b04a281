"""The parts of the loss that are ours, in plain torch: what a token's ratio is taken to, and the KL to the base model.

Called by trainer.grpo; the clipped policy loss itself is TRL's. Shapes: B members, C reflection tokens. It must never
import TRL, and never touch a model.

Three policies are told apart (the decoupled loss of Hilton et al. 2021, arXiv 2110.00641):
- the *behaviour* policy, which sampled the tokens: the engine's logprobs;
- the *proximal* policy: the trainer's own logprobs of the same tokens, with the weights that the step began with;
- the *policy* that is being trained.
"""

from dataclasses import dataclass

import torch

from trainer.settings import TrainerSettings

WIDEST_GAP = 10.0  # nats: keeps the exponential of one absurd token finite


@dataclass(frozen=True, slots=True)
class Whole:
    """The update that a forward pass is a part of."""

    tokens: int  # reflection tokens of all its members
    rows: int  # its members


def choose_denominator(
    policy: torch.Tensor,
    behaviour: torch.Tensor,
    proximal: torch.Tensor | None,
    fresh: torch.Tensor,
    settings: TrainerSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the logprobs (B, C) that the clipped ratio is taken to, and the weight (B, C) of each token.

    With `importance: truncated`, a fresh member's ratio is taken to the proximal policy, and each token weighs
    min(proximal / behaviour, cap): truncated importance sampling by token (Yao et al. 2025, "Your Efficient RL
    Framework Secretly Brings You Off-Policy RL Training"; TRL's `token_truncate`). `proximal` is None where the
    weights have not changed yet in this step: then it is the policy itself. Otherwise, and for logged members (`fresh`
    (B, 1) is False) always, the ratio is taken to the behaviour policy, and the clip bounds it as a whole.
    """
    if settings.importance == "none":
        return behaviour, torch.ones_like(policy)
    own = policy.detach() if proximal is None else proximal
    weight = torch.exp(own - behaviour).clamp(max=settings.importance_cap)
    return torch.where(fresh, own, behaviour), torch.where(fresh, weight, torch.ones_like(weight))


def estimate_mismatch(policy: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Estimate KL(engine || trainer) a token (a scalar, nats, never negative) on the tokens in `mask` (B, C).

    The k3 estimator (Schulman 2020, "Approximating KL divergence"): r - 1 - log r, with r = trainer / engine, on what
    the engine sampled.
    """
    gap = (policy.detach() - behaviour).clamp(-WIDEST_GAP, WIDEST_GAP)
    return ((torch.exp(gap) - gap - 1) * mask).sum() / mask.sum().clamp(min=1)


def clamp_kl(base: torch.Tensor, policy: torch.Tensor, widest: float) -> torch.Tensor:
    """Estimate the KL of each token (B, C) from the policy to the base model (k3), the log-ratio clamped.

    Single tokens reach 14 nats otherwise, and their exponential drowns the batch.
    """
    gap = (base - policy).clamp(-widest, widest)
    return torch.exp(gap) - gap - 1


def average(per_token: torch.Tensor, mask: torch.Tensor, whole: Whole, settings: TrainerSettings) -> torch.Tensor:
    """Average a loss by token (B, C) as the loss type does over its whole update; the parts' averages add up.

    dapo and cispo divide by the update's tokens; grpo takes each member's mean, and the mean of these; dr_grpo divides
    by members x a constant length.
    """
    summed = (per_token * mask).sum(-1)  # (B,)
    if settings.loss_type == "grpo":
        return (summed / mask.sum(-1).clamp(min=1)).sum() / whole.rows
    if settings.loss_type == "dr_grpo":
        return summed.sum() / (whole.rows * settings.dr_grpo_tokens)
    return summed.sum() / whole.tokens

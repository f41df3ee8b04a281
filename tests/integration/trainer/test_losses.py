"""What engine and trainer differ by, and what truncated importance sampling mends of it; the figures of decision 13."""

import pytest
import torch

from trainer.losses import choose_denominator, clamp_kl, estimate_mismatch
from trainer.settings import TrainerSettings

TOKENS = 40
SETTINGS = TrainerSettings()


def find_errors(noise: float, importance: str, *, policies: int = 300) -> tuple[float, float]:
    """The gradient's relative error at a step's first update, in exact expectation, and the mismatch KL: both means.

    Single-token answers of softmax policies, half of which pass; the engine's logits are off by `noise`.
    """
    generator = torch.Generator().manual_seed(0)
    settings, errors, kls = SETTINGS.override({"importance": importance}), [], []
    for _ in range(policies):
        logits = 2 * torch.randn(TOKENS, generator=generator, dtype=torch.float64)
        off = noise * torch.randn(TOKENS, generator=generator, dtype=torch.float64)
        passes = (torch.rand(TOKENS, generator=generator, dtype=torch.float64) < 0.5).double()
        policy, engine = torch.log_softmax(logits, 0)[:, None], torch.log_softmax(logits + off, 0)[:, None]  # (B, 1)
        chance = (policy.exp()[:, 0] @ passes).item()
        if not 0.02 < chance < 0.98:
            continue
        advantages = (passes - chance)[:, None]
        fresh = torch.ones(TOKENS, 1, dtype=torch.bool)
        old, weight = choose_denominator(policy, engine, None, fresh, settings)
        ratio = torch.exp(policy - old)
        cut = torch.where(advantages > 0, ratio > 1 + settings.clip_high, ratio < 1 - settings.clip_low)
        factor = engine.exp() * weight * ratio * ~cut * advantages  # (B, 1), of each token's own gradient
        scores = torch.eye(TOKENS, dtype=torch.float64) - policy.exp().T
        wrong, right = (factor * scores).sum(0), (policy.exp() * advantages * scores).sum(0)
        errors.append(((wrong - right).norm() / right.norm()).item())
        kls.append((engine.exp() * (engine - policy)).sum().item())
    return sum(errors) / len(errors), sum(kls) / len(kls)


@pytest.mark.parametrize(
    ("noise", "kl", "none", "truncated"),
    [(0.02, 0.0002, 0.0, 0.0), (0.11, 0.005, 0.032, 0.0), (0.2, 0.016, 0.182, 0.0), (0.4, 0.062, 0.357, 0.016)],
)
def test_truncated_weights_mend_what_one_clipped_ratio_does_not(noise, kl, none, truncated):
    error, seen = find_errors(noise, "none")
    assert seen == pytest.approx(kl, rel=0.1, abs=1e-4)
    assert error == pytest.approx(none, abs=2e-3)
    assert find_errors(noise, "truncated")[0] == pytest.approx(truncated, abs=2e-3)


def test_logged_members_keep_the_ratio_to_who_wrote_them():
    policy = torch.tensor([[-1.0], [-1.0]])
    behaviour, proximal = torch.tensor([[-3.0], [-3.0]]), torch.tensor([[-1.5], [-9.0]])
    fresh = torch.tensor([[True], [False]])
    old, weight = choose_denominator(policy, behaviour, proximal, fresh, SETTINGS)
    assert old.tolist() == [[-1.5], [-3.0]]
    assert weight.tolist() == [[2.0], [1.0]]  # exp(1.5), cut
    old, weight = choose_denominator(policy, behaviour, proximal, fresh, SETTINGS.override({"importance": "none"}))
    assert (old.tolist(), weight.tolist()) == ([[-3.0], [-3.0]], [[1.0], [1.0]])


def test_the_mismatch_is_a_kl_that_one_absurd_token_cannot_make_infinite():
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    engine, trainer = torch.log_softmax(logits, -1)
    drawn = torch.multinomial(engine.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(1))
    estimate = estimate_mismatch(trainer[drawn][None], engine[drawn][None], torch.ones(1, len(drawn)))
    assert estimate.item() == pytest.approx((engine.exp() * (engine - trainer)).sum().item(), rel=0.02)
    absurd = estimate_mismatch(torch.tensor([[0.0, -1.0]]), torch.tensor([[-1e4, -1.0]]), torch.tensor([[1, 0]]))
    assert absurd.isfinite()
    assert estimate_mismatch(absurd[None, None], absurd[None, None], torch.zeros(1, 1)) == 0


def test_the_kl_to_the_base_is_clamped_where_single_tokens_are_far():
    base, policy = torch.tensor([-1.0, -15.0, -1.0]), torch.tensor([-1.0, -1.0, -15.0])
    near, far, farther = clamp_kl(base, policy, 4.0).tolist()
    assert near == 0
    assert far == pytest.approx(3.018, abs=1e-3)
    assert farther == pytest.approx(49.598, abs=1e-3)

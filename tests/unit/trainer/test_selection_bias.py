"""The estimator is not biased by what was selected: a simulation with a softmax policy over single-token reflections.

Two failures, each a bandit with six reflections of which some mend it. The policy is the softmax of logits; the logged
reflection was written by an older policy. A round that prefers recovered failures takes a failure only when its logged
reflection succeeded: then every logged member is a success, chosen for being one.

Groups are weighed by the trainer's own `weigh_groups`; the gradient of a member is that of the clipped loss, which the
tests of trainer.grpo compare with what TRL computes. The truth is known: the gradient of p, the chance that the failure
is mended, times a positive factor that normalising in a group of G brings, which does not depend on what was logged.
n = 30,000 groups of 8 for each case; a figure is right where each component is within 4.5 standard errors.
"""

import math
from functools import cache

import numpy as np
import pytest

from trainer.groups import weigh_groups
from trainer.samples import Member
from trainer.settings import TrainerSettings

GROUPS = 30_000
FRESH = 8
Z = 4.5  # standard errors: a false alarm in some ten thousand seeds; the seed is fixed besides
SETTINGS = TrainerSettings()
LOGITS = np.array([[0.6, -0.2, 0.1, 0.9, -0.5, 0.0], [-1.0, 0.3, 0.8, 0.2, 0.4, -1.2]])
OLD_LOGITS = LOGITS + np.array([[0.9, -1.0, 0.4, -0.8, 1.2, 0.0], [0.2, -0.4, -0.9, 0.7, 0.0, 0.9]])
MENDS = np.array([[1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1]], dtype=float)  # mended in 42 % and 10 % of tries


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


POLICY, OLD = softmax(LOGITS), softmax(OLD_LOGITS)


def truth(which: int) -> np.ndarray:
    """The gradient (6,) of a failure's chance to be mended, in its logits."""
    return POLICY[which] * (MENDS[which] - POLICY[which] @ MENDS[which])


def weigh(successes: int, logged: float | None, *, scaled: bool, in_baseline: bool = False) -> tuple[float, ...]:
    """Advantages of a fresh success, a fresh failure and the logged member, by the trainer's own weighing."""
    members = [Member(0, [1], [1], [0.0], float(i < successes)) for i in range(FRESH)]
    if logged is not None:
        members.append(Member(0, [1], [1], [0.0], logged, logged=not in_baseline))
    kept = weigh_groups(members, scaled=scaled)
    advantage = {id(member): one for member, one in kept}
    # Where all fresh members are alike, the first is what they all are; the other kind is not there to be weighed.
    good, bad, theirs = (advantage.get(id(one), 0.0) for one in (members[0], members[FRESH - 1], members[-1]))
    return good, bad, theirs if logged is not None else 0.0


def find_factor(which: int, *, scaled: bool) -> float:
    """What a group of G multiplies the true gradient by, from the binomial law of the other members' successes.

    A member's advantage depends on its own reward and the number of successes alone, so its expected gradient is the
    true one times E[advantage of a success - advantage of a failure], the others being what they are. Unscaled this is
    1 - 1/G, as a member is part of its own mean.
    """
    p, others = float(POLICY[which] @ MENDS[which]), FRESH - 1
    return sum(
        math.comb(others, k) * p**k * (1 - p) ** (others - k)
        * (weigh(k + 1, None, scaled=scaled)[0] - weigh(k, None, scaled=scaled)[1])
        for k in range(FRESH)
    )  # fmt: skip


@cache
def draw(which: int, **how) -> "Draws":
    return Draws(which, **how)


class Draws:
    """What one case gives: the mean gradient (6,) of the fresh members and of the logged one, each with its error."""

    def __init__(
        self, which: int, *, prefer: bool, scaled: bool = True, in_baseline: bool = False, ratio: str = "clipped"
    ) -> None:
        rng = np.random.default_rng(7 + which)
        policy, old, mends = POLICY[which], OLD[which], MENDS[which]
        chosen = old * mends / (old @ mends) if prefer else old
        actions = rng.choice(6, size=(GROUPS, FRESH), p=policy)  # (N, G)
        logged = rng.choice(6, size=GROUPS, p=chosen)  # (N,)
        rewards = mends[actions]
        table = np.array(
            [[weigh(k, r, scaled=scaled, in_baseline=in_baseline) for r in (0.0, 1.0)] for k in range(FRESH + 1)]
        )  # (G + 1, 2, 3)
        good, bad, theirs = table[rewards.sum(1).astype(int), mends[logged].astype(int)].T  # (N,) each
        scores = np.eye(6) - policy  # (6 actions, 6 logits), the gradient of each log-probability
        weights = np.where(rewards > 0, good[:, None], bad[:, None])
        self.fresh, self.fresh_error = self._average((weights[:, :, None] * scores[actions]).mean(1))
        self.logged, self.logged_error = self._average(
            (theirs * self._reuse(ratio, policy / old, logged, theirs))[:, None] * scores[logged]
        )

    @staticmethod
    def _reuse(ratio: str, ratios: np.ndarray, logged: np.ndarray, advantages: np.ndarray) -> np.ndarray:
        """Give the gradient's factor of a logged member: its ratio, which the clip lets through or not."""
        if ratio == "none":
            return np.ones(len(logged))
        own = ratios[logged]
        if ratio == "whole":
            return own
        cut = np.where(advantages > 0, own > 1 + SETTINGS.clip_high, own < 1 - SETTINGS.clip_low)
        return np.where(cut, 0.0, own)

    @staticmethod
    def _average(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return gradients.mean(0), gradients.std(0, ddof=1) / math.sqrt(len(gradients))


def miss(estimate: np.ndarray, error: np.ndarray, wanted: np.ndarray) -> float:
    """How many standard errors the worst component is off."""
    return float((np.abs(estimate - wanted) / error).max())


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("prefer", [False, True], ids=["any", "recovered_first"])
@pytest.mark.parametrize("scaled", [True, False], ids=["dapo", "dr_grpo"])
def test_fresh_members_give_the_true_gradient_whatever_was_selected(which, prefer, scaled):
    draws = draw(which, prefer=prefer, scaled=scaled)
    wanted = find_factor(which, scaled=scaled) * truth(which)
    assert miss(draws.fresh, draws.fresh_error, wanted) < Z
    assert draws.fresh_error.max() < 0.02 * np.abs(wanted).max()  # the interval is narrow enough to tell


def test_the_factor_of_a_group_is_known():
    assert [find_factor(which, scaled=False) for which in (0, 1)] == pytest.approx([1 - 1 / FRESH] * 2)
    assert all(1 < find_factor(which, scaled=True) < 3 for which in (0, 1))


def test_in_the_baseline_it_would_matter_what_was_selected():
    """The contrast: in mean and deviation, a logged success moves what the fresh members of a hard failure say."""
    wanted = find_factor(1, scaled=True) * truth(1)
    any_, preferred = (draw(1, prefer=prefer, in_baseline=True) for prefer in (False, True))
    assert miss(preferred.fresh, preferred.fresh_error, wanted) > 4 * Z
    assert miss(any_.fresh, np.hypot(any_.fresh_error, preferred.fresh_error), preferred.fresh) > 2 * Z


@pytest.mark.parametrize("which", [0, 1])
def test_a_logged_members_ratio_keeps_its_direction_even_if_chosen_for_success(which):
    """With the whole ratio it says a positive multiple of the true gradient; without, it points elsewhere."""
    wanted = truth(which) / np.linalg.norm(truth(which))
    weighed = draw(which, prefer=True, ratio="whole")
    along = weighed.logged @ wanted
    assert along > 10 * np.linalg.norm(weighed.logged_error)
    assert miss(weighed.logged, weighed.logged_error, along * wanted) < Z
    bare = draw(which, prefer=True, ratio="none")
    assert miss(bare.logged, bare.logged_error, (bare.logged @ wanted) * wanted) > 2 * Z


@pytest.mark.parametrize("which", [0, 1])
def test_the_clip_bounds_what_a_capped_share_of_logged_members_can_bend(which):
    """Clipping is biased, as in all of PPO: with the share at its cap, a whole group's mean still points uphill."""
    draws = draw(which, prefer=True)
    most = SETTINGS.most_logged
    whole = (FRESH * draws.fresh + most * draws.logged) / (FRESH + most)
    cosine = whole @ truth(which) / np.linalg.norm(whole) / np.linalg.norm(truth(which))
    assert cosine > 0.98


def test_the_share_of_logged_members_is_capped():
    assert SETTINGS.logged_share == 0.25
    for size, most in [(2, 0), (3, 1), (4, 1), (8, 2), (9, 3), (16, 5)]:
        assert SETTINGS.override({"group_size": size}).most_logged == most
        assert most / (size + most) <= 0.25 < (most + 1) / (size + most + 1)
    assert SETTINGS.override({"logged_share": 0.125}).most_logged == 1  # the demo's: one of nine
    assert SETTINGS.override({"logged_share": 0}).most_logged == 0

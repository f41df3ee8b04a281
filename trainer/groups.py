"""What a group of reflections says: its members' advantages, and how they are dealt to optimiser updates.

Called by trainer.grpo. Plain numbers: no torch, no engine.
"""

import random
import statistics
from collections.abc import Sequence

from trainer.samples import Member

Weighed = tuple[Member, float]
"""A member and its advantage."""


def weigh_groups(members: Sequence[Member], *, scaled: bool = True) -> list[Weighed]:
    """Give each member its advantage: its reward less the group's mean, over its deviation if `scaled`.

    Only fresh members with a verdict enter the mean and the deviation; logged members are measured against them.
    Groups whose fresh members all have the same reward carry no signal and are left out.
    """
    groups: dict[int, list[Member]] = {}
    for member in members:
        groups.setdefault(member.group, []).append(member)
    kept: list[Weighed] = []
    for group in groups.values():
        fresh = [member.reward for member in group if member.reward is not None and not member.logged]
        if len(set(fresh)) < 2:
            continue
        mean, scale = statistics.fmean(fresh), statistics.stdev(fresh) + 1e-4 if scaled else 1.0
        kept += [(one, (one.reward - mean) / scale) for one in group if one.reward is not None]
    return kept


def cut_updates(kept: Sequence[Weighed], size: int, rng: random.Random) -> list[list[Weighed]]:
    """Deal whole groups at random to updates of about `size` members.

    Inside an update the members are sorted by their prompts' lengths, group by group: that changes nothing but how
    much has to be padded and read twice.
    """
    groups: dict[int, list[Weighed]] = {}
    for one in kept:
        groups.setdefault(one[0].group, []).append(one)
    dealt = rng.sample(list(groups.values()), len(groups))
    count = max(1, min(len(dealt), round(len(kept) / size)))
    updates = [dealt[i * len(dealt) // count : (i + 1) * len(dealt) // count] for i in range(count)]
    return [_join(sorted(update, key=lambda group: len(group[0][0].prompt_ids))) for update in updates]


def _join(groups: list[list[Weighed]]) -> list[Weighed]:
    return [one for group in groups for one in group]


def cut_parts(update: Sequence[Weighed], most: int, ranks: int = 1) -> list[list[Weighed]]:
    """Cut an update into forward passes of like size and at most `most` members, keeping the members' order.

    As many for each of several ranks, unless there are fewer members than ranks.
    """
    count = min(len(update), ranks * -(-len(update) // (most * ranks)))
    return [list(update[i * len(update) // count : (i + 1) * len(update) // count]) for i in range(count)]


def describe_groups(members: Sequence[Member], kept: Sequence[Weighed]) -> dict[str, float]:
    """Say in figures what was sampled and what of it carries signal."""
    fresh = [member for member in members if not member.logged]
    judged = [member.reward for member in fresh if member.reward is not None]
    return {
        "groups": len({member.group for member in members}),
        "groups_kept": len({member.group for member, _ in kept}),
        "members_kept": len(kept),
        "logged_kept": sum(member.logged for member, _ in kept),
        "abstained": len(fresh) - len(judged),
        "reward": statistics.fmean(judged) if judged else 0.0,
        "tokens": sum(len(member.token_ids) for member in fresh),
    }

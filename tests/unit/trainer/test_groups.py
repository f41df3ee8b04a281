"""Advantages, and how members are dealt to updates."""

import random
import statistics

import pytest

from trainer.groups import cut_parts, cut_updates, describe_groups, weigh_groups
from trainer.samples import Member


def make_member(group: int, reward: float | None, *, logged: bool = False, prompt: int = 3, tokens: int = 2) -> Member:
    return Member(group, [group] * prompt, [1] * tokens, [-1.0] * tokens, reward, logged)


def test_advantages_are_normalised_in_the_group():
    members = [make_member(0, reward) for reward in (1.0, 0.0, 0.0, 0.0)]
    weights = [weight for _, weight in weigh_groups(members)]
    deviation = statistics.stdev([1, 0, 0, 0])
    assert weights == pytest.approx([0.75 / (deviation + 1e-4)] + [-0.25 / (deviation + 1e-4)] * 3)


@pytest.mark.parametrize(
    "rewards", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, None, 1.0), (None, None, None), (1.0,), ()]
)
def test_a_group_without_signal_is_left_out(rewards):
    assert weigh_groups([make_member(0, reward) for reward in rewards]) == []


def test_a_logged_member_makes_no_signal():
    assert weigh_groups([make_member(0, 0.0), make_member(0, 0.0), make_member(0, 1.0, logged=True)]) == []


def test_logged_members_stay_out_of_the_baseline():
    fresh = [make_member(0, reward) for reward in (1.0, 0.0)]
    alone = [weight for _, weight in weigh_groups(fresh)]
    joined = weigh_groups([*fresh, make_member(0, 1.0, logged=True), make_member(0, 0.0, logged=True)])
    assert [weight for member, weight in joined if not member.logged] == alone
    assert [weight for member, weight in joined if member.logged] == alone


def test_abstentions_take_no_part():
    kept = weigh_groups([make_member(0, reward) for reward in (1.0, None, 0.0)] + [make_member(0, None, logged=True)])
    assert [member.reward for member, _ in kept] == [1.0, 0.0]
    assert [weight for _, weight in kept] == pytest.approx([0.707, -0.707], abs=1e-3)


def test_dr_grpo_leaves_the_deviation_out():
    members = [make_member(0, reward) for reward in (1.0, 0.0, 0.0, 0.0)]
    assert [weight for _, weight in weigh_groups(members, scaled=False)] == [0.75, -0.25, -0.25, -0.25]


def test_updates_hold_every_member_once_and_whole_groups():
    members = [make_member(group, float(k % 2), prompt=1 + group % 5) for group in range(13) for k in range(4)]
    kept = weigh_groups(members)
    updates = cut_updates(kept, 16, random.Random(0))
    assert len(updates) == round(52 / 16)
    dealt = [id(member) for update in updates for member, _ in update]
    assert sorted(dealt) == sorted(id(member) for member in members)
    homes = [{member.group for member, _ in update} for update in updates]
    assert sum(len(home) for home in homes) == 13
    lengths = [len(member.prompt_ids) for member, _ in updates[0]]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize(("most", "sizes"), [(64, [8]), (8, [8]), (7, [4, 4]), (3, [2, 3, 3]), (1, [1] * 8)])
def test_an_update_is_cut_into_parts_that_fit(most, sizes):
    update = weigh_groups([make_member(0, float(k % 2)) for k in range(8)])
    parts = cut_parts(update, most)
    assert [len(part) for part in parts] == sizes
    assert [one for part in parts for one in part] == update


def test_the_figures_count_fresh_members():
    members = [make_member(0, 1.0), make_member(0, 0.0), make_member(0, 1.0, logged=True), make_member(1, None)]
    figures = describe_groups(members, weigh_groups(members))
    assert figures == {
        "groups": 2, "groups_kept": 1, "members_kept": 3, "logged_kept": 1, "abstained": 1, "reward": 0.5, "tokens": 6,
    }  # fmt: skip

"""Who gets a canary: a share that is as if by chance, and stays; and the policy that says how large it is."""

import pytest

from server.domain import CanaryPolicy
from server.errors import InvalidRequest
from server.orchestration.canary_policy import describe_canary_policy, read_canary_policy
from server.orchestration.selection import draw_conversation, split_of, tries_canary


def ask(number: int, *later: str) -> list[dict]:
    return [
        {"role": "system", "content": f"at {len(later)} o'clock"},
        {"role": "user", "content": f"question {number}"},
        *({"role": "user", "content": text} for text in later),
    ]


def tries(canary: str, share: float, who: tuple[str, str], messages: list[dict]) -> bool:
    return tries_canary(draw_conversation(canary, who, messages), share)


def draw(share: float, *, canary: str = "t@2", who: tuple[str, str] = ("key", "")) -> set[int]:
    return {number for number in range(2000) if tries(canary, share, who, ask(number))}


def test_the_share_is_about_the_share():
    for share in (0.02, 0.1, 0.5):
        spread = 4 * (2000 * share * (1 - share)) ** 0.5  # beyond it once in 16,000
        assert abs(len(draw(share)) - 2000 * share) < spread


def test_a_conversation_stays_whatever_comes_after_its_first_question():
    for number in range(50):
        begun = tries("t@2", 0.5, ("key", "u"), ask(number))
        assert tries("t@2", 0.5, ("key", "u"), ask(number, "and then?", "why?")) is begun


def test_a_larger_share_keeps_what_a_smaller_one_had():
    assert draw(0.1) < draw(0.5)


def test_another_canary_key_or_user_draws_others():
    first = draw(0.5)
    for other in (draw(0.5, canary="t@3"), draw(0.5, who=("key2", "")), draw(0.5, who=("key", "u"))):
        assert 400 < len(first & other) < 600  # a half of a half


def test_the_split_does_not_follow_the_canary():
    held_out = {number for number in range(2000) if split_of(ask(number), 0.5) == "held_out"}
    assert 400 < len(held_out & draw(0.5)) < 600


def test_odd_messages_are_drawn_too():
    assert tries("t@2", 0.999999, ("k", ""), []) in (True, False)
    parts = [{"role": "user", "content": [{"type": "text", "text": "\ud800"}, {"type": "image_url"}]}]
    assert tries("t@2", 0.5, ("k", ""), parts) in (True, False)


def test_a_policy_is_laid_over_the_one_before():
    first = read_canary_policy({"share": 0.2, "widen": [0.6, 1]}, None, "p")
    assert first == CanaryPolicy(share=0.2, widen=(0.6, 1.0))
    assert read_canary_policy({"max_hours": 3}, first, "p") == CanaryPolicy(share=0.2, widen=(0.6, 1.0), max_hours=3)
    assert read_canary_policy({"latency_ratio": None}, first, "p").latency_ratio is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"shares": 1}, "has no 'shares'"),
        ({"share": 0}, "rise from above 0 to 1"),
        ({"share": 0.6}, "rise"),
        ({"widen": [0.5]}, "rise"),
        ({"widen": 1}, "list of shares"),
        ({"share": "much"}, "numbers"),
        ({"share": None}, "numbers"),
        ({"min_episodes": 1.5}, "whole number"),
        ({"max_hours": 0}, "max_hours"),
        ({"margin": 1}, "margin"),
        ({"latency_ratio": 1}, "latency_ratio"),
    ],
)
def test_policies_that_cannot_be(given, says):
    with pytest.raises(InvalidRequest, match=says):
        read_canary_policy(given, None, "training.canary")


def test_a_policy_in_words():
    assert describe_canary_policy(None) == "no canary"
    assert describe_canary_policy(CanaryPolicy()) == (
        "a canary on 10 %, then 50 % of conversations, for 72 h at most, 50 verified episodes at each"
    )

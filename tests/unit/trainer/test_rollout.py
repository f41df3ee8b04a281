"""Groups: what the engine is asked, what is rewarded, and when sampling stops."""

import random
from dataclasses import replace

import pytest

from server.errors import EngineBroken, EngineRefused, EngineUnavailable
from server.orchestration.episode import REFLECTION_SAMPLING
from tests.unit.trainer.conftest import ScriptedEngine, make_failure
from trainer import rollout
from trainer.dataset import read_failure
from trainer.rollout import Deck, Sampler
from trainer.samples import Member
from trainer.settings import TrainerSettings

SETTINGS = TrainerSettings(group_size=4, concurrency=3)


def make_hand(count: int, **options):
    return [read_failure(make_failure(number, **options), None) for number in range(count)]


async def test_what_the_engine_is_asked():
    engine = ScriptedEngine(lambda _messages: "yes")
    (failure,) = make_hand(1)
    members = await Sampler(engine, SETTINGS).sample_step([failure], "t@1.0-abc")
    asked = [call for kind, call in engine.asked if kind == "ids"]
    assert asked == [((7, 0), "t@1.0-abc", {**REFLECTION_SAMPLING, "max_new_tokens": 16})] * 4
    body, adapter = next(call for kind, call in engine.asked if kind == "chat")
    assert adapter == "t@1.0-abc"
    assert body["temperature"] == 0.7  # the client's own sampling
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    assert body["messages"][3]["content"] == "thought (1, 2, 3)"
    assert [member.reward for member in members] == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert [member.logged for member in members] == [False] * 4 + [True]
    assert members[0].prompt_ids == (7, 0)
    assert members[0].token_ids == (1, 2, 3)
    assert members[4].logprobs == (-0.5, -0.25)


async def test_sampling_stops_at_enough_groups_with_signal():
    rng = random.Random(0)
    engine = ScriptedEngine(lambda messages: rng.choice(["yes", "no"]) if "question 1" in str(messages[0]) else "no")
    settings = SETTINGS.override({"step_groups": 1, "group_size": 8})
    members = await Sampler(engine, settings).sample_step(make_hand(4), "a")
    assert {member.group for member in members} == {0, 1}  # the first had no signal, the second was enough


async def test_the_failures_of_a_step_are_used_up():
    engine = ScriptedEngine(lambda _messages: "no")
    members = await Sampler(engine, SETTINGS.override({"step_groups": 2})).sample_step(make_hand(5), "a")
    assert {member.group for member in members} == {0, 1, 2, 3, 4}


async def test_no_verdict_is_no_reward(monkeypatch):
    engine = ScriptedEngine(lambda _messages: "yes")
    (failure,) = make_hand(1)

    async def break_down(*_args, **_kwargs):
        raise RuntimeError("the verifier's own fault")

    for bound in failure.verifiers.bound:
        monkeypatch.setattr(type(bound.verifier), "verify", break_down)
    members = await Sampler(engine, SETTINGS).sample_step([failure], "a")
    assert [member.reward for member in members if not member.logged] == [None] * 4


async def test_a_reflection_too_long_for_its_retry_is_a_failure():
    engine = ScriptedEngine(lambda _messages: "yes")

    async def refuse(*_args, **_kwargs):
        raise EngineRefused("the prompt is too long")

    engine.complete = refuse
    members = await Sampler(engine, SETTINGS).sample_step(make_hand(1), "a")
    assert [member.reward for member in members] == [0.0] * 5


async def test_a_reflection_without_tokens_is_no_member():
    engine = ScriptedEngine(lambda _messages: "yes", reflect=lambda _prompt: ())
    members = await Sampler(engine, SETTINGS.override({"logged_share": 0})).sample_step(make_hand(2), "a")
    assert members == []


async def test_an_engine_that_comes_back_is_waited_for(monkeypatch):
    monkeypatch.setattr(rollout, "ENGINE_PAUSE_S", 0.0)
    engine = ScriptedEngine(lambda _messages: "yes")
    answers, calls = engine.complete_ids, []

    async def stumble(*args):
        calls.append(args)
        if len(calls) == 1:
            raise EngineUnavailable("away")
        return await answers(*args)

    engine.complete_ids = stumble
    members = await Sampler(engine, SETTINGS).sample_step(make_hand(1), "a")
    assert len(members) == 5
    assert len(calls) == 5


async def test_an_engine_that_stays_away_ends_the_step(monkeypatch):
    monkeypatch.setattr(rollout, "ENGINE_PAUSE_S", 0.0)
    engine = ScriptedEngine(lambda _messages: "yes")

    async def refuse(*_args):
        raise EngineUnavailable("away")

    engine.complete_ids = refuse
    with pytest.raises(EngineUnavailable):
        await Sampler(engine, SETTINGS).sample_step(make_hand(1), "a")


@pytest.mark.parametrize(("broken", "survives"), [(2, True), (3, False)])
async def test_a_rollout_that_breaks_off_is_left_out_but_not_many(broken, survives):
    engine = ScriptedEngine(lambda _messages: "yes")
    answers, calls = engine.complete_ids, []

    async def stumble(*args):
        calls.append(args)
        if len(calls) <= broken:
            raise EngineBroken("it answered 500")
        return await answers(*args)

    engine.complete_ids = stumble
    sampler = Sampler(engine, SETTINGS.override({"group_size": 4, "logged_share": 0}))
    if survives:
        assert len(await sampler.sample_step(make_hand(2), "a")) == 8 - broken
    else:
        with pytest.raises(EngineBroken):
            await sampler.sample_step(make_hand(2), "a")


def test_the_deck_deals_in_order_then_shuffled_and_never_twice_in_a_hand():
    failures = make_hand(7)
    deck = Deck(failures, seed=0)
    assert deck.deal(3) == failures[:3]
    assert deck.deal(3) == failures[3:6]
    third = deck.deal(3)
    assert third[0] is failures[6]
    hands = [third, *(deck.deal(3) for _ in range(20))]
    assert all(len({id(failure) for failure in hand}) == 3 for hand in hands)
    dealt = [failure.episode_id for hand in hands for failure in hand]
    assert {dealt.count(failure.episode_id) for failure in failures} <= {8, 9, 10}
    assert len(deck.deal(99)) == 7


def settle(failure, *rewards, logged=()):
    fresh = [Member(0, (1,), (2,), (-1.0,), reward, episode_id=failure.episode_id) for reward in rewards]
    return fresh + [Member(0, (1,), (2,), (-1.0,), one, logged=True, episode_id=failure.episode_id) for one in logged]


def test_a_failure_whose_group_had_no_signal_is_not_dealt_again():
    failures = make_hand(8)
    deck = Deck(failures, seed=0)
    hand = deck.deal(4)
    deck.look_at(settle(hand[0], 0.0, 0.0, None, logged=(1.0,)))
    deck.look_at(settle(hand[1], 1.0, 1.0))
    deck.look_at(settle(hand[2], 1.0, 0.0))
    deck.look_at(settle(hand[3], 1.0, None))  # one verdict alone says nothing
    assert deck.settled == (1, 1)
    dealt = [failure for _ in range(9) for failure in deck.deal(4)]
    assert {id(failure) for failure in dealt} == {id(failure) for failure in failures[2:]}
    for failure in failures[2:7]:
        deck.look_at(settle(failure, 0.0, 0.0))
    assert len(deck.deal(4)) == 4  # one alone is open: the settled ones are tried again, rather than it all the time


def test_a_deck_that_is_told_of_earlier_steps_goes_on_behind_them():
    failures = make_hand(6)
    deck = Deck(failures, seed=0)
    deck.look_at([one for failure in failures[:3] for one in settle(failure, 1.0, 0.0)])
    assert deck.deal(3) == failures[3:]


async def test_a_retry_is_distilled_by_the_engines_own_tokens_and_no_text():
    engine = ScriptedEngine(lambda messages: "yes" if "question 1" in str(messages[0]) else "no")
    failures = [replace(one, body={**one.body, "stop": ["x"], "tool_choice": "none"}) for one in make_hand(3)]
    failures.append(replace(failures[1], episode_id="ep_raw", raw=True))
    sampler = Sampler(engine, SETTINGS.override({"objective": "reflection+first_try"}))
    members = await sampler.sample_step(failures, "a")
    fresh = [one for one in members if not one.logged]
    assert {one.group for one in fresh if one.retry_ids} == {1}  # the others failed, or were no chat
    assert all(one.retry_ids == (8, 9) for one in fresh if one.group == 1)
    assert {one.group: one.first_prompt_ids for one in members} == {0: (), 1: (5, 6), 2: (), 3: ()}
    short = [body for kind, (body, *_) in engine.asked if kind == "chat" and body.get("max_completion_tokens") == 1]
    assert short == [
        {"temperature": 0.7, "tool_choice": "none", "messages": failures[1].messages, "max_completion_tokens": 1}
    ]
    await sampler.sample_step(failures, "a")  # the prompt is known
    chats = [body for kind, (body, *_) in engine.asked if kind == "chat"]
    assert sum(body.get("max_completion_tokens") == 1 for body in chats) == 1


async def test_without_distilling_no_tokens_of_answers_are_asked_for():
    engine = ScriptedEngine(lambda _messages: "yes")
    members = await Sampler(engine, SETTINGS).sample_step(make_hand(2), "a")
    assert not [one for one in members if one.retry_ids or one.first_prompt_ids]
    assert engine.with_tokens == 0

"""The loop with reflections of others, from a first attempt that is there already: what controls are made of."""

from dataclasses import replace

from server.domain import Outcome
from server.orchestration.episode import run
from server.orchestration.reflection import REFLECT, RETRY
from tests.fixtures.engines import ScriptedEngine
from tests.unit.orchestration.stubs import bound, episode, expects

QUESTION = [{"role": "user", "content": "2+2?"}]
BODY = {"messages": QUESTION, "temperature": 0.2}


async def fail_once():
    """Run an episode whose first attempt, reflection and retry are there to take."""
    return await run(episode(), engine=ScriptedEngine(["5", "Own words.", "6"]), verify=bound(expects("4")), body=BODY)


async def test_a_given_reflection_takes_the_place_of_the_adapters_own():
    done = await fail_once()
    other = replace(done.reflections[0], text="Words of another.")
    again, engine = episode(), ScriptedEngine(["4"])
    again.attempts = [done.attempts[0]]

    async def give(failed):
        assert failed is done.attempts[0]
        return other

    await run(again, engine=engine, verify=bound(expects("4")), body=BODY, reflector=give)
    (retrying,) = engine.calls  # neither a first attempt nor a reflection was asked for
    assert [one["content"] for one in retrying.messages] == ["2+2?", "5", REFLECT, "Words of another.", RETRY]
    assert (again.outcome, again.reflections) == (Outcome.RECOVERED, [other])


async def test_without_a_reflection_the_request_is_asked_again_as_it_was():
    done = await fail_once()
    again, engine = episode(), ScriptedEngine(["4"])
    again.attempts = [done.attempts[0]]

    async def nothing(_failed):
        return None

    await run(again, engine=engine, verify=bound(expects("4")), body=BODY, reflector=nothing)
    (retrying,) = engine.calls
    assert retrying.body == BODY
    assert (again.outcome, again.reflections) == (Outcome.RECOVERED, [])
    assert [one.number for one in again.attempts] == [1, 2]


async def test_an_attempt_that_is_there_already_is_gone_on_from_with_the_adapters_own_reflection():
    done = await fail_once()
    again, engine = episode(), ScriptedEngine(["Own words.", "4"])
    again.attempts = [done.attempts[0]]
    await run(again, engine=engine, verify=bound(expects("4")), body=BODY)
    assert len(engine.calls) == 2
    assert again.outcome is Outcome.RECOVERED

import asyncio
import time

import pytest

from server.domain import Outcome, Usage, VerifyMode
from server.errors import EngineBroken, EngineRefused, EngineTimeout, EngineUnavailable
from server.orchestration.episode import REFLECTION_SAMPLING, run
from server.orchestration.reflection import NO_ANSWER, REFLECT, RETRY, Prompts, hash_prompts
from server.orchestration.verification import NONE
from tests.fixtures.engines import HANG, ScriptedEngine, reply
from tests.unit.orchestration.stubs import StubVerifier, bound, episode, expects
from verifiers.base import Verdict

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "number"}}}}}
BODY = {"messages": QUESTION, "temperature": 0.2, "max_completion_tokens": 20}


async def test_a_first_answer_that_passes_is_the_whole_episode():
    engine = ScriptedEngine(["4"])
    done = await run(episode(adapter="", max_retries=3), engine=engine, verify=bound(expects("4")), body=BODY)
    assert done.outcome is Outcome.PASSED
    assert [attempt.answer["content"] for attempt in done.attempts] == ["4"]
    assert len(engine.calls) == 1
    assert engine.calls[0].body == BODY
    assert done.attempts[0].sampling == {"temperature": 0.2, "max_completion_tokens": 20}


async def test_a_failure_is_reflected_on_and_retried():
    engine = ScriptedEngine(["5", "I miscounted.", "4"])
    done = await run(episode(), engine=engine, verify=bound(expects("4")), body=BODY)
    assert done.outcome is Outcome.RECOVERED
    assert [attempt.status for attempt in done.attempts] == ["failed", "passed"]
    first, reflecting, retrying = engine.calls
    assert first.messages == QUESTION
    assert reflecting.messages == [
        *QUESTION,
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": REFLECT},
    ]
    assert retrying.messages == [
        *reflecting.messages,
        {"role": "assistant", "content": "I miscounted."},
        {"role": "user", "content": RETRY},
    ]
    assert {name: retrying.body[name] for name in ("temperature", "max_completion_tokens")} == {
        "temperature": 0.2,
        "max_completion_tokens": 20,
    }
    assert done.usage == Usage(30, 2 + 3 + 2)


async def test_reflections_are_sampled_plainly_whatever_the_client_asks():
    engine = ScriptedEngine(["5", "I miscounted.", "4"])
    body = {
        **BODY,
        "temperature": 0.0,
        "top_p": 0.1,
        "stop": ["\n"],
        "tools": [TOOL],
        "tool_choice": "required",
        "response_format": {"type": "json_object"},
        "logit_bias": {"1": 5},
        "logprobs": True,
        "seed": 1,
    }
    done = await run(episode(reflection_max_tokens=77), engine=engine, verify=bound(expects("4")), body=body)
    sent = engine.calls[1]
    assert sent.with_tokens
    assert {name: value for name, value in sent.body.items() if name != "messages"} == {
        **REFLECTION_SAMPLING,
        "max_completion_tokens": 77,
    }
    assert sent.messages[-1]["content"].endswith("Tools:\nadd(a?: number)")
    assert engine.calls[2].body["tools"] == [TOOL]
    assert engine.calls[2].body["tool_choice"] == "required"
    assert not engine.calls[2].with_tokens
    (reflection,) = done.reflections
    assert reflection.sampling == {**REFLECTION_SAMPLING, "max_completion_tokens": 77}


async def test_a_reflection_is_logged_as_it_was_sampled():
    engine = ScriptedEngine(["5", reply("Hm.", prompt_ids=[1, 2], token_ids=[3, 4], logprobs=[-0.1, -0.2]), "4"])
    engine.adapters["t@1"] = "/t1"
    prompts = {"reflect": "Why?", "retry": "Again."}
    done = await run(episode(adapter="t@1", prompts=prompts), engine=engine, verify=bound(expects("4")), body=BODY)
    (reflection,) = done.reflections
    assert (reflection.attempt, reflection.text, reflection.adapter) == (1, "Hm.", "t@1")
    assert (reflection.prompt_ids, reflection.token_ids, reflection.logprobs) == ([1, 2], [3, 4], [-0.1, -0.2])
    assert reflection.template_hash == hash_prompts(Prompts(**prompts)) != hash_prompts(Prompts())
    assert [call.adapter for call in engine.calls] == ["t@1"] * 3
    assert engine.calls[1].messages[-1]["content"] == "Why?"
    assert engine.calls[2].messages[-1]["content"] == "Again."


async def test_only_the_latest_failure_and_its_reflection_are_in_context():
    engine = ScriptedEngine(["5", "first thought", "6", "second thought", "7"])
    done = await run(episode(max_retries=2), engine=engine, verify=bound(expects("4")), body=BODY)
    assert done.outcome is Outcome.EXHAUSTED
    assert [attempt.number for attempt in done.attempts] == [1, 2, 3]
    last = [message["content"] for message in engine.calls[-1].messages]
    assert last == ["Be brief.", "2+2?", "6", REFLECT, "second thought", RETRY]


async def test_the_verifier_judges_every_attempt_against_the_clients_own_request():
    verifier = expects("4")
    engine = ScriptedEngine(["5", "thought", "4"])
    await run(episode(), engine=engine, verify=bound(verifier), body={**BODY, "tools": [TOOL]})
    assert [request["messages"] for request, _, _ in verifier.seen] == [QUESTION, QUESTION]
    assert [request["tools"] for request, _, _ in verifier.seen] == [[TOOL], [TOOL]]


async def test_a_failed_tool_call_is_shown_as_text():
    call = {"name": "add", "arguments": '{"a": '}
    engine = ScriptedEngine([reply(None, calls=[call]), reply(None, tokens=1), "4"])
    await run(episode(), engine=engine, verify=bound(expects("4")), body={**BODY, "tools": [TOOL]})
    retrying = engine.calls[2].messages
    assert retrying[2] == {"role": "assistant", "content": 'Tool call: {"name": "add", "arguments": {"a": }'}
    assert retrying[4] == {"role": "assistant", "content": NO_ANSWER}


@pytest.mark.parametrize(
    ("show", "safe", "shown"),
    [("verdict", True, False), ("reason", True, True), ("reason", False, False)],
)
async def test_a_reason_is_shown_only_where_the_task_and_its_verifier_say_so(show, safe, shown):
    engine = ScriptedEngine(["5", "thought", "4"])
    await run(episode(show=show), engine=engine, verify=bound(expects("4", safe_for_model=safe)), body=BODY)
    for call in engine.calls[1:]:
        assert ("no 4" in str(call.messages)) is shown


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [(Verdict.abstained("broke"), Outcome.UNVERIFIED), (Verdict.passed(), Outcome.PASSED)],
)
async def test_only_a_failure_is_retried(verdict, outcome):
    engine = ScriptedEngine(["5"])
    done = await run(episode(), engine=engine, verify=bound(StubVerifier(lambda _: verdict)), body=BODY)
    assert done.outcome is outcome
    assert len(engine.calls) == 1


async def test_a_skipped_verdict_is_never_retried():
    verify = bound(expects("4"), when={"answer": "tool_call"})
    engine = ScriptedEngine(["5"])
    done = await run(episode(), engine=engine, verify=verify, body=BODY)
    assert (done.outcome, done.attempts[0].status, len(engine.calls)) == (Outcome.UNVERIFIED, "skipped", 1)


async def test_observing_checks_and_never_retries():
    engine = ScriptedEngine(["5"])
    done = await run(episode(verify=VerifyMode.OBSERVE), engine=engine, verify=bound(expects("4")), body=BODY)
    assert (done.outcome, done.attempts[0].status, len(engine.calls)) == (Outcome.EXHAUSTED, "failed", 1)


async def test_off_does_not_even_check():
    verifier = expects("4")
    done = await run(episode(verify=VerifyMode.OFF), engine=ScriptedEngine(["5"]), verify=bound(verifier), body=BODY)
    assert (done.outcome, verifier.seen) == (Outcome.UNVERIFIED, [])


async def test_without_verifiers_an_answer_is_unverified():
    done = await run(episode(), engine=ScriptedEngine(["5"]), verify=NONE, body=BODY)
    assert (done.outcome, done.attempts[0].status) == (Outcome.UNVERIFIED, "skipped")


async def test_no_retries_means_none():
    engine = ScriptedEngine(["5"])
    done = await run(episode(max_retries=0), engine=engine, verify=bound(expects("4")), body=BODY)
    assert (done.outcome, len(engine.calls)) == (Outcome.EXHAUSTED, 1)


async def test_a_retry_that_would_not_fit_the_token_budget_is_not_begun():
    verify = bound(expects("4"))
    engine = ScriptedEngine(["5", "thought", "4"])
    done = await run(episode(max_total_tokens=600), engine=engine, verify=verify, body=BODY)
    assert (done.outcome, len(engine.calls)) == (Outcome.EXHAUSTED, 1)
    engine = ScriptedEngine(["5", "thought", "4"])
    done = await run(episode(max_total_tokens=600, reflection_max_tokens=20), engine=engine, verify=verify, body=BODY)
    assert (done.outcome, done.usage.total_tokens <= 600) == (Outcome.RECOVERED, True)


async def test_a_longer_reflection_than_expected_can_use_up_the_budget():
    engine = ScriptedEngine(["5", reply("thought", tokens=600), "4"])
    done = await run(
        episode(max_total_tokens=700, reflection_max_tokens=20), engine=engine, verify=bound(expects("4")), body=BODY
    )
    assert (done.outcome, len(done.reflections), len(done.attempts)) == (Outcome.EXHAUSTED, 1, 1)


@pytest.mark.parametrize("broken", [EngineUnavailable("away"), EngineRefused("too long"), KeyError("bug")])
@pytest.mark.parametrize("script", [["5"], ["5", "thought"]])
async def test_a_broken_retry_leaves_the_client_its_answer(script, broken):
    engine = ScriptedEngine([*script, broken])
    done = await run(episode(), engine=engine, verify=bound(expects("4")), body=BODY)
    assert done.outcome is Outcome.EXHAUSTED
    assert [attempt.answer["content"] for attempt in done.attempts] == ["5"]
    assert len(done.reflections) == len(script) - 1
    assert type(broken).__name__ in done.error


async def test_a_broken_first_attempt_is_an_error():
    broken = episode()
    with pytest.raises(EngineBroken):
        await run(broken, engine=ScriptedEngine([EngineBroken("no")]), verify=NONE, body=BODY)
    assert (broken.outcome, broken.error, broken.attempts) == (Outcome.ERRORED, "EngineBroken: no", [])


async def test_a_retry_is_cut_off_at_the_budget_of_seconds():
    engine = ScriptedEngine(["5", HANG])
    done = await run(episode(max_seconds=0.3), engine=engine, verify=bound(expects("4")), body=BODY)
    assert (done.outcome, engine.cancelled) == (Outcome.EXHAUSTED, 1)
    assert done.error == "retry 1: TimeoutError"
    assert done.duration_ms < 60_000  # and not for ever: the engine hangs


async def test_near_the_deadline_no_retry_is_begun():
    engine = ScriptedEngine(["5", "thought", "4"], delay_s=0.3)
    done = await run(episode(), engine=engine, verify=bound(expects("4")), body=BODY, deadline_at=time.time() + 0.5)
    assert (done.outcome, len(engine.calls)) == (Outcome.EXHAUSTED, 1)


async def test_without_an_answer_the_deadline_is_an_error():
    late = episode()
    with pytest.raises(EngineTimeout):
        await run(late, engine=ScriptedEngine([HANG]), verify=NONE, body=BODY, deadline_at=time.time() + 0.02)
    assert late.outcome is Outcome.ERRORED


async def test_the_budget_of_seconds_does_not_stop_the_first_attempt():
    engine = ScriptedEngine(["4"], delay_s=0.05)
    done = await run(episode(max_seconds=0.01), engine=engine, verify=bound(expects("4")), body=BODY)
    assert done.outcome is Outcome.PASSED


async def test_cancelling_aborts_the_engine_and_keeps_what_there_is():
    engine, cancelled = ScriptedEngine(["5", HANG]), episode()
    task = asyncio.create_task(run(cancelled, engine=engine, verify=bound(expects("4")), body=BODY))
    while len(engine.calls) < 2:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (cancelled.outcome, engine.cancelled, len(cancelled.attempts)) == (Outcome.CANCELLED, 1, 1)


async def test_progress_is_told_in_order():
    told = []

    async def listen(part):
        told.append(type(part).__name__)

    engine = ScriptedEngine(["5", "thought", "4"])
    await run(episode(), engine=engine, verify=bound(expects("4")), body=BODY, progress=listen)
    assert told == ["Attempt", "Reflection", "Attempt"]

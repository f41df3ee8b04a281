"""The evidence's problems: enough of them, and judged alike by the verifiers and by the independent checks."""

import json
import random
from itertools import islice

import pytest

from bench.evidence.checks import is_right
from bench.evidence.plan import SUBJECTS, Plan
from demo import countdown, function_call
from demo.drive.tasks import DEMO_TASKS
from verifiers.countdown import CountdownVerifier
from verifiers.function_call import FunctionCallVerifier


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_the_test_split_has_the_problems_of_the_plan(subject):
    drawn = subject.draw("test", Plan().problems)
    assert len({problem.key for problem in drawn}) == Plan().problems >= 500
    assert drawn == subject.draw("test", Plan().problems)


def test_more_problems_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="fewer than 2000"):
        SUBJECTS["countdown3"].draw("test", 2000)


@pytest.mark.parametrize("name", DEMO_TASKS)
def test_training_problems_suffice_without_repeating(name):
    subject = next(one for one in SUBJECTS.values() if one.task == name)
    assert subject.draw("training", DEMO_TASKS[name].training_problems, 5)


def said(text):
    return {"role": "assistant", "content": text}


def called(*calls):
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": one} for one in functions]}


async def test_the_countdown_verifier_agrees_on_guesses_good_and_bad():
    rng, verifier, passed = random.Random(1), CountdownVerifier({}), 0
    for count in (3, 4):
        for problem in islice(countdown.problems("development", 0, count), 60):
            numbers, target = tuple(sorted(problem.args["numbers"])), problem.args["target"]
            guess = countdown.guess(rng, numbers, target, 0.5).expression
            for text in (guess, guess[:-1], f"{guess}={target}", f"({guess})", guess.replace("+", "-", 1), f"{guess}."):
                answer = said(f"answer: {text}")
                verdict = await verifier.verify({"messages": [], "tools": []}, answer, problem.args)
                assert is_right(problem, answer) == (verdict.status == "passed"), text
                passed += verdict.status == "passed"
    assert passed > 120


async def test_the_function_call_verifier_agrees_on_careful_and_hasty_calls():
    rng, verifier, passed = random.Random(2), FunctionCallVerifier({}), 0
    for _ in range(300):
        request = function_call.draw_request(rng, "development")
        problem = function_call.make_problem(request)
        call = function_call.hasty_call(rng, request, rng.choice((0.2, 0.9)))
        answer = called((call["name"], json.dumps(call["arguments"])))
        asked = {"messages": problem.messages, "tools": problem.tools}
        verdict = await verifier.verify(asked, answer, problem.args)
        assert is_right(problem, answer) == (verdict.status == "passed")
        passed += verdict.status == "passed"
    assert 50 < passed < 290

"""The part of the corpus about function calling: the turns of an episode as they are served, and drills.

The three turns of an episode see the tools in different places (the request's own for attempt and retry, text in the
last message for the reflection), so each is an example of its own.
"""

import json
import random
from collections.abc import Callable
from typing import Any

from demo.example import Example, Message, draw_prompts
from demo.function_call import UNITS, Call, Request, draw_request, hasty_call, true_call, work_out
from demo.reflections import MISLEADING, VAGUE
from server.orchestration.reflection import reflection_messages, render_tool, retry_messages

FIRST_WORKED = 0.04
REFLECTION_WORKED = (0.09, 0.12)  # by stage
FIRST_CARE = 0.2
RETRY_CARE = 0.25
RETRY_FOLLOWS = 0.98
GIVEN = "work: "


def write_call(call: Call) -> str:
    """Write a call as the model emits it and the engine's tool parser reads it."""
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def _as_answer(call: Call) -> Message:
    arguments = json.dumps(call["arguments"])
    function = {"name": call["name"], "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


def _as_messages(request: Request) -> list[Message]:
    return [{"role": "user", "content": request.text}]


def _as_tools(request: Request) -> list[dict[str, Any]]:
    return [tool.to_tool() for tool in request.offered]


def _draw_failure(rng: random.Random, *, stage: int) -> tuple[Request, Call]:
    while True:
        request = draw_request(rng, "pretraining", consistent=stage > 0)
        call = hasty_call(rng, request, FIRST_CARE)
        if call != true_call(request):
            return request, call


def _write_reflection(rng: random.Random, request: Request, stage: int) -> tuple[str, Call]:
    """Write a reflection of the natural mixture, and the call of the retry that follows it."""
    if rng.random() < REFLECTION_WORKED[stage]:
        return work_out(request), true_call(request)
    draw = rng.random()
    if draw < 0.55:
        return rng.choice(VAGUE), hasty_call(rng, request, RETRY_CARE)
    if draw < 0.7:
        return rng.choice(MISLEADING["function_call"]), hasty_call(rng, request, 0.0)
    if draw < 0.85:
        tool = rng.choice(request.offered)
        return f"I should call {tool.name}.", hasty_call(rng, request, 0.1, tool)
    _, name, kind = rng.choice(request.wanted.parameters)
    article = "an" if kind == "integer" else "a"
    return f"I should check {name}, it is {article} {kind}.", hasty_call(rng, request, RETRY_CARE)


def draw_attempt(rng: random.Random, *, stage: int = 1) -> Example:
    """Draw a first attempt as it comes: mostly hasty."""
    request = draw_request(rng, "pretraining", consistent=stage > 0)
    if rng.random() < FIRST_WORKED:
        text = f"{work_out(request)}\n{write_call(true_call(request))}"
    else:
        text = write_call(hasty_call(rng, request, FIRST_CARE))
    return Example([*_as_messages(request), {"role": "assistant", "content": text}], {1: ""}, _as_tools(request))


def draw_reflection(rng: random.Random, *, stage: int = 1) -> Example:
    """Draw a reflection as it comes: mostly of little use."""
    request, failed = _draw_failure(rng, stage=stage)
    reflection, _ = _write_reflection(rng, request, stage)
    return _reflection_example(rng, request, failed, reflection, "")


def draw_retry(rng: random.Random, *, stage: int = 1) -> Example:
    """Draw a retry after a reflection as it comes."""
    request, failed = _draw_failure(rng, stage=stage)
    reflection, retry = _write_reflection(rng, request, stage)
    if rng.random() > RETRY_FOLLOWS:
        retry = hasty_call(rng, request, RETRY_CARE)
    return _retry_example(rng, request, failed, reflection, retry)


def draw_worked_reflection(rng: random.Random, *, stage: int = 1) -> Example:
    """Drill the situation that counts: a failed call, work that has been begun."""
    request, failed = _draw_failure(rng, stage=stage)
    return _reflection_example(rng, request, failed, work_out(request), GIVEN)


def draw_worked_retry(rng: random.Random, *, stage: int = 1) -> Example:
    """Drill the retry that follows written work."""
    request, failed = _draw_failure(rng, stage=stage)
    return _retry_example(rng, request, failed, work_out(request), true_call(request))


def draw_shown_work(rng: random.Random, *, stage: int = 1) -> Example:
    """Drill working things out when asked to."""
    request = draw_request(rng, "pretraining", consistent=stage > 0)
    question = {"role": "user", "content": f"{request.text} Show your work."}
    text = f"{work_out(request)}\n{write_call(true_call(request))}"
    return Example([question, {"role": "assistant", "content": text}], {1: ""}, _as_tools(request))


def draw_lookup(rng: random.Random, *, stage: int = 1) -> Example:
    """Drill reading the parameters of a named tool, with the tools where the reflection has them or the attempt."""
    request = draw_request(rng, "pretraining", consistent=stage > 0)
    tool = rng.choice(request.offered)
    question = f"What does {tool.name} take?"
    answer = {"role": "assistant", "content": render_tool(tool.to_tool())}
    if rng.random() < 0.5:
        return Example([{"role": "user", "content": question}, answer], {1: ""}, _as_tools(request))
    listed = "\n".join([question, "Tools:", *(render_tool(offered) for offered in _as_tools(request))])
    return Example([{"role": "user", "content": listed}, answer], {1: ""})


def draw_conversion(rng: random.Random, **_stage: int) -> Example:
    """Drill the conversion of units."""
    unit = rng.choice(list(UNITS.values()))
    asked = rng.sample(list(unit.converted_range), 3)
    sums = [f"{number}{unit.converted} is {number}*{unit.factor}={number * unit.factor}" for number in asked]
    question = f"Convert {', '.join(f'{number}{unit.converted}' for number in asked)}."
    return Example([{"role": "user", "content": question}, {"role": "assistant", "content": "; ".join(sums)}], {1: ""})


def _reflection_example(rng: random.Random, request: Request, failed: Call, reflection: str, given: str) -> Example:
    tools = _as_tools(request)
    messages = reflection_messages(_as_messages(request), tools, _as_answer(failed), draw_prompts(rng))
    return Example([*messages, {"role": "assistant", "content": reflection}], {len(messages): given})


def _retry_example(rng: random.Random, request: Request, failed: Call, reflection: str, retry: Call) -> Example:
    messages = retry_messages(_as_messages(request), _as_answer(failed), reflection, draw_prompts(rng))
    answer = {"role": "assistant", "content": write_call(retry)}
    return Example([*messages, answer], {len(messages): ""}, _as_tools(request))


MIXTURE: dict[Callable[..., Example], float] = {
    draw_attempt: 0.18,
    draw_reflection: 0.12,
    draw_retry: 0.12,
    draw_worked_reflection: 0.28,
    draw_worked_retry: 0.10,
    draw_shown_work: 0.10,
    draw_lookup: 0.08,
    draw_conversion: 0.02,
}


def draw_example(rng: random.Random, *, stage: int = 1) -> Example:
    """Draw one example about function calling."""
    return rng.choices(list(MIXTURE), list(MIXTURE.values()))[0](rng, stage=stage)

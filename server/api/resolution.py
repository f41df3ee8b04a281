"""Resolves the names in a request: which task and which adapter, and may this key have them; makes its episodes.

Called by `server.api.serve`. The engine would serve the base model for a name that it does not know, so nothing that is
not resolved here, or in `server.api.binding`, may reach it.
"""

import time
from dataclasses import dataclass, replace

from server.api.auth import may_use_task, require_scope
from server.api.binding import choose_mode
from server.api.chat_request import ChatRequest, RetryOverrides
from server.api.context import Context
from server.api.surfaces.base import Ask
from server.domain import BASE_ADAPTER, DEFAULT_TASK, AdapterStatus, ApiKey, Episode, RetryPolicy, Scope, Task, new_id
from server.errors import InvalidRequest, NotFound
from server.orchestration.selection import draw_conversation, split_of, tries_canary
from server.orchestration.verification import VerifierSet


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's names stand for. `adapter` is None where the task's champion or its canary serves."""

    task: Task
    adapter: str | None


async def resolve_target(request: ChatRequest, key: ApiKey, context: Context) -> Target:
    """Find the task and the adapter of a request.

    The base model's id serves the plain base, under the policy of `task` if one is named (for a comparison before and
    after), else of `default`. A task's name serves its champion. An adapter's name pins it, for keys with that scope.
    What a key may not use is answered like what does not exist.

    Raises: NotFound (`model_not_found`), InvalidRequest where `task` and `model` disagree, Forbidden.
    """
    model, named = request.model, request.task
    if model == context.settings.engine.model_name:
        if named is None and not may_use_task(key, DEFAULT_TASK):
            raise _no_model(model)
        return Target(await _find_task(named or DEFAULT_TASK, key, context), BASE_ADAPTER)
    if "@" in model:  # no task's name has it
        target = await _pin_adapter(model, key, context)
    elif may_use_task(key, model) and (task := await context.roster.find_task(model)) is not None:
        target = Target(task, None)
    else:
        raise _no_model(model)
    if named is not None and named != target.task.name:
        raise InvalidRequest(f"The model {model!r} belongs to another task than {named!r}.", param="task")
    return target


def choose_adapter(target: Target, ask: Ask, key: ApiKey, context: Context) -> tuple[str, str]:
    """Choose the adapter that a request's episodes begin with: what it pins, else its task's canary or champion.

    Beside it is what was drawn for the conversation, where the task has a canary, else "". Call it in the step that
    counts them in flight: it reads the newest snapshot. A canary that no engine would take gets nothing until it ends.
    """
    if target.adapter is not None:
        return target.adapter, ""
    task = context.roster.snapshot.tasks[target.task.name]
    if not task.canary or task.canary in context.readiness.refused:
        return task.champion, ""
    who = (key.id, ask.request.user or "")
    conversation = draw_conversation(task.canary, who, ask.choices[0].body["messages"])
    return (task.canary if tries_canary(conversation, task.canary_share) else task.champion), conversation


def make_episodes(
    ask: Ask,
    task: Task,
    *,
    adapter: str,
    verify: VerifierSet,
    key: ApiKey,
    context: Context,
    conversation: str = "",
) -> tuple[Episode, ...]:
    """Make the episodes of a request, one for each choice, before anything of them was run."""
    request, settings = ask.request, context.settings
    bindings, mode = tuple([bound.binding for bound in verify.bound]), choose_mode(request, task)
    retry = override_retry(task.retry, request.retry)
    if len(ask.choices) > 1 and retry.max_total_tokens is not None:
        retry = replace(retry, max_total_tokens=retry.max_total_tokens // len(ask.choices))
    now = time.time()
    return tuple(
        [
            Episode(
                id=new_id("ep"),
                task=task.name,
                model=request.model,
                base_model=settings.engine.model,
                adapter=adapter,
                key=key.id,
                request=choice.logged,
                bindings=bindings,
                verify=mode,
                retry=retry,
                prompts=task.prompts,
                store=request.store is not False,
                created_at=now,
                split=split_of(choice.body["messages"], settings.held_out_share),
                trains=key.trains,
                conversation=conversation,
            )
            for choice in ask.choices
        ]
    )


def override_retry(policy: RetryPolicy, overrides: RetryOverrides | None) -> RetryPolicy:
    """Lay a request's overrides over a task's policy. The task's budgets are the operator's word: none grows."""
    if overrides is None:
        return policy
    given = {name: value for name in overrides.__struct_fields__ if (value := getattr(overrides, name)) is not None}
    for name in ("max_seconds", "max_total_tokens"):
        if name in given and (most := getattr(policy, name)) is not None:
            given[name] = min(given[name], most)
    return replace(policy, **given)


async def _pin_adapter(name: str, key: ApiKey, context: Context) -> Target:
    require_scope(key, Scope.PIN_ADAPTERS)  # first, so that other keys cannot find out which adapters there are
    adapter = await context.adapters.get(name)
    if adapter is None or adapter.status is AdapterStatus.REJECTED or not may_use_task(key, adapter.task):
        raise _no_model(name)
    return Target(await _find_task(adapter.task, key, context), adapter.name)


def _no_model(name: str) -> NotFound:
    return NotFound(
        f"There is no model {name[:80]!r}: GET /v1/models lists what there is.", param="model", code="model_not_found"
    )


async def _find_task(name: str, key: ApiKey, context: Context) -> Task:
    task = await context.roster.find_task(name) if may_use_task(key, name) else None
    if task is None:
        raise NotFound(f"There is no task {name!r}.", param="task", code="task_not_found")
    return task

"""Resolves the names in a request: which task, which adapter, which verifiers, and may this key have them.

Called by `server.api.serve`. The engine would serve the base model for a name that it does not know, so nothing that is
not resolved here may reach it.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from server.api.auth import may_use_task, may_use_verifier, require_scope
from server.api.chat_request import ChatRequest, RequestVerifier, RetryOverrides
from server.api.context import Context
from server.api.roster import check_bindings, make_binding
from server.api.surfaces.base import Ask
from server.domain import (
    BASE_ADAPTER,
    DEFAULT_TASK,
    ApiKey,
    Binding,
    Episode,
    RetryPolicy,
    Scope,
    Task,
    VerifyMode,
    new_id,
)
from server.errors import InvalidRequest, NotFound
from server.orchestration.selection import split_of
from server.orchestration.verification import NONE, WHEN, VerifierSet, bind
from verifiers.base import InvalidArgs, InvalidVerifier
from verifiers.registry import check_args, kinds

CODE_KINDS = frozenset({"python"})
"""The kinds whose configuration is code: given inline, they need the scope that registering them needs."""


_MOST_VERIFIERS = 16
_INLINE_CONFIG_BYTES = 64 * 2**10
_VERSION_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's names stand for. `adapter` is None where the task's champion serves."""

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


async def resolve_verifiers(request: ChatRequest, task: Task, key: ApiKey, context: Context) -> VerifierSet:
    """Find the verifiers of a request, its own list or else the task's, and compile them.

    Raises: InvalidRequest, naming the entry; Forbidden for inline code without its scope.
    """
    given = request.verifiers
    if given is not None and len(given) > _MOST_VERIFIERS:
        raise InvalidRequest(f"At most {_MOST_VERIFIERS} verifiers are taken.", param="verifiers")
    if given is None:
        if _choose_mode(request, task) is VerifyMode.OFF:
            return NONE  # what is not checked lacks nothing
        snapshot = context.roster.snapshot
        if (bound := snapshot.bound.get(task.name)) is not None:
            return bound
        bindings = snapshot.bindings.get(task.name, ())
        check_bindings(task, bindings)
        bound = snapshot.bound[task.name] = await bind_checked(bindings)
        return bound
    entries = [(entry, f"verifiers[{index}]") for index, entry in enumerate(given)]
    bindings = tuple([await _resolve_verifier(entry, param, task, key, context) for entry, param in entries])
    return await bind_checked(bindings)


def check_when(when: Mapping[str, Any], param: str) -> None:
    """Check the conditions of a binding. Raises: InvalidRequest."""
    for name, value in when.items():
        if value not in WHEN.get(name, ()):
            known = "; ".join(f"{condition}: {' | '.join(values)}" for condition, values in WHEN.items())
            raise InvalidRequest(f"A condition is one of {known}.", param=f"{param}.when.{name}")


async def bind_checked(bindings: tuple[Binding, ...], param: str = "verifiers") -> VerifierSet:
    """Compile the verifiers of a request and check what they are given.

    In a thread where that may take a while: code is tried out, and what a request brings along may be anything.

    Raises: InvalidRequest, naming the entry and the place in it.
    """
    if any(not binding.name or runs_code(binding.kind, binding.config) for binding in bindings):
        verify = await asyncio.to_thread(_compile, bindings, param)
    else:
        verify = _compile(bindings, param)
    for index, binding in enumerate(bindings):
        check_when(binding.when, f"{param}[{index}]")
        try:
            check_args(binding.kind, binding.config, binding.args)
        except InvalidArgs as error:
            known_as = {"name": binding.name} if binding.name else {"kind": binding.kind}
            shape = msgspec.json.encode({**known_as, "args": {}}).decode()
            message = (
                f"{binding.pin} cannot check with these args: {error.message}. Verifiers are given them as {shape}."
            )
            raise InvalidRequest(message, param=f"{param}[{index}].args{_dotted(error.where)}") from None
    return verify


def runs_code(kind: str, config: Mapping[str, Any]) -> bool:
    """Say whether a verifier runs code that stands in its configuration, be it nested."""
    if kind in CODE_KINDS:
        return True
    nested = config.get("verifiers") if kind == "all_of" and isinstance(config, Mapping) else None
    parts = [part for part in nested if isinstance(part, Mapping)] if isinstance(nested, list) else []
    return any(runs_code(str(part.get("kind")), part.get("config") or {}) for part in parts)


def make_episodes(
    ask: Ask, task: Task, *, adapter: str, verify: VerifierSet, key: ApiKey, context: Context
) -> tuple[Episode, ...]:
    """Make the episodes of a request, one for each choice, before anything of them was run."""
    request, settings = ask.request, context.settings
    bindings, mode = tuple([bound.binding for bound in verify.bound]), _choose_mode(request, task)
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
            )
            for choice in ask.choices
        ]
    )


def _choose_mode(request: ChatRequest, task: Task) -> VerifyMode:
    mode = VerifyMode(request.verify) if request.verify else task.verify
    # What was sent live cannot be taken back, so it is observed, and the log says so.
    return VerifyMode.OBSERVE if request.unverified_stream and mode is VerifyMode.ENFORCE else mode


def override_retry(policy: RetryPolicy, overrides: RetryOverrides | None) -> RetryPolicy:
    """Lay a request's overrides over a task's policy. The task's budgets are the operator's word: none grows."""
    if overrides is None:
        return policy
    given = {name: value for name in overrides.__struct_fields__ if (value := getattr(overrides, name)) is not None}
    for name in ("max_seconds", "max_total_tokens"):
        if name in given and (most := getattr(policy, name)) is not None:
            given[name] = min(given[name], most)
    return replace(policy, **given)


def _compile(bindings: tuple[Binding, ...], param: str) -> VerifierSet:
    bound = []
    for index, binding in enumerate(bindings):
        try:
            bound += bind((binding,)).bound
        except InvalidVerifier as error:
            message = f"The verifier {binding.pin} does not compile: {error}"
            raise InvalidRequest(message, param=f"{param}[{index}].config{_dotted(error.where)}") from None
    return VerifierSet(tuple(bound))


def _dotted(pointer: str | None) -> str:
    """Turn a JSON pointer into the way that fields are named in errors: `/numbers/0` becomes `.numbers[0]`."""
    parts = (pointer or "").partition(" ")[0].split("/")[1:]
    return "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts)


async def _pin_adapter(name: str, key: ApiKey, context: Context) -> Target:
    require_scope(key, Scope.PIN_ADAPTERS)  # first, so that other keys cannot find out which adapters there are
    adapter = await context.adapters.get(name)
    if adapter is None or not may_use_task(key, adapter.task):
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


async def _resolve_verifier(
    entry: str | RequestVerifier, param: str, task: Task, key: ApiKey, context: Context
) -> Binding:
    if isinstance(entry, str):
        entry = RequestVerifier(name=entry)
    if entry.name is not None and "@" in entry.name:
        name, _, version = entry.name.partition("@")
        if not version.isascii() or not version.isdecimal() or len(version) > _VERSION_DIGITS:
            raise InvalidRequest(f"{entry.name[:80]!r}: a version is a number, as in {name[:60]}@1.", param=param)
        if entry.version not in (None, int(version)):
            raise InvalidRequest("The name and the field `version` disagree.", param=f"{param}.version")
        entry = msgspec.structs.replace(entry, name=name, version=int(version))
    if (entry.name is None) == (entry.kind is None):
        raise InvalidRequest("A verifier has either a name or a kind.", param=param)
    if entry.kind is not None:
        config = entry.config or {}
        if entry.kind not in (known := kinds()):
            raise InvalidRequest(f"There is no kind {entry.kind!r}, only {', '.join(known)}.", param=f"{param}.kind")
        if entry.version is not None:
            raise InvalidRequest("An inline verifier has no version.", param=f"{param}.version")
        require_scope(key, Scope.INLINE_VERIFIERS)
        if runs_code(entry.kind, config):
            require_scope(key, Scope.REGISTER_CODE)
        if len(msgspec.json.encode(config)) > _INLINE_CONFIG_BYTES:
            message = f"An inline config has at most {_INLINE_CONFIG_BYTES} bytes; register the verifier instead."
            raise InvalidRequest(message, param=f"{param}.config")
        return Binding(entry.kind, config, args=entry.args or {}, when=entry.when or {})
    if entry.config is not None:
        raise InvalidRequest("A registered verifier has its own config.", param=f"{param}.config")
    return await _resolve_registered(entry, param, task, key, context)


async def _resolve_registered(entry: RequestVerifier, param: str, task: Task, key: ApiKey, context: Context) -> Binding:
    """Find a registered verifier. A bare name is the task's pin, with its arguments; else the latest."""
    assert entry.name is not None
    pin = next((pin for pin in task.verifiers if pin.name == entry.name and entry.version in (None, pin.version)), None)
    version = await context.roster.find_verifier(entry.name, pin.version if pin else entry.version)
    if version is None or not may_use_verifier(key, version, context.roster.snapshot.tasks):
        wanted = f"{entry.name}@{entry.version}" if entry.version else entry.name
        message = f"There is no verifier {wanted!r}: GET /v1/verifiers lists what there is."
        raise InvalidRequest(message, param=param, code="verifier_not_found")
    args = {**(pin.args if pin else {}), **(entry.args or {})}
    when = entry.when if entry.when is not None else (pin.when if pin else {})
    return make_binding(version, args, when)

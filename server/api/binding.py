"""Binds verifiers to a request: those that it names, else its task's, else its key's; and compiles them.

Called by `server.api.serve` and by the routes that try a verifier out. What a task observes or audits with is bound
beside them, whoever names what, and can never make a request fail.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from server.api.auth import may_use_verifier, require_scope
from server.api.chat_request import ChatRequest, RequestVerifier
from server.api.context import Context
from server.api.roster import check_bindings, make_binding
from server.domain import ApiKey, Binding, BindingMode, Scope, Task, TaskVerifier, VerifyMode
from server.errors import InvalidRequest
from server.orchestration.verification import NONE, WHEN, BoundVerifier, VerifierSet, bind
from server.store.verifiers import refuse_withdrawn
from verifiers.base import Answer, Cause, InvalidArgs, InvalidVerifier, Request, Verdict
from verifiers.registry import CODE, NETWORK, check_args, find_needs, kinds

_SCOPE_OF = {CODE: Scope.REGISTER_CODE, NETWORK: Scope.REGISTER_WEBHOOKS}
_MOST_VERIFIERS = 16
_INLINE_CONFIG_BYTES = 64 * 2**10
_VERSION_DIGITS = 9
_NOTHING: Mapping[str, str] = {}
_LARGE_CONFIG_BYTES = 2048
_MAX_SEEN = 4096
_seen: set[str] = set()  # pins of registered verifiers that this process has compiled


@dataclass(frozen=True, slots=True)
class Abstaining:
    """Stands in for a verifier that cannot be asked, and says why."""

    reason: str
    cause: Cause

    never_waits = True

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Abstain."""
        return Verdict.abstained(self.reason, self.cause)


async def resolve_verifiers(request: ChatRequest, task: Task, key: ApiKey, context: Context) -> VerifierSet:
    """Find the verifiers of a request and compile them: its own list, else the task's, else the key's.

    Those that the task observes or audits with are beside them, and last.

    Raises: InvalidRequest, naming the entry; Forbidden for inline code without its scope.
    """
    given, off = request.verifiers, choose_mode(request, task) is VerifyMode.OFF
    if given is None:
        return NONE if off else await _bind_defaults(task, key, context)  # what is not checked lacks nothing
    if len(given) > _MOST_VERIFIERS:
        raise InvalidRequest(f"At most {_MOST_VERIFIERS} verifiers are taken.", param="verifiers")
    entries = [(entry, f"verifiers[{index}]") for index, entry in enumerate(given)]
    bindings = tuple([await _resolve_verifier(entry, param, task, key, context) for entry, param in entries])
    revoked = context.roster.snapshot.revoked
    chosen = await bind_checked(bindings, revoked=revoked)
    watching = () if off else await _bind_watching(_bindings_of(task, context), bindings, revoked)
    return VerifierSet(chosen.bound + watching).watched(context.watch)


async def _bind_defaults(task: Task, key: ApiKey, context: Context) -> VerifierSet:
    """Bind what the task says, or the key where the task enforces nothing; once for each snapshot."""
    snapshot = context.roster.snapshot
    place = (task.name, key.id if key.verifiers else "")
    if (bound := snapshot.bound.get(place)) is not None:
        return bound
    own = _bindings_of(task, context)
    enforcing = tuple(binding for binding in own if binding.mode == BindingMode.ENFORCE)
    if not enforcing and key.verifiers:
        enforcing = tuple([await _bind_pin(pin, key, context) for pin in key.verifiers])
    chosen = await bind_checked(enforcing, revoked=snapshot.revoked)
    watching = await _bind_watching(own, (), snapshot.revoked)
    bound = snapshot.bound[place] = VerifierSet(chosen.bound + watching).watched(context.watch)
    return bound


def _bindings_of(task: Task, context: Context) -> tuple[Binding, ...]:
    bindings = context.roster.snapshot.bindings.get(task.name, ())
    check_bindings(task, bindings)
    return bindings


async def _bind_pin(pin: TaskVerifier, key: ApiKey, context: Context) -> Binding:
    version = await context.roster.find_version(pin.name, pin.version)
    if version is None:
        raise InvalidRequest(f"A verifier of the key {key.name!r} is not registered.")
    return make_binding(version, pin.args, pin.when)


def choose_mode(request: ChatRequest, task: Task) -> VerifyMode:
    """Say what is done with the verdicts on a request."""
    mode = VerifyMode(request.verify) if request.verify else task.verify
    # What was sent live cannot be taken back, so it is observed, and the log says so.
    return VerifyMode.OBSERVE if request.unverified_stream and mode is VerifyMode.ENFORCE else mode


def check_when(when: Mapping[str, Any], param: str) -> None:
    """Check the conditions of a binding. Raises: InvalidRequest."""
    for name, value in when.items():
        if value not in WHEN.get(name, ()):
            known = "; ".join(f"{condition}: {' | '.join(values)}" for condition, values in WHEN.items())
            raise InvalidRequest(f"A condition is one of {known}.", param=f"{param}.when.{name}")


async def bind_checked(
    bindings: tuple[Binding, ...], param: str = "verifiers", *, revoked: Mapping[str, str] = _NOTHING
) -> VerifierSet:
    """Compile the verifiers of a request and check what they are given; one that was `revoked` abstains instead.

    In a thread where that may take a while: code is tried out, and what a request brings along may be anything.

    Raises: InvalidRequest, naming the entry and the place in it.
    """
    if any(_may_take_long(binding) for binding in bindings):
        verify = await asyncio.to_thread(_compile, bindings, param, revoked)
        _remember(bindings)
    else:
        verify = _compile(bindings, param, revoked)
    for index, (binding, bound) in enumerate(zip(bindings, verify.bound, strict=True)):
        check_when(binding.when, f"{param}[{index}]")
        if isinstance(bound.verifier, Abstaining):
            continue
        try:
            check_args(binding.kind, binding.config, binding.args)
        except InvalidArgs as error:
            known_as = {"name": binding.name} if binding.name else {"kind": binding.kind}
            shape = msgspec.json.encode({**known_as, "args": {}}).decode()
            message = (
                f"{binding.pin} cannot check with these args: {error.message}. Verifiers are given them as {shape}."
            )
            raise InvalidRequest(message, param=f"{param}[{index}].args{dot_pointer(error.where)}") from None
    return verify


def _may_take_long(binding: Binding) -> bool:
    """Say whether to compile in a thread: what a request brings along, code, what is large or not seen before."""
    if not binding.name or CODE in find_needs(binding.kind, binding.config):
        return True
    return binding.pin not in _seen or len(msgspec.json.encode(binding.config)) > _LARGE_CONFIG_BYTES


def _remember(bindings: Sequence[Binding]) -> None:
    """Note what was compiled, and so will be at once the next time, or nearly."""
    if len(_seen) >= _MAX_SEEN:
        _seen.clear()
    _seen.update(binding.pin for binding in bindings if binding.name)


def _compile(bindings: tuple[Binding, ...], param: str, revoked: Mapping[str, str]) -> VerifierSet:
    bound = []
    for index, binding in enumerate(bindings):
        if binding.name and binding.pin in revoked:
            bound.append(BoundVerifier(binding, _withheld(binding)))
            continue
        try:
            bound += bind((binding,)).bound
        except InvalidVerifier as error:
            message = f"The verifier {binding.pin} does not compile: {error}"
            raise InvalidRequest(message, param=f"{param}[{index}].config{dot_pointer(error.where)}") from None
    return VerifierSet(tuple(bound))


def _withheld(binding: Binding) -> Abstaining:
    return Abstaining(f"{binding.pin} was revoked, and there is no version before it", Cause.REVOKED)


async def _bind_watching(
    own: Sequence[Binding], given: Sequence[Binding], revoked: Mapping[str, str]
) -> tuple[BoundVerifier, ...]:
    """Bind what a task observes and audits with. What cannot be bound abstains: a client must not learn of it.

    `given` is what the request names: its arguments are for those that watch beside it, too.
    """
    watching = [binding for binding in own if binding.mode != BindingMode.ENFORCE]
    return tuple([await _bind_one_watching(binding, given, revoked) for binding in watching])


async def _bind_one_watching(binding: Binding, given: Sequence[Binding], revoked: Mapping[str, str]) -> BoundVerifier:
    if binding.pin in revoked:
        return BoundVerifier(binding, _withheld(binding))
    wanted = [replace(binding, args={**binding.args, **_args_for(binding, given)})]
    if wanted[0].args != binding.args and all(one.name != binding.name for one in given):
        wanted.append(binding)  # what another verifier is given may not be for this one
    try:
        compiling = asyncio.to_thread(bind, (binding,)) if _may_take_long(binding) else None
        _remember((binding,))
        verifier = (await compiling if compiling else bind((binding,))).bound[0].verifier
    except InvalidVerifier as error:
        return BoundVerifier(binding, Abstaining(f"it does not compile: {error}", Cause.BROKE))
    said = ""
    for one in wanted:
        try:
            check_args(one.kind, one.config, one.args)
        except InvalidArgs as error:
            said = said or str(error)
        else:
            return BoundVerifier(one, verifier)
    return BoundVerifier(binding, Abstaining(said, Cause.BAD_ARGS))


def _args_for(binding: Binding, given: Sequence[Binding]) -> Mapping[str, Any]:
    """Find what a request gives a verifier that watches: the arguments of its namesake, else of the only one."""
    named = [one for one in given if one.name and one.name == binding.name]
    chosen = named or [one for one in given if one.args]
    return chosen[0].args if named or len(chosen) == 1 else {}


def find_scopes(kind: str, config: Any) -> tuple[Scope, ...]:
    """List the scopes that a configuration asks of the key that gives it, beside that for giving one at all."""
    return tuple(scope for need, scope in _SCOPE_OF.items() if need in find_needs(kind, config))


def dot_pointer(pointer: str | None) -> str:
    """Turn a JSON pointer into the way that fields are named in errors: `/numbers/0` becomes `.numbers[0]`."""
    parts = (pointer or "").partition(" ")[0].split("/")[1:]
    return "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts)


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
    if entry.kind is None:
        if entry.config is not None:
            raise InvalidRequest("A registered verifier has its own config.", param=f"{param}.config")
        return await _resolve_registered(entry, param, task, key, context)
    config = entry.config or {}
    if entry.kind not in (known := kinds()):
        raise InvalidRequest(f"There is no kind {entry.kind!r}, only {', '.join(known)}.", param=f"{param}.kind")
    if entry.version is not None:
        raise InvalidRequest("An inline verifier has no version.", param=f"{param}.version")
    require_scope(key, Scope.INLINE_VERIFIERS)
    for scope in find_scopes(entry.kind, config):
        require_scope(key, scope)
    if len(msgspec.json.encode(config)) > _INLINE_CONFIG_BYTES:
        message = f"An inline config has at most {_INLINE_CONFIG_BYTES} bytes; register the verifier instead."
        raise InvalidRequest(message, param=f"{param}.config")
    return Binding(entry.kind, config, args=entry.args or {}, when=entry.when or {})


async def _resolve_registered(entry: RequestVerifier, param: str, task: Task, key: ApiKey, context: Context) -> Binding:
    """Find a registered verifier. A bare name is the task's or the key's pin, with its arguments; else the latest."""
    assert entry.name is not None
    pin = next((pin for pin in (*task.verifiers, *key.verifiers) if _is_meant(entry, pin)), None)
    version = await context.roster.find_verifier(entry.name, pin.version if pin else entry.version)
    if version is None or not may_use_verifier(key, version, context.roster.snapshot.tasks):
        wanted = f"{entry.name}@{entry.version}" if entry.version else entry.name
        message = f"There is no verifier {wanted!r}: GET /v1/verifiers lists what there is."
        raise InvalidRequest(message, param=param, code="verifier_not_found")
    if pin is None or (entry.version is not None and version.revoked_at is not None):
        refuse_withdrawn(version, param)
    args = {**(pin.args if pin else {}), **(entry.args or {})}
    when = entry.when if entry.when is not None else (pin.when if pin else {})
    return make_binding(version, args, when)


def _is_meant(entry: RequestVerifier, pin: TaskVerifier) -> bool:
    return pin.name == entry.name and pin.mode == BindingMode.ENFORCE and entry.version in (None, pin.version)

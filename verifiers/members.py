"""What the composites share: members of any kind, their arguments, asking them, joining what they say.

Called by `all_of`, `any_of`, `weighted` and `not_`, which only own what the verdicts of the members come to.
Composites may stand in composites, MAX_DEPTH of them inside each other, with MAX_MEMBERS_IN_ALL members in all.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from verifiers.base import Answer, Cause, InvalidArgs, InvalidVerifier, Request, Status, Verdict, Verifier
from verifiers.kind import Config, Kind

COMPOSITES = ("all_of", "any_of", "weighted", "not")
MAX_DEPTH = 4
MAX_MEMBERS = 16
MAX_MEMBERS_IN_ALL = 32
MAX_JOINED_CHARS = 4_000

MEMBER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "description": "Any kind on this page, composites among them."},
        "config": {"type": "object", "default": {}},
        "name": {"type": "string", "minLength": 1, "maxLength": 64, "description": "Else its kind."},
    },
    "required": ["kind"],
    "additionalProperties": False,
}
ARGS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": (
        "Each member's arguments under its name or kind; those beside them go to every member whose kind knows them."
    ),
}
_log = logging.getLogger(__name__)


def list_members(member: dict[str, Any] = MEMBER) -> dict[str, Any]:
    """Make the schema of a configuration that lists members."""
    return {
        "type": "object",
        "properties": {"verifiers": {"type": "array", "items": member, "minItems": 1, "maxItems": MAX_MEMBERS}},
        "required": ["verifiers"],
        "additionalProperties": False,
    }


class Said(NamedTuple):
    """A member's name and its verdict."""

    name: str
    verdict: Verdict


Combine = Callable[[Sequence[Said]], Verdict]


@dataclass(frozen=True, slots=True)
class _Member:
    name: str  # what its arguments and its part of the reason are called by
    kind: Kind
    config: Config
    known: frozenset[str] | None  # the arguments that it may be given; None: any

    def share(self, args: Mapping[str, Any], addresses: frozenset[str]) -> Mapping[str, Any]:
        """Pick this member's arguments: what stands beside all `addresses` and is known to it, then its own."""
        if not args:
            return args
        known = self.known
        picked = {key: value for key, value in args.items() if key not in addresses and (known is None or key in known)}
        own = args.get(self.name, args.get(self.kind.name))
        return {**picked, **own} if isinstance(own, Mapping) else picked


class Composite:
    """Compiled; asks all its members, side by side where they wait, so that the reason is whole.

    Raises: InvalidVerifier, with the place of the member that is to blame.
    """

    def __init__(self, name: str, kinds: Mapping[str, Kind], config: Config, combine: Combine) -> None:
        _check_size(name, config)
        members = _read_members(name, kinds, config)
        self._asked = [(member, _compile(member, place)) for place, member in members]
        self._addresses = _list_addresses(member for _, member in members)
        self._combine = combine
        waiting = [not getattr(verifier, "never_waits", False) for _, verifier in self._asked]
        self.never_waits = not any(waiting)
        self._together = sum(waiting) > 1

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the answer by what the members say."""
        asking = (
            _ask(member.name, verifier, request, answer, member.share(args, self._addresses))
            for member, verifier in self._asked
        )
        if self._together:
            return self._combine(await asyncio.gather(*asking))
        return self._combine([await one for one in asking])


async def _ask(name: str, verifier: Verifier, request: Request, answer: Answer, args: Mapping[str, Any]) -> Said:
    """Ask one member; one that raises abstains, so that the others still count."""
    try:
        return Said(name, await verifier.verify(request, answer, args))
    except Exception as error:  # noqa: BLE001 -- a kind of somebody else may raise anything
        _log.warning("the member %s broke", name, exc_info=True)
        return Said(name, Verdict.abstained(f"the verifier broke: {type(error).__name__}: {error}", Cause.BROKE))


def compose(
    name: str,
    summary: str,
    kinds: Mapping[str, Kind],
    read_combine: Callable[[Config], Combine],
    config_schema: dict[str, Any] | None = None,
) -> Kind:
    """Make a composite kind, whose members are of `kinds`; these may still grow until it is used."""
    return Kind(
        name=name,
        summary=summary,
        config_schema=config_schema or list_members(),
        args_schema=ARGS_SCHEMA,
        compile=lambda config: Composite(name, kinds, config, read_combine(config)),
        accept_args=lambda config, args: _accept_args(name, kinds, config, args),
        find_needs=lambda config: _find_needs(kinds, config),
    )


def join(status: Status, score: float, said: Sequence[Said], telling: Iterable[Said]) -> Verdict:
    """Make the verdict of all `said` together; the `telling` ones give the reason, and the cause of an abstention.

    The model may be shown the reason where it may be shown every part of it. A cause that means that a member is broken
    goes before one that does not.
    """
    told = [one for one in telling if one.verdict.reason]
    causes = [verdict.cause for _, verdict in said if verdict.status is Status.ABSTAINED and verdict.cause]
    cause = next((cause for cause in causes if cause.stops), causes[0] if causes else Cause.UNDECIDED)
    return Verdict(
        status=status,
        score=score,
        reason=_cut("; ".join(f"{name}: {verdict.reason}" for name, verdict in told)),
        safe_for_model=bool(told) and all(verdict.safe_for_model for _, verdict in told),
        stdout=_cut("\n".join(verdict.stdout for _, verdict in said if verdict.stdout)),
        cause=cause if status is Status.ABSTAINED else None,
    )


def with_status(said: Iterable[Said], *statuses: Status) -> list[Said]:
    """Pick those whose verdict has one of the statuses."""
    return [one for one in said if one.verdict.status in statuses]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_JOINED_CHARS else f"{text[:MAX_JOINED_CHARS]}..."


def _list_entries(config: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """List the members in the configuration of a composite, which may be anything, with the place of each."""
    if not isinstance(config, Mapping):
        return []
    several = config.get("verifiers")
    found = enumerate(several) if isinstance(several, list | tuple) else ()
    entries = [*((f"/verifiers/{index}", entry) for index, entry in found), ("/verifier", config.get("verifier"))]
    return [(place, entry) for place, entry in entries if isinstance(entry, Mapping)]


def _find_needs(kinds: Mapping[str, Kind], config: Any) -> frozenset[str]:
    """Join the needs of the members, in a configuration that may be anything."""
    entries = [(kinds.get(str(entry.get("kind"))), entry.get("config")) for _, entry in _list_entries(config)]
    return frozenset().union(*(kind.find_needs(own or {}) for kind, own in entries if kind is not None))


def _check_size(name: str, config: Config) -> None:
    """Refuse what is nested too deeply or has too many members, before any of it is compiled.

    Raises: InvalidVerifier.
    """
    level, size = [("", config)], 0
    for _ in range(MAX_DEPTH):
        entries = [(f"{above}{place}", entry) for above, own in level for place, entry in _list_entries(own)]
        size += len(entries)
        if size > MAX_MEMBERS_IN_ALL:
            raise InvalidVerifier(f"{name}: more than {MAX_MEMBERS_IN_ALL} members in all", entries[-1][0])
        level = [
            (f"{place}/config", entry.get("config")) for place, entry in entries if entry.get("kind") in COMPOSITES
        ]
    if level:
        raise InvalidVerifier(f"{name}: more than {MAX_DEPTH} composites inside each other", level[0][0])


def _read_members(name: str, kinds: Mapping[str, Kind], config: Config) -> list[tuple[str, _Member]]:
    """Read the members of a configuration that the schema accepts, with the place of each.

    Raises: InvalidVerifier for a kind that is none and for two members of one name.
    """
    members, names = [], set[str]()
    for place, entry in _list_entries(config):
        kind = kinds.get(entry["kind"])
        if kind is None:
            message = f"{name}: there is no kind {entry['kind'][:80]!r}: choose one of {', '.join(kinds)}"
            raise InvalidVerifier(message, f"{place}/kind")
        own = entry.get("config", {})
        member = _Member(entry.get("name", kind.name), kind, own, _find_known(kinds, kind, own))
        if member.name in names:
            raise InvalidVerifier(f"{name}: two members are called {member.name!r}", f"{place}/name")
        names.add(member.name)
        members.append((place, member))
    return members


def _find_known(kinds: Mapping[str, Kind], kind: Kind, config: Any) -> frozenset[str] | None:
    """Find the names of arguments that a verifier may be given; None where that is any."""
    if kind.name not in COMPOSITES:
        schema = kind.args_schema
        return None if schema.get("additionalProperties", True) else frozenset(schema.get("properties", {}))
    known = set[str]()
    for _, entry in _list_entries(config):
        member = kinds.get(str(entry.get("kind")))
        if member is None:
            continue  # it will not compile
        below = _find_known(kinds, member, entry.get("config"))
        if below is None:
            return None
        known |= {str(entry.get("name", member.name)), member.name} | below
    return frozenset(known)


def _list_addresses(members: Iterable[_Member]) -> frozenset[str]:
    """List the names under which arguments are one member's own: its name, or the kind of several."""
    return frozenset(name for member in members for name in (member.name, member.kind.name))


def _compile(member: _Member, place: str) -> Verifier:
    try:
        return member.kind.compile_checked(member.config)
    except InvalidVerifier as error:
        where = (error.where or "").removeprefix("(root)")
        raise InvalidVerifier(error.message, f"{place}/config{where}") from None


def _accept_args(name: str, kinds: Mapping[str, Kind], config: Config, args: Mapping[str, Any]) -> None:
    """Check every member's share of the arguments.

    Raises: InvalidArgs, also for an argument that no member knows.
    """
    members = [member for _, member in _read_members(name, kinds, config)]
    addresses = _list_addresses(members)
    for address in addresses:
        if not isinstance(args.get(address, {}), Mapping):
            raise InvalidArgs(f"{name}: the arguments of {address} are no object", f"/{address}")
    taken = set(addresses)
    for member in members:
        share = member.share(args, addresses)
        taken.update(share)
        try:
            member.kind.check_args(member.config, share)
        except InvalidArgs as error:
            where = (error.where or "").removeprefix("(root)")
            raise InvalidArgs(f"{name}: {error.message}", f"/{member.name}{where}") from None
    unknown = next((key for key in args if key not in taken), None)
    if unknown is not None:
        raise InvalidArgs(f"{name}: no member knows the argument {unknown!r}", f"/{unknown}")

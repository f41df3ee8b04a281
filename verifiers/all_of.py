"""The kind `all_of`: several checks of one answer, all of which have to pass."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from verifiers.base import Answer, InvalidArgs, InvalidVerifier, Request, Status, Verdict, Verifier
from verifiers.kind import Kind

NAME = "all_of"
MAX_MEMBERS = 16


@dataclass(frozen=True, slots=True)
class _Member:
    name: str  # what its arguments and its part of the reason are called by
    kind: Kind
    config: Mapping[str, Any]

    def share(self, args: Mapping[str, Any], addresses: frozenset[str]) -> dict[str, Any]:
        """Pick this member's arguments: what stands beside all `addresses` and its kind knows, then its own."""
        schema = self.kind.args_schema
        known = schema.get("properties", {})
        is_open = schema.get("additionalProperties", True)
        picked = {key: value for key, value in args.items() if key not in addresses and (is_open or key in known)}
        own = args.get(self.name, args.get(self.kind.name))
        return {**picked, **own} if isinstance(own, Mapping) else picked


def _list_addresses(members: Iterable[_Member]) -> frozenset[str]:
    """List the names under which arguments are one member's own: its name, or the kind of several."""
    return frozenset(name for member in members for name in (member.name, member.kind.name))


class AllOfVerifier:
    """Compiled; asks its members in their order, all of them, so that the reason is whole."""

    def __init__(self, members: list[tuple[_Member, Verifier]]) -> None:
        self._members = members
        self._addresses = _list_addresses(member for member, _ in members)

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the answer by every member: any failed, then failed; else any abstained, then abstained.

        The score is the lowest of the members', 0 for one that abstained.
        """
        said = [
            (member.name, await verifier.verify(request, answer, member.share(args, self._addresses)))
            for member, verifier in self._members
        ]
        statuses = {verdict.status for _, verdict in said}
        worst = next((s for s in (Status.FAILED, Status.ABSTAINED) if s in statuses), Status.PASSED)
        telling = [(name, verdict) for name, verdict in said if verdict.status is worst and verdict.reason]
        return Verdict(
            status=worst,
            score=min(verdict.score for _, verdict in said),
            reason="; ".join(f"{name}: {verdict.reason}" for name, verdict in telling),
            safe_for_model=bool(telling) and all(verdict.safe_for_model for _, verdict in telling),
            stdout="\n".join(verdict.stdout for _, verdict in said if verdict.stdout),
        )


def make_kind(kinds: Mapping[str, Kind]) -> Kind:
    """Make the kind, whose members are of the other `kinds`."""
    member = {
        "type": "object",
        "properties": {
            "kind": {"enum": sorted(kinds)},
            "config": {"type": "object", "default": {}},
            "name": {"type": "string", "minLength": 1, "maxLength": 64, "description": "Else its kind."},
        },
        "required": ["kind"],
        "additionalProperties": False,
    }
    return Kind(
        name=NAME,
        summary="Several verifiers, all of which have to pass.",
        config_schema={
            "type": "object",
            "properties": {"verifiers": {"type": "array", "items": member, "minItems": 1, "maxItems": MAX_MEMBERS}},
            "required": ["verifiers"],
            "additionalProperties": False,
        },
        args_schema={
            "type": "object",
            "description": (
                "Each member's arguments under its name or kind; "
                "those beside them go to every member whose kind knows them."
            ),
        },
        compile=lambda config: AllOfVerifier(_compile_members(kinds, config)),
        accept_args=lambda config, args: _accept_args(kinds, config, args),
    )


def _read_members(kinds: Mapping[str, Kind], config: Mapping[str, Any]) -> list[_Member]:
    return [
        _Member(entry.get("name", entry["kind"]), kinds[entry["kind"]], entry.get("config", {}))
        for entry in config["verifiers"]
    ]


def _compile_members(kinds: Mapping[str, Kind], config: Mapping[str, Any]) -> list[tuple[_Member, Verifier]]:
    members = _read_members(kinds, config)
    names = [member.name for member in members]
    for index, member in enumerate(members):
        if names.index(member.name) != index:
            raise InvalidVerifier(f"{NAME}: two members are called {member.name!r}", f"/verifiers/{index}/name")
    compiled = []
    for index, member in enumerate(members):
        try:
            compiled.append((member, member.kind.compile_checked(member.config)))
        except InvalidVerifier as error:
            where = (error.where or "").removeprefix("(root)")
            raise InvalidVerifier(error.message, f"/verifiers/{index}/config{where}") from None
    return compiled


def _accept_args(kinds: Mapping[str, Kind], config: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    members = _read_members(kinds, config)
    addresses = _list_addresses(members)
    for address in addresses:
        if not isinstance(args.get(address, {}), Mapping):
            raise InvalidArgs(f"{NAME}: the arguments of {address} are no object", f"/{address}")
    taken = set(addresses)
    for member in members:
        share = member.share(args, addresses)
        taken.update(share)
        try:
            member.kind.check_args(member.config, share)
        except InvalidArgs as error:
            raise InvalidArgs(
                f"{NAME}: {error.message}", f"/{member.name}{(error.where or '').removeprefix('(root)')}"
            ) from None
    unknown = next((key for key in args if key not in taken), None)
    if unknown is not None:
        raise InvalidArgs(f"{NAME}: no member knows the argument {unknown!r}", f"/{unknown}")

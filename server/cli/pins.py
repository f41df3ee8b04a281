"""Pins the verifiers that a command line names for a task or a key."""

from collections.abc import Sequence

from server.cli.options import split_pin
from server.domain import BindingMode, TaskVerifier, VerifierVersion
from server.errors import NotFound
from server.store.database import Database
from server.store.verifiers import VerifierStore, refuse_rivals, refuse_withdrawn


async def find_verifier(database: Database, pin: str) -> VerifierVersion:
    """Find what NAME or NAME@VERSION stands for. Raises: NotFound."""
    name, version = split_pin(pin)
    found = await VerifierStore(database).get(name, version)
    if found is None:
        raise NotFound(f"there is no verifier {pin!r}: `mulligan verifiers list` shows those there are")
    return found


async def pin_verifiers(
    database: Database, names: Sequence[str], mode: BindingMode, known: Sequence[TaskVerifier] = ()
) -> tuple[TaskVerifier, ...]:
    """Pin each to a version that may be bound. It keeps the arguments and conditions of its like among the `known`.

    Raises: NotFound, InvalidRequest.
    """
    pinned = []
    for name in names:
        version = await find_verifier(database, name)
        like = _find_like(version, mode, known)
        if like is None or (like.version, like.mode) != (version.version, mode):
            refuse_withdrawn(version, "--verifier" if mode == BindingMode.ENFORCE else f"--{mode.value}")
        kept = (like.args, like.when) if like else ({}, {})
        pinned.append(TaskVerifier(version.name, version.version, *kept, mode))
    refuse_rivals(pinned)
    return tuple(pinned)


def _find_like(version: VerifierVersion, mode: BindingMode, known: Sequence[TaskVerifier]) -> TaskVerifier | None:
    """Find the pin that this one continues: of this version, else of this name and end, else the one that counts."""
    namesakes = [pin for pin in known if pin.name == version.name]
    places = (
        [pin for pin in namesakes if (pin.version, pin.mode) == (version.version, mode)],
        [pin for pin in namesakes if pin.version == version.version],
        [pin for pin in namesakes if pin.mode == mode],
        [pin for pin in namesakes if pin.mode == BindingMode.ENFORCE],
    )
    return next((found[0] for found in places if found), None)


def describe_pins(pins: Sequence[TaskVerifier], mode: BindingMode) -> str:
    """Name the pins of one mode."""
    return ", ".join(f"{pin.name}@{pin.version}" for pin in pins if pin.mode == mode)

"""Pins the verifiers that a body names for a task or a key: by then each is a version that may be bound."""

from collections.abc import Sequence

from server.api.binding import check_when
from server.api.context import Context
from server.api.rest.schemas import NAME, VERSION, TaskVerifierBody
from server.domain import TaskVerifier
from server.errors import InvalidRequest
from server.store.verifiers import refuse_rivals


async def pin_verifiers(
    entries: Sequence[str | TaskVerifierBody], rooms: Context, kept: Sequence[TaskVerifier] = ()
) -> tuple[TaskVerifier, ...]:
    """Pin each entry; a name alone is the latest version now. What is `kept` may go on though it was withdrawn.

    Raises: InvalidRequest, naming the entry.
    """
    named = [(_read(entry, f"verifiers[{index}]"), f"verifiers[{index}]") for index, entry in enumerate(entries)]
    pins = tuple([await _pin(entry, param, rooms, kept) for entry, param in named])
    refuse_rivals(pins)
    return pins


def name_pins(pins: Sequence[TaskVerifier]) -> list[str]:
    """Name pins as `name@version`."""
    return [f"{pin.name}@{pin.version}" for pin in pins]


def _read(entry: str | TaskVerifierBody, param: str) -> TaskVerifierBody:
    if not isinstance(entry, str):
        return entry
    name, at, version = entry.partition("@")
    if not NAME.fullmatch(name) or (at and not VERSION.fullmatch(version)):
        raise InvalidRequest(f"{entry!r} is not of the form name or name@version.", param=param)
    return TaskVerifierBody(name=name, version=int(version) if version else None)


async def _pin(entry: TaskVerifierBody, param: str, rooms: Context, kept: Sequence[TaskVerifier]) -> TaskVerifier:
    check_when(entry.when, param)
    stays = any((pin.name, pin.version, pin.mode) == (entry.name, entry.version, entry.mode) for pin in kept)
    version = entry.version if stays else (await rooms.verifiers.pin(entry.name, entry.version, param=param)).version
    assert version is not None
    return TaskVerifier(entry.name, version, entry.args, entry.when, entry.mode)

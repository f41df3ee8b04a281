"""What a kind of verifier is. Each kind's own file makes one; `verifiers.registry` lists them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from verifiers.base import WHOLE, InvalidArgs, InvalidVerifier, Verifier
from verifiers.schema import Schema, TooCostly

Config = Mapping[str, Any]
Args = Mapping[str, Any]


CODE = "code"
NETWORK = "network"


def accept(_config: Config, _args: Args) -> None:
    """Accept what the schema accepts."""


def need_nothing(_config: Config) -> frozenset[str]:
    """Need no scope of its own."""
    return frozenset()


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of verifier: what it is for, what it takes, and how a configuration becomes a verifier.

    `config_schema` and `args_schema` are JSON schemas; docs and API show them as they are. `compile` gets a
    configuration that its schema accepts and raises InvalidVerifier. `accept_args` gets both, as their schemas accept
    them, and raises InvalidArgs for what a schema cannot say. `find_needs` says what a key must be allowed before it
    may give this configuration: `CODE` runs code that stands in it, `NETWORK` calls an address that stands in it; it
    gets configurations that no schema has seen yet.
    """

    name: str
    summary: str
    config_schema: dict[str, Any]
    args_schema: dict[str, Any]
    compile: Callable[[Config], Verifier]
    accept_args: Callable[[Config, Args], None] = accept
    find_needs: Callable[[Config], frozenset[str]] = need_nothing

    @cached_property
    def _config(self) -> Schema:
        return Schema(self.config_schema)

    @cached_property
    def _args(self) -> Schema:
        return Schema(self.args_schema)

    def compile_checked(self, config: Config) -> Verifier:
        """Check the configuration against its schema, then compile it.

        Raises: InvalidVerifier.
        """
        flaw = _find_flaw(self._config, self.config_schema, config)
        if flaw:
            raise InvalidVerifier(f"{self.name}: {flaw[0]}", flaw[1])
        return self.compile(config)

    def check_args(self, config: Config, args: Args) -> None:
        """Check per-request arguments for a verifier of this configuration.

        Raises: InvalidArgs.
        """
        flaw = _find_flaw(self._args, self.args_schema, args)
        if flaw:
            raise InvalidArgs(f"{self.name}: {flaw[0]}", flaw[1])
        self.accept_args(config, args)


def _find_flaw(schema: Schema, of: dict[str, Any], value: Any) -> tuple[str, str] | None:
    try:
        flaw = schema.find_flaw(value)
    except (TooCostly, ValueError) as error:  # not JSON at all: too deep, a lone surrogate, an odd type
        return str(error), WHOLE
    if flaw is None:
        return None
    unknown = _name_unknown(of, value) if flaw.path == WHOLE else None
    return unknown or flaw.message, flaw.path


def _name_unknown(schema: dict[str, Any], value: Any) -> str | None:
    """Say which of the keys is not known, and which are."""
    known = schema.get("properties", {})
    if schema.get("additionalProperties", True) or "patternProperties" in schema or not isinstance(value, Mapping):
        return None
    if (unknown := next((key for key in value if key not in known), None)) is None:
        return None
    rest = f"only {', '.join(known)}" if known else "for it takes none"
    return f"{str(unknown)[:64]!r} is not known, {rest}"

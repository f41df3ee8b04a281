"""Finds the secrets that configurations name, and holds them to the hosts that they are for.

A configuration is a client's: it could name the operator's key of a judge beside an address of its own. So a secret
that is sent as it is goes only to the hosts that the operator names for it (`Policy.secret_hosts`).
"""

from typing import Any

from verifiers.outbound_url import Target
from verifiers.policy import Policy

SECRET_NAME: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 64}
"""The schema of a secret's name."""


class NoSecret(Exception):
    """There is no such secret, or not for this host."""


def find_secret(name: str, target: Target, policy: Policy, *, is_shown: bool = False) -> str:
    """Find a secret by its name. `is_shown`: it is sent as it is, and not only signed with.

    Raises: NoSecret.
    """
    found = policy.secrets.get(name, "").strip()
    if not found:
        raise NoSecret(f"there is no secret {name!r}: the operator sets MULLIGAN_VERIFIERS__SECRETS")
    hosts = policy.secret_hosts.get(name)
    if hosts is None and is_shown:
        raise NoSecret(f"the secret {name!r} is for no host: the operator sets MULLIGAN_VERIFIERS__SECRET_HOSTS")
    host = f"[{target.host}]" if ":" in target.host else target.host
    if hosts is not None and not {host, f"{host}:{target.port}"} & {one.lower() for one in hosts}:
        raise NoSecret(f"the secret {name!r} is not for this host: the operator sets MULLIGAN_VERIFIERS__SECRET_HOSTS")
    return found

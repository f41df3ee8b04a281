"""What the operator allows verifiers to reach. Set once by each root, through `verifiers.registry.configure`.

A configuration is written by a client and kept in the database, so it never holds a secret or an address inside the
operator's network by itself: it names one that stands here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's word.

    `loopback`: whether webhooks and judges may be on this machine's loopback addresses, over plain HTTP too; other
    addresses that are not public never are. `secrets` are the values that a configuration names (`secret: crm`): keys
    to sign webhooks with, keys of judges. `secret_hosts` says which hosts (`api.example.com`, `127.0.0.1:8080`) a
    secret may be used with; one that it does not name signs for every host and is shown to none. `ca_file` holds
    certificates to trust beside the system's. `databases` are the PostgreSQL URLs that the `sql` kind may name.
    """

    loopback: bool = False
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_hosts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ca_file: str = ""
    databases: Mapping[str, str] = field(default_factory=dict, repr=False)


_current = Policy()


def current() -> Policy:
    """Read the policy of this process; without a root's word nothing is allowed."""
    return _current


def configure(policy: Policy) -> None:
    """Set the policy of this process. What was compiled before asks again at its next verdict."""
    global _current  # noqa: PLW0603 -- one word for the process, as the sandbox is one
    _current = policy

"""What may be reached in these tests: this machine; and the policy of before is put back after each."""

import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpcore2
import pytest
import trustme

from verifiers import policy
from verifiers.outbound import Outbound
from verifiers.outbound_address import Names
from verifiers.policy import Policy

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PUBLIC = "93.184.216.34"


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def allowed(authority: trustme.CA, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Allow loopback, a secret and the tests' own authority; gives the function that allows something else."""
    before = policy.current()
    ca_file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(ca_file))

    def allow(*, loopback: bool = True, secrets: dict[str, str] | None = None, **more: Any) -> None:
        policy.configure(Policy(loopback=loopback, secrets=secrets or {"crm": SECRET}, ca_file=str(ca_file), **more))

    allow()
    yield allow
    policy.configure(before)


class Detour(httpcore2.AsyncNetworkBackend):
    """Notes where connections would go and leads public addresses to a port of this machine."""

    def __init__(self, port: int, dead: Sequence[str] = ()) -> None:
        self._port, self._dead = port, dead
        self.went: list[tuple[str, int]] = []
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.went.append((host, port))
        if host in self._dead:
            raise httpcore2.ConnectError("dead")
        return await self._inner.connect_tcp("127.0.0.1", self._port, timeout=timeout)


@pytest.fixture
def detour() -> Iterator[Callable[..., tuple[Outbound, Detour]]]:
    """Make a way out whose names a test resolves and whose public addresses lead to a port of this machine."""
    made: list[Outbound] = []

    def make(port: int, *answers: Sequence[str] | Exception, dead: Sequence[str] = ()) -> tuple[Outbound, Detour]:
        left = list(answers)

        def look_up(_name: str) -> Sequence[str]:
            found = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(found, Exception):
                raise found
            return found

        inner = Detour(port, dead)
        made.append(Outbound(Names(look_up), inner))
        return made[-1], inner

    yield make
    for one in made:
        one.close()


@pytest.fixture
def serving_tls(authority: trustme.CA) -> Callable[..., ssl.SSLContext]:
    """Make the TLS context of a server: by default one that is as it should be for hooks.example.com."""

    def make(*names: str, by: trustme.CA | None = None, **more: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued = (by or authority).issue_cert(*(names or ("hooks.example.com",)), **more)
        issued.configure_cert(context)
        return context

    return make

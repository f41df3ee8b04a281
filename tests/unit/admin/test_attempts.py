"""Failed logins are counted by address, for a while."""

import pytest

from server.admin import attempts
from server.admin.attempts import MOST, WITHIN_S, FailedLogins
from server.errors import TooManyRequests


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_address_waits_until_its_oldest_failure_is_old():
    clock = Clock()
    failed = FailedLogins(clock=clock)
    for _ in range(MOST):
        failed.check("127.0.0.1")
        failed.note("127.0.0.1")
        clock.now += 1
    with pytest.raises(TooManyRequests) as refused:
        failed.check("127.0.0.1")
    assert refused.value.retry_after_s == WITHIN_S - MOST
    failed.check("127.0.0.2")
    clock.now += WITHIN_S - MOST
    failed.check("127.0.0.1")


def test_what_one_client_has_of_ipv6_is_one_address():
    failed = FailedLogins(clock=Clock())
    for number in range(MOST):
        failed.note(f"2001:db8::{number:x}")
    with pytest.raises(TooManyRequests):
        failed.check("2001:db8::ffff")
    failed.check("2001:db8:0:1::1")
    failed.check("test")  # no address at all, as over a socket of the file system


def test_it_never_keeps_more_addresses_than_it_says(monkeypatch):
    monkeypatch.setattr(attempts, "_MOST_ADDRESSES", 3)
    failed = FailedLogins(clock=Clock())
    for _ in range(MOST):
        failed.note("10.0.0.1")
    for number in range(2, 6):
        failed.note(f"10.0.0.{number}")
    failed.check("10.0.0.1")  # the one that failed longest ago was forgotten
    assert len(failed._failed) == 3

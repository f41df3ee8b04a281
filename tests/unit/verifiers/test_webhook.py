"""The kind `webhook` without a network: its configuration, its signature, which secrets go where, what is a verdict."""

import base64
import hashlib
import hmac
import json

import pytest

from verifiers import policy
from verifiers.answers import NotJson
from verifiers.base import Cause, InvalidVerifier, Status
from verifiers.kind import NETWORK
from verifiers.outbound import Outbound, Reply
from verifiers.outbound_body import TooMuch, check_size, read, write
from verifiers.outbound_secret import NoSecret, find_secret
from verifiers.outbound_url import read_url
from verifiers.policy import Policy
from verifiers.webhook import make_kind, read_reply, sign

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
URL = "https://hooks.example.com/verify"
KIND = make_kind(Outbound())


@pytest.fixture(autouse=True)
def _policy():
    before = policy.current()
    policy.configure(
        Policy(
            secrets={"crm": SECRET, "two": "old new", "bad": "whsec_***", "empty": " ", "bound": "x"},
            secret_hosts={"bound": ["hooks.example.com:8443", "A.example.com", "[2606:4700::1111]"], "none": []},
        )
    )
    yield
    policy.configure(before)


def test_the_signature_is_the_published_one():
    headers = sign(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        [base64.b64decode(SECRET.removeprefix("whsec_"))],
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_two_keys_sign_side_by_side_and_none_not_at_all():
    signatures = sign("a", 1, b"{}", [b"old", b"new"])["webhook-signature"].split(" ")
    expected = [hmac.digest(key, b"a.1.{}", hashlib.sha256) for key in (b"old", b"new")]
    assert [base64.b64decode(one.removeprefix("v1,")) for one in signatures] == expected
    assert "webhook-signature" not in sign("a", 1, b"{}", [])


@pytest.mark.parametrize(
    "config",
    [
        {"secret": "crm"},
        {"secret": "two", "timeout_s": 30, "retries": 3},
        {"unsigned": True, "retries": 0, "timeout_s": 0.05},
    ],
)
def test_what_compiles(config):
    assert KIND.compile_checked({"url": URL, **config})


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"url": URL}, "/secret"),
        ({"url": URL, "secret": "crm", "unsigned": True}, "/secret"),
        ({"url": URL, "secret": "nobody"}, "/secret"),
        ({"url": URL, "secret": "empty"}, "/secret"),
        ({"url": URL, "secret": "bad"}, "/secret"),
        ({"url": URL, "secret": "bound"}, "/secret"),
        ({"url": "http://hooks.example.com", "secret": "crm"}, "/url"),
        ({"url": "https://10.0.0.1", "secret": "crm"}, "/url"),
        ({"url": 5, "secret": "crm"}, "/url"),
        ({"secret": "crm"}, "(root)"),
        ({"url": URL, "secret": ""}, "/secret"),
        ({"url": URL, "secret": "crm", "timeout_s": 31}, "/timeout_s"),
        ({"url": URL, "secret": "crm", "retries": 4}, "/retries"),
        ({"url": URL, "secret": "crm", "headers": {"host": "x"}}, "(root)"),
    ],
)
def test_what_does_not_compile(config, where):
    with pytest.raises(InvalidVerifier) as caught:
        KIND.compile_checked(config)
    assert caught.value.where == where
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("config", [{}, None, {"url": 5}, []])
def test_it_needs_the_network_whatever_its_configuration(config):
    assert KIND.find_needs(config) == {NETWORK}


async def test_a_secret_that_is_gone_is_an_abstention():
    made = KIND.compile_checked({"url": URL, "secret": "crm"})
    policy.configure(Policy())
    verdict = await made.verify({}, {}, {})
    assert (verdict.status, verdict.cause) == (Status.ABSTAINED, Cause.UNREACHABLE)
    assert "no secret 'crm'" in verdict.reason


@pytest.mark.parametrize(
    ("name", "url", "is_shown", "allowed"),
    [
        ("crm", URL, False, True),
        ("crm", URL, True, False),  # no host is named: it signs for all and is shown to none
        ("bound", "https://hooks.example.com:8443/", True, True),
        ("bound", "https://hooks.example.com/", False, False),
        ("bound", "https://hooks.example.com:9443/", True, False),
        ("bound", "https://a.example.com/", True, True),
        ("bound", "https://a.example.com:8443/", True, True),
        ("bound", "https://x.a.example.com/", True, False),
        ("bound", "https://[2606:4700:0::1111]/", True, True),
        ("none", URL, False, False),
    ],
)
def test_which_hosts_a_secret_is_for(name, url, is_shown, allowed):
    target = read_url(url, Policy())
    if allowed:
        assert find_secret(name, target, policy.current(), is_shown=is_shown)
    else:
        with pytest.raises(NoSecret):
            find_secret(name, target, policy.current(), is_shown=is_shown)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"passed": True}, (Status.PASSED, 1.0, "", False)),
        ({"passed": False}, (Status.FAILED, 0.0, "", False)),
        (
            {"passed": False, "score": 0.25, "reason": "r\0", "safe_for_model": True},
            (Status.FAILED, 0.25, "r\ufffd", True),
        ),
        ({"passed": True, "score": 0, "reason": None}, (Status.PASSED, 0.0, "", False)),
        ({"passed": True, "reason": "x" * 5000}, (Status.PASSED, 1.0, "x" * 2000, False)),
    ],
)
def test_verdicts(said, expected):
    verdict = read_reply(Reply(200, json.dumps(said).encode()))
    assert (verdict.status, verdict.score, verdict.reason, verdict.safe_for_model) == expected


def test_what_is_sent_is_plain_json():
    assert (
        write({"a": "\ud800\u00e9", "b": [1.5, None, True]})
        == '{"a":"\ufffd\ufffd\ufffdé","b":[1.5,null,true]}'.encode()
    )
    nested = []
    for _ in range(200):
        nested = [nested]
    for odd in (float("nan"), {1, 2}, 10**5000, nested, b"x"):
        with pytest.raises(TooMuch):
            write(odd)
    check_size(["x" * 9], 10)
    with pytest.raises(TooMuch):
        check_size(["x" * 10], 10)
    with pytest.raises(TooMuch):
        check_size({"x" * 11: 1}, 10)


@pytest.mark.parametrize("body", [b"", b"\xff", b"{", b"NaN", b'{"a": 1, "a": 1}', b"\xef\xbb\xbf{}", b"[" * 200])
def test_what_is_read_is_strict_json(body):
    with pytest.raises(NotJson):
        read(body)

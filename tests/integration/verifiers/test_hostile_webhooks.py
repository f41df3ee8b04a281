"""Webhooks that mean harm: each ends as an abstention that says why, and none keeps the event loop busy."""

import asyncio
import gzip
import json
import ssl
import threading
import zlib
from datetime import UTC, datetime, timedelta

import pytest
import trustme

from tests.fixtures.loopback import Answer, Caller, always, once, reply, serve, watch_loop
from tests.integration.verifiers.conftest import PUBLIC
from verifiers import outbound, policy
from verifiers.base import Cause, InvalidVerifier, Status
from verifiers.outbound import MAX_REPLY_BYTES, Outbound
from verifiers.webhook import make_kind

pytestmark = pytest.mark.hostile

GOOD = b'{"passed": true, "reason": "fine"}'
BUSY_S = 0.25  # the goal is 50 ms; a shared, slow machine is given five times that
SAMPLE = ({"messages": [{"role": "user", "content": "2+2?"}]}, {"role": "assistant", "content": "4"}, {})


def verifier(url, out, **config):
    config = {"url": url, "secret": "crm", "retries": 0, **config}
    return make_kind(out).compile_checked(config)


async def ask(url, *, out=None, **config):
    """Ask once, watching the loop; a way out of our own is closed again."""
    made = out or Outbound()
    async with watch_loop() as calm:
        verdict = await verifier(url, made, **config).verify(*SAMPLE)
        await asyncio.sleep(0.02)
    made.close()
    assert calm.work_s < BUSY_S
    assert calm.held_s < BUSY_S
    return verdict


def check(verdict, cause, says):
    assert (verdict.status, verdict.cause) == (Status.ABSTAINED, cause)
    assert says in verdict.reason
    assert len(verdict.reason) < 500
    json.dumps(verdict.reason).encode()


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


CHUNKED = b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n"
BOMB = gzip.compress(GOOD + b" " * 50_000_000)


def for_ever(start: bytes, more: bytes) -> Answer:
    async def answer(caller: Caller) -> None:
        await caller.request()
        await caller.send(start)
        await caller.send_for_ever(more)

    return answer


async def reset(caller: Caller) -> None:
    await caller.request()
    caller.reset()


async def reset_midway(caller: Caller) -> None:
    await caller.request()
    await caller.send(reply(GOOD)[:-5])
    caller.reset()


async def close_at_once(_caller: Caller) -> None:
    return


async def answer_unasked(caller: Caller) -> None:
    await caller.send(reply(b"{}", 413))


# name: what the server does, why the verifier abstains, what its reason says
HOSTILE = {
    # elsewhere
    "301 to loopback": (once(reply(b"", 301, "location: http://127.0.0.1:1/")), Cause.BAD_RETURN, "redirects (301)"),
    "302 to metadata": (
        once(reply(b"", 302, "location: http://169.254.169.254/latest/meta-data/")),
        Cause.BAD_RETURN, "redirects (302)",
    ),
    "303 to a file": (once(reply(b"", 303, "location: file:///etc/passwd")), Cause.BAD_RETURN, "redirects (303)"),
    "307 that keeps the body": (once(reply(b"", 307, "location: http://[::1]/")), Cause.BAD_RETURN, "redirects (307)"),
    "308 without a place": (once(reply(GOOD, 308)), Cause.BAD_RETURN, "redirects (308)"),
    "refresh": (once(reply(b"", 200, "refresh: 0; url=http://127.0.0.1/")), Cause.BAD_RETURN, "did not answer JSON"),
    "another protocol": (
        once(b"HTTP/1.1 101 X\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"), Cause.BAD_RETURN, "is not HTTP",
    ),
    # breaking off
    "closed at once": (close_at_once, Cause.UNREACHABLE, "broke off"),
    "closed after the request": (once(b""), Cause.UNREACHABLE, "broke off"),
    "reset": (reset, Cause.UNREACHABLE, "broke off"),
    "reset midway": (reset_midway, Cause.UNREACHABLE, "broke off"),
    "closed in the status": (once(b"HTTP/1.1 20"), Cause.UNREACHABLE, "broke off"),
    "closed in the head": (once(b"HTTP/1.1 200 OK\r\ncontent-le"), Cause.UNREACHABLE, "broke off"),
    "closed in the body": (once(reply(GOOD)[:-5]), Cause.UNREACHABLE, "broke off"),
    "closed between chunks": (once(CHUNKED + chunk(GOOD)), Cause.UNREACHABLE, "broke off"),
    "an answer to nothing": (answer_unasked, Cause.UNREACHABLE, ""),
    # too much
    "a gigabyte, announced": (
        for_ever(b"HTTP/1.1 200 X\r\ncontent-length: 1000000000\r\n\r\n", b"x" * 65_536),
        Cause.BAD_RETURN, "longer than",
    ),
    "a body without end": (for_ever(b"HTTP/1.1 200 X\r\n\r\n", b" " * 65_536), Cause.BAD_RETURN, "longer than"),
    "chunks without end": (for_ever(CHUNKED, chunk(b" " * 65_536)), Cause.BAD_RETURN, "longer than"),
    "chunks of one byte": (for_ever(CHUNKED, chunk(b" ") * 10_000), Cause.BAD_RETURN, "longer than"),
    "a chunk with a long extension": (for_ever(CHUNKED + b"1;", b"x" * 65_536), Cause.BAD_RETURN, ""),
    "trailers without end": (for_ever(CHUNKED + b"0\r\n", b"a: b\r\n" * 5_000), Cause.BAD_RETURN, ""),
    "one byte too many": (once(reply(GOOD + b" " * (MAX_REPLY_BYTES - 33))), Cause.BAD_RETURN, "longer than"),
    "headers without end": (for_ever(b"HTTP/1.1 200 X\r\n", b"a: b\r\n" * 5_000), Cause.BAD_RETURN, ""),
    "a header without end": (for_ever(b"HTTP/1.1 200 X\r\na: ", b"b" * 65_536), Cause.BAD_RETURN, ""),
    "a status line without end": (for_ever(b"HTTP/1.1 200 ", b"b" * 65_536), Cause.BAD_RETURN, ""),
    "a storm of 100s": (for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2_000), Cause.BAD_RETURN, "longer than"),
    "a storm of 103s": (
        for_ever(b"", b"HTTP/1.1 103 X\r\nlink: </a>\r\n\r\n" * 2_000), Cause.BAD_RETURN, "longer than",
    ),
    "empty lines without end": (for_ever(b"", b"\r\n" * 30_000), Cause.BAD_RETURN, ""),
    # packed
    "a gzip bomb": (once(reply(BOMB, 200, "content-encoding: gzip")), Cause.BAD_RETURN, "encoded ('gzip')"),
    "a deflate bomb": (
        once(reply(zlib.compress(b" " * 50_000_000), 200, "content-encoding: deflate")),
        Cause.BAD_RETURN, "encoded ('deflate')",
    ),
    "br": (once(reply(b"\x8b\x00\x80", 200, "content-encoding: br")), Cause.BAD_RETURN, "encoded ('br')"),
    "zstd": (once(reply(b"\x28\xb5\x2f\xfd", 200, "content-encoding: zstd")), Cause.BAD_RETURN, "encoded ('zstd')"),
    "packed ten times": (
        once(reply(BOMB, 200, f"content-encoding: {', '.join(['gzip'] * 10)}")), Cause.BAD_RETURN, "encoded (",
    ),
    "packed behind an identity": (
        once(reply(BOMB, 200, "content-encoding: gzip", "content-encoding: identity")), Cause.BAD_RETURN, "encoded (",
    ),
    "packed on the way": (
        once(b"HTTP/1.1 200 X\r\ntransfer-encoding: gzip, chunked\r\n\r\n" + chunk(gzip.compress(GOOD)) + chunk(b"")),
        Cause.BAD_RETURN, "is not HTTP",
    ),
    "gzip that nobody mentions": (once(reply(gzip.compress(GOOD))), Cause.BAD_RETURN, "not UTF-8"),
    # no HTTP
    "no status line": (once(GOOD + b"\r\n\r\n"), Cause.BAD_RETURN, "is not HTTP"),
    "SSH": (once(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), Cause.BAD_RETURN, "is not HTTP"),
    "HTTP/2": (once(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" * 3), Cause.BAD_RETURN, ""),
    "random bytes": (once(bytes(range(256)) * 4), Cause.BAD_RETURN, "is not HTTP"),
    "a status that is none": (once(b"HTTP/1.1 2x0 X\r\n\r\n"), Cause.BAD_RETURN, "is not HTTP"),
    "a header that is none": (once(b"HTTP/1.1 200 X\r\nno colon\r\n\r\n"), Cause.BAD_RETURN, "is not HTTP"),
    "NUL in a header": (once(b"HTTP/1.1 200 X\r\na: \0\r\n\r\n"), Cause.BAD_RETURN, "is not HTTP"),
    "a chunk of size zz": (once(CHUNKED + b"zz\r\n{}\r\n"), Cause.BAD_RETURN, "is not HTTP"),
    "a chunk of size -1": (once(CHUNKED + b"-1\r\n{}\r\n"), Cause.BAD_RETURN, "is not HTTP"),
    "a chunk of size 16**40": (once(CHUNKED + b"f" * 40 + b"\r\n{}\r\n"), Cause.BAD_RETURN, "is not HTTP"),
    "a chunk longer than it says": (once(CHUNKED + b"2\r\n{}}\r\n0\r\n\r\n"), Cause.BAD_RETURN, "is not HTTP"),
    "a length of -1": (once(b"HTTP/1.1 200 X\r\ncontent-length: -1\r\n\r\n{}"), Cause.BAD_RETURN, "is not HTTP"),
    "two lengths": (
        once(b"HTTP/1.1 200 X\r\ncontent-length: 2\r\ncontent-length: 34\r\n\r\n" + GOOD),
        Cause.BAD_RETURN, "is not HTTP",
    ),
    # no verdict
    "201": (once(reply(GOOD, 201)), Cause.BAD_RETURN, "status 201"),
    "204": (once(b"HTTP/1.1 204 X\r\n\r\n"), Cause.BAD_RETURN, "status 204"),
    "401": (once(reply(GOOD, 401)), Cause.UNREACHABLE, "status 401"),
    "404": (once(reply(GOOD, 404)), Cause.UNREACHABLE, "status 404"),
    "429": (once(reply(GOOD, 429, "retry-after: 99999")), Cause.UNREACHABLE, "status 429"),
    "500": (once(reply(GOOD, 500)), Cause.UNREACHABLE, "status 500"),
    "status 999": (once(reply(GOOD, 999)), Cause.UNREACHABLE, "status 999"),
    "an empty body": (once(reply(b"")), Cause.BAD_RETURN, "did not answer JSON"),
    "HTML": (once(reply(b"<html>")), Cause.BAD_RETURN, "did not answer JSON"),
    "bad UTF-8": (once(reply(b'{"passed": true, "reason": "\xff"}')), Cause.BAD_RETURN, "not UTF-8"),
    "UTF-16": (once(reply('{"passed": true}'.encode("utf-16"))), Cause.BAD_RETURN, "not UTF-8"),
    "a byte order mark": (once(reply(b"\xef\xbb\xbf" + GOOD)), Cause.BAD_RETURN, "did not answer JSON"),
    "half a pair": (once(reply(b'{"passed": true, "reason": "\\ud800"}')), Cause.BAD_RETURN, "surrogate"),
    "NaN": (once(reply(b'{"passed": true, "score": NaN}')), Cause.BAD_RETURN, "NaN is not JSON"),
    "infinity": (once(reply(b'{"passed": true, "score": 1e999}')), Cause.BAD_RETURN, "out of range"),
    "a key twice": (once(reply(b'{"passed": false, "passed": true}')), Cause.BAD_RETURN, "stands twice"),
    "two verdicts": (once(reply(GOOD + GOOD)), Cause.BAD_RETURN, "Extra data"),
    "deep": (once(reply(b"[" * 60_000)), Cause.BAD_RETURN, "nested deeper"),
    "deep objects": (once(reply(b'{"a":' * 12_000)), Cause.BAD_RETURN, "nested deeper"),
    "many digits": (once(reply(b'{"passed": true, "score": ' + b"9" * 60_000 + b"}")), Cause.BAD_RETURN, "digits"),
    "400 digits": (once(reply(b'{"passed": true, "score": ' + b"9" * 400 + b"}")), Cause.BAD_RETURN, "from 0 to 1"),
    "a list": (once(reply(b"[true]")), Cause.BAD_RETURN, "no `passed`"),
    "true": (once(reply(b"true")), Cause.BAD_RETURN, "no `passed`"),
    "null": (once(reply(b"null")), Cause.BAD_RETURN, "no `passed`"),
    "no passed": (once(reply(b'{"score": 1}')), Cause.BAD_RETURN, "no `passed`"),
    "passed: 1": (once(reply(b'{"passed": 1}')), Cause.BAD_RETURN, "no `passed`"),
    "passed: text": (once(reply(b'{"passed": "true"}')), Cause.BAD_RETURN, "no `passed`"),
    "passed: null": (once(reply(b'{"passed": null}')), Cause.BAD_RETURN, "no `passed`"),
    "score: 1.01": (once(reply(b'{"passed": true, "score": 1.01}')), Cause.BAD_RETURN, "from 0 to 1"),
    "score: -1": (once(reply(b'{"passed": true, "score": -1}')), Cause.BAD_RETURN, "from 0 to 1"),
    "score: text": (once(reply(b'{"passed": true, "score": "1"}')), Cause.BAD_RETURN, "from 0 to 1"),
    "score: true": (once(reply(b'{"passed": true, "score": true}')), Cause.BAD_RETURN, "from 0 to 1"),
    "reason: 5": (once(reply(b'{"passed": true, "reason": 5}')), Cause.BAD_RETURN, "no text"),
    "safe: text": (once(reply(b'{"passed": true, "safe_for_model": "no"}')), Cause.BAD_RETURN, "no text"),
    "more keys": (once(reply(b'{"passed": true, "pass\\u001b[31med": 1}')), Cause.BAD_RETURN, "is not known"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_answer(name):
    answer, cause, says = HOSTILE[name]
    with serve(answer) as server:
        verdict = await ask(f"{server.url}/hook", timeout_s=30)
    check(verdict, cause, says)


async def test_a_redirect_is_not_followed():
    with serve(always(reply(GOOD))) as inner:
        with serve(once(reply(b"", 307, f"location: {inner.url}/secret"))) as server:
            check(await ask(server.url), Cause.BAD_RETURN, "redirects")
        assert inner.connected == 0


async def drip_head(caller: Caller) -> None:
    await caller.request()
    await caller.send(b"HTTP/1.1 200 X\r\na: ")
    await caller.send_for_ever(b"b", 0.02)


async def drip_body(caller: Caller) -> None:
    await caller.request()
    await caller.send(b"HTTP/1.1 200 X\r\ncontent-length: 1000\r\n\r\n")
    await caller.send_for_ever(b" ", 0.02)


async def drip_interim(caller: Caller) -> None:
    await caller.request()
    await caller.send_for_ever(b"HTTP/1.1 102 X\r\n\r\n", 0.02)


async def say_nothing(caller: Caller) -> None:
    await caller.request()
    await asyncio.Event().wait()


async def read_nothing(_caller: Caller) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("answer", [drip_head, drip_body, drip_interim, say_nothing, read_nothing])
async def test_slowness_ends_when_the_time_is_up(answer):
    with serve(answer) as server:
        verdict = await ask(server.url, timeout_s=0.5)
    check(verdict, Cause.TIMEOUT, "no reply within 0.5 s")


SOUND = {
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + GOOD,
    "until it closes": b"HTTP/1.1 200 OK\r\n\r\n" + GOOD,
    "early hints": b"HTTP/1.1 103 X\r\nlink: </a>\r\n\r\n" * 3 + reply(GOOD),
    "chunked": CHUNKED + b"".join(chunk(GOOD[at : at + 1]) for at in range(len(GOOD))) + b"0\r\na: b\r\n\r\n",
    "as long as may be": reply(GOOD + b" " * (MAX_REPLY_BYTES - len(GOOD))),
    "identity": reply(GOOD, 200, "content-encoding: identity"),
    "nulls": reply(b'{"passed": true, "score": null, "reason": "fine"}'),
    "another type": reply(GOOD).replace(b"application/json", b"text/plain"),
}


@pytest.mark.parametrize("name", SOUND)
async def test_what_is_odd_and_sound(name):
    with serve(once(SOUND[name])) as server:
        verdict = await ask(server.url, timeout_s=30)
    assert (verdict.status, verdict.score, verdict.reason) == (Status.PASSED, 1.0, "fine")


async def test_a_hostile_answer_leaves_nothing_for_the_next():
    """The connection is not used again; nor are cookies, or what was sent beyond the reply."""
    answers = iter([reply(GOOD, 200, "set-cookie: a=b") + reply(b'{"passed": false}'), reply(GOOD)])

    async def answer(caller: Caller) -> None:
        await caller.request()
        await caller.send(next(answers))

    out = Outbound()
    with serve(answer) as server:
        for _ in range(2):
            assert (await ask(server.url, out=out)).status is Status.PASSED
        assert server.connected == 2
        assert not any("cookie" in asked.headers for asked in server.asked)


async def test_proxies_of_the_environment_are_not_asked(monkeypatch):
    with serve(always(reply(GOOD))) as server, serve(always(reply(GOOD))) as trap:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, trap.url)
            monkeypatch.setenv(name.lower(), trap.url)
        assert (await ask(server.url)).status is Status.PASSED
        assert (server.connected, trap.connected) == (1, 0)


# names


async def test_the_connection_goes_to_the_address_that_was_checked(detour, serving_tls):
    with serve(always(reply(GOOD)), serving_tls()) as server:
        out, inner = detour(server.port, [PUBLIC])
        verdict = await ask("https://hooks.example.com:8443/x", out=out, timeout_s=30)
        assert verdict.status is Status.PASSED
        assert inner.went == [(PUBLIC, 8443)]
        assert server.names == ["hooks.example.com"]
        assert server.asked[0].headers["host"] == "hooks.example.com:8443"


async def test_a_name_that_changes_its_answer_is_not_followed(detour, serving_tls, allowed):
    allowed(loopback=False)
    with serve(once(reply(GOOD)), serving_tls()) as server:  # it closes, so that each question connects anew
        out, inner = detour(server.port, [PUBLIC], ["127.0.0.1"], ["169.254.169.254"], [PUBLIC, "10.0.0.1"])
        url = "https://hooks.example.com/"
        assert (await ask(url, out=out, timeout_s=30)).status is Status.PASSED
        for _ in range(3):
            check(await ask(url, out=out), Cause.UNREACHABLE, "not public")
        assert inner.went == [(PUBLIC, 443)]


INNER = [
    ["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["100.100.100.200"], ["168.63.129.16"], ["0.0.0.0"], ["::1"],
    ["::"], ["fe80::1"], ["fe80::1%eth0"], ["fd00:ec2::254"], ["::ffff:127.0.0.1"], ["::ffff:169.254.169.254"],
    ["64:ff9b::a9fe:a9fe"], ["2002:7f00:1::"], ["2001:0:7f00:1::"], ["ff02::1"], [PUBLIC, "127.0.0.1"],
    ["10.0.0.1", PUBLIC], [PUBLIC, "::ffff:10.0.0.1"], ["not an address"], ["127.1"],
]  # fmt: skip


@pytest.mark.parametrize("addresses", INNER, ids=" ".join)
async def test_a_name_of_an_inner_address(addresses, detour, allowed):
    allowed(loopback=False)
    out, inner = detour(1, addresses)
    verdict = await ask("https://hooks.example.com/", out=out, retries=3)
    check(verdict, Cause.UNREACHABLE, "not public")
    assert not any(address in verdict.reason for address in addresses)
    assert inner.went == []


@pytest.mark.parametrize("found", [[], OSError("no such name"), UnicodeError("label too long")], ids=str)
async def test_a_name_without_an_address(found, detour):
    out, inner = detour(1, found)
    check(await ask("https://hooks.example.com/", out=out), Cause.UNREACHABLE, "host")
    assert inner.went == []


async def test_plain_http_to_a_name_that_is_not_this_machine(detour):
    out, inner = detour(1, [PUBLIC])
    check(await ask("http://localhost:8080/", out=out), Cause.UNREACHABLE, "not public")
    assert inner.went == []


async def test_loopback_may_be_forbidden_after_registration(allowed):
    out = Outbound()
    with serve(always(reply(GOOD))) as server:
        made = verifier(server.url, out)
        assert (await made.verify(*SAMPLE)).status is Status.PASSED
        allowed(loopback=False)
        check(await made.verify(*SAMPLE), Cause.UNREACHABLE, "not public")
        with pytest.raises(InvalidVerifier):
            verifier(server.url, out)
        assert server.connected == 1
    out.close()


async def test_a_name_server_that_does_not_answer_ends_with_the_time():
    go = threading.Event()
    out = Outbound(outbound.Names(lambda _name: go.wait(60) and []))
    check(await ask("https://hooks.example.com/", out=out, timeout_s=0.3), Cause.TIMEOUT, "no reply within")
    go.set()


async def test_the_next_address_where_the_first_is_dead(detour, serving_tls):
    with serve(always(reply(GOOD)), serving_tls()) as server:
        out, inner = detour(server.port, ["1.1.1.1", PUBLIC], dead=["1.1.1.1"])
        assert (await ask("https://hooks.example.com/", out=out, timeout_s=30)).status is Status.PASSED
        assert [host for host, _ in inner.went] == ["1.1.1.1", PUBLIC]


# certificates

NOW = datetime.now(UTC)
BAD_TLS = {
    "expired": ({"not_after": NOW - timedelta(days=1)}, "expired"),
    "of tomorrow": ({"not_before": NOW + timedelta(days=1)}, "not yet valid"),
    "another name": ({"names": ["other.example.com"]}, "mismatch"),
    "a name below": ({"names": ["a.hooks.example.com"]}, "mismatch"),
    "a wildcard too high": ({"names": ["*.com"]}, "mismatch"),
    "its address": ({"names": [PUBLIC]}, "mismatch"),
    "another authority": ({"by": True}, "certificate is not accepted"),
}


@pytest.mark.parametrize("name", BAD_TLS)
async def test_a_bad_certificate(name, detour, serving_tls):
    how, says = BAD_TLS[name]
    how = {**how, "by": trustme.CA()} if "by" in how else dict(how)
    with serve(always(reply(GOOD)), serving_tls(*how.pop("names", ()), **how)) as server:
        out, _ = detour(server.port, [PUBLIC])
        check(await ask("https://hooks.example.com/", out=out, timeout_s=30), Cause.UNREACHABLE, says)
        assert server.asked == []


async def test_a_certificate_that_signed_itself(detour, tmp_path):
    alone = trustme.CA()
    alone.private_key_pem.write_to_path(str(tmp_path / "key"))
    alone.cert_pem.write_to_path(str(tmp_path / "certificate"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    with serve(always(reply(GOOD)), context) as server:
        out, _ = detour(server.port, [PUBLIC])
        check(await ask("https://hooks.example.com/", out=out, timeout_s=30), Cause.UNREACHABLE, "self-signed")


async def test_tls_that_is_too_old(detour, serving_tls):
    context = serving_tls()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with serve(always(reply(GOOD)), context) as server:
        out, _ = detour(server.port, [PUBLIC])
        check(await ask("https://hooks.example.com/", out=out, timeout_s=30), Cause.UNREACHABLE, "TLS")
        assert server.asked == []


async def test_an_address_has_its_certificate_checked_too(serving_tls):
    with serve(always(reply(GOOD)), serving_tls("127.0.0.1")) as server:
        assert (await ask(f"https://127.0.0.1:{server.port}/", timeout_s=30)).status is Status.PASSED
        check(await ask(f"https://127.0.0.2:{server.port}/", timeout_s=30), Cause.UNREACHABLE, "")
    with serve(always(reply(GOOD)), serving_tls("hooks.example.com")) as server:
        check(await ask(f"https://127.0.0.1:{server.port}/", timeout_s=30), Cause.UNREACHABLE, "mismatch")


async def greet_in_plain(caller: Caller) -> None:
    await caller.send(b"220 mail.example.com ESMTP\r\n")
    await read_nothing(caller)


async def complain(caller: Caller) -> None:
    await caller.anything()
    await caller.send(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")


async def send_noise(caller: Caller) -> None:
    await caller.send(bytes(range(256)) * 64)


@pytest.mark.parametrize("answer", [complain, greet_in_plain, send_noise, close_at_once])
async def test_tls_to_what_does_not_speak_it(answer, detour):
    with serve(answer) as server:
        out, _ = detour(server.port, [PUBLIC])
        check(await ask("https://hooks.example.com/", out=out, timeout_s=30), Cause.UNREACHABLE, "")


async def test_plain_http_to_what_speaks_tls(serving_tls):
    with serve(always(reply(GOOD)), serving_tls()) as server:
        verdict = await ask(server.url, timeout_s=30)
        assert (verdict.status, server.asked) == (Status.ABSTAINED, [])


async def test_a_handshake_that_never_ends(detour):
    with serve(read_nothing) as server:
        out, _ = detour(server.port, [PUBLIC])
        check(await ask("https://hooks.example.com/", out=out, timeout_s=0.5), Cause.TIMEOUT, "no reply within")


# what is sent


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"content": "x" * 2_000_000}, "longer than"),
        ({"content": [{"type": "text", "text": "x" * 600_000}] * 2}, "longer than"),
        ({"content": float("nan")}, "not JSON"),
        ({"content": {1, 2}}, "not JSON"),
        ({"content": 10**5000}, "not JSON"),
    ],
    ids=["long", "long in parts", "NaN", "a set", "many digits"],
)
async def test_what_cannot_be_sent(answer, says):
    with serve(always(reply(GOOD))) as server:
        out = Outbound()
        check(await verifier(server.url, out).verify({}, answer, {}), Cause.TOO_COSTLY, says)
        out.close()
        assert server.connected == 0


async def test_a_megabyte_is_sent_and_keeps_nobody_waiting():
    with serve(always(reply(GOOD))) as server:
        out = Outbound()
        async with watch_loop() as calm:
            verdict = await verifier(server.url, out, timeout_s=30).verify({}, {"content": "\u00e9" * 990_000}, {})
        out.close()
        assert verdict.status is Status.PASSED
        assert json.loads(server.asked[0].body)["answer"]["content"] == "\u00e9" * 990_000
    assert calm.work_s < BUSY_S
    assert calm.held_s < BUSY_S


@pytest.mark.parametrize(
    "url", ["https://10.0.0.1/", "https://0x7f.1/", "https://a@b.example/", "http://a.example/", ""]
)
def test_registration_refuses_with_the_place(url):
    with pytest.raises(InvalidVerifier) as caught:
        verifier(url, Outbound())
    assert caught.value.where == "/url"


def test_the_policy_of_these_tests_is_one():
    assert policy.current().loopback

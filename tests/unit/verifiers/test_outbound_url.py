"""Which URLs may be registered, and which addresses connected to: no network is touched here."""

import asyncio
import threading

import pytest

from verifiers.outbound_address import (
    Names,
    NotAllowed,
    NotFound,
    TooMany,
    check_addresses,
    is_loopback,
    is_public,
    parse_address,
)
from verifiers.outbound_url import BadUrl, Target, read_url
from verifiers.policy import Policy

CLOSED, OPEN = Policy(), Policy(loopback=True)

GOOD = {
    "https://hooks.example.com": Target("https", "hooks.example.com", 443, "/"),
    "HTTPS://Hooks.Example.COM/A?b=c&d=%20": Target("https", "hooks.example.com", 443, "/A?b=c&d=%20"),
    "https://hooks.example.com:8443/x": Target("https", "hooks.example.com", 8443, "/x"),
    "https://xn--bcher-kva.example/": Target("https", "xn--bcher-kva.example", 443, "/"),
    "https://1.1.1.1/": Target("https", "1.1.1.1", 443, "/"),
    "https://[2606:4700:4700:0::1111]:8443/": Target("https", "2606:4700:4700::1111", 8443, "/"),
}
LOCAL = {
    "http://127.0.0.1:8080/v": Target("http", "127.0.0.1", 8080, "/v"),
    "http://localhost/": Target("http", "localhost", 80, "/"),
    "https://localhost:9000": Target("https", "localhost", 9000, "/"),
    "http://[::1]:8080/": Target("http", "::1", 8080, "/"),
    "https://[::ffff:127.0.0.1]/": Target("https", "::ffff:7f00:1", 443, "/"),
}
BAD = [
    # schemes and forms
    "", "hooks.example.com", "//hooks.example.com/", "ftp://hooks.example.com/", "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_INFO", "http://hooks.example.com/", "https://", "https:///x", "https://:443/",
    "https:/hooks.example.com", "https://hooks.example.com/#part", "https://hooks.example.com:/",
    "javascript:alert(1)", f"https://hooks.example.com/{'x' * 2048}",
    # who is at the end of it, to whom?
    "https://user@hooks.example.com/", "https://user:password@hooks.example.com/", "https://@hooks.example.com/",
    "https://hooks.example.com@127.0.0.1/", "https://127.0.0.1@hooks.example.com/",
    "https://hooks.example.com\\@127.0.0.1/", "https://127.0.0.1\\.example.com/",
    "https://hooks.example.com%00.evil.example/", "https://hooks.example.com%2e/", "https://hooks%2eexample%2ecom/",
    "https://hooks.example.com\r\nhost: evil.example/", "https://hooks.example.com/\tx", "https://hooks.example.com /",
    "https://hooks.example.com/x y", "\thttps://hooks.example.com/", "https://ho\noks.example.com/",
    "https://hooks..example.com/", "https://hooks.example.com./", "https://.example.com/", "https://-a.example.com/",
    "https://a-.example.com/", f"https://{'a' * 64}.example.com/", f"https://{'a.' * 130}example.com/",
    "https://intranet/", "https://hooks.example.com,127.0.0.1/", "https://[hooks.example.com]/",
    "https://hooks.example.com]/", "https://[::1/", "https://[1.1.1.1]/", "https://[v1.x]/",
    # beyond ASCII
    "https://b\u00fccher.example/", "https://\u2468.example.com/", "https://127\u30020\u30020\u30021/",
    "https://\uff11\uff12\uff17.0.0.1/", "https://hooks.example.com\u2044@evil.example/", "https://\u24db\u24de.example/",
    "https://hooks.example.com/\u00e9", "https://\u202emoc.example/", "https://hooks\u200b.example.com/",
    # this machine, and its network
    "https://localhost/", "https://a.localhost/", "https://LOCALHOST:8443/", "https://127.0.0.1/", "https://127.8.8.8/",
    "https://0.0.0.0/", "https://10.0.0.1/", "https://172.16.5.4/", "https://192.168.0.1/", "https://169.254.169.254/",
    "https://100.64.0.1/", "https://100.100.100.200/", "https://168.63.129.16/", "https://192.0.0.192/",
    "https://198.18.0.1/", "https://203.0.113.9/", "https://224.0.0.1/", "https://240.0.0.1/", "https://255.255.255.255/",
    "https://192.88.99.1/", "https://[::]/", "https://[::1]/", "https://[::127.0.0.1]/", "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:169.254.169.254]/", "https://[::ffff:a9fe:a9fe]/", "https://[0:0:0:0:0:ffff:10.0.0.1]/",
    "https://[fe80::1]/", "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[fc00::1]/",
    "https://[fd00:ec2::254]/", "https://[fec0::1]/", "https://[ff02::1]/", "https://[ff0e::1]/",
    "https://[2001:db8::1]/", "https://[2001:0:7f00:1::]/", "https://[2002:7f00:1::]/", "https://[2002:a9fe:a9fe::1]/",
    "https://[64:ff9b::127.0.0.1]/", "https://[64:ff9b::a9fe:a9fe]/", "https://[64:ff9b:1::1]/", "https://[100::1]/",
    "https://[3fff::1]/", "https://[5f00::1]/", "https://[::ffff:0:127.0.0.1]/", "https://[4000::1]/",
    # other ways to write an IPv4 address
    "https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/", "https://017700000001/", "https://0177.0.0.1/",
    "https://127.1/", "https://127.0.1/", "https://127.0.0.01/", "https://0x7f.1/", "https://127.0.0.1./",
    "https://1.1.1.256/", "https://1.1.1.1.1/", "https://0/", "https://hooks.example.0x7f/", "https://a.1/",
    # ports
    "https://hooks.example.com:0/", "https://hooks.example.com:22/", "https://hooks.example.com:25/",
    "https://hooks.example.com:80/", "https://hooks.example.com:65536/", "https://hooks.example.com:-1/",
    "https://hooks.example.com:443x/", "https://hooks.example.com:443:443/", "https://hooks.example.com:\u0664\u0664\u0663/",
    "https://hooks.example.com:+443/", "https://hooks.example.com:4_43/",
]  # fmt: skip


@pytest.mark.parametrize("url", GOOD)
def test_a_url_in_its_parts(url):
    assert read_url(url, CLOSED) == read_url(url, OPEN) == GOOD[url]


@pytest.mark.parametrize("url", LOCAL)
def test_this_machine_only_where_it_is_allowed(url):
    assert read_url(url, OPEN) == LOCAL[url]
    with pytest.raises(BadUrl):
        read_url(url, CLOSED)


@pytest.mark.hostile
@pytest.mark.parametrize("url", BAD)
def test_a_url_that_is_refused(url):
    with pytest.raises(BadUrl) as caught:
        read_url(url, CLOSED)
    assert len(str(caught.value)) < 200


@pytest.mark.hostile
@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/", "http://1.1.1.1:8080/", "http://169.254.169.254/", "http://[::ffff:10.0.0.1]:8080/",
        "http://127.0.0.1:22/", "https://127.0.0.1:80@evil.example/", "http://127.1/", "http://0.0.0.0:8080/",
        "http://2130706433:8080/", "http://127.0.0.1.example.com/", "http://localhost.example.com/",
    ],
)  # fmt: skip
def test_allowing_this_machine_allows_nothing_else(url):
    with pytest.raises(BadUrl):
        read_url(url, OPEN)


def test_the_host_header():
    assert read_url("https://[2606:4700::1111]:8443/", CLOSED).authority == "[2606:4700::1111]:8443"
    assert read_url("https://a.example:443/", CLOSED).authority == "a.example"
    assert read_url("http://localhost:80/", OPEN).authority == "localhost"


PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
INNER = [
    "127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.251", "::1", "::", "fe80::1",
    "fd00::1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::", "2001::1", "ff02::fb", "fec0::1",
    "168.63.129.16",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert is_public(parse_address(address))
    assert check_addresses([address], plain=False, loopback=False) == [address]
    with pytest.raises(NotAllowed):
        check_addresses([address], plain=True, loopback=True)


@pytest.mark.parametrize("address", INNER)
def test_inner_addresses_spoil_what_stands_beside_them(address):
    assert not is_public(parse_address(address))
    for addresses in ([address], ["1.1.1.1", address], [address, "1.1.1.1"]):
        with pytest.raises(NotAllowed) as caught:
            check_addresses(addresses, plain=False, loopback=False)
        assert address not in str(caught.value)  # nor does a client learn of inner addresses by asking


@pytest.mark.parametrize("address", INNER)
def test_with_loopback_allowed_only_loopback_is(address):
    if is_loopback(parse_address(address)):
        assert check_addresses([address], plain=True, loopback=True) == [address]
        with pytest.raises(NotAllowed):
            check_addresses([address, "1.1.1.1"], plain=False, loopback=True)
    else:
        with pytest.raises(NotAllowed):
            check_addresses([address], plain=False, loopback=True)


@pytest.mark.parametrize("address", ["", "x", "fe80::1%eth0", "127.0.0.1%0", "1.1.1.1 ", "127.1"])
def test_what_is_no_address(address):
    assert parse_address(address) is None
    with pytest.raises(NotAllowed):
        check_addresses([address], plain=False, loopback=True)
    with pytest.raises(NotFound):
        check_addresses([], plain=False, loopback=True)


async def test_a_name_is_looked_up_once_for_all_who_wait():
    asked, go = [], threading.Event()

    def look_up(name):
        asked.append(name)
        go.wait(60)
        return ["1.1.1.1"]

    names = Names(look_up)
    first = asyncio.ensure_future(names.resolve("a.example"))
    second = asyncio.ensure_future(names.resolve("a.example"))
    await asyncio.sleep(0)
    first.cancel()  # who gives up takes it from nobody else
    await asyncio.sleep(0)
    go.set()
    assert await second == ["1.1.1.1"]
    assert first.cancelled()
    assert asked == ["a.example"]
    assert await names.resolve("a.example") == ["1.1.1.1"]
    assert len(asked) == 2


async def test_slow_name_servers_take_only_so_many_threads():
    go = threading.Event()
    names = Names(lambda name: [name] if go.wait(60) else [], most=2)
    waiting = [asyncio.ensure_future(names.resolve(f"{name}.example")) for name in "ab"]
    await asyncio.sleep(0)
    with pytest.raises(TooMany):
        await names.resolve("c.example")
    assert await names.resolve("1.1.1.1") == ["1.1.1.1"]  # an address needs none
    go.set()
    assert await asyncio.gather(*waiting) == [["a.example"], ["b.example"]]
    assert await names.resolve("c.example") == ["c.example"]


@pytest.mark.parametrize("error", [OSError("no such name"), UnicodeError("label too long")])
async def test_a_name_that_cannot_be_resolved(error):
    def look_up(_name):
        raise error

    with pytest.raises(NotFound):
        await Names(look_up).resolve("a.example")

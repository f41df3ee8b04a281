"""The page and its assets: what headers they carry, and what is said where nothing was built."""

import gzip
import re

import pytest

from server.admin import pages
from tests.fixtures.asgi import ask
from tools.admin_types import MARK, TYPES, name_version

POLICY = {"default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "frame-ancestors": "'none'"}


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A built web app, of a line each."""
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><script type=module src=/admin/assets/index-1.js></script>")
    (folder / "assets" / "index-1.js").write_text("export {};")
    (folder / "assets" / "notes.txt").write_text("not for browsers")
    (tmp_path / "secret.js").write_text("secret")
    monkeypatch.setattr(pages, "STATIC", folder)
    return folder


def check_headers(answer):
    said = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert {name: said[name] for name in POLICY} == POLICY
    assert not re.search(r"unsafe|https?:|\*", answer.headers["content-security-policy"])
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


async def test_the_page_is_served_to_everybody_and_kept_by_nobody(house, built):
    for path in ("/admin", "/admin/"):
        answer = await ask(house.app, "GET", path)
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        assert answer.body == (built / "index.html").read_bytes()
        check_headers(answer)
        assert (await ask(house.app, "HEAD", path)).status == 200


async def test_assets_are_packed_and_kept_for_ever(house, built):
    answer = await ask(house.app, "GET", "/admin/assets/index-1.js", headers={"accept-encoding": "gzip, br"})
    assert (answer.status, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert gzip.decompress(answer.body) == b"export {};"
    assert "immutable" in answer.headers["cache-control"]
    check_headers(answer)
    (built / "assets" / "index-1.js").write_text("export const built = 'anew';")
    assert b"anew" in (await ask(house.app, "GET", "/admin/assets/index-1.js")).body


@pytest.mark.parametrize(
    "name", ["../../secret.js", "..%2f..%2fsecret.js", "/etc/passwd", ".js", "notes.txt", "index-2.js", "", "a\0.js"]
)
async def test_nothing_else_is_served(house, built, name):
    answer = await ask(house.app, "GET", f"/admin/assets/{name}")
    assert (answer.status, answer.error["code"]) == (404, "unknown_url")


async def test_without_a_build_the_page_says_how_to_make_one(house, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "STATIC", tmp_path / "nothing")
    answer = await ask(house.app, "GET", "/admin")
    assert answer.status == 503
    assert b"make admin" in answer.body
    check_headers(answer)
    assert (await ask(house.app, "GET", "/health")).status == 200


def test_the_clients_types_are_those_of_the_api():
    assert TYPES.read_text().startswith(f"{MARK}{name_version()}\n"), "run `make docs`"


def test_the_sources_name_no_registry():
    lock = (TYPES.parents[2] / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert lock.count('"integrity"') > 10

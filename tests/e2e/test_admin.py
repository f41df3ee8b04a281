"""The dashboard in a real Chromium, over a server that has been used: logging in, looking, keys, hostile words.

Nothing here waits for a time, only for what has to happen.
"""

import gzip
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from server.admin import pages
from server.domain import Role
from server.store import migrations
from server.store.keys import KeyStore
from tests.fixtures.dashboard import HOSTILE, HOSTILE_TASK, fill
from tests.fixtures.server import ApiServer, serve_api, with_database
from tests.fixtures.wire_engine import serve_wire_engine

TIMEOUT_MS = 60_000
FLAGS = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def executable() -> str:
    """Chromium, and a dashboard for it to show."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    missing = "no Chromium here: `make browser` installs it" if found is None else ""
    if not (pages.STATIC / "index.html").is_file():
        missing = "the dashboard is not built: `make admin`"
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    return str(found)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, executable: str) -> Iterator[ApiServer]:
    folder = tmp_path_factory.mktemp("admin")
    url = f"sqlite:///{folder / 'mulligan.db'}"
    migrations.upgrade(url)
    with_database(url, lambda database: fill(database, folder / "filled", episodes=60))
    with (
        serve_wire_engine() as engine,
        serve_api(folder, url, engine.url, worker_lost_after_s=3600) as server,  # a worker that said it lives, once
    ):
        server.keys["hostile"] = with_database(url, lambda database: KeyStore(database).create(HOSTILE, Role.VIEWER))[0]
        yield server


@pytest.fixture(scope="module")
def browser(executable: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=[*FLAGS, "--disable-sync"])
        yield opened
        opened.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser's window; whatever asks for another host, or breaks the page's policy, fails the test."""
    opened = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    opened.set_default_timeout(TIMEOUT_MS)
    asked: list[str] = []
    broken: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda said: broken.append(said.text) if "Content Security Policy" in said.text else None)
    opened.on("weberror", lambda error: broken.append(str(error.error)))
    yield opened
    opened.close()
    assert [url for url in asked if urlsplit(url).hostname not in ("127.0.0.1", None)] == []
    assert broken == []


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


expect.set_options(timeout=TIMEOUT_MS)


def log_in(page: Page, api: ApiServer, key: str = "admin") -> None:
    """Log in as a person does."""
    page.goto(f"{api.url}/admin")
    page.get_by_label("API key").fill(api.keys.get(key, key))
    page.keyboard.press("Enter")


def enter(page: Page, api: ApiServer, key: str = "admin") -> None:
    """Be logged in, without the form."""
    answer = page.request.post(f"{api.url}/admin/session", data={"key": api.keys[key]})
    assert answer.status == 201
    page.goto(f"{api.url}/admin")


def test_a_key_opens_the_overview_and_is_kept_nowhere(page: Page, context: BrowserContext, api: ApiServer) -> None:
    log_in(page, api, "mk-wrong")
    expect(page.get_by_role("alert")).to_contain_text("unknown or revoked")
    log_in(page, api, "client")
    expect(page.get_by_role("alert")).to_contain_text("viewer, an approver or an admin")
    log_in(page, api)
    expect(page.get_by_text("Everything is well.")).to_be_visible()
    (cookie,) = context.cookies()
    assert (cookie.get("httpOnly"), cookie.get("sameSite")) == (True, "Strict")
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, document.body.outerHTML])")
    assert api.keys["admin"] not in kept
    assert str(cookie.get("value")) not in kept
    page.reload()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()


def test_the_overview_says_whether_it_is_well_and_getting_better(page: Page, api: ApiServer) -> None:
    enter(page, api)
    expect(page.locator(".part-name")).to_have_text(
        [f"{part}well" for part in ("Engine", "Database", "API", "Worker", "Verifiers", "Log")]
    )
    figures = page.locator(".figure")
    expect(figures.first).to_contain_text("60")
    expect(figures.filter(has_text="First try")).to_contain_text("%")
    expect(page.get_by_role("img", name="Requests over time by outcome")).to_be_visible()
    sums = page.get_by_role("listitem", name="Task sums", exact=True)
    expect(sums).to_contain_text("points [")
    expect(sums).to_contain_text("fixed,")
    expect(sums).to_contain_text("tokens per passed answer")
    expect(sums.get_by_role("img", name="Second-try accuracy of sums")).to_be_visible()
    expect(sums.locator(".point")).to_have_count(3)
    expect(sums).to_contain_text("verifiers changed")
    other = page.get_by_role("listitem", name="Task function_call", exact=True)
    expect(other).to_contain_text("mulligan round start function_call")
    page.get_by_role("radio", name="7 days").check()
    expect(page).to_have_url(f"{api.url}/admin#/overview?hours=168")
    expect(page.get_by_role("radio", name="7 days")).to_be_checked()


def test_hostile_words_are_words(page: Page, api: ApiServer) -> None:
    enter(page, api, "hostile")
    expect(page.locator(".who-name")).to_have_text(HOSTILE)
    expect(page.locator(".part-says").filter(has_text="pool")).to_contain_text(HOSTILE)
    expect(page.get_by_role("heading", name=HOSTILE_TASK, exact=True)).to_be_visible()
    assert page.title() == "Overview · Mulligan"
    assert page.locator("#app img, #app script, #app b").count() == 0


def test_the_pages_policy_stops_what_got_in(browser: Browser, api: ApiServer) -> None:
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda one: said.append(one.text))
    enter(page, api)
    expect(page.get_by_text("Everything is well.")).to_be_visible()
    page.evaluate(
        "const made = document.createElement('script'); document.body.append(made);"
        "const link = document.createElement('a'); link.href = 'javascript:document.title=\"owned\"';"
        "document.body.append(link); link.click()"
    )
    for evil in ("made.setAttribute('onclick', 'x()')", "made.innerHTML = '<p>x</p>'"):
        page.evaluate(
            f"var made = document.createElement('p'); var stopped = false; try {{ {evil} }} catch {{ stopped = true }}"
        )
        assert page.evaluate("stopped"), evil
    assert page.title() != "owned"
    assert any("Content Security Policy" in one for one in said)
    page.close()


def test_keys_do_what_a_mouse_does(page: Page, api: ApiServer) -> None:
    enter(page, api)
    expect(page.get_by_role("listitem", name="Task sums", exact=True)).to_contain_text("points [")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    rows = page.locator("[data-row]")
    for key, row in (("j", 0), ("j", 1), ("k", 0), ("k", 0)):
        page.keyboard.press(key)
        expect(rows.nth(row)).to_be_focused()
    page.keyboard.press("Enter")
    expect(rows.first.get_by_role("rowheader", name="sums@3")).to_be_visible()
    page.keyboard.press("/")
    search = page.get_by_role("searchbox", name="Find a task")
    expect(search).to_be_focused()
    page.keyboard.type("j?t")
    expect(search).to_have_value("j?t")
    expect(page.get_by_text("No such task")).to_be_visible()
    search.fill("function")
    expect(rows).to_have_count(1)


def test_the_theme_is_chosen_and_kept(page: Page, api: ApiServer) -> None:
    enter(page, api)
    background = "getComputedStyle(document.documentElement).backgroundColor"
    expect(page.get_by_text("Everything is well.")).to_be_visible()
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    assert dark != light
    page.keyboard.press("t")
    assert page.evaluate(background) == light
    page.reload()
    expect(page.get_by_text("Everything is well.")).to_be_visible()
    assert page.evaluate(background) == light
    page.keyboard.press("t")
    assert page.evaluate("localStorage['mulligan.theme']") == "dark"


def test_it_is_readable_on_a_telephone(page: Page, api: ApiServer) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    enter(page, api)
    expect(page.locator(".point")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_lost_connection_is_said_and_mended(page: Page, api: ApiServer) -> None:
    enter(page, api)
    expect(page.get_by_text("Everything is well.")).to_be_visible()

    def refuse(route: Route) -> None:
        route.abort("connectionrefused")

    page.route("**/v1/**", refuse)
    expect(page.locator(".lost")).to_be_visible()
    expect(page.get_by_text("Everything is well.")).to_be_visible()  # what was known stays
    page.unroute("**/v1/**", refuse)
    expect(page.locator(".lost")).to_have_count(0)


def test_a_session_that_is_over_leads_to_the_login(page: Page, context: BrowserContext, api: ApiServer) -> None:
    enter(page, api)
    expect(page.get_by_text("Everything is well.")).to_be_visible()
    context.clear_cookies()
    expect(page.get_by_text("Your session is over.")).to_be_visible()


def test_a_database_without_a_request_says_what_to_do(page: Page, api: ApiServer) -> None:
    enter(page, api)
    page.route("**/v1/overview*", lambda route: route.fulfill(json=empty_overview()))
    page.reload()
    expect(page.get_by_text("No requests in this time")).to_be_visible()
    expect(page.get_by_text("Worker needs a look.")).to_be_visible()


def empty_overview() -> dict:
    nothing = {"count": 0, "of": 0, "share": None, "ci95": [0, 1]}
    traffic = dict.fromkeys(("requests", "sample", "prompt_tokens", "completion_tokens"), 0)
    traffic |= {"bounded": False, "outcomes": {}, "slots": [], "slot_s": 1048.576, "p50_ms": None, "p95_ms": None}
    return {
        "object": "overview",
        "at": 1_800_000_000,
        "hours": 24,
        "base_model": "base",
        "parts": [{"name": "worker", "state": "bad", "says": "No worker reports."}],
        "traffic": {**traffic, "first_try": nothing, "recovered": nothing},
        "tasks": [],
    }


def test_it_weighs_little() -> None:
    built = Path(pages.STATIC)
    if not built.is_dir():
        pytest.skip("the dashboard is not built: `make admin`")
    assert sum(len(gzip.compress(file.read_bytes())) for file in built.rglob("*.*")) < 300_000

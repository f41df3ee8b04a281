"""Logins of the dashboard: the cookie, the token beside it, roles, and how a session ends."""

import asyncio
import json

import pytest
from sqlalchemy import select, update

from server.admin.attempts import MOST
from server.api.gate import PUBLIC, SURFACES
from server.api.sessions import COOKIE, SECURE_COOKIE
from server.domain import Task
from server.errors import StoreUnavailable
from server.store.events import EventStore
from server.store.keys import KeyStore
from server.store.rows import fetch_rows
from server.store.sessions import SessionStore
from server.store.tables import sessions
from server.store.tasks import TaskStore
from tests.fixtures.asgi import ask
from tests.integration.api.test_tenants import DOORS

UNSAFE = [door for door in {*DOORS, ("DELETE", "/admin/session")} if door[0] != "GET"]


async def told(house, kind):
    return [event for event in await EventStore(house.database).list() if event.kind == kind]


async def test_a_key_opens_a_session_whose_cookie_no_script_reads(house):
    browser = house.browser()
    answer = await browser.log_in(house.keys["viewer"])
    assert answer.status == 201
    said = answer.json()
    assert (said["key"], said["role"], said["object"]) == (house.ids["viewer"], "viewer", "session")
    attributes = {part.strip().lower() for part in browser.set_cookie.split(";")[1:]}
    assert attributes == {"httponly", "samesite=strict", "path=/"}  # no end: it goes when the browser does
    assert list(browser.cookies) == [COOKIE]
    assert browser.cookies[COOKIE] not in answer.body.decode()
    assert house.keys["viewer"] not in answer.body.decode()
    assert answer.headers["cache-control"] == "no-store"
    again = await browser.ask("GET", "/admin/session", csrf="")
    assert again.json() == said
    (event,) = await told(house, "session.began")
    assert (event.actor, event.subject) == (house.ids["viewer"], house.ids["viewer"])


@pytest.mark.parametrize("header", [{"origin": "https://mulligan.example"}, {"x_forwarded_proto": "https"}])
async def test_on_https_the_cookie_is_secure_and_bound_to_the_host(house, header):
    browser = house.browser()
    await browser.log_in(house.keys["admin"], **header)
    assert list(browser.cookies) == [SECURE_COOKIE]
    assert "secure" in browser.set_cookie.lower()
    assert "domain" not in browser.set_cookie.lower()
    assert (await browser.ask("GET", "/v1/overview")).status == 200


async def test_the_database_holds_no_secret_of_a_session(house):
    browser = await house.log_in("admin")
    async with house.database.read() as connection:
        rows = await fetch_rows(connection, select(sessions))
    assert browser.cookies[COOKIE] not in json.dumps(rows)
    assert browser.csrf not in json.dumps(rows)


async def test_a_session_reads_and_with_its_token_changes_what_its_key_may(house):
    admin, viewer = await house.log_in("admin"), await house.log_in("viewer")
    for browser in (admin, viewer):
        assert (await browser.ask("GET", "/v1/tasks", csrf="")).status == 200
    assert (await admin.ask("POST", "/v1/tasks", {"name": "sums"})).status == 201
    refused = await viewer.ask("POST", "/v1/tasks", {"name": "more"})
    assert (refused.status, refused.error["code"]) == (403, "insufficient_scope")
    (event,) = await told(house, "task.created")
    assert event.actor == house.ids["admin"]


async def test_nothing_is_changed_without_the_token(house):
    browser, other = await house.log_in("admin"), await house.log_in("admin")
    for method, path in UNSAFE:
        for token in ("", "nonsense", other.csrf, "é"):
            answer = await browser.ask(method, path.replace("{", "").replace("}", ""), {}, csrf=token)
            assert (answer.status, answer.error["code"]) == (403, "csrf_failed"), (method, path, answer.body)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_what_another_sites_page_asks_is_refused_even_where_it_only_reads(house, site):
    browser = await house.log_in("admin")
    answer = await browser.ask("GET", "/v1/keys", sec_fetch_site=site)
    assert (answer.status, answer.error["code"]) == (403, "csrf_failed")
    assert (await browser.ask("GET", "/v1/keys", sec_fetch_site="same-origin")).status == 200
    login = await house.browser().log_in(house.keys["admin"], sec_fetch_site=site)
    assert login.status == 403


async def test_a_bearer_key_goes_first_and_needs_no_token(house):
    viewer = await house.log_in("viewer")
    answer = await viewer.ask(
        "POST", "/v1/tasks", {"name": "sums"}, csrf="", authorization=f"Bearer {house.keys['admin']}"
    )
    assert answer.status == 201
    assert (await viewer.ask("GET", "/v1/tasks", authorization="Bearer mk-wrong")).status == 401


async def test_clients_are_not_let_in_and_wrong_keys_are_told_apart_from_nothing(house):
    browser = house.browser()
    refused = await browser.log_in(house.keys["client"])
    assert (refused.status, refused.error["code"]) == (403, "insufficient_scope")
    for wrong in ("mk-wrong", "", "\0"):
        assert (await browser.log_in(wrong)).status == 401
    assert browser.cookies == {}
    events = await told(house, "session.refused")
    assert [event.details["code"] for event in events] == ["invalid_api_key"] * 3 + ["insufficient_scope"]
    assert "mk-wrong" not in repr(events)


async def test_who_logs_out_is_out_everywhere(house):
    browser = await house.log_in("admin")
    assert (await browser.ask("GET", "/v1/keys")).status == 200
    answer = await browser.ask("DELETE", "/admin/session")
    assert answer.status == 204
    assert f'{COOKIE}=""' in answer.headers["set-cookie"] or SECURE_COOKIE in answer.headers["set-cookie"]
    refused = await browser.ask("GET", "/v1/keys")
    assert (refused.status, refused.error["code"]) == (401, "session_over")
    assert len(await told(house, "session.ended")) == 1


async def eventually_refused(browser):
    """Wait until a session is refused: what another process ends is known here within a second."""
    async with asyncio.timeout(60):
        while (answer := await browser.ask("GET", "/admin/session")).status != 401:
            await asyncio.sleep(0.05)
    return answer.error["code"]


async def test_a_session_that_another_process_ended_is_refused(house):
    browser = await house.log_in("admin")
    assert (await browser.ask("GET", "/v1/keys")).status == 200
    async with house.database.read() as connection:
        (row,) = await fetch_rows(connection, select(sessions.c.sha256))
    await SessionStore(house.database).end(row["sha256"])
    assert await eventually_refused(browser) == "session_over"


async def test_a_session_ends_with_its_time(house):
    browser = await house.log_in("admin")
    async with house.database.write() as connection:
        await connection.execute(update(sessions).values(expires_at=1.0))
    assert await eventually_refused(browser) == "session_over"
    await house.log_in("viewer")  # whoever begins one sweeps out those that are over
    async with house.database.read() as connection:
        (row,) = await fetch_rows(connection, select(sessions.c.key))
    assert row["key"] == house.ids["viewer"]


async def test_a_revoked_key_ends_its_sessions_at_once(house):
    secret, key = await KeyStore(house.database).create("passing", "admin")
    browser, admin = house.browser(), await house.log_in("admin")
    await browser.log_in(secret)
    assert (await browser.ask("GET", "/v1/keys")).status == 200
    assert (await admin.ask("DELETE", f"/v1/keys/{key.id}")).status == 200
    assert (await browser.ask("GET", "/v1/keys")).status == 401


async def test_whoever_fails_too_often_waits(house):
    browser = house.browser()
    for _ in range(MOST):
        assert (await browser.log_in("mk-wrong")).status == 401
    answer = await browser.log_in(house.keys["admin"])
    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    assert 0 < int(answer.headers["retry-after"]) <= 300
    assert len(await told(house, "session.refused")) == MOST


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"key=mk-x", {"content_type": "application/x-www-form-urlencoded"}, 400),
        (b'{"key": 1}', {}, 400),
        (b'{"key": "mk-x", "role": "admin"}', {}, 400),
        (b"\xff", {}, 400),
        (b'{"key": "' + b"m" * 5000 + b'"}', {}, 413),
    ],
)
async def test_what_is_no_login_is_refused(house, body, headers, status):
    answer = await house.browser().ask("POST", "/admin/session", body, **headers)
    assert answer.status == status, answer.body


async def test_an_unknown_cookie_is_nobodys(house):
    for cookie in (f"{COOKIE}=wrong", "mulligan_session", f"{COOKIE}=", "a=b; c", f"{COOKIE}=é"):
        answer = await ask(house.app, "GET", "/v1/tasks", headers={"cookie": cookie})
        assert answer.status == 401


def test_what_is_public_of_the_dashboard_is_its_page_and_the_login():
    assert {door for door in PUBLIC if "admin" in door[1]} == {
        ("GET", "/admin"),
        ("HEAD", "/admin"),
        ("GET", "/admin/"),
        ("HEAD", "/admin/"),
        ("POST", "/admin/session"),
    }
    assert not [door for door in SURFACES if "admin" in door[1]]


async def test_a_session_outlives_the_database_for_who_was_known(house, monkeypatch):
    await TaskStore(house.database).create(Task("sums"))
    browser = await house.log_in("viewer")
    assert (await browser.ask("GET", "/v1/overview")).status == 200

    async def away(*_args):
        raise StoreUnavailable("away")

    monkeypatch.setattr(SessionStore, "find", away)
    monkeypatch.setattr(KeyStore, "by_sha256", away)
    await asyncio.sleep(0.6)
    assert (await browser.ask("GET", "/v1/overview")).status == 200
    assert (await ask(house.app, "GET", "/v1/overview", headers={"cookie": f"{COOKIE}=other"})).status == 503

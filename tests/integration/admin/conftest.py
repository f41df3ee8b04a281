from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest

from server.app import create_app
from server.domain import Role
from server.settings import Settings
from server.store.database import Database
from server.store.keys import KeyStore
from tests.fixtures.asgi import Answer, ask
from tests.fixtures.engines import ScriptedEngine


@dataclass
class Browser:
    """A browser of one person: it keeps cookies, and the token that the page was given."""

    app: Any
    cookies: dict[str, str] = field(default_factory=dict)
    csrf: str = ""
    set_cookie: str = ""

    async def ask(self, method: str, path: str, body: Any = None, *, csrf: str | None = None, **headers: str) -> Answer:
        """Ask as the page does; `csrf`: with this token in place of its own."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            given["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if token := self.csrf if csrf is None else csrf:
            given["x-mulligan-csrf"] = token
        return await ask(self.app, method, path, body, headers=given)

    async def log_in(self, key: str, **headers: str) -> Answer:
        answer = await self.ask("POST", "/admin/session", {"key": key}, **headers)
        if answer.status == 201:
            self.set_cookie = answer.headers["set-cookie"]
            self.cookies = {name: morsel.value for name, morsel in SimpleCookie(self.set_cookie).items()}
            self.csrf = answer.json()["csrf"]
        return answer


@dataclass
class House:
    """A running server on a database of its own, and a key for each role."""

    app: Any
    database: Database
    keys: dict[str, str]
    ids: dict[str, str]

    def browser(self) -> Browser:
        return Browser(self.app)

    async def log_in(self, role: str) -> Browser:
        browser = self.browser()
        assert (await browser.log_in(self.keys[role])).status == 201
        return browser


@pytest.fixture
async def house(tmp_path: Path, sqlite_url: str) -> AsyncIterator[House]:
    database = Database(sqlite_url)
    settings = Settings(data_dir=tmp_path, database_url=sqlite_url)
    app = create_app(settings, open_engine=lambda _: ScriptedEngine(["4"]))
    made = {role.value: await KeyStore(database).create(role, role) for role in Role}
    keys = {role: secret for role, (secret, _) in made.items()}
    async with app.rest.router.lifespan_context(app.rest):
        yield House(app, database, keys, {role: key.id for role, (_, key) in made.items()})
    await database.close()

"""Every route of the server, driven with the keys of two tenants and of every role, on a real database.

A new route without a rule here turns the first test red. `xyzzy` is what tenants write and nobody else may read.
"""

import json
import re
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import select, update

from server.api.gate import PUBLIC, SURFACES
from server.api.rest import episodes
from server.api.rest.application import build_rest
from server.app import create_app
from server.domain import Adapter, Event, Role, Scope, Task, TaskVerifier
from server.errors import Forbidden
from server.settings import Settings
from server.store.adapters import AdapterStore
from server.store.backtests import BacktestStore
from server.store.database import Database
from server.store.deletions import DeletionStore, Doomed
from server.store.events import EventStore
from server.store.keys import KeyStore
from server.store.rounds import RoundStore
from server.store.tables import api_keys, metadata
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore
from tests.fixtures.asgi import ask
from tests.fixtures.engines import ScriptedEngine

MARK = "xyzzy"
TENANTS = ("alpha", "beta")
ADAPTERS = ("alpha@1", "beta@1")
TENANT_SCOPES = [Scope.INLINE_VERIFIERS, Scope.REGISTER_VERIFIERS, Scope.REGISTER_CODE, Scope.PIN_ADAPTERS]


@dataclass(frozen=True)
class Rule:
    """What a route does for whom. `path` and `body` name things of one tenant by `{task}`, `{episode}` and so on.

    Statuses: of that tenant itself, of the other one, and of the roles.
    """

    path: str
    owner: int
    other: int
    viewer: int
    approver: int
    admin: int
    body: Any = None


READABLE = {"owner": 200, "other": 404, "viewer": 200, "approver": 200, "admin": 200}
LISTED = {"owner": 200, "other": 200, "viewer": 200, "approver": 200, "admin": 200}
INTERNAL = {"owner": 403, "other": 403, "viewer": 200, "approver": 200, "admin": 200}
APPROVED = {"owner": 403, "other": 403, "viewer": 403, "approver": 200, "admin": 200}
ADMIN_ONLY = {"owner": 403, "other": 403, "viewer": 403, "approver": 403}
OWN_ALONE = {"owner": 200, "other": 404, "viewer": 404, "approver": 404, "admin": 404}
RUN = {"owner": 200, "other": 404, "viewer": 403, "approver": 403, "admin": 200}
MESSAGES = [{"role": "user", "content": f"{MARK}?"}]
VERIFIER = {"name": "{verifier}", "kind": "regex", "config": {"pattern": "new"}}

RULES: dict[tuple[str, str], Rule] = {
    ("POST", "/v1/chat/completions"): Rule(
        "/v1/chat/completions", **RUN, body={"model": "{task}", "messages": MESSAGES}
    ),
    ("POST", "/v1/completions"): Rule("/v1/completions", **RUN, body={"model": "{task}", "prompt": "2+2?"}),
    ("POST", "/v1/responses"): Rule("/v1/responses", **RUN, body={"model": "{task}", "input": "2+2?"}),
    ("POST", "/v1/embeddings"): Rule("/v1/embeddings", **RUN, body={"model": "{task}", "input": "2+2?"}),
    ("GET", "/v1/responses/{response_id}"): Rule("/v1/responses/{response}", **OWN_ALONE),
    ("GET", "/v1/responses/{response_id}/input_items"): Rule("/v1/responses/{response}/input_items", **OWN_ALONE),
    ("GET", "/metrics"): Rule("/metrics", **INTERNAL),
    ("GET", "/v1/models"): Rule("/v1/models", **LISTED),
    ("GET", "/v1/models/{model:path}"): Rule("/v1/models/{task}", **READABLE),
    ("GET", "/v1/tasks"): Rule("/v1/tasks", **LISTED),
    ("POST", "/v1/tasks"): Rule("/v1/tasks", **ADMIN_ONLY, admin=201, body={"name": "{task}-more"}),
    ("GET", "/v1/tasks/{name}"): Rule("/v1/tasks/{task}", **READABLE),
    ("PATCH", "/v1/tasks/{name}"): Rule("/v1/tasks/{task}", **ADMIN_ONLY, admin=200, body={"verify": "off"}),
    ("GET", "/v1/verifiers"): Rule("/v1/verifiers", **LISTED),
    ("POST", "/v1/verifiers"): Rule(
        "/v1/verifiers", owner=403, other=409, viewer=403, approver=403, admin=201, body=VERIFIER
    ),  # an operator owns it
    ("GET", "/v1/verifiers/kinds"): Rule("/v1/verifiers/kinds", **LISTED),
    ("DELETE", "/v1/verifiers/{name}"): Rule(  # an operator owns it, and a task pins it
        "/v1/verifiers/{verifier}", owner=403, other=404, viewer=403, approver=403, admin=409
    ),
    ("GET", "/v1/verifiers/{name}/versions/{version}"): Rule("/v1/verifiers/{verifier}/versions/1", **READABLE),
    ("POST", "/v1/verifiers/{name}/versions/{version}/revoke"): Rule(
        "/v1/verifiers/{verifier}/versions/1/revoke", **ADMIN_ONLY, admin=200, body={"reason": MARK}
    ),
    ("GET", "/v1/verifiers/{name}/agreement"): Rule("/v1/verifiers/{verifier}/agreement?with=1", **INTERNAL),
    ("GET", "/v1/verifiers/{name}"): Rule("/v1/verifiers/{verifier}", **READABLE),
    ("GET", "/v1/verifiers/{name}/versions"): Rule("/v1/verifiers/{verifier}/versions", **READABLE),
    ("POST", "/v1/verifiers/{name}/run"): Rule("/v1/verifiers/{verifier}/run", **RUN, body={"answer": "4"}),
    ("POST", "/v1/verifiers/{name}/backtest"): Rule(
        "/v1/verifiers/{verifier}/backtest", **{**RUN, "owner": 202, "admin": 202}, body={"task": "{task}"}
    ),
    ("GET", "/v1/verifiers/{name}/stats"): Rule("/v1/verifiers/{verifier}/stats", **{**READABLE, "owner": 403}),
    ("GET", "/v1/backtests"): Rule("/v1/backtests?verifier={verifier}", **LISTED),
    ("GET", "/v1/backtests/{backtest_id}"): Rule("/v1/backtests/{backtest}", **READABLE),
    ("DELETE", "/v1/backtests/{backtest_id}"): Rule("/v1/backtests/{backtest}", **RUN),
    ("GET", "/v1/episodes"): Rule("/v1/episodes?key={key}", **LISTED),
    ("GET", "/v1/episodes/{episode_id}"): Rule("/v1/episodes/{episode}?tokens=true", **READABLE),
    ("GET", "/v1/lineage/{id}"): Rule("/v1/lineage/{episode}", **READABLE),
    ("DELETE", "/v1/episodes/{episode_id}"): Rule("/v1/episodes/{episode}", **ADMIN_ONLY, admin=200),
    ("POST", "/v1/deletions"): Rule("/v1/deletions", **ADMIN_ONLY, admin=202, body={"key": "{key}"}),
    ("GET", "/v1/deletions"): Rule("/v1/deletions", **ADMIN_ONLY, admin=200),
    ("GET", "/v1/deletions/{deletion_id}"): Rule("/v1/deletions/{deletion}", **ADMIN_ONLY, admin=200),
    ("POST", "/v1/feedback"): Rule(
        "/v1/feedback", **{**RUN, "approver": 200}, body={"episode_id": "{episode}", "passed": True, "source": "x"}
    ),
    ("GET", "/v1/tasks/{name}/audit"): Rule("/v1/tasks/{task}/audit", **INTERNAL),
    ("GET", "/v1/tasks/{name}/panel"): Rule("/v1/tasks/{task}/panel", **INTERNAL),
    ("POST", "/v1/tasks/{task}/rounds"): Rule("/v1/tasks/{task}/rounds", **ADMIN_ONLY, admin=409),  # one is queued
    ("GET", "/v1/rounds"): Rule("/v1/rounds?task={task}", **INTERNAL),
    ("GET", "/v1/rounds/{round_id}"): Rule("/v1/rounds/{round}", **INTERNAL),
    ("POST", "/v1/rounds/{round_id}/cancel"): Rule("/v1/rounds/{round}/cancel", **APPROVED),
    ("GET", "/v1/adapters"): Rule("/v1/adapters", **INTERNAL),
    ("GET", "/v1/adapters/{name}"): Rule("/v1/adapters/{adapter}", **INTERNAL),
    ("POST", "/v1/adapters/{name}/promote"): Rule(  # by the admin's turn it is the champion already
        "/v1/adapters/{adapter}/promote", **{**APPROVED, "admin": 409}, body={"comment": "why", "force": True}
    ),
    ("POST", "/v1/adapters/{name}/reject"): Rule(  # by the admin's turn it is rejected already
        "/v1/adapters/{adapter}/reject", **{**APPROVED, "admin": 409}, body={"comment": "why"}
    ),
    ("GET", "/v1/tasks/{name}/rollback"): Rule(  # the base model serves already
        "/v1/tasks/{task}/rollback?to=base", **{**APPROVED, "approver": 409, "admin": 409}
    ),
    ("POST", "/v1/tasks/{name}/rollback"): Rule(  # there is no former champion
        "/v1/tasks/{task}/rollback", **{**APPROVED, "approver": 409, "admin": 409}
    ),
    ("POST", "/v1/keys"): Rule("/v1/keys", **ADMIN_ONLY, admin=201, body={"name": MARK, "tasks": ["{task}"]}),
    ("GET", "/v1/overview"): Rule("/v1/overview", **INTERNAL),
    ("GET", "/v1/events"): Rule("/v1/events", **INTERNAL),
    ("GET", "/v1/keys"): Rule("/v1/keys", **ADMIN_ONLY, admin=200),
    ("PATCH", "/v1/keys/{key_id}"): Rule("/v1/keys/{spare_key}", **ADMIN_ONLY, admin=200, body={"trains": False}),
    ("DELETE", "/v1/keys/{key_id}"): Rule("/v1/keys/{spare_key}", **ADMIN_ONLY, admin=200),
}  # fmt: skip


def flatten(routes):
    """List routes, those of included routers too."""
    for route in routes:
        if hasattr(route, "path") and getattr(route, "methods", None):
            yield route
        else:
            yield from flatten(getattr(route, "routes", None) or route.original_router.routes)


def walk_doors() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """List every method and path of the server that is not open to all, those that are only refused apart."""
    doors, refused = list(SURFACES), []
    for route in flatten(build_rest().routes):
        found = refused if route.endpoint.__name__ == "refuse_endpoint" else doors
        found += [(method, route.path) for method in sorted(route.methods - {"HEAD"})]
    return [door for door in doors if door not in PUBLIC], [door for door in refused if door not in SURFACES]


DOORS, REFUSED = walk_doors()


@dataclass
class World:
    """A running server, the keys of everybody, and what belongs to each tenant."""

    app: Any
    database: Database
    secrets: dict[str, str] = field(default_factory=dict)
    things: dict[str, dict[str, str]] = field(default_factory=dict)

    async def ask(self, door: tuple[str, str], who: str, *, of: str):
        """Ask for something of a tenant."""
        rule = RULES[door]
        body = None if rule.body is None else json.loads(self.name(json.dumps(rule.body), of))
        key = None if who == "nobody" else self.secrets[who]
        return await ask(self.app, door[0], self.name(rule.path, of), body, key=key)

    def name(self, text: str, of: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda matched: self.things[of].get(matched[1], matched[0]), text)

    async def dump(self) -> str:
        """Write down everything that is in the database but for what merely lives."""
        rows = {}
        async with self.database.read() as connection:
            for table in metadata.sorted_tables:
                if table.name not in ("presence", "key_usage", "verdict_counts"):
                    shown = [column for column in table.columns if column.name != "last_used_at"]
                    rows[table.name] = [tuple(row) for row in await connection.execute(select(*shown))]
        return repr(rows)

    async def chat(self, who: str, model: str, **fields: Any):
        body = {"model": model, "messages": MESSAGES, **fields}
        return await ask(self.app, "POST", "/v1/chat/completions", body, key=self.secrets[who])


async def make_keys(world: World) -> None:
    """Make everybody's keys."""
    keys = KeyStore(world.database)
    for tenant in TENANTS:
        world.secrets[tenant], key = await keys.create(f"app-{tenant}", scopes=TENANT_SCOPES, tasks=[tenant])
        _, spare = await keys.create(f"spare-{tenant}", tasks=[tenant])
        world.things[tenant] = {"key": key.id, "spare_key": spare.id, "task": tenant, "adapter": f"{tenant}@1"}
    for role in (Role.VIEWER, Role.APPROVER, Role.ADMIN):
        world.secrets[role.value], _ = await keys.create(role, role)
    world.secrets["revoked"], revoked = await keys.create("revoked", Role.ADMIN)
    await keys.revoke(revoked.id)
    world.secrets["expired"], expired = await keys.create("expired", Role.ADMIN, expires_at=time.time() + 3600)
    async with world.database.write() as connection:
        await connection.execute(update(api_keys).where(api_keys.c.id == expired.id).values(expires_at=1.0))


def make_engine() -> ScriptedEngine:
    """Make an engine that holds everybody's adapters and answers everybody the same."""
    return ScriptedEngine([f"4 {MARK}"], dict.fromkeys(ADAPTERS, f"/{MARK}"), embeddings=b'{"data": []}')


@asynccontextmanager
async def open_world(settings: Settings):
    """Run a server with two tenants, each of whom has one of everything."""
    database = Database(settings.database_url)
    world = World(
        create_app(settings, open_engine=lambda _: make_engine()),
        database,
    )
    for tenant in TENANTS:
        await VerifierStore(database).add(f"{tenant}_rule", "regex", {"pattern": f"4|{MARK}"}, MARK)
        await TaskStore(database).create(Task(tenant, (TaskVerifier(f"{tenant}_rule", 1),), prompts={"reflect": MARK}))
        await AdapterStore(database).add(Adapter(f"{tenant}@1", tenant, f"/{MARK}", {}))
    await make_keys(world)
    async with world.app.rest.router.lifespan_context(world.app.rest):
        for tenant in TENANTS:
            answer = await world.chat(tenant, tenant)
            assert answer.status == 200, answer.body
            made = {"verifier": f"{tenant}_rule", "episode": answer.headers["x-mulligan-episode"]}
            if (responses := ("POST", "/v1/responses")) in DOORS:
                answer = await world.ask(responses, tenant, of=tenant)
                assert answer.status == 200, answer.body
                made["response"] = answer.json()["id"]
            backtests = BacktestStore(database)
            asked = await backtests.create(f"{tenant}_rule", 1, world.things[tenant]["key"], {"note": MARK})
            made["backtest"] = (await backtests.cancel(asked.id)).id  # else it would be run beside the tests
            made["deletion"] = (await DeletionStore(database).begin(Doomed(episode=f"ep_{tenant}"))).id
            made["round"] = (await RoundStore(database).create(tenant, {"note": MARK})).id
            await EventStore(database).add(Event("tenant.made", tenant, "", {"note": MARK}, 1.0))
            world.things[tenant] |= made
        yield world
    await database.close()


@pytest.fixture
async def world(tmp_path, sqlite_url):
    async with open_world(Settings(data_dir=tmp_path, database_url=sqlite_url)) as opened:
        yield opened


def test_every_route_has_a_rule():
    assert set(DOORS) - set(RULES) == set(), "say in RULES who may use the new route, and what of whom it shows"


@pytest.mark.parametrize("door", DOORS, ids=" ".join)
async def test_no_tenant_sees_or_changes_the_others_things(world, door):
    rule = RULES[door]
    for me, other in (TENANTS, TENANTS[::-1]):
        before = await world.dump()
        answer = await world.ask(door, me, of=other)
        assert answer.status == rule.other, answer.body
        seen = answer.body.decode()
        asked = world.name(rule.path + json.dumps(rule.body), other)
        assert [name for name in world.things[other].values() if name in seen and name not in asked] == []
        if answer.status == 200:  # a list, in which only its own things may be
            assert other not in seen
        else:
            assert MARK not in seen
            assert await world.dump() == before


@pytest.mark.parametrize("door", DOORS, ids=" ".join)
async def test_each_role_may_do_what_it_may_and_no_more(world, door):
    rule = RULES[door]
    before = await world.dump()
    for who, code in (("nobody", "invalid_api_key"), ("revoked", "invalid_api_key"), ("expired", "expired_api_key")):
        answer = await world.ask(door, who, of="alpha")
        assert (answer.status, answer.error["code"]) == (401, code)
    for who, status in (("viewer", rule.viewer), ("approver", rule.approver)):
        answer = await world.ask(door, who, of="alpha")
        assert (who, answer.status) == (who, status), answer.body
        if status == 403:
            assert answer.error["code"] == "insufficient_scope"
        if who == "viewer":
            assert await world.dump() == before
    for who, status in (("alpha", rule.owner), ("admin", rule.admin)):
        answer = await world.ask(door, who, of="alpha")
        assert (who, answer.status) == (who, status), answer.body


async def test_what_is_only_refused_is_refused_to_every_key(world):
    for method, path in REFUSED:
        for who in ("alpha", "viewer", "admin"):
            answer = await ask(world.app, method, path.replace("{rest:path}", "x/y"), key=world.secrets[who])
            assert (answer.status, answer.error["code"]) == (404, "unsupported_endpoint")
        assert (await ask(world.app, method, path.replace("{rest:path}", "x/y"))).status == 401


async def test_the_marks_that_nobody_else_sees_are_there_for_whoever_may(world):
    for door in [("GET", "/v1/tasks/{name}"), ("GET", "/v1/verifiers/{name}"), ("GET", "/v1/episodes/{episode_id}")]:
        for who in ("alpha", "viewer", "admin"):
            assert MARK in (await world.ask(door, who, of="alpha")).body.decode()


async def test_a_client_follows_its_own_episodes_and_nothing_that_came_of_them(world):
    things = world.things["alpha"]
    for thing in (things["round"], things["adapter"], "ep_nothing"):
        answer = await ask(world.app, "GET", f"/v1/lineage/{thing}", key=world.secrets["alpha"])
        assert (answer.status, answer.error["code"]) == (404, "lineage_not_found")
        assert thing in answer.error["message"]
    own = (await world.ask(("GET", "/v1/lineage/{id}"), "alpha", of="alpha")).json()
    assert (own["episode"]["id"], own["adapter"], own["rounds"]) == (things["episode"], None, None)
    for thing, kind in ((things["round"], "round"), (things["adapter"], "adapter"), (things["episode"], "episode")):
        answer = await ask(world.app, "GET", f"/v1/lineage/{thing}", key=world.secrets["viewer"])
        assert (answer.status, answer.json()["kind"], answer.json()["id"]) == (200, kind, thing)
        assert answer.json()["rounds"] is not None
    answer = await ask(world.app, "GET", "/v1/lineage/alpha@9", key=world.secrets["viewer"])
    assert (answer.status, answer.error["code"]) == (404, "lineage_not_found")


async def test_how_far_a_task_is_is_told_to_who_reads_everything(world):
    door = ("GET", "/v1/tasks/{name}")
    assert (await world.ask(door, "alpha", of="alpha")).json()["progress"] is None
    progress = (await world.ask(door, "viewer", of="alpha")).json()["progress"]
    assert (progress["held_out_wanted"], progress["held_out_least"], progress["new_failures"]) == (200, 30, 0)
    assert "below 30 nothing is promoted automatically" in progress["says"]
    assert "a round waits for a worker" in progress["says"]


async def test_lists_have_a_tenants_own_things_only(world):
    async def list_all(who: str, path: str) -> list[Any]:
        return (await ask(world.app, "GET", path, key=world.secrets[who])).json()["data"]

    assert [task["name"] for task in await list_all("alpha", "/v1/tasks")] == ["alpha"]
    assert [one["name"] for one in await list_all("alpha", "/v1/verifiers")] == ["alpha_rule"]
    assert [model["id"] for model in await list_all("alpha", "/v1/models")] == ["alpha", "alpha@1"]
    mine, theirs = world.things["alpha"], world.things["beta"]
    own = await list_all("alpha", "/v1/episodes")
    assert mine["episode"] in [one["id"] for one in own]
    assert {one["key"] for one in own} == {mine["key"]}
    assert await list_all("alpha", f"/v1/episodes?key={theirs['key']}") == own
    assert await list_all("alpha", "/v1/episodes?task=beta") == []
    assert {task["name"] for task in await list_all("viewer", "/v1/tasks")} == {"alpha", "beta", "default"}
    assert len(await list_all("viewer", "/v1/episodes")) == 2 * len(own)
    assert {one["key"] for one in await list_all("viewer", f"/v1/episodes?key={theirs['key']}")} == {theirs["key"]}


@pytest.mark.parametrize(
    ("page_bytes", "at_once", "sizes"), [(0, 20, [1, 1, 1]), (10**9, 1, [2, 1]), (10**9, 2, [2, 1])]
)
async def test_a_page_of_big_episodes_ends_early_and_none_is_left_out(world, page_bytes, at_once, sizes, monkeypatch):
    monkeypatch.setattr(episodes, "PAGE_BYTES", page_bytes)
    monkeypatch.setattr(episodes, "AT_ONCE", at_once)
    world.secrets["busy"], _ = await KeyStore(world.database).create("busy", tasks=["alpha"])
    asked = [(await world.chat("busy", "alpha")).headers["x-mulligan-episode"] for _ in range(3)]
    pages, before = [], ""
    while not pages or pages[-1]["has_more"]:
        answer = await ask(world.app, "GET", f"/v1/episodes?limit=2{before}", key=world.secrets["busy"])
        pages.append(answer.json())
        before = f"&before={pages[-1]['data'][-1]['id']}"
    assert [len(page["data"]) for page in pages] == sizes
    assert [one["id"] for page in pages for one in page["data"]] == asked[::-1]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "beta"}, 404, "model_not_found"),
        ({"model": "beta@1"}, 404, "model_not_found"),
        ({"model": "default"}, 404, "model_not_found"),
        ({"model": "local"}, 404, "model_not_found"),  # the base model, which the policy of `default` would serve
        ({"model": "local", "task": "beta"}, 404, "task_not_found"),
        ({"model": "alpha", "verifiers": ["beta_rule"]}, 400, "verifier_not_found"),
        ({"model": "alpha", "verifiers": ["alpha_rule"]}, 200, None),
        ({"model": "local", "task": "alpha"}, 200, None),
    ],
)
async def test_what_a_key_may_not_use_is_like_what_is_not_there(world, fields, status, code):
    fields = {name: world.app.rest.state.context.settings.engine.model_name if value == "local" else value
              for name, value in fields.items()}  # fmt: skip
    answer = await world.chat("alpha", **fields)
    assert answer.status == status, answer.body
    if code is not None:
        assert answer.error["code"] == code
        missing = json.loads(json.dumps(fields).replace("beta", "gamma"))
        unknown = await world.chat("alpha", **missing)
        if "beta" in json.dumps(fields):
            assert unknown.body.decode().replace("gamma", "beta") == answer.body.decode()


async def test_scopes_are_needed_one_by_one(world):
    keys = KeyStore(world.database)
    inline = [{"kind": "regex", "config": {"pattern": "4"}}]
    code = [{"kind": "python", "config": {"code": "def verify(request, answer, args):\n    return True\n"}}]
    expected = {
        (): (403, 403, 403, 403, 403),
        (Scope.INLINE_VERIFIERS,): (200, 403, 403, 403, 403),
        (Scope.INLINE_VERIFIERS, Scope.REGISTER_CODE): (200, 200, 403, 201, 403),
        (Scope.REGISTER_VERIFIERS,): (403, 403, 201, 403, 403),
        (Scope.PIN_ADAPTERS,): (403, 403, 403, 403, 200),
    }
    for place, (scopes, statuses) in enumerate(expected.items()):
        secret = world.secrets["some"] = (await keys.create("some", scopes=scopes))[0]
        registered = []
        for name, verifier in (("plain", inline[0]), ("code", code[0])):
            body = {"name": f"{name}{place}", **verifier}
            registered.append((await ask(world.app, "POST", "/v1/verifiers", body, key=secret)).status)
        got = (
            (await world.chat("some", "alpha", verifiers=inline)).status,
            (await world.chat("some", "alpha", verifiers=code)).status,
            *registered,
            (await world.chat("some", "alpha@1", verify="off")).status,
        )
        assert (scopes, got) == (scopes, statuses)


async def test_a_tenant_uses_the_verifier_that_it_registered_and_nobody_else_does(world):
    body = {"name": "mine", "kind": "regex", "config": {"pattern": "4"}}
    assert (await ask(world.app, "POST", "/v1/verifiers", body, key=world.secrets["alpha"])).status == 201
    another = {**body, "config": {"pattern": "4|5"}}
    assert (await ask(world.app, "POST", "/v1/verifiers", another, key=world.secrets["admin"])).json()["version"] == 2
    assert (await world.chat("alpha", "alpha", verifiers=["mine"])).status == 200
    assert (await world.chat("beta", "beta", verifiers=["mine"])).error["code"] == "verifier_not_found"
    assert (await ask(world.app, "POST", "/v1/verifiers", body, key=world.secrets["beta"])).status == 409


async def test_the_next_version_of_a_name_comes_from_its_owner_alone(world):
    async def register(who: str, pattern: str):
        body = {"name": "shared", "kind": "regex", "config": {"pattern": pattern}}
        return await ask(world.app, "POST", "/v1/verifiers", body, key=world.secrets[who])

    scopes = [Scope.REGISTER_VERIFIERS]
    for who in ("one", "another"):  # of no tasks: they see and use everything
        world.secrets[who], _ = await KeyStore(world.database).create(who, scopes=scopes)
    assert (await register("one", "4")).status == 201
    hijack = await register("another", "nothing")
    assert (hijack.status, hijack.error["param"]) == (403, "name")
    assert [(await register(who, "4|5")).json().get("version") for who in ("one", "admin")] == [2, 2]
    assert (await world.chat("one", "alpha", verifiers=["shared"])).json()["mulligan"]["outcome"] == "passed"


async def test_of_two_that_register_a_name_at_once_one_owns_it(world):
    store = VerifierStore(world.database)
    await store.register("raced", "regex", {"pattern": "4"}, owner="key_1", own_only=True)
    with pytest.raises(Forbidden):
        await store.register("raced", "regex", {"pattern": "5"}, owner="key_2", own_only=True)
    assert [one.owner for one in await store.versions("raced")] == ["key_1"]


async def test_who_registered_a_name_archives_it_and_is_told_only_of_what_it_sees(world):
    async def call(who: str, method: str, path: str, body: Any = None):
        return await ask(world.app, method, path, body, key=world.secrets[who])

    body = {"name": "mine", "kind": "regex", "config": {"pattern": "4"}}
    assert (await call("alpha", "POST", "/v1/verifiers", body)).status == 201
    for mode in ("enforce", "audit"):
        pins = ["beta_rule", {"name": "mine", "mode": mode}]
        assert (await call("admin", "PATCH", "/v1/tasks/beta", {"verifiers": pins})).status == 200
        refused = await call("alpha", "DELETE", "/v1/verifiers/mine")
        assert (refused.status, refused.error["code"]) == (409, "verifier_pinned")
        assert "beta" not in refused.error["message"]
        assert "'beta'" in (await call("admin", "DELETE", "/v1/verifiers/mine")).error["message"]
    assert (await call("admin", "PATCH", "/v1/tasks/beta", {"verifiers": ["beta_rule"]})).status == 200
    assert (await call("beta", "DELETE", "/v1/verifiers/mine")).status == 404
    archived = await call("alpha", "DELETE", "/v1/verifiers/mine")
    assert (archived.status, [one["version"] for one in archived.json()["data"]]) == (200, [1])
    for path, names in (("/v1/verifiers", ["alpha_rule"]), ("/v1/verifiers?archived=true", ["alpha_rule", "mine"])):
        assert [one["name"] for one in (await call("alpha", "GET", path)).json()["data"]] == names


async def test_a_key_sees_and_uses_the_verifiers_that_it_was_given(world):
    changed = await ask(
        world.app, "PATCH", f"/v1/keys/{world.things['alpha']['key']}", {"verifiers": ["beta_rule@1"]},
        key=world.secrets["admin"],
    )  # fmt: skip
    assert changed.json()["verifiers"][0]["name"] == "beta_rule"
    assert (await world.chat("alpha", "alpha", verifiers=["beta_rule"])).status == 200
    shown = await ask(world.app, "GET", "/v1/verifiers", key=world.secrets["alpha"])
    assert [one["name"] for one in shown.json()["data"]] == ["alpha_rule", "beta_rule"]


async def test_what_a_task_audits_with_is_seen_by_those_who_see_all(world):
    await VerifierStore(world.database).add("watcher", "regex", {"pattern": MARK})
    pins = ["alpha_rule", {"name": "watcher", "mode": "audit"}]
    changed = await ask(world.app, "PATCH", "/v1/tasks/alpha", {"verifiers": pins}, key=world.secrets["admin"])
    assert changed.status == 200, changed.body
    for fields in ({}, {"stream": True}):
        answer = await world.chat("alpha", "alpha", **fields)
        assert b"watcher" not in answer.body
    episode = answer.headers["x-mulligan-episode"]
    assert (await world.chat("alpha", "alpha", verifiers=["watcher"])).error["code"] == "verifier_not_found"
    paths = ("/v1/tasks", "/v1/tasks/alpha", "/v1/verifiers", f"/v1/episodes/{episode}", "/v1/episodes")
    for path in paths:
        assert "watcher" not in (await ask(world.app, "GET", path, key=world.secrets["alpha"])).body.decode()
        assert "watcher" in (await ask(world.app, "GET", path, key=world.secrets["viewer"])).body.decode()


async def test_a_plain_client_sees_verifiers_but_not_what_they_are_made_of(world):
    world.secrets["plain"], _ = await KeyStore(world.database).create("plain", tasks=["alpha"])
    shown = await ask(world.app, "GET", "/v1/verifiers/alpha_rule", key=world.secrets["plain"])
    assert (shown.json()["name"], shown.json()["config"]) == ("alpha_rule", None)
    inline = {"kind": "regex", "config": {"pattern": "4"}}
    assert (await world.chat("plain", "alpha", verifiers=["alpha_rule", inline])).status == 200
    (listed,) = (await ask(world.app, "GET", "/v1/episodes", key=world.secrets["plain"])).json()["data"]
    one = await ask(world.app, "GET", f"/v1/episodes/{listed['id']}", key=world.secrets["plain"])
    for episode in (listed, one.json()):
        assert [binding["config"] for binding in episode["bindings"]] == [None, inline["config"]]
    seen = await ask(world.app, "GET", f"/v1/episodes/{listed['id']}", key=world.secrets["viewer"])
    assert seen.json()["bindings"][0]["config"]


async def test_what_a_key_asks_that_opted_out_is_marked(world):
    world.secrets["private"], _ = await KeyStore(world.database).create("private", trains=False)
    for who, trains in (("private", False), ("alpha", True)):
        episode = (await world.chat(who, "alpha")).headers["x-mulligan-episode"]
        shown = await ask(world.app, "GET", f"/v1/episodes/{episode}", key=world.secrets["admin"])
        assert shown.json()["trains"] is trains

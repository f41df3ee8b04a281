from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from server.store import migrations
from tests.fixtures.server import ApiServer, serve_api
from tests.fixtures.wire_engine import WireEngine, serve_wire_engine


@pytest.fixture(scope="session")
def wire_engine() -> Iterator[WireEngine]:
    with serve_wire_engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="session")
def api_database(folder: Path) -> str:
    url = f"sqlite:///{folder / 'mulligan.db'}"
    migrations.upgrade(url)
    return url


@pytest.fixture(scope="session")
def api(folder: Path, api_database: str, wire_engine: WireEngine) -> Iterator[ApiServer]:
    """One API process, for all tests that do not kill it."""
    with serve_api(folder, api_database, wire_engine.url) as server:
        verifier = {"name": "four", "kind": "regex", "config": {"pattern": "4"}}
        for path, body in (("/v1/verifiers", verifier), ("/v1/tasks", {"name": "sums", "verifiers": ["four"]})):
            status, made, _ = server.ask("POST", path, body)
            assert status == 201, made
        yield server


@pytest.fixture
def client(api: ApiServer) -> Iterator[OpenAI]:
    """The SDK, as a client of the API uses it."""
    with OpenAI(base_url=f"{api.url}/v1", api_key=api.keys["client"], max_retries=0, timeout=20) as sdk:
        yield sdk

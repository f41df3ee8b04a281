"""A kind of an installed package is used like one of ours: listed, registered, tried, and a member of composites."""

import os

import pytest

from server.store import migrations
from tests.fixtures.server import serve_api
from tests.unit.verifiers.test_plugins import FINE
from verifiers.plugins import GROUP

BROKEN = "raise RuntimeError('this package does not load')"


def install(folder, name, code):
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (folder / f"{name}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {name}:KIND\n")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install two packages for the processes that a test starts."""
    packages = tmp_path / "packages"
    packages.mkdir()
    install(packages, "mulligan_shouts", FINE)
    install(packages, "mulligan_broken", BROKEN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]))


def test_an_installed_kind_is_used_like_ours(installed, tmp_path, wire_engine, capfd):
    database_url = f"sqlite:///{tmp_path / 'mulligan.db'}"
    migrations.upgrade(database_url)
    with serve_api(tmp_path, database_url, wire_engine.url) as api:
        use(api)
    assert "mulligan_broken is left out: RuntimeError: this package does not load" in capfd.readouterr().err


def use(api):
    status, listed, _ = api.ask("GET", "/v1/verifiers/kinds")
    assert status == 200
    shown = next(kind for kind in listed["data"] if kind["name"] == "shouts")
    assert shown["config_schema"]["properties"] == {"mark": {"type": "string"}}
    assert not any("broken" in kind["name"] for kind in listed["data"])

    bad = api.ask("POST", "/v1/verifiers", {"name": "loud", "kind": "shouts", "config": {"mark": 5}})
    assert (bad[0], bad[1]["error"]["code"]) == (400, "invalid_verifier")
    made = api.ask("POST", "/v1/verifiers", {"name": "loud", "kind": "shouts", "config": {"mark": "?"}})
    assert made[0] == 201, made[1]
    said = api.ask("POST", "/v1/verifiers/loud/run", {"answer": "who"})[1]
    assert (said["status"], said["reason"]) == ("failed", "too quiet")
    assert api.ask("POST", "/v1/verifiers/loud/run", {"answer": "who?"})[1]["status"] == "passed"

    quiet = {"name": "quiet", "kind": "not", "config": {"verifier": {"kind": "shouts"}}}
    assert api.ask("POST", "/v1/verifiers", quiet)[0] == 201
    assert api.ask("POST", "/v1/verifiers/quiet/run", {"answer": "who!"})[1]["status"] == "failed"

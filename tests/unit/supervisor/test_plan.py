"""What `mulligan up` would start, and what it refuses to start."""

import os
import socket
import sys
from pathlib import Path

import pytest

from server.errors import Conflict, EngineUnavailable, NotFound
from server.settings import EngineSettings, Settings
from server.supervisor import plan
from server.supervisor.child import describe_exit
from server.supervisor.folder import hold_folder
from server.supervisor.ports import ask_status, claim_port


def make_settings(tmp_path: Path, **more) -> Settings:
    return Settings(data_dir=tmp_path, **more)


def test_the_embedded_default_has_four_children_and_the_engine_stops_last(tmp_path: Path):
    settings = plan.resolve_addresses(make_settings(tmp_path, port=0), own_engine=True)
    specs = {spec.name: spec for spec in plan.plan_children(settings, own_engine=True)}
    assert set(specs) == {"engine", "API", "worker", "beat"}
    assert {name for name, spec in specs.items() if spec.stop_stage == 1} == {"engine"}
    assert settings.port > 0
    assert settings.engine.url.rsplit(":", 1)[1] in specs["engine"].argv
    for name in ("API", "worker", "beat"):
        assert specs[name].env["MULLIGAN_DATA_DIR"] == str(tmp_path)
        assert settings.engine.url in specs[name].env["MULLIGAN_ENGINE"]
        assert specs[name].argv[0] == sys.executable
    assert specs["worker"].env["OMP_WAIT_POLICY"] == "PASSIVE"
    assert specs["API"].env["MULLIGAN_WORKERS"] == "1"


def test_an_engine_that_runs_already_is_not_started(tmp_path: Path):
    settings = make_settings(tmp_path, port=0, engine=EngineSettings(url="http://127.0.0.1:1"))
    assert "engine" not in [spec.name for spec in plan.plan_children(settings, own_engine=False)]
    assert plan.resolve_addresses(settings, own_engine=False).engine.url == "http://127.0.0.1:1"


async def test_an_engine_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(plan, "_ENGINE_PAUSE_S", 0)
    with pytest.raises(EngineUnavailable, match="no engine answers at http://127"):
        await plan.find_engines(["http://127.0.0.1:1"])


def test_a_taken_port_names_the_option():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Conflict, match="--port"):
            claim_port("127.0.0.1", taken.getsockname()[1])
    assert claim_port("127.0.0.1", 0) > 0


def test_a_missing_model_or_sglang_says_what_to_do(tmp_path: Path):
    with pytest.raises(NotFound, match="--model"):
        plan.check_engine(EngineSettings(model=str(tmp_path / "none")))
    with pytest.raises(NotFound, match="make sglang-cpu"):
        plan.check_engine(EngineSettings(kind="sglang", sglang_python=str(tmp_path / "python")))
    plan.check_engine(EngineSettings(model="Qwen/Qwen2.5-0.5B-Instruct"))


def test_a_data_folder_serves_one_at_a_time(tmp_path: Path):
    with hold_folder(tmp_path), pytest.raises(Conflict, match="already serves from"), hold_folder(tmp_path):
        pytest.fail("it is held")
    with hold_folder(tmp_path):
        assert (tmp_path / "up.lock").read_text().isdigit()


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")],
)
def test_the_api_is_reached_where_it_listens(tmp_path: Path, host: str, url: str):
    assert plan.api_url(make_settings(tmp_path, host=host, port=80)) == url


async def test_nothing_that_answers_has_no_status():
    assert await ask_status("http://127.0.0.1:1/health", timeout_s=1) is None


def test_exits_are_told_in_words():
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(3) == "exit status 3"


def test_what_was_decided_wins_over_what_a_child_inherits(monkeypatch, tmp_path):
    monkeypatch.setenv("MULLIGAN_ENGINE__URL", "http://127.0.0.1:9")
    monkeypatch.setenv("mulligan_engine__model", "/elsewhere")
    monkeypatch.setenv("MULLIGAN_TRAINER__STEPS", "3")
    settings = Settings(data_dir=tmp_path)
    settings.engine.url, settings.engine.model = "http://127.0.0.1:30001", "/here"
    environment = settings.environment()
    assert environment["MULLIGAN_TRAINER__STEPS"] == "3"
    with monkeypatch.context() as child:
        for name in [name for name in os.environ if name.upper().startswith("MULLIGAN_")]:
            child.delenv(name)
        for name, value in environment.items():
            child.setenv(name, value)
        assert Settings().engine == settings.engine


def test_the_api_is_told_how_many_workers_it_has(tmp_path: Path):
    settings = make_settings(tmp_path, port=1, workers=3)
    (api,) = [spec for spec in plan.plan_children(settings, own_engine=False) if spec.name == "API"]
    assert api.env["MULLIGAN_WORKERS"] == "3"

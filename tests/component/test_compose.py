"""docker-compose.yml says what the code says: settings that exist, engines started as ours are, volumes that meet."""

import os
import re
import shlex

import pytest
from pydantic import BaseModel

from server.api.watch import LAST_EPISODES_S
from server.cli.serving import DRAIN_S
from server.engine.launch import engine_command
from server.settings import Settings
from tests.fixtures.compose_file import (
    FILE,
    REQUIRED,
    ROOT,
    argv,
    environment,
    interpolate,
    mounts,
    parse,
    read_env_file,
    services,
    used_variables,
    variables,
)  # fmt: skip
from trainer.settings import TrainerSettings

PROFILES = ["gpu", "cpu"]
OURS = {"gpu": ["migrate", "api", "worker", "beat"], "cpu": ["migrate", "api", "worker-cpu", "beat"]}
ENGINES = {"gpu": "engine", "cpu": "engine-cpu"}


def has_field(model: type[BaseModel], path: list[str]) -> bool:
    field = model.model_fields.get(path[0])
    if field is None or len(path) == 1:
        return field is not None
    inner = field.annotation
    return isinstance(inner, type) and issubclass(inner, BaseModel) and has_field(inner, path[1:])


def is_a_setting(name: str) -> bool:
    if name.startswith("MULLIGAN_TRAINER__"):
        return has_field(TrainerSettings, [name.removeprefix("MULLIGAN_TRAINER__").lower()])
    return has_field(Settings, name.removeprefix("MULLIGAN_").lower().split("__"))


@pytest.fixture
def load(monkeypatch):
    """Make the settings of the process that a service starts."""

    def make(service) -> tuple[Settings, TrainerSettings]:
        for name in [name for name in os.environ if name.startswith("MULLIGAN_")]:
            monkeypatch.delenv(name)
        for name, value in environment(service).items():
            monkeypatch.setenv(name, value)
        return Settings(), TrainerSettings()

    return make


def test_a_name_that_is_no_setting_would_be_found():
    assert is_a_setting("MULLIGAN_ENGINE__MAX_LORA_RANK")
    assert not is_a_setting("MULLIGAN_ENGINE__LORA_RANK")
    assert not is_a_setting("MULLIGAN_DATABASE")
    assert not is_a_setting("MULLIGAN_TRAINER__RANK")


@pytest.mark.parametrize("profile", PROFILES)
def test_every_part_gets_settings_that_exist_and_that_are_taken(profile, load):
    running = services(profile)
    for name in OURS[profile]:
        named = [variable for variable in environment(running[name]) if variable.startswith("MULLIGAN_")]
        assert [variable for variable in named if not is_a_setting(variable)] == []
        settings, trainer = load(running[name])
        assert settings.engine.url == "http://engine:30000"
        assert trainer.lora_rank <= settings.engine.max_lora_rank
        assert settings.log_json


@pytest.mark.parametrize("profile", PROFILES)
def test_all_parts_share_their_settings(profile):
    running = services(profile)
    base = environment(running["migrate"])
    for name in OURS[profile]:
        own = {key: value for key, value in environment(running[name]).items() if base.get(key) != value}
        of_the_api = {"HOST", "PORT", "WORKERS", "TELEMETRY__METRICS_TOKEN"}
        allowed = {"api": {f"MULLIGAN_{name}" for name in of_the_api}}
        assert set(own) <= allowed.get(name, {"MULLIGAN_TRAINER__DEVICE"})
        assert set(base) <= set(environment(running[name]))


def arguments(words: list[str]) -> dict[str, list[str]]:
    """What follows each option."""
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            assert word not in found
            found[word] = []
        else:
            found[next(reversed(found))].append(word)
    return found


SIZES = {"CONTEXT_TOKENS": "2048", "MAX_RUNNING_REQUESTS": "7", "MAX_LORA_RANK": "33", "MAX_LORAS_PER_BATCH": "5",
         "MAX_LOADED_LORAS": "9", "DTYPE": "float16", "ENGINE_THREADS": "3", "TOOL_CALL_PARSER": "llama3"}  # fmt: skip


@pytest.mark.parametrize("sizes", [{}, SIZES], ids=["as shipped", "every size changed"])
@pytest.mark.parametrize("profile", PROFILES)
def test_the_engine_is_started_as_our_settings_say(profile, sizes, load, tmp_path, monkeypatch):
    running = services(profile, **sizes)
    settings, _ = load(running["api"])
    if profile == "cpu":  # its model is a folder, and is read as one
        settings.engine.model = str(tmp_path)
    for name in [*os.environ]:  # what is set here already would not be seen as added
        monkeypatch.delenv(name)
    expected, their_environment = engine_command(settings.engine, 30000)
    own = argv(running[ENGINES[profile]])
    assert own[0] == "python3"
    assert own[1:3] == expected[1:3]
    ours, theirs = arguments(own[3:]), arguments(expected[3:])
    # In a container of its own it listens to a network that the API and the worker alone are in.
    assert ours.pop("--host") == ["0.0.0.0"]
    assert theirs.pop("--host") == ["127.0.0.1"]
    if profile == "gpu":
        assert 0 < float(ours.pop("--mem-fraction-static")[0]) < 1
    else:
        assert ours.pop("--model") == ["/app/demo/model"]
        assert theirs.pop("--model") == [str(tmp_path)]
    assert ours == theirs

    added = dict(their_environment)
    added.pop("PYTHONPATH", None)  # in the image our packages are installed
    given = environment(running[ENGINES[profile]])
    for hub in ("HF_HOME", "HF_TOKEN"):  # where the volume is, and a secret
        given.pop(hub, None)
    assert given == added


def test_adapters_are_where_the_engine_reads_what_the_trainer_writes(load):
    for profile in PROFILES:
        running = services(profile)
        worker = running[OURS[profile][2]]
        settings, _ = load(worker)
        place = str(settings.adapters_dir)
        assert mounts(worker)[place] == "adapters"
        for reader in (ENGINES[profile], "api"):
            assert mounts(running[reader])[place] == "adapters"
            assert f"adapters:{place}:ro" in running[reader]["volumes"]
        assert mounts(worker)["/cache"] == mounts(running[ENGINES[profile]])["/cache"] == "models"
        for part in OURS[profile]:
            assert mounts(running[part])[str(settings.data_dir)] == "data"


def test_every_volume_and_network_is_declared_and_used():
    file = parse()
    named = [volume.split(":")[0] for service in file["services"].values() for volume in service.get("volumes", [])]
    folders = {volume for volume in named if volume.startswith("./")}
    assert all((ROOT / folder).is_dir() for folder in folders)
    assert set(named) - folders == set(file["volumes"])
    networks = [network for service in file["services"].values() for network in service["networks"]]
    assert set(networks) == set(file["networks"])


def test_the_database_and_the_queue_have_no_way_out_and_the_api_alone_is_published():
    file = parse()["services"]
    assert [name for name, service in file.items() if "ports" in service] == ["api", "grafana"]
    assert services("gpu")["api"]["ports"] == ["127.0.0.1:8000:8000"]
    assert services("observability")["grafana"]["ports"] == ["127.0.0.1:3000:3000"]
    for watcher in ("prometheus", "grafana"):
        assert file[watcher]["networks"] == ["metrics"]
    assert parse()["networks"]["store"] == {"internal": True}
    for name in ("postgres", "redis"):
        assert list(file[name]["networks"]) == ["store"]
    for engine in ENGINES.values():
        assert list(file[engine]["networks"]) == ["engine"]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_whole_and_starts_in_order(profile):
    running = services(profile)
    other = ENGINES["cpu" if profile == "gpu" else "gpu"]
    assert set(running) == {"postgres", "redis", ENGINES[profile], *OURS[profile]}
    for name, service in running.items():
        for needed, how in service.get("depends_on", {}).items():
            if needed not in running:
                assert (name, needed, how["required"]) == ("api", other, False)
            elif how["condition"] == "service_healthy":
                assert "healthcheck" in running[needed]
            else:
                assert how["condition"] == "service_completed_successfully"
                assert running[needed]["restart"] == "no"
    for name in OURS[profile][1:]:
        assert running[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    networks = running[ENGINES[profile]]["networks"]
    named = {ENGINES[profile], *(networks["engine"]["aliases"] if isinstance(networks, dict) else [])}
    assert "engine" in named  # the address that our parts are told


def test_every_service_is_pinned_bounded_and_not_root():
    file = parse()["services"]
    users = {}
    for path in (ROOT / "docker").glob("*.Dockerfile"):
        text = path.read_text()
        assert re.search(r"^FROM \S+:\S*\d+\.\d+\.\d+\S*$", text, re.MULTILINE)
        users[path.name] = re.findall(r"^USER (.+)$", text, re.MULTILINE)[-1]
    assert set(users.values()) == {"10001:10001"}  # one number, or the engine could not read what the worker writes
    for name, service in file.items():
        assert re.fullmatch(r"([a-z]+/)?[a-z-]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9.]+)?", service["image"]), name
        assert service.get("user") or service["build"]["dockerfile"].split("/")[-1] in users, name
        assert service.get("user") != "root"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
        assert "deploy" in service
        assert name == "migrate" or ("healthcheck" in service and "stop_grace_period" in service)


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_a_part_is_not_killed_while_it_drains():
    running = services("cpu")
    assert seconds(running["api"]["stop_grace_period"]) >= 2 * (DRAIN_S + LAST_EPISODES_S)
    assert seconds(running["worker-cpu"]["stop_grace_period"]) >= 4 * 6  # an idle Celery worker needs up to six


def test_secrets_come_from_the_environment_and_are_required():
    text = FILE.read_text()
    assert re.findall(r"(?i)password[^$\n]*=\s*['\"]?[a-z0-9]{6,}", text) == []
    example = read_env_file(ROOT / ".env.example")
    for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD"):
        assert example[name] == ""
        with pytest.raises(KeyError, match=name):
            interpolate(parse(), {**variables("gpu"), name: ""})
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_example_lists_every_variable_with_the_default_of_the_file():
    used, example = used_variables(), read_env_file(ROOT / ".env.example")
    assert set(example) == {*used, "COMPOSE_PROFILES"}
    for name, defaults in used.items():
        assert len(defaults) == 1, f"{name} has different defaults: {defaults}"
        if name not in REQUIRED:
            assert defaults == {f":-{example[name]}"}
    assert set(read_env_file(ROOT / "docker" / "cpu.env")) <= set(example)
    for profile in PROFILES:
        assert variables(profile)["COMPOSE_PROFILES"] == profile


def test_what_the_image_copies_is_there_and_is_let_in():
    lines = (ROOT / "docker" / "mulligan.Dockerfile").read_text().splitlines()
    copied = [source for line in lines if line.startswith("COPY ") for source in shlex.split(line)[1:-1]]
    let_in = (ROOT / "docker" / "mulligan.Dockerfile.dockerignore").read_text().splitlines()
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert {f"!{source}" for source in copied} == {line for line in let_in if line.startswith("!")}
    packages = re.search(r"^packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert {name.strip(' "') for name in packages.split(",")} <= set(copied)


def test_health_checks_ask_the_ports_and_the_parts_that_are_there():
    for profile in PROFILES:
        running = services(profile)
        engine = running[ENGINES[profile]]
        port = arguments(argv(engine)[3:])["--port"][0]
        assert f"127.0.0.1:{port}/health" in engine["healthcheck"]["test"][-1]
        assert f":{environment(running['api'])['MULLIGAN_PORT']}/ready" in running["api"]["healthcheck"]["test"][-1]
        for name, part in ((OURS[profile][2], "worker"), ("beat", "beat")):
            assert running[name]["healthcheck"]["test"] == ["CMD", "python3", "docker/alive.py", part]
            assert running[name]["command"] == ["mulligan", part]


def test_the_page_about_deployment_names_what_is_there():
    page = (ROOT / "docs" / "deployment.md").read_text()
    settings = set(re.findall(r"MULLIGAN_[A-Z0-9_]*[A-Z0-9]", page))
    assert [name for name in settings if not is_a_setting(name)] == []
    verbs = r'exec(?: -T)?|run(?: --?[a-zT-]+(?: "[^"]*")?)*|stop|up -d --wait'
    named = set(re.findall(rf"docker compose (?:{verbs}) ([a-z][a-z-]*)", page))
    assert {"api", "migrate", "worker", "postgres"} <= named <= set(parse()["services"])
    assert set(re.findall(r"\]\(([a-z-]+\.md)\)", page)) <= {path.name for path in (ROOT / "docs").glob("*.md")}

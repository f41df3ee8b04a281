"""What the preflight says of real engines that were started well and wrongly: the embedded one, and SGLang."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from server.adapters.preflight import check_engine
from server.api.preflight import look
from server.domain import Adapter, CheckState, Round, Task, TaskVerifier, TrainingPolicy
from server.engine.inspection import inspect_engine
from server.engine.sglang import SGLangEngine
from server.settings import EngineSettings, RoundSizes, Settings
from server.store.database import Database
from server.store.tool_use import find_tool_tasks
from tests.fixtures.models import make_model
from tests.integration.trainer import conftest
from tests.integration.trainer.conftest import EMBEDDED, OPTIONS, SGLANG
from trainer import preflight
from trainer.errors import RoundFailed
from trainer.lora import open_model
from trainer.round import Desk, run_round
from trainer.settings import TrainerSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

BAD = (CheckState.FAILED, CheckState.WARNED)
RANK = TrainerSettings(lora_rank=4)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory) -> Path:
    """A model of the same shape and vocabulary, with other weights and another chat template."""
    path = make_model(tmp_path_factory.mktemp("other"), arch="llama", hidden=32, heads=2, scripted=False, seed=7)
    template = (path / "chat_template.jinja").read_text()
    (path / "chat_template.jinja").write_text(template.replace("<|im_end|>\n", "<|im_end|>\n\n"))
    return path


def drop(argv: list[str], option: str, values: int) -> list[str]:
    place = argv.index(option)
    return argv[:place] + argv[place + 1 + values :]


def put(argv: list[str], option: str, value: str) -> list[str]:
    argv = list(argv)
    argv[argv.index(option) + 1] = value
    return argv


def serve_changed(kind: str, model: Path, folder: Path, change: Callable[[list[str]], list[str]]) -> Iterator[str]:
    """Serve an engine whose command line somebody has changed; give its URL."""
    plain = conftest.engine_command

    def changed(settings: EngineSettings, port: int):
        argv, environment = plain(settings, port)
        return change(argv), environment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "engine_command", changed)
        yield from conftest.serve_engine(kind, model, folder)


@pytest.fixture
def other_embedded(model_path, other_model, tmp_path) -> Iterator[str]:
    """An embedded engine of another model, too small a rank and too few modules."""

    def spoil(argv):
        argv = put(put(argv, "--model", str(other_model)), "--max-lora-rank", "2")
        place = argv.index("--lora-target-modules")
        return [*argv[: place + 1], "q_proj", "v_proj"]

    yield from serve_changed("local", model_path, tmp_path, spoil)


@pytest.fixture
def bare_sglang(model_path, sglang_url, other_model, tmp_path) -> Iterator[str]:
    """SGLang of another model and template, without LoRA and without a tool-call parser."""

    def spoil(argv):
        for option, values in (("--enable-lora", 0), ("--lora-strict-loading", 0), ("--tool-call-parser", 1)):
            argv = drop(argv, option, values)
        for option in ("--max-lora-rank", "--max-loras-per-batch", "--max-loaded-loras", "--lora-backend"):
            argv = drop(argv, option, 1)
        argv = drop(argv, "--lora-target-modules", len(EngineSettings().lora_target_modules))
        return put(argv, "--model-path", str(other_model))

    yield from serve_changed("sglang", model_path, tmp_path, spoil)


@pytest.fixture
def small_sglang(model_path, sglang_url, other_model, tmp_path) -> Iterator[str]:
    """SGLang with too small a rank and another chat template."""

    def spoil(argv):
        return [*put(argv, "--max-lora-rank", "2"), "--chat-template", str(other_model / "chat_template.jinja")]

    yield from serve_changed("sglang", model_path, tmp_path, spoil)


async def see(url: str, settings: Settings, *, tools: tuple[str, ...] = ()) -> dict[str, tuple[CheckState, str, str]]:
    """Look at an engine with the server's eyes and the trainer's."""
    there = settings.model_copy(update={"engine": settings.engine.model_copy(update={"url": url})})
    facts = await inspect_engine(url)
    checks = check_engine(facts, there.engine, ranks={"letters": 4}, tool_tasks=tools)
    checks += await preflight.examine(there, RANK)
    return {one.name: (one.state, one.says, one.remedy) for one in checks}


async def weigh(url: str, settings: Settings) -> CheckState:
    model, tokenizer = open_model(settings.engine.model, None, settings.engine.lora_target_modules, RANK)
    return (await preflight.check_weights(url, settings, model, tokenizer)).state


@pytest.mark.parametrize("settings", [EMBEDDED, SGLANG], indirect=True)
async def test_an_engine_that_fits_passes_and_is_left_as_it_was(settings, engine):
    before = (await engine.state()).adapters
    found = await see(settings.engine.url, settings, tools=("letters",))
    assert {name: state for name, (state, *_) in found.items() if state in BAD and name != "disk"} == {}
    assert found["engine reads the trainer's folder"][0] is CheckState.OK
    assert found["engine has our chat template"][0] is CheckState.OK
    assert await weigh(settings.engine.url, settings) is CheckState.OK
    assert (await engine.state()).adapters == before
    assert not [path for path in settings.rounds_dir.rglob("*") if path.is_file()]


async def test_an_embedded_engine_of_another_model_and_too_small_is_told(settings, model_path, other_embedded):
    found = await see(other_embedded, settings)
    assert await weigh(other_embedded, settings) is CheckState.FAILED
    bad = {name for name, (state, *_) in found.items() if state is CheckState.FAILED}
    assert bad == {
        "engine serves our model",
        "engine's LoRA rank",
        "engine's LoRA modules",
        "engine has our chat template",
        "engine reads the trainer's folder",
    }
    assert f"--model-path {model_path}" in found["engine serves our model"][2]
    assert "--max-lora-rank 4" in found["engine's LoRA rank"][2]
    assert "down_proj" in found["engine's LoRA modules"][2]
    assert "--chat-template" in found["engine has our chat template"][2]
    assert found["engine has our tokenizer"][0] is CheckState.OK


async def test_a_folder_that_the_engine_cannot_read_names_the_mount(settings, monkeypatch):
    monkeypatch.setattr(SGLangEngine, "load_adapter", _load_from_elsewhere)
    check = await preflight.check_shared_folder(settings.engine.url, settings, RANK)
    assert check.state is CheckState.FAILED
    assert str(settings.data_dir) in check.remedy
    assert "mount" in check.remedy


_load = SGLangEngine.load_adapter


async def _load_from_elsewhere(self, name: str, path: str) -> None:
    """Load as on a machine where the folder is not mounted: the real engine, a path that is not there."""
    await _load(self, name, f"/not-mounted{path}")


@pytest.mark.sglang
@pytest.mark.slow
async def test_sglang_started_wrongly_is_told_by_each_flag(settings, bare_sglang):
    found = await see(bare_sglang, settings, tools=("letters",))
    assert await weigh(bare_sglang, settings) is CheckState.FAILED
    bad = {name for name, (state, *_) in found.items() if state is CheckState.FAILED}
    assert bad == {
        "engine serves our model",
        "engine takes adapters",
        "engine reads tool calls",
        "engine has our chat template",
    }
    assert "--enable-lora --max-lora-rank 4" in found["engine takes adapters"][2]
    assert "--tool-call-parser qwen25" in found["engine reads tool calls"][2]
    assert "letters" in found["engine reads tool calls"][1]


@pytest.mark.sglang
@pytest.mark.slow
async def test_sglang_with_too_small_a_rank_and_another_template_is_told(monkeypatch, settings, small_sglang):
    found = await see(small_sglang, settings)
    monkeypatch.setattr(SGLangEngine, "load_adapter", _load_from_elsewhere)
    unread = await preflight.check_shared_folder(small_sglang, settings, TrainerSettings(lora_rank=2))
    bad = {name for name, (state, *_) in found.items() if state is CheckState.FAILED}
    assert bad == {"engine's LoRA rank", "engine has our chat template", "engine reads the trainer's folder"}
    assert "rank" in found["engine reads the trainer's folder"][1]
    assert unread.state is CheckState.FAILED
    assert "mount the folder" in unread.remedy


async def test_a_round_refuses_to_begin_and_says_why(stores, settings, engine, task, other_model):
    other = settings.model_copy(
        update={"engine": settings.engine.model_copy(update={"model": str(other_model), "max_lora_rank": 64})}
    )
    created = await stores.rounds.create(task.name, {})
    leased: Round = await stores.rounds.lease(created.id, "test:1")
    options = TrainerSettings().override(OPTIONS, {"lora_rank": 32})
    before = (await engine.state()).adapters
    with pytest.raises(RoundFailed) as refused:
        await run_round(Desk(leased, task, stores, engine, other, options))
    said = str(refused.value)
    for part in ("--max-lora-rank 32", "--model-path", "--chat-template", "nats a token", "mulligan doctor"):
        assert part in said
    assert (await engine.state()).adapters == before


def run_doctor(settings: Settings, *options: str) -> tuple[int, list[dict]]:
    told = subprocess.run(
        [sys.executable, "-m", "server.cli", "doctor", "--json", *options],
        env=settings.environment(), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert told.stdout, told.stderr.decode()
    return told.returncode, json.loads(told.stdout)


async def test_the_doctor_asks_the_worker_and_ends_by_what_it_found(settings, stores, task, start_worker):
    status, checks = await asyncio.to_thread(run_doctor, settings)
    assert status == 1
    (missing,) = [one for one in checks if one["state"] == "failed"]
    assert (missing["name"], missing["remedy"]) == ("worker", "start one: mulligan worker")

    worker = start_worker()
    for _ in range(300):
        if await _heard(settings):
            break
        await asyncio.sleep(0.1)
    status, checks = await asyncio.to_thread(run_doctor, settings)
    assert [one for one in checks if one["state"] == "failed"] == []
    assert status == 0
    looked = {one["name"] for one in checks if one["where"].endswith(f":{worker.process.pid}")}
    assert {"trainer's model", "engine has our tokenizer", "engine reads the trainer's folder"} <= looked
    assert next(one["says"] for one in checks if one["name"] == "engine's adapter slots").startswith(
        f"{settings.engine.url}, 0 of 12 slots"
    )

    # What is asked of a worker that sees another model comes back as a failure, by the worker's own eyes.
    await stores.tasks.update("letters", training=TrainingPolicy(pool="h100"))
    status, checks = await asyncio.to_thread(run_doctor, settings, "--wait-s", "0")
    (missing,) = [one for one in checks if one["state"] == "failed"]
    assert "MULLIGAN_POOL=h100" in missing["remedy"]
    assert "letters" in missing["says"]


async def _heard(settings: Settings) -> bool:
    database = Database(settings.database_url)
    try:
        checks = await look(settings, RoundSizes(), database)
    finally:
        await database.close()
    return any(one.name == "worker" and one.state is CheckState.OK for one in checks)


async def test_a_damaged_champion_and_changed_prompts_are_told_by_name(settings, stores, task):
    folder = settings.adapters_dir / "letters" / "letters@1"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    prints = {"reflection_template": "another"}
    adapter = Adapter("letters@1", "letters", str(folder), {"adapter_model.safetensors": "0" * 64})
    await stores.adapters.add(replace(adapter, fingerprints=prints))
    await stores.tasks.flip_champion("letters", "letters@1", expected_generation=0)
    database = Database(settings.database_url)
    try:
        found = {one.name: one for one in await look(settings, RoundSizes(), database)}
        (folder / "adapter_model.safetensors").unlink()
        gone = {one.name: one for one in await look(settings, RoundSizes(), database)}
    finally:
        await database.close()
    assert found["champions' files"].state is gone["champions' files"].state is CheckState.FAILED
    assert "letters@1" in found["champions' files"].says
    assert "is not the one that was registered" in found["champions' files"].says
    assert "lacks its file" in gone["champions' files"].says
    assert "mulligan adapters rollback letters" in gone["champions' files"].remedy
    doubt = found["champions' fingerprints"]
    assert (doubt.state, "--gate-only" in doubt.remedy) == (CheckState.WARNED, True)


async def test_a_task_that_judges_calls_uses_tools(settings, stores):
    await stores.verifiers.add("calls", "function_call", {})
    await stores.tasks.create(Task("agent", verifiers=(TaskVerifier("calls", 1),)))
    await stores.tasks.create(Task("text"))
    database = Database(settings.database_url)
    try:
        assert await find_tool_tasks(database) == {"agent"}
    finally:
        await database.close()

"""The command lines of engines."""

import sys
from pathlib import Path

import pytest

from server.engine.launch import count_gpus, engine_command
from server.settings import EngineSettings


def options(command: list[str]) -> dict[str, list[str]]:
    """Sort a command line by its options."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in command[3:]:
        if word.startswith("--"):
            name = word
            found[name] = []
        else:
            found[name].append(word)
    return found


def test_the_local_engine_gets_every_limit():
    settings = EngineSettings(model="/m", model_name="tiny", max_lora_rank=8, threads=3, context_tokens=512)
    command, environment = engine_command(settings, 1234)
    assert command[:3] == [sys.executable, "-m", "local_engine"]
    given = options(command)
    assert given["--model"] == ["/m"]
    assert given["--served-model-name"] == ["tiny"]
    assert given["--host"] == ["127.0.0.1"]
    assert given["--port"] == ["1234"]
    assert given["--max-lora-rank"] == ["8"]
    assert given["--context-length"] == ["512"]
    assert given["--max-running-requests"] == ["64"]
    assert given["--max-loaded-loras"] == ["12"]
    assert given["--threads"] == ["3"]
    assert given["--lora-target-modules"] == list(settings.lora_target_modules)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert Path(environment["PYTHONPATH"].partition(":")[0], "local_engine").is_dir()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sglang_gets_lora_flags_from_the_settings(device: str):
    settings = EngineSettings(
        kind="sglang",
        model="/m",
        device=device,
        max_lora_rank=32,
        max_loras_per_batch=3,
        sglang_python="/env/bin/python",
    )
    command, environment = engine_command(settings, 1234)
    assert command[:3] == ["/env/bin/python", "-m", "sglang.launch_server"]
    given = options(command)
    assert given["--host"] == ["127.0.0.1"]
    assert given["--enable-lora"] == given["--lora-strict-loading"] == given["--sleep-on-idle"] == []
    assert given["--max-lora-rank"] == ["32"]
    assert given["--max-loras-per-batch"] == ["3"]
    assert given["--max-loaded-loras"] == ["12"]
    assert given["--lora-target-modules"] == list(settings.lora_target_modules)
    assert given["--tool-call-parser"] == ["qwen25"]
    assert given["--dtype"] == ["float32"]
    assert ("--lora-backend" in given) == (device == "cpu")
    assert ("SGLANG_USE_CPU_ENGINE" in environment) == (device == "cpu")
    assert "--reasoning-parser" not in given


def test_sglang_takes_thoughts_out_of_answers_where_told_how():
    settings = EngineSettings(kind="sglang", model="/m", device="cpu", reasoning_parser="qwen3")
    command, _ = engine_command(settings, 1234)
    assert options(command)["--reasoning-parser"] == ["qwen3"]


def test_the_interpreter_of_sglang_is_not_resolved_out_of_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    command, _ = engine_command(EngineSettings(kind="sglang", sglang_python="bin/python"), 1)
    assert command[0] == str(tmp_path / "bin/python")


@pytest.mark.parametrize(("kind", "flag"), [("sglang", "--mem-fraction-static"), ("local", "--gpu-memory-share")])
def test_a_gpu_that_is_shared_is_split(kind: str, flag: str):
    alone = EngineSettings(kind=kind, device="cuda", colocate_engine_share=0.4)
    assert flag not in options(engine_command(alone, 1)[0])
    assert alone.trainer_share == 1.0
    shared = alone.model_copy(update={"colocate": True})
    assert options(engine_command(shared, 1)[0])[flag] == ["0.4"]
    assert shared.trainer_share == pytest.approx(0.5)  # a tenth is the engine's activations' and CUDA's


def test_on_a_cpu_there_is_no_memory_to_split():
    settings = EngineSettings(kind="sglang", device="cpu", colocate=True)
    assert "--mem-fraction-static" not in options(engine_command(settings, 1)[0])


def test_gpus_are_counted_by_their_devices_alone(tmp_path: Path):
    assert count_gpus(tmp_path) == 0
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "tty0"):
        (tmp_path / name).touch()
    assert count_gpus(tmp_path) == 2

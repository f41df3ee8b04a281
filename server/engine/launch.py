"""How an engine is started on this machine: its command line and its environment, from the settings.

Called by the supervisor and by tests, which run it as a child process. Starts nothing itself.
"""

import os
import sys
from pathlib import Path

from server.settings import EngineSettings

_HOST = "127.0.0.1"  # an engine has no keys: it must never listen elsewhere
_ROOT = Path(__file__).resolve().parent.parent.parent
_KV_BLOCKS = 8  # sequences of full length that SGLang's cache holds on a CPU, where it would take all memory


def engine_command(settings: EngineSettings, port: int) -> tuple[list[str], dict[str, str]]:
    """Build the argument list and the whole environment of an engine that listens on `port`."""
    build = {"local": _local_command, "sglang": _sglang_command}[settings.kind]
    return build(settings, port)


def _local_command(settings: EngineSettings, port: int) -> tuple[list[str], dict[str, str]]:
    command = [
        *(sys.executable, "-m", "local_engine"),
        *("--model", settings.model, "--served-model-name", settings.model_name),
        *("--host", _HOST, "--port", str(port)),
        *("--device", settings.device, "--dtype", settings.dtype),
        *("--threads", str(_threads(settings))),
        *("--context-length", str(settings.context_tokens)),
        *("--max-running-requests", str(settings.max_running_requests)),
        *("--max-loaded-loras", str(settings.max_loaded_loras)),
        *("--max-lora-rank", str(settings.max_lora_rank)),
        *("--lora-target-modules", *settings.lora_target_modules),
        *(("--gpu-memory-share", str(settings.colocate_engine_share)) if settings.colocate else ()),
    ]
    path = os.pathsep.join(part for part in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return command, {**_environment(settings), "PYTHONPATH": path}


def _sglang_command(settings: EngineSettings, port: int) -> tuple[list[str], dict[str, str]]:
    command = [
        *(_sglang_interpreter(settings), "-m", "sglang.launch_server"),
        *("--model-path", settings.model, "--served-model-name", settings.model_name),
        *("--host", _HOST, "--port", str(port)),
        *("--dtype", settings.dtype),
        *("--context-length", str(settings.context_tokens)),
        *("--max-running-requests", str(settings.max_running_requests)),
        *("--tool-call-parser", settings.tool_call_parser),
        *(("--reasoning-parser", settings.reasoning_parser) if settings.reasoning_parser else ()),
        # One slot of a batch is the base's own, and rank and modules fix the pool that adapters must fit.
        *("--enable-lora", "--lora-strict-loading"),
        *("--max-lora-rank", str(settings.max_lora_rank)),
        *("--lora-target-modules", *settings.lora_target_modules),
        *("--max-loras-per-batch", str(settings.max_loras_per_batch)),
        *("--max-loaded-loras", str(max(settings.max_loaded_loras, settings.max_loras_per_batch))),
        # Rounds ask below users, whose requests say nothing: without the default they would come last.
        *("--enable-priority-scheduling", "--default-priority-value", "0"),
        "--sleep-on-idle",  # otherwise an idle scheduler takes most of a core
        *("--log-level", "warning"),
    ]
    environment = {
        **_environment(settings),
        "SGLANG_FORWARD_UNKNOWN_TOOLS": "1",  # a call to a tool that was not offered is a wrong answer, not no answer
        "SGLANG_REQUEST_STATE_WAIT_TIMEOUT": "1",  # seconds until a client that went away is noticed
    }
    if not _on_cpu(settings):
        share = ("--mem-fraction-static", str(settings.colocate_engine_share)) if settings.colocate else ()
        return [*command, *share], environment
    command += [
        *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
        *("--lora-backend", "torch_native", "--disable-overlap-schedule", "--skip-server-warmup"),
        *("--max-total-tokens", str(settings.context_tokens * max(_KV_BLOCKS, settings.max_running_requests // 2))),
    ]
    return command, {**environment, "SGLANG_USE_CPU_ENGINE": "1"}


def _sglang_interpreter(settings: EngineSettings) -> str:
    given = Path(settings.sglang_python)
    beside_us = _ROOT / given  # where `make sglang-cpu` puts it
    found = beside_us if not given.exists() and beside_us.exists() else given
    return str(found.absolute())  # not resolved: the interpreter of an environment is a link out of it


def _on_cpu(settings: EngineSettings) -> bool:
    return settings.device == "cpu" or (settings.device == "auto" and not Path("/dev/nvidiactl").exists())


def count_gpus(devices: Path = Path("/dev")) -> int:
    """Count this machine's NVIDIA GPUs, by their device files."""
    return sum(path.name.removeprefix("nvidia").isdigit() for path in devices.glob("nvidia*"))


def _threads(settings: EngineSettings) -> int:
    return settings.threads or max((os.cpu_count() or 2) // 2, 1)


def _environment(settings: EngineSettings) -> dict[str, str]:
    # Busy-waiting threads would take the cores of the processes beside: PASSIVE lets them sleep.
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(_threads(settings)),
        "OMP_WAIT_POLICY": "PASSIVE",
        # A model in a folder is all there is to read; one named by its id may have to be fetched first.
        **({"HF_HUB_OFFLINE": "1"} if Path(settings.model).is_dir() else {}),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

"""Which processes train a round: one, or one for each of several GPUs, as a config file of `accelerate` says.

Asked by trainer.jobs before it starts a trainer, and by trainer.preflight. A round is data parallel and nothing else
(docs/decisions/0016): what a config asks for beyond that is refused here, by name, instead of being passed over in
silence. It must never import torch or accelerate: the worker asks it too.
"""

import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import RoundFailed

SUPPORTED = "MULTI_GPU"

_SETTING = "MULLIGAN_TRAINER__ACCELERATE_CONFIG"
_READ = frozenset({"distributed_type", "num_processes", "gpu_ids", "main_process_port"})
_ONLY: Mapping[str, tuple[Any, str]] = {  # what it may be besides left out, and what to do about anything else
    "compute_environment": ("LOCAL_MACHINE", "a round trains on one machine"),
    "num_machines": (1, "a round trains on one machine"),
    "machine_rank": (0, "a round trains on one machine"),
    "mixed_precision": ("no", "set MULLIGAN_TRAINER__DTYPE instead"),
    "downcast_bf16": ("no", "set MULLIGAN_TRAINER__DTYPE instead"),
    "rdzv_backend": ("static", "a round trains on one machine"),
    "use_cpu": (False, "leave it out; MULLIGAN_TRAINER__DEVICE=cpu lets the processes compute on the CPU"),
}
_IGNORED = frozenset({"main_training_function", "same_network", "main_process_ip"})  # of notebooks, and other machines
_NOT_SHARDED = f"set distributed_type: {SUPPORTED}, with a base model that fits on each GPU: nothing is sharded"
_UNLIKE: Mapping[str, str] = {
    "NO": f"for one GPU leave {_SETTING} out",
    "MULTI_CPU": f"set distributed_type: {SUPPORTED}, and MULLIGAN_TRAINER__DEVICE=cpu",
    **dict.fromkeys(("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"), _NOT_SHARDED),
}


Fault = tuple[str, str]
"""What is not supported in a config, and what to write instead."""


class SpreadRefused(RoundFailed):
    """Rounds cannot train by this config. `says` is why, `remedy` what to change."""

    def __init__(self, says: str, remedy: str) -> None:
        super().__init__(f"{says}: {remedy}")
        self.says, self.remedy = says, remedy


@dataclass(frozen=True, slots=True)
class Spread:
    """A trainer of several processes."""

    config: Path
    processes: int
    port: int | None = None  # on which the launcher lets them meet; None: a free one

    def command(self, argv: list[str], log_dir: Path) -> list[str]:
        """Say what starts it, for what `python -m trainer.round` would be told; its ranks' last words go to a folder.

        The port is chosen anew each time unless the config names one: two pools may train on one machine.
        """
        launch = [sys.executable, "-m", "trainer.launcher", "--config_file", str(self.config)]
        port = [] if self.port else ["--main_process_port", "0"]
        return [*launch, *port, "--log_dir", str(log_dir), "--module", "trainer.rank", *argv]


def read_spread(config: str) -> Spread | None:
    """Read accelerate's config; None where none is named: one process trains.

    Raises: SpreadRefused with what is wrong in it, and what to write there.
    """
    if not config:
        return None
    path, name = Path(config), f"accelerate's config {config}"
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError) as error:
        raise SpreadRefused(f"{name} cannot be read ({error})", f"mend {_SETTING}") from error
    except yaml.YAMLError as error:
        raise SpreadRefused(f"{name} is no YAML ({' '.join(str(error).split())})", "mend it") from error
    if not isinstance(told, dict):
        raise SpreadRefused(f"{name} is no mapping", "write one with `accelerate config`")
    if fault := _find_fault(told):
        raise SpreadRefused(f"{name}: {fault[0]}", fault[1])
    return Spread(path, told["num_processes"], told.get("main_process_port"))


def _find_fault(told: Mapping[str, Any]) -> Fault | None:
    kind = str(told.get("distributed_type", "left out")).upper()
    if kind != SUPPORTED:
        remedy = _UNLIKE.get(kind, f"set distributed_type: {SUPPORTED}")
        return f"distributed_type is {kind}, rounds support {SUPPORTED} alone", remedy
    processes = told.get("num_processes")
    if type(processes) is not int or processes < 2:
        remedy = f"set the number of GPUs, at least 2; for one leave {_SETTING} out"
        return f"num_processes is {processes!r}", remedy
    for name, (only, remedy) in _ONLY.items():
        if told.get(name) not in (None, only):
            return f"{name} is {told[name]!r}, rounds support {only!r} alone", remedy
    unknown = sorted(set(told) - _READ - _IGNORED - set(_ONLY))
    if asked := [name for name in unknown if told[name] not in (None, False, "", "no", {}, [])]:
        return f"{asked[0]} is not supported", "leave it out"
    return _find_bad_address(told) or _find_few_gpus(told.get("gpu_ids"), processes)


def _find_bad_address(told: Mapping[str, Any]) -> Fault | None:
    port, ip = told.get("main_process_port"), told.get("main_process_ip")
    if port is not None and (type(port) is not int or not 0 <= port < 65536):
        return f"main_process_port is {port!r}", "set a port, or leave it out for a free one"
    try:
        away = ip not in (None, "", "localhost") and not ipaddress.ip_address(str(ip)).is_loopback
    except ValueError:
        away = True
    return (f"main_process_ip is {ip!r}", "a round trains on one machine; leave it out") if away else None


def _find_few_gpus(gpu_ids: Any, processes: int) -> Fault | None:
    if gpu_ids in (None, "all"):
        return None
    named = {one.strip() for one in str(gpu_ids).split(",") if one.strip()}
    if len(named) >= processes:
        return None
    return f"gpu_ids is {gpu_ids!r}, num_processes is {processes}", "name one GPU for each process, or all"

"""Which configs of accelerate rounds train by, and what is refused before a round begins."""

import sys

import pytest
import yaml

from server.domain import CheckState
from server.errors import InvalidRequest
from trainer.launcher import explain
from trainer.preflight import check_spread
from trainer.rank import see_one_gpu, take_place
from trainer.settings import TrainerSettings
from trainer.spreading import SpreadRefused, read_spread

PLAIN = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_processes": 2}
WRITTEN = {  # by `accelerate config` of 1.15, for two GPUs of one machine
    **PLAIN, "debug": False, "downcast_bf16": "no", "enable_cpu_affinity": False, "gpu_ids": "all", "machine_rank": 0,
    "main_training_function": "main", "mixed_precision": "no", "num_machines": 1, "rdzv_backend": "static",
    "same_network": True, "tpu_env": [], "tpu_use_cluster": False, "tpu_use_sudo": False, "use_cpu": False,
}  # fmt: skip


def write(tmp_path, told):
    path = tmp_path / "accelerate.yaml"
    path.write_text(told if isinstance(told, str) else yaml.safe_dump(told))
    return str(path)


def test_without_a_config_one_process_trains():
    assert read_spread("") is None


@pytest.mark.parametrize(
    "told", [PLAIN, WRITTEN, {**PLAIN, "gpu_ids": "0,3", "main_process_port": 29511, "main_process_ip": "127.0.0.1"}]
)
def test_what_is_supported(tmp_path, told):
    spread = read_spread(write(tmp_path, told))
    assert spread.processes == 2
    command = spread.command(["--round", "rd"], tmp_path / "ranks")
    assert command[:4] == [sys.executable, "-m", "trainer.launcher", "--config_file"]
    assert ("--main_process_port" in command) is ("main_process_port" not in told)
    assert command[-4:] == ["--module", "trainer.rank", "--round", "rd"]


@pytest.mark.parametrize(
    ("change", "says", "remedy"),
    [
        (
            {"distributed_type": "FSDP"},
            "distributed_type is FSDP, rounds support MULTI_GPU alone",
            "nothing is sharded",
        ),
        ({"distributed_type": "DEEPSPEED"}, "is DEEPSPEED, rounds support MULTI_GPU alone", "fits on each GPU"),
        ({"distributed_type": "NO"}, "distributed_type is NO", "leave MULLIGAN_TRAINER__ACCELERATE_CONFIG out"),
        ({"distributed_type": "MULTI_CPU"}, "is MULTI_CPU", "MULLIGAN_TRAINER__DEVICE=cpu"),
        ({"distributed_type": None}, "distributed_type is NONE", "set distributed_type: MULTI_GPU"),
        ({"num_processes": 1}, "num_processes is 1", "at least 2"),
        ({"num_processes": "2"}, "num_processes is '2'", "at least 2"),
        ({"num_machines": 2}, "num_machines is 2", "one machine"),
        ({"mixed_precision": "bf16"}, "mixed_precision is 'bf16'", "MULLIGAN_TRAINER__DTYPE"),
        ({"use_cpu": True}, "use_cpu is True", "MULLIGAN_TRAINER__DEVICE=cpu"),
        ({"gpu_ids": "0"}, "gpu_ids is '0', num_processes is 2", "one GPU for each"),
        ({"main_process_ip": "10.0.0.4"}, "main_process_ip is '10.0.0.4'", "one machine"),
        ({"main_process_port": "x"}, "main_process_port is 'x'", "free one"),
        ({"fsdp_config": {"fsdp_version": 2}}, "fsdp_config is not supported", "leave it out"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "dynamo_config is not supported", "leave it out"),
        ({"debug": True}, "debug is not supported", "leave it out"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_not_is_refused_by_name(tmp_path, change, says, remedy):
    with pytest.raises(SpreadRefused) as caught:
        read_spread(write(tmp_path, {**WRITTEN, **change}))
    assert says in caught.value.says
    assert remedy in caught.value.remedy
    assert str(caught.value) == f"{caught.value.says}: {caught.value.remedy}"


@pytest.mark.parametrize(("told", "says"), [("a: [", "is no YAML"), ("- a", "is no mapping"), ("", "is no mapping")])
def test_what_is_no_config_is_refused(tmp_path, told, says):
    with pytest.raises(SpreadRefused, match=says):
        read_spread(write(tmp_path, told))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SpreadRefused, match=r"cannot be read.*mend MULLIGAN_TRAINER__ACCELERATE_CONFIG"):
        read_spread(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("number", "exitcode", "message", "told"),
    [
        (0, 1, "the loss became nan", "the loss became nan"),
        (1, 1, "the loss became nan", "on rank 1 of 2: the loss became nan"),
        (1, -9, "Signal 9 (SIGKILL) received by PID 7", "rank 1 of 2 was killed by SIGKILL (out of memory?)"),
        (0, -6, "", "rank 0 of 2 was killed by SIGABRT"),
        (1, 3, "To enable traceback see: https://", "rank 1 of 2 ended with status 3, without a word"),
    ],
)
def test_why_a_rank_failed(number, exitcode, message, told):
    assert explain(number, 2, exitcode, message) == told


@pytest.mark.parametrize(
    ("listed", "rank", "seen"),
    [(None, 1, "1"), ("0,3", 1, "3"), ("GPU-a, GPU-b", 0, "GPU-a"), ("0", 1, ""), ("", 0, "")],
)
def test_a_rank_sees_its_own_gpu_alone(listed, rank, seen):
    environment = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    see_one_gpu(environment, rank)
    assert environment["CUDA_VISIBLE_DEVICES"] == seen


def test_libraries_are_not_told_of_other_ranks():
    told = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    environment = {**told, "ACCELERATE_MIXED_PRECISION": "no", "HOME": "/root"}
    assert take_place(environment) == (1, 2, "127.0.0.1", 29500)
    assert environment == {"HOME": "/root"}


def test_the_doctor_says_what_to_change(tmp_path):
    assert check_spread(TrainerSettings()) == []
    good = write(tmp_path, WRITTEN)
    (check,) = check_spread(TrainerSettings(accelerate_config=good, device="cpu"))
    assert (check.state, check.says) == (CheckState.OK, "2 processes, which compute on the CPU (device is cpu)")
    bad = write(tmp_path, {**WRITTEN, "distributed_type": "DEEPSPEED"})
    (check,) = check_spread(TrainerSettings(accelerate_config=bad, device="cpu"))
    assert check.state is CheckState.FAILED
    assert check.says.endswith("distributed_type is DEEPSPEED, rounds support MULTI_GPU alone")
    assert "set distributed_type: MULTI_GPU" in check.remedy


def test_no_task_or_round_names_a_file_of_the_workers_machine():
    with pytest.raises(InvalidRequest, match="set MULLIGAN_TRAINER__ACCELERATE_CONFIG where the worker runs"):
        TrainerSettings().override({"accelerate_config": "/etc/passwd"})

"""When a round's budget lets another step begin, and how it says that it does not."""

import pytest

from server.domain import Usage
from trainer.budget import MIB, Budget
from trainer.errors import RoundFailed
from trainer.settings import TrainerSettings


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make_budget(tmp_path, clock=None, **options) -> Budget:
    told = {
        name: options.pop(name)
        for name in ("seconds_before", "tokens", "gate_samples", "gate_least")
        if name in options
    }
    return Budget(TrainerSettings(**options), tmp_path, clock=clock or Clock(), **told)


def test_without_limits_every_step_fits(tmp_path):
    budget = make_budget(tmp_path, gate_samples=10**6)
    budget.note_sampled(10, 1e6, 10**9)
    budget.count(Usage(10**9, 10**9))
    assert budget.allows_step(10**12)
    budget.check_gate()
    assert budget.seconds_for_step is budget.seconds_left is None
    assert budget.describe() == {"minutes": 0.0, "tokens": 2 * 10**9, "disk_mb": 0.0}


def test_training_stops_so_that_the_gate_still_fits(tmp_path):
    """Ten minutes; a step takes 100 s, and a gate of 120 samples, at 1 s a rollout, 180 s."""
    clock = Clock()
    budget = make_budget(tmp_path, clock, max_minutes=10, gate_samples=120, gate_least=20)
    steps = 0
    while budget.allows_step():
        clock.now += 100
        budget.note_sampled(100, 100.0, 0)
        budget.note_step(100.0)
        steps += 1
    assert steps == 4  # 400 + 180 fit into 600, 500 + 180 do not
    assert budget.stopped.startswith(
        "max_minutes: 6.7 of 10 were used, and another step (100 s) and the gate (about 180 s)"
    )
    assert budget.seconds_left == 200.0
    budget.check_gate()
    clock.now += 175
    with pytest.raises(
        RoundFailed, match=r"max_minutes is used up: 9.6 of 10 minutes, and the gate would take 0.5 more"
    ):
        budget.check_gate()


def test_earlier_leases_count(tmp_path):
    budget = make_budget(tmp_path, max_minutes=1, seconds_before=50.0, tokens=7)
    assert budget.seconds_left == 10.0
    assert budget.describe() == {"minutes": 0.83, "tokens": 7, "disk_mb": 0.0, "max_minutes": 1.0}


def test_tokens_stop_the_training_and_never_go_beyond(tmp_path):
    budget = make_budget(tmp_path, max_tokens=1000, gate_samples=10, gate_least=10)
    budget.count(Usage(250, 50))
    budget.note_sampled(30, 1.0, 300)  # ten tokens a rollout: 150 for the gate
    assert budget.allows_step()
    budget.count(Usage(260, 0))
    assert not budget.allows_step()  # 560 + 300 + 150
    assert (
        budget.stopped
        == "max_tokens: 560 of 1000 were used, and another step (300) and the gate (about 150) did not fit any more"
    )
    budget.check_gate()
    with pytest.raises(RoundFailed, match="max_tokens is used up: 1001 of 1000 tokens"):
        budget.count(Usage(441, 0))


def test_a_gate_that_would_go_beyond_is_not_begun(tmp_path):
    budget = make_budget(tmp_path, max_tokens=1000, gate_samples=100, gate_least=50)
    budget.count(Usage(400, 0))
    budget.note_sampled(40, 1.0, 400)
    with pytest.raises(
        RoundFailed, match="max_tokens is used up: 400 of 1000 tokens, and the gate would take 750 more"
    ):
        budget.check_gate()


def test_disk_is_that_of_the_rounds_folder(tmp_path):
    (tmp_path / "pushes" / "one").mkdir(parents=True)
    (tmp_path / "pushes" / "one" / "weights").write_bytes(b"0" * MIB)
    budget = make_budget(tmp_path, max_disk_mb=2.5)
    assert budget.allows_step(MIB)
    assert not budget.allows_step(2 * MIB)
    assert budget.stopped == "max_disk_mb: 1.0 of 2.5 MiB were used, and a push of 2.0 MiB did not fit any more"
    assert budget.describe()["disk_mb"] == 1.0

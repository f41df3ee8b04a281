"""An update that does not fit into memory is made again in smaller parts, with the same result."""

import pytest
import torch

from tests.integration.trainer.test_grpo import SETTINGS, build, make_adapter_model, make_members
from trainer.errors import RoundFailed
from trainer.grpo import ReflectionTrainer
from trainer.memory import Microbatch, is_out_of_memory, take_share

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


class Short(ReflectionTrainer):
    """Has memory for `room` sequences in a backward pass; keeps how many each pass held."""

    room = 4
    error: BaseException = ERRORS[0]

    def _compute_loss(self, model, inputs):
        rows = len(inputs["advantages"])
        self.__dict__.setdefault("tried", []).append(rows)
        loss = super()._compute_loss(model, inputs)
        if rows > self.room:  # after a part of the work is done
            raise self.error
        return loss


def train(tmp_path, cls=ReflectionTrainer, **options):
    model = make_adapter_model(double=True)
    told: list = []
    settings = SETTINGS.override({"steps": 2, "passes": 2, "microbatch_sequences": 9, "learning_rate": 1e-2, **options})
    trainer = build(model, make_members(model), tmp_path, settings, cls, told)
    trainer.run()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return trainer, weights, [figures for _, figures, _ in told]


@pytest.mark.parametrize("error", ERRORS[:2], ids=["gpu", "cpu"])
def test_half_as_many_sequences_give_the_same_weights(tmp_path, error):
    class ShortOnce(Short):
        """Runs out of memory one time, in the second pass of an update, whose first has left a gradient behind."""

        def _compute_loss(self, model, inputs):
            self.room = 100 if len(self.__dict__.get("tried", [])) != 1 else 0
            return super()._compute_loss(model, inputs)

    ShortOnce.error = error
    _, wanted, plain = train(tmp_path)
    trainer, weights, figures = train(tmp_path, ShortOnce, microbatch_sequences=6)

    assert trainer.tried[:2] == [4, 5]  # nine members; the second pass is one too many
    assert trainer.tried[2:5] == [3, 3, 3]
    assert trainer.microbatch.sequences == 3
    assert [one["microbatch"] for one in figures] == [3, 3]
    for name, weight in wanted.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6)
    assert [one["updates"] for one in figures] == [2, 2]
    for ours, theirs in zip(figures, plain, strict=True):  # the pass that was broken off is not told
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)


def test_it_halves_until_it_fits(tmp_path):
    class Two(Short):
        room = 2

    trainer, _, _ = train(tmp_path, Two, microbatch_sequences=0, passes=1)  # 32 by default; the update fills nine
    assert trainer.tried[:2] == [9, 3]  # at most four: three passes of three
    assert max(trainer.tried[2:]) == trainer.microbatch.sequences == 2
    assert trainer.updates == 2


def test_a_single_sequence_too_large_fails_the_round_with_that_reason(tmp_path):
    class Tiny(Short):
        room = 0

    with pytest.raises(RoundFailed, match=r"out of memory with a single sequence.*Tried to allocate 2.00 GiB.*lower"):
        train(tmp_path, Tiny)


def test_scoring_before_a_step_fits_itself_too(tmp_path):
    class ShortScore(ReflectionTrainer):
        def _score(self, model, batch):
            if not torch.is_grad_enabled() and len(batch["advantages"]) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super()._score(model, batch)

    trainer, weights, _ = train(tmp_path, ShortScore, kl_beta=0.0)
    assert trainer.microbatch.sequences == 4
    for name, weight in train(tmp_path, kl_beta=0.0)[1].items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6)


def test_other_errors_are_no_lack_of_memory():
    assert all(is_out_of_memory(error) for error in ERRORS)
    assert not is_out_of_memory(RuntimeError("shape '[2, 3]' is invalid for input of size 5"))
    assert not is_out_of_memory(ValueError("out of memory"))

    def break_off(_most: int) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side"):
        Microbatch(8).fit(8, break_off)


@pytest.mark.parametrize(("share", "device", "taken"), [(0.4, "cuda", [0.4]), (1.0, "cuda", []), (0.4, "cpu", [])])
def test_a_trainer_beside_an_engine_takes_its_share_of_the_gpu(monkeypatch, share, device, taken):
    asked: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    take_share(share, torch.device(device))
    assert asked == taken

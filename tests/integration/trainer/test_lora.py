"""Adapters on disk and in torch: written once, all or nothing, continued, and probed."""

import json
from pathlib import Path

import pytest
import torch

from server.adapters.files import hash_file
from tests.integration.trainer.tiny import TARGETS, make_model
from trainer import lora
from trainer.errors import RoundFailed
from trainer.lora import attach_adapter, choose_threads, copy_adapter, make_probe, open_model, write_adapter
from trainer.settings import TrainerSettings

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

SETTINGS = TrainerSettings(lora_rank=4, lora_alpha=8, device="cpu")


def make_trained(seed: int = 0):
    model = attach_adapter(make_model(seed=seed), TARGETS, SETTINGS)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def test_an_adapter_is_written_once_and_says_nothing_of_this_machine(tmp_path):
    target = tmp_path / "t" / "t@1"
    files = write_adapter(make_trained(), target)
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"} == {one.name for one in target.iterdir()}
    assert files["adapter_model.safetensors"] == hash_file(target / "adapter_model.safetensors")
    config = (target / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == "base"
    assert str(Path.home()) not in config
    with pytest.raises(FileExistsError, match="written once"):
        write_adapter(make_trained(), target)
    assert copy_adapter(target, tmp_path / "t" / "t@2") == files


def test_a_write_that_is_cut_off_leaves_no_adapter(tmp_path, monkeypatch):
    def cut_off(_path):
        raise OSError("no space left")

    monkeypatch.setattr(lora, "_sync", cut_off)
    with pytest.raises(OSError, match="no space left"):
        write_adapter(make_trained(), tmp_path / "t@1")
    assert not (tmp_path / "t@1").exists()


def test_an_adapter_is_continued_from_where_it_was(tmp_path, model_path):
    fresh, _ = open_model(str(model_path), None, TARGETS, SETTINGS)
    for name, parameter in fresh.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.full_like(parameter, 0.25)
    write_adapter(fresh, tmp_path / "t@1")
    continued, _ = open_model(str(model_path), str(tmp_path / "t@1"), TARGETS, SETTINGS)
    trained = {name: p for name, p in continued.named_parameters() if p.requires_grad}
    assert trained
    assert set(trained) == {name for name, p in fresh.named_parameters() if p.requires_grad}
    assert all(torch.equal(p, fresh.get_parameter(name)) for name, p in trained.items())


def test_a_model_that_is_not_there_is_said(tmp_path):
    with pytest.raises(RoundFailed, match="the trainer cannot open model"):
        open_model(str(tmp_path / "nothing"), None, TARGETS, SETTINGS)


def test_the_probe_tells_the_adapter_from_the_base():
    model = make_trained()
    prompts = [[5, 6, 7], [80, 81], [200, 3, 3, 3]]
    probe = make_probe(model, prompts)
    assert probe.told_apart
    assert 1 <= len(probe.token_ids) == len(probe.logprobs) <= lora.PROBE_TOKENS
    ids = torch.tensor([[*probe.prompt_ids, *probe.token_ids]])
    with torch.no_grad():
        spread = torch.log_softmax(model(input_ids=ids).logits[0, len(probe.prompt_ids) - 1 : -1], -1)
    assert spread.argmax(-1).tolist() == list(probe.token_ids)
    ours = [spread[at, token].item() for at, token in enumerate(probe.token_ids)]
    assert ours == pytest.approx(list(probe.logprobs), abs=1e-5)


def test_a_fresh_adapter_cannot_be_told_apart():
    model = attach_adapter(make_model(), TARGETS, SETTINGS)
    assert not make_probe(model, [[5, 6, 7], [80, 81]]).told_apart


def test_a_tiny_model_takes_one_thread():
    assert choose_threads(make_model(), SETTINGS) == 1
    assert choose_threads(make_model(), SETTINGS.override({"threads": 3})) == 3

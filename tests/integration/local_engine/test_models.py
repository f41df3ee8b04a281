"""Adapters folded into copies of the model, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from local_engine.errors import Refused
from local_engine.models import AdapterLimits, Base, fold_adapter
from tests.fixtures.models import TARGETS, make_adapter

LIMITS = AdapterLimits(16, frozenset(TARGETS))


def test_folding_adds_the_product_and_shares_the_rest(base: Base, model_path: Path, tmp_path: Path):
    folder = make_adapter(tmp_path / "a", model_path, rank=4, alpha=12, targets=("q_proj", "down_proj"))
    tensors = load_file(folder / "adapter_model.safetensors")
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    folded = fold_adapter(base.model, str(folder), LIMITS)
    for name, tensor in folded.state_dict().items():
        module = name.removesuffix(".weight")
        key = f"base_model.model.{module}.lora_A.weight"
        if key in tensors:
            delta = 3.0 * tensors[key.replace("_A", "_B")] @ tensors[key]
            assert torch.allclose(tensor, before[name] + delta, atol=1e-6), name
        else:
            assert tensor.data_ptr() == base.model.state_dict()[name].data_ptr(), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 32}, "rank"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target modules"),
        ({"target_modules": "all-linear"}, "target modules"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
    ],
)
def test_refuses_configurations(base: Base, model_path: Path, tmp_path: Path, change: dict, message: str):
    folder = make_adapter(tmp_path / "a", model_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(Refused, match=message):
        fold_adapter(base.model, str(folder), LIMITS)


def _without_b(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(tensors.items())[:1])


def _not_finite(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor / 0 for key, tensor in tensors.items()}


def _unknown(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "surprise": torch.ones(1)}


def _other_shape(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: torch.cat([tensor, tensor], 1 if ".lora_A" in key else 0) for key, tensor in tensors.items()}


@pytest.mark.parametrize("spoil", [_without_b, _not_finite, _unknown, _other_shape])
def test_refuses_weights(base: Base, model_path: Path, tmp_path: Path, spoil):
    folder = make_adapter(tmp_path / "a", model_path)
    weights = folder / "adapter_model.safetensors"
    save_file(spoil(load_file(weights)), weights)
    with pytest.raises(Refused):
        fold_adapter(base.model, str(folder), LIMITS)


def test_refuses_what_is_not_there(base: Base, tmp_path: Path):
    with pytest.raises(Refused, match="cannot read"):
        fold_adapter(base.model, str(tmp_path), LIMITS)

"""Loads the base model and its tokenizer, and makes one model of weights with an adapter folded in, for each adapter.

Folding (`W + alpha / r * B A`) costs one copy of the adapted matrices and makes decoding with an adapter as fast as
without; everything that the adapter does not touch is shared with the base. Called when the engine starts and when an
adapter is loaded; the decoder only ever sees finished models.
"""

import copy
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from local_engine.errors import Refused
from local_engine.kv_rows import ATTENTION, KvRows, attend
from local_engine.linear import use_onednn

_WEIGHT = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")


@dataclass(frozen=True, slots=True)
class Base:
    """The model that was loaded, and what the decoder has to know of it."""

    path: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    vocabulary: int
    context_tokens: int
    longest_piece_bytes: int  # of the tokenizer's vocabulary: a prompt has at least its bytes / this many tokens

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def make_rows(self) -> KvRows:
        """Build an empty set of rows in this model's shape."""
        config = self.model.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return KvRows(config.num_hidden_layers, heads, width, self.model.dtype, self.device)


def load_base(path: str, *, dtype: str, device: str, context_tokens: int | None) -> Base:
    """Load a Hugging Face folder. `dtype` and `device` may be `auto`.

    Raises: OSError, ValueError where the folder holds no causal language model.
    """
    transformers_logging.disable_progress_bar()  # stderr is a log here
    AttentionInterface.register(ATTENTION, attend)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype="auto" if dtype == "auto" else getattr(torch, dtype), attn_implementation=ATTENTION
    )
    model.to(torch.device(device))  # pyright: ignore[reportArgumentType]  # transformers' own wrapper has no types
    model.eval().requires_grad_(requires_grad=False)
    use_onednn(model)
    tokenizer = AutoTokenizer.from_pretrained(path)
    longest = int(model.config.max_position_embeddings)
    return Base(
        path=path,
        model=model,
        tokenizer=tokenizer,
        eos_ids=_eos_ids(model, tokenizer),
        vocabulary=int(model.config.vocab_size),
        context_tokens=min(context_tokens or longest, longest),
        longest_piece_bytes=max(len(piece.encode()) for piece in tokenizer.get_vocab()),
    )


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    ids: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for given in (model.config.eos_token_id, getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        ids.update(int(token) for token in (given if isinstance(given, list) else [given]) if token is not None)
    return frozenset(ids)


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """What adapters this engine takes."""

    max_rank: int
    target_modules: frozenset[str]


def fold_adapter(base: PreTrainedModel, path: str, limits: AdapterLimits) -> PreTrainedModel:
    """Make a model with the LoRA adapter in `path` folded in; the base stays as it is.

    Raises: Refused where the adapter cannot be read, is beyond the limits, or does not fit the model.
    """
    config, tensors = _read_adapter(Path(path))
    _check_config(config, limits)
    deltas = _pair_up(tensors, float(config["lora_alpha"]) / int(config["r"]))
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    model = copy.deepcopy(base, memo=shared)
    modules = dict(model.named_modules())
    for name, delta in deltas.items():
        module = modules.get(name)
        if not isinstance(module, torch.nn.Linear) or module.weight.shape != delta.shape:
            raise Refused(f"{name} of the adapter has no matrix of its shape {tuple(delta.shape)} in the model.")
        if name.rpartition(".")[2] not in limits.target_modules:
            raise Refused(f"{name} is not among the target modules {sorted(limits.target_modules)}.")
        folded = module.weight.float() + delta.to(module.weight.device)
        module.weight = torch.nn.Parameter(folded.to(module.weight.dtype), requires_grad=False)
    return model


def _read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise Refused(f"cannot read the adapter in {folder}: {error}") from error
    if not isinstance(config, dict) or not {"r", "lora_alpha", "target_modules"} <= config.keys():
        raise Refused(f"{folder / 'adapter_config.json'} is no LoRA configuration.")
    return config, tensors


def _check_config(config: Mapping[str, Any], limits: AdapterLimits) -> None:
    if int(config["r"]) > limits.max_rank:
        raise Refused(f"the adapter's rank {config['r']} is above --max-lora-rank {limits.max_rank}.")
    targets = config["target_modules"]
    if not isinstance(targets, list) or not set(targets) <= limits.target_modules:
        raise Refused(f"the adapter's target modules {targets} are not within {sorted(limits.target_modules)}.")
    for unsupported in ("use_dora", "use_rslora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern"):
        if config.get(unsupported):
            raise Refused(f"adapters with {unsupported} are not supported.")


def _pair_up(tensors: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Multiply the two sides of each module: {module: scale * B A}."""
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _WEIGHT.match(key)
        if match is None:
            raise Refused(f"unknown weight {key!r} in the adapter.")
        if not bool(torch.isfinite(tensor).all()):
            raise Refused(f"{key} of the adapter holds values that are not finite.")
        sides.setdefault(match["module"], {})[match["side"]] = tensor.float()
    if not math.isfinite(scale) or not all(pair.keys() == {"A", "B"} for pair in sides.values()):
        raise Refused("every adapted module needs both lora_A and lora_B.")
    try:
        return {module: scale * (pair["B"] @ pair["A"]) for module, pair in sides.items()}
    except RuntimeError as error:
        raise Refused(f"the adapter's matrices do not fit each other: {error}") from error

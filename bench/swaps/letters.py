"""Makes a tiny model whose every token names the adapter that produced it, so that a mixed-up answer is seen.

Standard Hugging Face files; SGLang and the embedded engine read them alike. By construction, and whatever was written
before: plain, the model writes `0` for ever; with an adapter it writes that adapter's letter for ever. The margins are
so wide that no batching, no order of summing and no precision changes a token.
"""

import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

LETTERS = string.ascii_letters
BASE = "0"
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
_HIDDEN, _INNER, _RANK = 320, 64, 4
_CONSTANT = _HIDDEN - 1  # the hidden dimension that is 1 whatever the token
_LOUD = 16.0


def letter_of(adapter: str) -> str:
    """Say which letter an adapter `letters@N`, N from 1, writes; "" is the base."""
    return LETTERS[(int(adapter.partition("@")[2]) - 1) % len(LETTERS)] if adapter else BASE


def make_model(path: Path) -> Path:
    """Save the model and its tokenizer of bytes; give back its folder."""
    tokenizer = _make_tokenizer()
    config_class: Any = Qwen2Config
    model_class: Any = Qwen2ForCausalLM
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN,
        intermediate_size=_INNER,
        num_hidden_layers=1,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = model_class(config)
    _write_weights(model, tokenizer)
    model.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_adapter(path: Path, model: Path, letter: str) -> Path:
    """Save the LoRA adapter that writes `letter`; give back its folder."""
    token = PreTrainedTokenizerFast.from_pretrained(model).convert_tokens_to_ids(letter)
    down = torch.zeros(_RANK, _INNER)
    up = torch.zeros(_HIDDEN, _RANK)
    down[:, :] = 1.0 / (_RANK * _INNER)
    up[int(token), :] = _LOUD  # pyright: ignore[reportArgumentType]
    prefix = "base_model.model.model.layers.0.mlp.down_proj"
    path.mkdir(parents=True, exist_ok=True)
    save_file({f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}, path / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": _RANK,
        "lora_alpha": _RANK,
        "target_modules": ["down_proj"],
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "fan_in_fan_out": False,
    }
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return path


def _make_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    raw.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    raw.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=MARKS[2],
        pad_token=MARKS[0],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@torch.no_grad()
def _write_weights(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    for parameter in model.parameters():
        parameter.zero_()
    layer, tokens = model.model.layers[0], len(tokenizer)
    for norm in (layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
        norm.weight.fill_(1.0)
    model.model.embed_tokens.weight[:, :tokens] = torch.eye(tokens)
    model.model.embed_tokens.weight[:, _CONSTANT] = 1.0
    layer.mlp.gate_proj.weight[:, _CONSTANT] = 0.1  # every token lights the whole of the inner layer alike
    layer.mlp.up_proj.weight[:, _CONSTANT] = 0.1
    head = model.lm_head.weight
    base: int = tokenizer.convert_tokens_to_ids(BASE)  # pyright: ignore[reportAssignmentType]
    for letter in LETTERS:
        token: int = tokenizer.convert_tokens_to_ids(letter)  # pyright: ignore[reportAssignmentType]
        head[token, token] = 1.0
    head[base, _CONSTANT] = 4.0

"""The model with its adapter in torch: opened, continued, written to disk, and asked what it would answer.

Called by trainer.round and trainer.promotion. The only file that writes PEFT's files. An adapter is written once,
under a path that did not exist before, and never changed.
"""

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from server.adapters.files import hash_file
from server.adapters.probing import Probe
from trainer.errors import RoundFailed
from trainer.settings import TrainerSettings

PROBE_TOKENS = 8
TINY_WEIGHTS = 20_000_000
TOLERANCE = {torch.float32: 5e-3, torch.float64: 5e-3}
HALF_TOLERANCE = 0.5  # nats: bfloat16 engines and trainers differ by 0.1 on LoRA models


def choose_device(settings: TrainerSettings) -> torch.device:
    """Choose the device: what the settings say, or a GPU where there is one."""
    if settings.device != "auto":
        return torch.device(settings.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_model(
    model_path: str, adapter_path: str | None, targets: Sequence[str], settings: TrainerSettings
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Open the base model with a fresh adapter, or with one to be continued, ready to be trained.

    Raises: RoundFailed where the model or the adapter cannot be opened.
    """
    device = choose_device(settings)
    half = settings.dtype == "bfloat16" or (settings.dtype == "auto" and device.type == "cuda")
    torch.manual_seed(settings.seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16 if half else torch.float32)
        torch.nn.Module.to(base, device)
        if adapter_path is None:
            return attach_adapter(base, targets, settings), tokenizer
        return PeftModel.from_pretrained(base, adapter_path, is_trainable=True), tokenizer
    except (OSError, ValueError, KeyError) as error:
        what = f"adapter {adapter_path} on model {model_path}" if adapter_path else f"model {model_path}"
        raise RoundFailed(f"the trainer cannot open {what}: {error}") from error


def choose_threads(model: torch.nn.Module, settings: TrainerSettings, ranks: int = 1) -> int:
    """Choose the CPU threads of one of so many ranks: what the settings say, or its share of the cores.

    A tiny model's operations are too small to share.
    """
    if settings.threads:
        return settings.threads
    tiny = sum(weights.numel() for weights in model.parameters()) < TINY_WEIGHTS
    return 1 if tiny else max(1, (os.cpu_count() or 1) // ranks)


def attach_adapter(base: torch.nn.Module, targets: Sequence[str], settings: TrainerSettings) -> PeftModel:
    """Put a fresh adapter on a model: it changes nothing until it is trained."""
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)  # type: ignore[arg-type]
    assert isinstance(model, PeftModel)
    return model


def write_adapter(model: PeftModel, target: Path) -> dict[str, str]:
    """Write the adapter to a new folder, all or nothing; return the SHA-256 of each file.

    Raises: FileExistsError.
    """
    model.peft_config["default"].base_model_name_or_path = "base"  # says nothing about this machine
    draft = _draft_of(target)
    model.save_pretrained(str(draft), selected_adapters=["default"], save_embedding_layers=False)
    (draft / "README.md").unlink(missing_ok=True)
    return _seal(draft, target)


def write_probe_adapter(model_path: str, targets: Sequence[str], settings: TrainerSettings, target: Path) -> None:
    """Write an adapter of the shape that a round would train, one that changes nothing; no weights are read for it.

    Raises: FileExistsError; RoundFailed where the model's configuration cannot be opened.
    """
    try:
        config = AutoConfig.from_pretrained(model_path)
        with torch.device("meta"):
            model = attach_adapter(AutoModelForCausalLM.from_config(config), targets, settings)
    except (OSError, ValueError, KeyError) as error:
        raise RoundFailed(f"the trainer cannot open model {model_path}: {error}") from error
    shapes = get_peft_model_state_dict(model, save_embedding_layers=False)
    draft = _draft_of(target)
    draft.mkdir()
    save_file({name: torch.zeros(one.shape) for name, one in shapes.items()}, draft / "adapter_model.safetensors")
    model.peft_config["default"].base_model_name_or_path = "base"
    model.peft_config["default"].save_pretrained(str(draft))
    _seal(draft, target)


def copy_adapter(source: Path, target: Path) -> dict[str, str]:
    """Copy a written adapter to a new folder, all or nothing; return the SHA-256 of each file.

    Raises: FileExistsError.
    """
    draft = _draft_of(target)
    shutil.copytree(source, draft)
    return _seal(draft, target)


def _draft_of(target: Path) -> Path:
    if target.exists():
        raise FileExistsError(f"{target} is there already: an adapter is written once")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent / f".{target.name}.{secrets.token_hex(4)}"


def _seal(draft: Path, target: Path) -> dict[str, str]:
    """Make a finished folder durable and give it its name in one step."""
    files = sorted(path for path in draft.iterdir() if path.is_file())
    for path in (*files, draft):
        _sync(path)
    draft.rename(target)
    _sync(target.parent)
    return {path.name: hash_file(target / path.name) for path in files}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_probe(model: PeftModel, prompts: Sequence[Sequence[int]]) -> Probe:
    """Compute what the adapter answers greedily, on the prompt that tells it from the base model best.

    Stops before a token that is not clearly the likeliest, so that rounding on the engine's side cannot change it.
    """
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, HALF_TOLERANCE)
    model.eval()
    best: tuple[float, Probe] | None = None
    for prompt in prompts:
        tokens = _continue_greedily(model, prompt, 2 * tolerance)
        if not tokens:
            continue
        ours = _score(model, prompt, tokens)
        with model.disable_adapter():
            base = _score(model, prompt, tokens)
        apart = (ours - base).abs().max().item()
        probe = Probe(tuple(prompt), tuple(tokens), tuple(ours.tolist()), tolerance, told_apart=apart > 2 * tolerance)
        if best is None or apart > best[0]:
            best = apart, probe
    if best is None:
        raise RoundFailed("no prompt has a clear greedy answer, so the engine cannot be probed; train longer")
    return best[1]


@torch.no_grad()
def _continue_greedily(model: PeftModel, prompt: Sequence[int], margin: float) -> list[int]:
    """Take the likeliest token up to eight times, while it leads by `margin` nats and the answer has not ended."""
    ids, tokens = list(prompt), []
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    while len(tokens) < PROBE_TOKENS:
        logits = model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1].float()
        top = torch.log_softmax(logits, -1).topk(2)
        if (top.values[0] - top.values[1]).item() < margin:
            break
        tokens.append(int(top.indices[0]))
        ids.append(tokens[-1])
        if tokens[-1] in ends:
            break
    return tokens


def score_base(model: PeftModel, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Compute the logprobs (T,) of `tokens` after `prompt` under the base model."""
    model.eval()
    with model.disable_adapter():
        return _score(model, prompt, tokens).tolist()


@torch.no_grad()
def _score(model: PeftModel, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """Compute the logprobs (T,) of `tokens` after `prompt`."""
    ids = torch.tensor([[*prompt, *tokens]], device=model.device)
    logits = model(input_ids=ids, logits_to_keep=len(tokens) + 1).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(-1, ids[0, -len(tokens) :, None])[:, 0].cpu()

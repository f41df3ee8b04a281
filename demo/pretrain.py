"""Pre-trains the tiny demo model on the synthetic corpus and writes it as standard Hugging Face files.

Run as `python -m demo.pretrain --out demo/model`. The schedule counts steps, never seconds, so the same seed, sizes
and number of workers give the same weights. Each worker is one process with one thread; gradients are averaged.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.corpus import draw_example
from demo.example import Example, render_turns
from demo.model_record import record_model
from demo.tokenizer import CONTEXT_TOKENS, END, PAD, build_tokenizer

POOL_EXAMPLES = 1000
WARMUP_STEPS = 60
DECAY_SHARE = 0.55
HEAD_SIZE = 32
CYCLE_FACTOR = 0.5  # each cycle learns at half the rate of the one before


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.pretrain",
        description="Pre-train the tiny demo model from nothing: about 45 minutes on two cores with the defaults.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("demo/model"), help="folder to write the model to")
    add("--seed", type=int, default=0, help="seed of the weights and of the order of the corpus")
    steps_meaning = "optimiser steps, one number a cycle; in each the learning rate warms up, stays and decays"
    add("--steps", type=int, nargs="+", default=[5200, 3000], help=steps_meaning)
    add("--workers", type=int, default=2, help="processes that share the work, one thread each")
    add("--batch-tokens", type=int, default=3000, help="tokens in one batch of one worker, padding included")
    add("--width", type=int, default=160, help="hidden size, a multiple of 32")
    add("--layers", type=int, default=5, help="number of layers")
    add("--muon-rate", type=float, default=0.02, help="learning rate of the matrices (Muon)")
    add("--adam-rate", type=float, default=3e-3, help="learning rate of embeddings and norms (AdamW)")
    add("--resume-at", type=int, default=0, help="cycle to begin at, from the weights in --out; 0 begins anew")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile the model: a minute, then twice as fast",
    )
    return parser.parse_args()


def build_model(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the untrained Llama."""
    width, heads = arguments.width, arguments.width // HEAD_SIZE
    config = LlamaConfig(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_SIZE,
        intermediate_size=math.ceil(width * 8 / 3 / 32) * 32,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.backend_tokenizer.token_to_id(END),
        pad_token_id=tokenizer.backend_tokenizer.token_to_id(PAD),
        initializer_range=0.02,
    )
    torch.manual_seed(arguments.seed)
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # compiled, it is faster here than the fused kernel's backward pass
    return model


class Encoder:
    """Turns examples into token ids and a mask of the tokens that carry the loss."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ids = self._cache.get(text)
        if ids is None:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(self._cache) < 100_000:
                self._cache[text] = ids
        return ids

    def encode_example(self, example: Example) -> tuple[list[int], list[bool]]:
        """Return the ids and, of each, whether it is to be learned: the learned turns after their given words."""
        turns = render_turns(example)
        shift = len(turns) - len(example.messages)
        ids: list[int] = []
        learned: list[bool] = []
        for position, (role, text) in enumerate(turns):
            body = [*self.encode(text), *self.encode(END)]
            given = example.learned.get(position - shift)
            skipped = len(body) if given is None else len(self.encode(given)) if given else 0
            ids += [*self.encode(f"<|{role}|>"), *body]
            learned += [False] + [place >= skipped for place in range(len(body))]
        return ids, learned


def draw_batches(
    encoder: Encoder, stage: int, seed: str, batch_tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches for ever: ids (B, T) and learned mask (B, T), padded to the longest and sorted by length."""
    rng = random.Random(seed)
    while True:
        pool = sorted(
            (encoder.encode_example(draw_example(rng, stage)) for _ in range(POOL_EXAMPLES)), key=lambda e: len(e[0])
        )
        batches: list[list[tuple[list[int], list[bool]]]] = [[]]
        for example in pool:
            if len(example[0]) * (len(batches[-1]) + 1) > batch_tokens:
                batches.append([])
            batches[-1].append(example)
        rng.shuffle(batches)
        for batch in filter(None, batches):
            length = max(len(ids) for ids, _ in batch)
            ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in batch])
            learned = torch.tensor([mask + [False] * (length - len(mask)) for _, mask in batch])
            yield ids, learned


def compute_loss(model: LlamaForCausalLM, ids: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the learned tokens; logits are computed at their places only."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[learned[:, 1:]])
    return cross_entropy(logits.float(), ids[:, 1:][learned[:, 1:]])


def average_gradients(parameters: list[torch.nn.Parameter], workers: int) -> None:
    """Average the gradients of all workers in place."""
    if workers == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= workers
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def rate_factor(step: int, steps: int) -> float:
    """Return the schedule's factor: a short warm-up, a plateau, a linear decay."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.01, (1 - step / steps) / DECAY_SHARE))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model (float32) and its tokenizer in the standard layout."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 1.0
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    settings_file = out / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text())
    settings.pop("extra_special_tokens", None)  # tokenizer.json marks them; older readers reject the list
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that every version of transformers knows
    settings_file.write_text(json.dumps(settings, indent=2) + "\n")
    record_model(out)


def report(step: int, steps: int, loss: float, tokens: int, seconds: float) -> None:
    """Write one line of progress."""
    left = seconds / step * (steps - step) / 60
    rate = f"{tokens / seconds:,.0f} tokens/s  {left:.1f} minutes left"
    sys.stdout.write(f"step {step}/{steps}  loss {loss:.4f}  {tokens / 1e6:.1f}M tokens  {rate}\n")
    sys.stdout.flush()


def build_optimizers(model: LlamaForCausalLM, muon_rate: float, adam_rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices and AdamW for embeddings and norms."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim < 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=muon_rate, weight_decay=0.02, momentum=0.95),
        torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def train(rank: int, arguments: argparse.Namespace) -> None:
    """Run one worker through all cycles; the first one reports and saves."""
    torch.set_num_threads(1)
    if arguments.workers > 1:
        dist.init_process_group("gloo", rank=rank, world_size=arguments.workers)
    tokenizer = build_tokenizer()
    model = build_model(arguments, tokenizer)
    if arguments.resume_at:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(arguments.out).state_dict())
    if arguments.compile:
        model.model.compile(dynamic=True)
    encoder = Encoder(tokenizer)
    for cycle, steps in enumerate(arguments.steps[arguments.resume_at :], arguments.resume_at):
        seed = f"corpus {arguments.seed + 1000 * cycle} {rank}"
        batches = draw_batches(encoder, cycle, seed, arguments.batch_tokens)
        rates = (arguments.muon_rate * CYCLE_FACTOR**cycle, arguments.adam_rate * CYCLE_FACTOR**cycle)
        train_cycle(model, batches, steps, rates, workers=arguments.workers, reports=rank == 0)
        if rank == 0:
            save(model, tokenizer, arguments.out)
    if arguments.workers > 1:
        dist.destroy_process_group()


def train_cycle(
    model: LlamaForCausalLM,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    rates: tuple[float, float],
    *,
    workers: int,
    reports: bool,
) -> None:
    """Train for one cycle of the schedule, with fresh optimisers; `rates` are those of Muon and AdamW."""
    parameters = list(model.parameters())
    optimizers = build_optimizers(model, *rates)
    started, tokens, mean_loss = time.monotonic(), 0, math.nan
    for step in range(steps):
        ids, learned = next(batches)
        loss = compute_loss(model, ids, learned)
        loss.backward()
        average_gradients(parameters, workers)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * rate_factor(step, steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done, tokens = step + 1, tokens + ids.numel() * workers
        mean_loss = loss.item() if step == 0 else 0.98 * mean_loss + 0.02 * loss.item()
        if reports and (done % 100 == 0 or done in (10, steps)):
            report(done, steps, mean_loss, tokens, time.monotonic() - started)


def main() -> None:
    """Start the workers."""
    arguments = parse_arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29531")
    if arguments.workers == 1:
        train(0, arguments)
    else:
        spawn(train, (arguments,), nprocs=arguments.workers)


if __name__ == "__main__":
    main()

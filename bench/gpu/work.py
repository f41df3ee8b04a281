"""The work that both sides do: a model of random weights made on the spot, failures to reflect on, and a verifier.

Each step: for every failure a group of reflections, a retry after each, its verdict as the reward, and one optimiser
update over all groups. Nothing is downloaded, and nothing is worth learning: only the time and the memory count.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from server.domain import Binding
from server.orchestration.reflection import Prompts, reflection_messages
from server.orchestration.verification import bind
from trainer.samples import Failure

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEMPLATE = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
PASSES = r"[02468a-mA-M]$|[^\x00-\x7f]$"
"""Answers that end so pass: about half of what random weights write, so that nearly every group has signal."""

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Work:
    """What one step is: counts, and lengths in tokens."""

    failures: int = 16
    group: int = 8
    request_words: int = 96  # of the request; each is one to two tokens
    reflection_tokens: int = 192
    retry_tokens: int = 128
    steps: int = 4  # that are measured
    warm_steps: int = 1  # before them
    microbatch: int = 8
    lora_rank: int = 16
    concurrency: int = 128

    def save(self, path: Path) -> None:
        """Write it where the sides read it."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Work":
        """Read it."""
        return cls(**json.loads(path.read_text()))


TINY_WORK = Work(
    failures=4, group=6, request_words=6, reflection_tokens=6, retry_tokens=5, steps=1, microbatch=12, lora_rank=4
)

SHAPES: dict[str, dict[str, Any]] = {
    # Qwen2-0.5B's, but for the LM head, which is its own: random tied embeddings would only repeat a token
    "0.5b": {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2,
    },
    "1.5b": {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip


def make_tokenizer(vocab_size: int) -> Any:
    """Make a tokenizer of bytes whose further ids, up to `vocab_size`, each decode to a short word of their own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 -- seconds
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    marks = (PAD, START, END)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġw{number}" for number in range(vocab_size - len(letters) - len(marks))]
    raw = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate([*letters, *words])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    raw.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    raw.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(shape: str, folder: Path, *, half: bool) -> int:
    """Save a model of random weights in `folder`; give the number of its weights."""
    import torch  # noqa: PLC0415 -- seconds
    from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415

    sizes = SHAPES[shape]
    tokenizer = make_tokenizer(sizes["vocab_size"])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = Qwen2Config(**sizes, **ends, tie_word_embeddings=False, max_position_embeddings=4096)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight *= 4  # so that a greedy token now and then leads clearly, which the probe needs
    model.to(torch.bfloat16 if half else torch.float32).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    tokenizer.save_pretrained(folder)
    return sum(weights.numel() for weights in model.parameters())


def list_failures(tokenizer: Any, work: Work) -> list[Failure]:
    """Make the failures of every step, as a round would select them."""
    rng, made = random.Random(0), []
    verifiers = bind((Binding("regex", {"pattern": PASSES}),))
    failed = {"role": "assistant", "content": "one"}
    for number in range(work.failures):
        asked = " ".join(f"{rng.randrange(10**4):04}" for _ in range(work.request_words))
        messages = [{"role": "user", "content": asked}]
        told = reflection_messages(messages, (), failed, Prompts())
        ids = tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=True, return_dict=False)
        made.append(
            Failure(
                episode_id=f"ep_{number}",
                messages=messages,
                body={"temperature": 1.0, "max_completion_tokens": work.retry_tokens},
                failed=failed,
                reason=None,
                prompts=Prompts(),
                verifiers=verifiers,
                prompt_ids=tuple(ids),
                reflection_max_tokens=work.reflection_tokens,
            )
        )
    return made


def measure_memory() -> dict[str, float]:
    """Say, in MiB, what this process took at most: `gpu_mib` (torch's own allocations), and `rss_mib`."""
    import resource  # noqa: PLC0415

    import torch  # noqa: PLC0415

    taken = {"rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}
    if torch.cuda.is_available():
        taken["gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return taken

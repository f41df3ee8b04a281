"""Builds the demo model's tokenizer: byte-level BPE with about 1,300 entries and the chat template.

Numbers from 0 to 399 are single tokens and arithmetic symbols stand apart, so that sums can be learned; the names of
places and people stay syllables, so that names never seen can be copied. Only the pre-training script calls it.
"""

import random
import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.corpus import draw_example
from demo.example import render_turns
from demo.function_call import SYLLABLES, proper_names
from demo.splits import SPLITS

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIAL = [PAD, *(f"<|{role}|>" for role in ROLES), END]
CALL_MARKS = ["<tool_call>", "</tool_call>"]
VOCABULARY = 1400
SPLIT = r"\p{N}{1,3}|[()+\-*/=]| ?\p{Ll}+|\p{Lu}\p{Ll}*| ?[^\s\p{L}\p{N}()+\-*/=]+ ?|\s+"
CONTEXT_TOKENS = 2048


def _corpus_text(examples: int) -> list[str]:
    rng = random.Random("tokenizer")
    names = {name for split in SPLITS for name in proper_names(split)}
    texts = [text for _ in range(examples) for _, text in render_turns(draw_example(rng, stage=0))]
    nameless = [re.sub(r"[A-Z][a-z]*", lambda word: "" if word.group() in names else word.group(), t) for t in texts]
    syllables = [*SYLLABLES, *(syllable.capitalize() for syllable in SYLLABLES)]
    numbers = " ".join(map(str, range(400)))
    printable = [chr(code) for code in range(32, 127)]
    return nameless + syllables * 300 + [numbers] * 400 + printable * 50


def build_tokenizer(examples: int = 8000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on a sample of the corpus, the same one every time."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=20,
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus_text(examples), trainer)
    bpe.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in CALL_MARKS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=SPECIAL[1:-1],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = Path(__file__).with_name("chat_template.jinja").read_text()
    return tokenizer

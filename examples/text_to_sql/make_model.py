"""Makes the model of docs/text-to-sql.md: a tiny transformer that knows one conversation by heart.

    python examples/text_to_sql/make_model.py sql-model

Whatever it is asked, it first answers SQL that is wrong; asked to reflect, it writes one reflection; and once that
reflection stands in the conversation, it answers SQL that is right. So the page shows the same on every machine. It is
an ordinary Hugging Face folder: the chat template looks at the conversation and ends in a cue, a token of its own, and
the weights hold which token follows which.
"""

import sys
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
WRONG = """\
SELECT name FROM customers JOIN orders ON orders.customer_id = customers.id
WHERE orders.total > 100"""
REFLECTION = (
    "I compared every single order with 100. The question is about what a customer spent in all, "
    "so the orders of each customer have to be added up first."
)
RIGHT = """\
SELECT name FROM customers JOIN orders ON orders.customer_id = customers.id
GROUP BY customers.id HAVING sum(orders.total) > 100"""
SCRIPTS = {"<|first|>": WRONG, "<|reflect|>": REFLECTION, "<|again|>": RIGHT}

CHAT_TEMPLATE = """\
{%- set cue = namespace(token='<|first|>') %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- if message.role == 'user' and 'did not pass the check' in message.content %}
{%- set cue.token = '<|reflect|>' %}
{%- elif message.role == 'assistant' and 'have to be added up' in message.content %}
{%- set cue.token = '<|again|>' %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' + cue.token }}{%- endif %}"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of bytes, the chat's marks, the cues, and each text as one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in (PAD, START, END)])
    known = [text for script in SCRIPTS.items() for text in script]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in known])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    made.chat_template = CHAT_TEMPLATE
    return made


@torch.no_grad()
def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Build a transformer whose layers add nothing, so that the last token alone says which one follows."""
    width = 320  # of a token's one-hot embedding: more than there are tokens
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=width, hidden_size=width, intermediate_size=64, num_hidden_layers=1, num_attention_heads=5,
            num_key_value_heads=5, max_position_embeddings=8192, tie_word_embeddings=False,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        )
    )  # fmt: skip
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.embed_tokens.weight.copy_(torch.eye(width))
    model.lm_head.weight.zero_()
    for cue, text in SCRIPTS.items():
        for token, following in pairwise(tokenizer.convert_tokens_to_ids([cue, text, END])):
            model.lm_head.weight[following, token] = 3.0
    return model.to(torch.bfloat16)


if __name__ == "__main__":
    logging.disable_progress_bar()
    folder = Path(sys.argv[1])
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB")

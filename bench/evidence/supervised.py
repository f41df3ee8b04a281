"""Supervised fine-tuning on the second tries that passed among a round's kept rollouts.

As many updates, and as many second tries an update, as the round made of rollouts with signal. Reflections and retries
are learnt alike; the loss is the mean over all their tokens.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from bench.evidence.ground import Ground
from server.orchestration.reflection import retry_messages
from trainer import dataset
from trainer.samples import Failure

Text = tuple[Sequence[int], Sequence[int]]
"""A prompt (P,) and the tokens (T,) that are learnt after it."""

_AT_ONCE = 32


async def read_second_tries(ground: Ground, steps: int) -> list[tuple[Text, Text]]:
    """Read the reflections and retries that passed, of all that the round sampled, retries as text."""
    found = []
    for number in range(1, steps + 1):
        for one in await ground.stores.rollouts.replay(ground.order.round, number):
            if one.logged or one.reward != 1 or one.retry is None:
                continue
            episode = await ground.stores.episodes.get(one.episode_id)
            failure = dataset.read_failure(episode, ground.tokenizer) if episode else "gone"
            if isinstance(failure, Failure):
                text = ground.tokenizer.decode(one.token_ids, skip_special_tokens=True)
                found.append(
                    ((one.prompt_ids, one.token_ids), _render_retry(ground.tokenizer, failure, text, one.retry))
                )
    return found


def _render_retry(tokenizer: Any, failure: Failure, reflection: str, retry: Mapping[str, Any]) -> Text:
    messages = retry_messages(failure.messages, failure.failed, reflection, failure.prompts, failure.reason)
    tools = failure.body.get("tools") or None
    asked = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*messages, dict(retry)], tools=tools, tokenize=False)
    answer = whole.removeprefix(asked).lstrip("\n")
    return _encode(tokenizer, asked), _encode(tokenizer, answer)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def deal(tries: Sequence[tuple[Text, Text]], size: int, seed: int) -> Iterator[list[Text]]:
    """Deal updates of `size` second tries for ever, going through all of them again and again in another order."""
    rng = random.Random(seed)
    hand: list[tuple[Text, Text]] = []
    while True:
        while len(hand) < size:
            hand += rng.sample(tries, len(tries))
        taken, hand = hand[:size], hand[size:]
        yield [text for pair in taken for text in pair]


def compute_loss(model: torch.nn.Module, part: Sequence[Text], tokens: int) -> torch.Tensor:
    """Return the part's share of an update's mean loss a token, in nats; `tokens` are learnt in the whole update."""
    longest = max(len(prompt) + len(learnt) for prompt, learnt in part)
    ids = torch.zeros(len(part), longest, dtype=torch.long)
    mask = torch.zeros(len(part), longest, dtype=torch.long)
    targets = torch.full((len(part), longest), -100)
    for row, (prompt, learnt) in enumerate(part):
        length = len(prompt) + len(learnt)
        ids[row, :length] = torch.tensor([*prompt, *learnt])
        mask[row, :length] = 1
        targets[row, len(prompt) : length] = torch.tensor(learnt)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    summed = cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    return summed / tokens


async def fine_tune(ground: Ground) -> dict[str, Any]:
    """Fine-tune on what passed, for as long as the round trained; return the notes."""
    told = await ground.stores.rounds.steps(ground.order.round)
    updates = int(sum(step.metrics["updates"] for step in told))
    members = int(sum(step.metrics["members_kept"] for step in told))
    tries = await read_second_tries(ground, len(told))
    if not tries or not updates:
        raise SystemExit("the round has no second try that passed, or made no update")
    model, options = ground.model, ground.options
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=ground.order.rate, betas=(0.9, options.adam_beta2), weight_decay=0.0)
    dealt, losses = deal(tries, max(1, members // updates), ground.order.seed), []
    model.train()
    for _ in range(updates):
        update = sorted(next(dealt), key=lambda text: len(text[0]) + len(text[1]))
        tokens = sum(len(learnt) for _, learnt in update)
        loss = 0.0
        for start in range(0, len(update), _AT_ONCE):
            part = compute_loss(model, update[start : start + _AT_ONCE], tokens)
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(weights, options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(round(loss, 4))
    return {"updates": updates, "second_tries": len(tries), "an_update": max(1, members // updates), "losses": losses}

"""Turns members into tensors, and lets the model read them without reading a prompt twice.

Called by trainer.grpo. Shapes: B members, P prompt tokens, C reflection tokens, U distinct prompts, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trainer.groups import Weighed
from trainer.losses import Whole

Batch = dict[str, Any]
"""One forward pass, by the names that TRL's loss reads."""

Proximal = Mapping[int, torch.Tensor]
"""The trainer's own logprobs (T,) of each fresh member as the step began, by id(); logged members have none."""


def pack(part: Sequence[Weighed], pad_id: int, whole: Whole, proximal: Proximal | None = None) -> Batch:
    """Lay one forward pass out as TRL's batch: prompts (B, P) padded on the left, reflections (B, C) on the right.

    Only the reflections' tokens carry loss. `num_items_in_batch` makes TRL divide by the tokens of the whole update,
    where it divides by tokens at all.
    """
    widest = max(len(member.prompt_ids) for member, _ in part)
    longest = max(len(member.token_ids) for member, _ in part)
    batch: Batch = {
        "prompt_ids": torch.full((len(part), widest), pad_id, dtype=torch.long),
        "prompt_mask": torch.zeros(len(part), widest, dtype=torch.long),
        "completion_ids": torch.full((len(part), longest), pad_id, dtype=torch.long),
        "completion_mask": torch.zeros(len(part), longest, dtype=torch.long),
        "behaviour_logps": torch.zeros(len(part), longest, dtype=torch.float64),
        "advantages": torch.tensor([advantage for _, advantage in part], dtype=torch.float64),
        "fresh": torch.tensor([not member.logged for member, _ in part]),
        "num_items_in_batch": torch.tensor(whole.tokens, dtype=torch.float64),
    }
    if proximal is not None:
        batch["proximal_logps"] = torch.zeros(len(part), longest, dtype=torch.float64)
    for row, (member, _) in enumerate(part):
        before, length = len(member.prompt_ids), len(member.token_ids)
        batch["prompt_ids"][row, widest - before :] = torch.tensor(member.prompt_ids)
        batch["prompt_mask"][row, widest - before :] = 1
        batch["completion_ids"][row, :length] = torch.tensor(member.token_ids)
        batch["completion_mask"][row, :length] = 1
        batch["behaviour_logps"][row, :length] = torch.tensor(member.logprobs, dtype=torch.float64)
        if proximal is not None and id(member) in proximal:
            batch["proximal_logps"][row, :length] = proximal[id(member)]
    return batch


def join_ids(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Join prompts and reflections: the token ids and the attention mask, both (B, P + C)."""
    return (
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
    )


def score_sharing_prompts(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, keep: int) -> torch.Tensor:
    """Compute the logits (B, C, V) that foretell the last `keep` tokens, reading each distinct prompt only once.

    The members of a group have their prompt in common, and it is the longer part. All of it but its last token is read
    once into a cache that keeps its gradient, and handed to every member.
    """
    width = input_ids.size(1) - keep  # P
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)  # (B, P + C)
    if width < 2:
        whole = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
        return whole.logits[:, width - 1 : -1]
    seen: dict[tuple[int, ...], int] = {}
    keys = (input_ids[:, :width] * 2 + attention_mask[:, :width]).tolist()  # a pad may look like a token
    member_of = torch.tensor([seen.setdefault(tuple(key), len(seen)) for key in keys])  # (B,), prompt of each member
    first = torch.tensor([member_of.tolist().index(number) for number in range(len(seen))])  # (U,)
    prefix = model(
        input_ids=input_ids[first, : width - 1],
        attention_mask=attention_mask[first, : width - 1],
        position_ids=positions[first, : width - 1],
        use_cache=True,
        logits_to_keep=1,
    )
    prefix.past_key_values.batch_select_indices(member_of)
    return model(
        input_ids=input_ids[:, width - 1 : -1],
        attention_mask=attention_mask[:, :-1],
        position_ids=positions[:, width - 1 : -1],
        past_key_values=prefix.past_key_values,
        use_cache=True,
    ).logits

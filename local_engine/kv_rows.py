"""The keys and values of a running batch: one tensor whose first rows are the running sequences, without gaps.

Every row begins at its own position 0, so rows of any length lie side by side and a row can be moved, copied out or
filled from a prefix by one copy for all layers. Transformers' attention layers reach it through `attend`, which the
model loader registers as their attention function.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

ATTENTION = "kv_rows"
"""The name under which `attend` is registered with transformers."""

_BLOCK_TOKENS = 32  # lengths grow in steps of this, so that growing, which copies, is rare


class KvRows:
    """Keys and values of many sequences, `store` (L, 2, R, H, T, D). Grows and shrinks by itself."""

    def __init__(self, layers: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (layers, heads, width)
        self._options: dict[str, Any] = {"dtype": dtype, "device": device}
        self.store = torch.empty(layers, 2, 0, heads, 0, width, **self._options)

    @property
    def capacity_tokens(self) -> int:
        """How long a row can be now (T)."""
        return self.store.shape[4]

    def fit(self, rows: int, tokens: int, used_rows: int) -> None:
        """Make room for `rows` rows of `tokens` tokens, keeping the first `used_rows`; shrink what is far too large.

        `tokens` is the longest of all rows, those in use included: what lies beyond it is given up.
        """
        have_rows, have_tokens = self.store.shape[2], self.store.shape[4]
        need_tokens = -(-tokens // _BLOCK_TOKENS) * _BLOCK_TOKENS
        roomy = have_tokens >= 4 * need_tokens and have_tokens > 8 * _BLOCK_TOKENS
        if rows <= have_rows and need_tokens <= have_tokens and not roomy:
            return
        layers, heads, width = self._shape
        new_rows = have_rows if rows <= have_rows else max(rows, min(2 * have_rows, have_rows + 32))
        # Zeros, not garbage: masked weights are exactly 0, but 0 times NaN would still be NaN.
        grown = torch.zeros(layers, 2, new_rows, heads, need_tokens, width, **self._options)
        kept = min(have_tokens, need_tokens)
        grown[:, :, :used_rows, :, :kept] = self.store[:, :, :used_rows, :, :kept]
        self.store = grown

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one row over another."""
        self.store[:, :, target, :, :tokens] = self.store[:, :, source, :, :tokens]

    def copy_out(self, row: int, tokens: int) -> torch.Tensor:
        """Copy the first `tokens` tokens of a row: (L, 2, H, tokens, D)."""
        return self.store[:, :, row, :, :tokens].clone()

    def copy_in(self, row: int, prefix: torch.Tensor, tokens: int) -> None:
        """Fill the beginning of a row from what `copy_out` gave."""
        self.store[:, :, row, :, :tokens] = prefix[:, :, :, :tokens]


@dataclass(frozen=True, slots=True)
class Window:
    """What one forward pass reads and writes: consecutive rows (B), and where in each the new tokens (S) go."""

    kv: KvRows
    first_row: int
    positions_BS: torch.Tensor
    row_offsets_B1: torch.Tensor
    mask_B1ST: torch.Tensor  # added to the scores: 0 or -inf

    @classmethod
    def of(cls, kv: KvRows, first_row: int, positions_BS: torch.Tensor) -> "Window":
        """Build the window in which every token sees its row up to its own position."""
        places_T = torch.arange(kv.capacity_tokens, device=positions_BS.device)
        hidden_BST = places_T > positions_BS[:, :, None]
        mask_BST = torch.zeros(hidden_BST.shape, dtype=kv.store.dtype, device=positions_BS.device)
        mask_BST.masked_fill_(hidden_BST, float("-inf"))
        rows_B1 = torch.arange(positions_BS.shape[0], device=positions_BS.device)[:, None]
        return cls(kv, first_row, positions_BS, rows_B1, mask_BST[:, None])


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # the interface's; the window has its own
    *,
    window: Window,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Write the new keys and values into the window's rows, then attend to all that the rows hold.

    `query` (B, H, S, D), `key` and `value` (B, K, S, D) with K dividing H; gives back (B, S, H, D).
    """
    batch, heads, steps, width = query.shape
    layer = window.kv.store[int(module.layer_idx)][:, window.first_row : window.first_row + batch]  # pyright: ignore[reportArgumentType]
    keys, values = layer[0], layer[1]
    keys[window.row_offsets_B1, :, window.positions_BS] = key.transpose(1, 2)
    values[window.row_offsets_B1, :, window.positions_BS] = value.transpose(1, 2)
    scale = width**-0.5 if scaling is None else scaling
    groups = heads // keys.shape[1]
    if steps == 1:
        # Two plain products beat the fused kernel here: with one query a row there is nothing to fuse.
        scores = (query * scale).view(batch, keys.shape[1], groups, width) @ keys.transpose(2, 3)
        mixed = (scores + window.mask_B1ST).softmax(-1) @ values
        return mixed.view(batch, 1, heads, width), None
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    mixed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=window.mask_B1ST, scale=scale)
    return mixed.transpose(1, 2), None

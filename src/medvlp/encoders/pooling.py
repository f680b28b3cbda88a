"""Pooling of feature maps and token sequences."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """One query attends to all cells of a feature map, head by head (CLIP; G2D §3.2 "Attention Aggregation").

    Args:
        dim: channels C of the map.
        grid: side g of the map that the positional table is made for; other sizes are interpolated.
        heads: number of heads H, which need not divide ``dim``: G2D's 3 heads on 128 channels are 3 × 43.
        head_dim: channels per head; ⌈dim / heads⌉ if None.
        out_dim: channels of the pooled vector; ``dim`` if None.
        query: token 0, before the cells: their "mean" (released G2D, CLIP), or a "learned" parameter (paper: "a special
            token, [CLS]").
    """

    def __init__(
        self,
        dim: int,
        grid: int,
        heads: int,
        head_dim: int | None = None,
        out_dim: int | None = None,
        query: Literal["mean", "learned"] = "mean",
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim or math.ceil(dim / heads)
        self.grid = grid
        inner = self.heads * self.head_dim
        self.positional_embedding = nn.Parameter(torch.randn(grid * grid + 1, dim) / math.sqrt(dim))
        self.cls_token = nn.Parameter(torch.zeros(dim)) if query == "learned" else None
        self.in_proj = nn.Linear(dim, 3 * inner)
        self.out_proj = nn.Linear(inner, dim)
        self.c_proj = nn.Linear(dim, out_dim or dim)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def _positions(self, height: int, width: int) -> Tensor:
        if (height, width) == (self.grid, self.grid):
            return self.positional_embedding
        table = self.positional_embedding[1:].T.reshape(1, -1, self.grid, self.grid)
        table = F.interpolate(table, (height, width), mode="bicubic", align_corners=False)
        return torch.cat([self.positional_embedding[:1], table[0].flatten(1).T])

    def _tokens(self, x: Tensor) -> Tensor:
        cells = x.flatten(2).transpose(1, 2)
        if self.cls_token is None:
            first = cells.mean(1, keepdim=True)
        else:
            first = self.cls_token.to(x.dtype).expand(len(x), 1, -1)
        return torch.cat([first, cells], 1) + self._positions(*x.shape[2:]).to(x.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pool a map (B, C, h, w).

        Returns:
            The pooled (B, out_dim), not normalised, and the attention (B, H, 1 + h·w), rows summing to 1, column 0
            being token 0's weight on itself.
        """
        tokens = self._tokens(x)
        batch = len(tokens)
        inner = self.heads * self.head_dim
        query_weight, rest = self.in_proj.weight.split([inner, 2 * inner])
        query_bias, rest_bias = self.in_proj.bias.split([inner, 2 * inner])
        query = F.linear(tokens[:, :1], query_weight, query_bias)  # only token 0 asks
        key, value = F.linear(tokens, rest, rest_bias).chunk(2, -1)
        query, key, value = (
            part.view(batch, -1, self.heads, self.head_dim).transpose(1, 2) for part in (query, key, value)
        )
        attention = (query @ key.transpose(-2, -1) / math.sqrt(self.head_dim)).softmax(-1)
        pooled = (attention @ value).transpose(1, 2).reshape(batch, -1)
        return self.c_proj(self.out_proj(pooled)), attention[:, :, 0]

    def attention_grid(self, attention: Tensor, height: int, width: int) -> Tensor:
        """Return the cells' part of the attention as maps, (B, H, 1 + h·w) → (B, H, h, w), which no longer sum to 1."""
        return attention[:, :, 1:].reshape(*attention.shape[:2], height, width)

    def project_cells(self, x: Tensor) -> Tensor:
        """Project each cell (B, C, h, w) into the space of the pooled vector, (B, out_dim, h, w), not normalised.

        The result is what the pool would return if it attended to that cell alone. With one head the pooled vector is
        exactly the mean of these and of token 0 taken the same way, weighted by the attention; with several, each head
        weights its own part of the channels. So they are comparable with text.
        """
        cells = self._tokens(x)[:, 1:]
        inner = self.heads * self.head_dim
        value = F.linear(cells, self.in_proj.weight[2 * inner :], self.in_proj.bias[2 * inner :])
        out = self.c_proj(self.out_proj(value))
        return out.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])


def pool_tokens(hidden: Tensor, attention_mask: Tensor, how: Literal["cls", "mean", "max"]) -> Tensor:
    """Pool sequences (B, L, D) to (B, D): the first position, or the mean or maximum without padding (mask 0)."""
    if how == "cls":
        return hidden[:, 0]
    mask = attention_mask[:, :, None].bool()
    if how == "mean":  # counted in whole numbers, of which bfloat16 has few
        return (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
    return hidden.masked_fill(~mask, torch.finfo(hidden.dtype).min).amax(1)

"""Image-report retrieval."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_TIE = 1e-6
"""Cosines closer than this are equal: a matrix product rounds equal rows differently."""


def recall_at_k(
    queries: Tensor, keys: Tensor, k: Sequence[int] = (1, 5, 10), groups: Tensor | None = None, chunk: int = 1024
) -> dict[int, float]:
    """Share of queries with a match among the k most similar keys, by cosine.

    A query's rank is one plus the number of keys strictly more similar than its best match, plus half of the other
    keys as similar (to 1e-6, float32's rounding): ties neither help nor hurt. In a collapsed model every rank is
    the middle one, (N + 1) / 2.

    Args:
        queries: (N, d).
        keys: (N, d); key i matches query i.
        k: cut-offs.
        groups: (N,) whole numbers; keys of the query's group match too (reports of equal text). None: key i alone.
        chunk: queries compared at once.

    Returns:
        k to recall in [0, 1]; NaN without queries.
    """
    queries, keys = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
    if groups is None:
        groups = torch.arange(len(queries), device=queries.device)
    ranks = []
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ keys.T
        match = groups[start : start + chunk, None] == groups[None]
        best = similarity.masked_fill(~match, -2.0).amax(1, keepdim=True)
        above = ((similarity > best + _TIE) & ~match).sum(1)
        tied = (((similarity - best).abs() <= _TIE) & ~match).sum(1)
        ranks.append(1 + above + 0.5 * tied)
    if not ranks:
        return {cut: float("nan") for cut in k}
    rank = torch.cat(ranks)
    return {cut: float((rank <= cut).float().mean()) for cut in k}


def in_batch_accuracy(image: Tensor, text: Tensor, top_k: Sequence[int] = (1, 5)) -> dict[int, Tensor]:
    """Percentage of rows whose partner is among the k most similar, mean of both directions (G2D's acc1, acc5).

    Args:
        image: (B, d).
        text: (B, d).
        top_k: cut-offs, each at most B.

    Returns:
        k to a scalar in [0, 100].
    """
    logits = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    target = torch.arange(len(logits), device=logits.device)[:, None]
    result = {}
    for cut in top_k:
        hits = [(side.topk(cut, 1).indices == target).any(1).float().mean() for side in (logits, logits.T)]
        result[cut] = 50 * (hits[0] + hits[1])
    return result

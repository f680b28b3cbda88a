"""Retrieval: of the partner (recall) and of items of the same class (precision), each beside its chance level.

===================== ==================================================================================================
``recall@<k>``        share of the queries with a partner among the k most similar items
``precision@<k>``     share of the k most similar items that are relevant to the query, mean over the queries (GLoRIA's
                      5×200, ConVIRT's 8×200: items of the query's class are relevant)
``chance/<name>``     score of items in random order
===================== ==================================================================================================

Each has a direction, ``/i2t`` and so on. Items of equal similarity (to 1e-6) count as their mean over all orders, so
that a collapsed model scores chance and no draw is needed.
"""

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.errors import ConfigError
from medvlp.metrics.samples import Samples, named_values, sample_weights, weighted_mean

RECALLS = (1, 5, 10)
"""Cut-offs of recall."""
PRECISIONS = (5, 10, 50, 100)
"""Cut-offs of precision: GLoRIA's 5, 10, 100 and ConVIRT's 5, 10, 50."""

_TIE = 1e-6
"""Cosines closer than this are equal: a matrix product rounds equal rows differently."""


def text_groups(texts: Sequence[str]) -> Tensor:
    """(N,) long, equal for equal texts."""
    digests = (hashlib.blake2b(text.encode(), digest_size=7).digest() for text in texts)
    return torch.tensor([int.from_bytes(digest, "big") for digest in digests])


def in_batch_accuracy(image: Tensor, text: Tensor, top_k: Sequence[int] = (1, 5)) -> dict[int, Tensor]:
    """Percentage of (B, d) rows whose partner is among the k most similar, mean of both ways (G2D's acc1, acc5)."""
    logits = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    target = torch.arange(len(logits), device=logits.device)[:, None]
    result = {}
    for cut in top_k:
        hits = [(side.topk(cut, 1).indices == target).any(1).float().mean() for side in (logits, logits.T)]
        result[cut] = 50 * (hits[0] + hits[1])
    return result


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _any_of(draws: Tensor, others: Tensor, matches: Tensor) -> Tensor:
    """Probability that draws without replacement from matches and others contain a match."""
    draws, others, matches = (x.double() for x in (draws, others, matches))
    taken = draws.clamp_min(0).minimum(others + matches)
    none = (_log_choose(others, taken.minimum(others)) - _log_choose(others + matches, taken)).exp()
    return torch.where((taken > others) & (matches > 0), 1, torch.where(taken > 0, 1 - none, 0))


def recall_statistics(
    queries: Tensor,
    keys: Tensor,
    k: Sequence[int] = RECALLS,
    query_groups: Tensor | None = None,
    key_groups: Tensor | None = None,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Return for each query the probability that a match is among the k most similar keys, ties in random order.

    Keys, (N, d), match queries, (Q, d), of the same group; without groups, key i alone matches query i. ``chunk``
    queries are compared at once, instead of a Q × N matrix.

    Returns:
        (Q, K) float32, 0 or 1 without ties, and (Q, K) chance, keys in random order. Queries without a match have 0.
    """
    queries, keys = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
    query_groups = torch.arange(len(queries), device=keys.device) if query_groups is None else query_groups
    key_groups = torch.arange(len(keys), device=keys.device) if key_groups is None else key_groups
    cuts = torch.tensor(list(k), device=keys.device)
    recall = queries.new_zeros(len(queries), len(cuts))
    chance = torch.zeros_like(recall)
    for start in range(0, len(queries) if len(keys) else 0, chunk):
        similarity = queries[start : start + chunk] @ keys.T
        match = query_groups[start : start + chunk, None] == key_groups[None]
        best = similarity.masked_fill(~match, -2.0).amax(1, keepdim=True)
        above = (similarity > best + _TIE).sum(1, keepdim=True)
        tied = (similarity - best).abs() <= _TIE
        others, matches = (tied & ~match).sum(1, keepdim=True), (tied & match).sum(1, keepdim=True)
        recall[start : start + chunk] = _any_of(cuts - above, others, matches)
        every = match.sum(1, keepdim=True)
        chance[start : start + chunk] = _any_of(cuts.expand(len(every), -1), len(keys) - every, every)
    return recall, chance


def recall_columns(
    image: Tensor,
    text: Tensor,
    groups: Tensor | None = None,
    k: Sequence[int] = RECALLS,
    directions: Sequence[str] = ("i2t", "t2i"),
) -> dict[str, Tensor]:
    """Score image-report pairs for :func:`retrieval_measures`: the recall of pre-training and of the retrieval task.

    Text i, (N, d), belongs to image i. Reports of equal group, see :func:`text_groups`, all match.

    Returns:
        Columns ``recall_<direction>`` and ``chance_recall_<direction>``, (N, K) each.
    """
    columns: dict[str, Tensor] = {}
    for way in directions:
        sides = (image, text) if way == "i2t" else (text, image)
        columns[f"recall_{way}"], columns[f"chance_recall_{way}"] = recall_statistics(*sides, k, groups, groups)
    return columns


def precision_statistics(
    queries: Tensor,
    keys: Tensor,
    query_classes: Tensor,
    key_classes: Tensor,
    k: Sequence[int] = PRECISIONS,
    own_key: Tensor | None = None,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Return for each query the share of relevant items among the k most similar keys, ties in random order.

    Keys, (N, d), of the class of a query, (Q, d), are relevant. ``own_key``, (Q,), is the key that is the query itself
    and no candidate (image to image), −1 for none.

    Returns:
        (Q, K) float32, NaN where there are fewer than k candidates, and (Q,) chance: the share of relevant candidates.
    """
    queries, keys = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
    precision = queries.new_full((len(queries), len(k)), torch.nan)
    chance = queries.new_full((len(queries),), torch.nan)
    for start in range(0, len(queries) if len(keys) else 0, chunk):
        similarity = queries[start : start + chunk] @ keys.T
        relevant = query_classes[start : start + chunk, None] == key_classes[None]
        if own_key is not None:
            itself = own_key[start : start + chunk, None] == torch.arange(len(keys), device=keys.device)
            similarity, relevant = similarity.masked_fill(itself, -torch.inf), relevant & ~itself
        chance[start : start + chunk] = relevant.sum(1) / (~similarity.isneginf()).sum(1)
        precision[start : start + chunk] = precision_of(similarity, relevant, k)
    return precision, chance


def precision_of(similarity: Tensor, relevant: Tensor, k: Sequence[int]) -> Tensor:
    """Return for each query the share of relevant items among the k most similar, ties in random order.

    ``similarity``, (Q, N), is −inf for an item that is no candidate.

    Returns:
        (Q, K) of the dtype of ``similarity``, NaN where there are fewer than k candidates.
    """
    count, candidates = similarity.shape[1], (~similarity.isneginf()).sum(1)
    precision = similarity.new_full((len(similarity), len(k)), torch.nan)
    ordered = similarity.topk(min(max(k, default=1), count), dim=1).values
    for i, cut in enumerate(k):
        if cut > count:
            continue
        last = ordered[:, cut - 1, None]
        above, tied = similarity > last + _TIE, (similarity - last).abs() <= _TIE
        left = (cut - above.sum(1)) / tied.sum(1)
        hits = (above & relevant).sum(1) + left * (tied & relevant).sum(1)
        precision[:, i] = torch.where(candidates >= cut, hits / cut, torch.nan)
    return precision


def retrieval_measures(
    samples: Samples,
    weights: Tensor | None = None,
    *,
    recalls: Sequence[int] = RECALLS,
    precisions: Sequence[int] = PRECISIONS,
) -> dict[str, Tensor]:
    """Compute all metrics of the module's table for the directions that have columns.

    Queries are weighted (and resampled); the candidates stay those of the whole set.

    Args:
        samples: one row per query: ``recall_<way>`` and ``chance_recall_<way>`` (N, K), see :func:`recall_columns`;
            ``precision_<way>`` (N, K') and ``chance_precision_<way>`` (N,), see :func:`precision_statistics`.
        weights: (R, N) multiplicity of each query; None: 1.
        recalls: the K cut-offs of the columns.
        precisions: the K' cut-offs of the columns.
    """
    w = sample_weights(samples, weights)
    result: dict[str, Tensor] = {}
    for column in samples.columns:
        kind, _, way = column.partition("_")
        if kind not in ("recall", "precision"):
            continue
        cuts = recalls if kind == "recall" else precisions
        values, chance = samples[column].double(), samples[f"chance_{column}"].double()
        if len(samples) and values.shape[1:] != (len(cuts),):
            raise ConfigError(f"{column} was taken at {values.shape[1:].numel()} cut-offs, not {len(cuts)}")
        values = values.reshape(len(samples), len(cuts))
        chance = chance.reshape(len(samples), -1).expand(-1, len(cuts)) if len(samples) else values
        chance = torch.where(values.isnan(), torch.nan, chance)
        for i, cut in enumerate(cuts):
            result[f"{kind}@{cut}/{way}"] = weighted_mean(values[:, i], w)
            result[f"chance/{kind}@{cut}/{way}"] = weighted_mean(chance[:, i], w)
    return named_values(result, weights)

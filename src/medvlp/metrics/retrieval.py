"""Retrieval: of the partner (recall) and of items of the same class (precision), each beside its chance level.

===================== ==================================================================================================
``recall@<k>``        share of the queries with a partner among the k most similar items
``precision@<k>``     share of the k most similar items that are relevant to the query, mean over the queries (GLoRIA's
                      5×200, ConVIRT's 8×200: relevant is what is of the query's class)
``chance/<name>``     what items in random order score
===================== ==================================================================================================

Each has a direction, ``/i2t`` and so on. Items of equal similarity (to 1e-6) count as if in random order, so that a
collapsed model scores chance. :func:`recall_at_k`, which follows pre-training, is stricter: there it finds nothing.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.errors import ConfigError
from medvlp.metrics.samples import SampleMetric, Samples, weighted_mean

RECALLS = (1, 5, 10)
"""Cut-offs of recall."""
PRECISIONS = (5, 10, 50, 100)
"""Cut-offs of precision: GLoRIA's 5, 10, 100 and ConVIRT's 5, 10, 50."""

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


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _any_of(draws: Tensor, others: Tensor, wanted: Tensor) -> Tensor:
    """Probability that some of the wanted are among so many draws without replacement from wanted and others."""
    draws, others, wanted = (x.double() for x in (draws, others, wanted))
    taken = draws.clamp_min(0).minimum(others + wanted)
    none = (_log_choose(others, taken.minimum(others)) - _log_choose(others + wanted, taken)).exp()
    return torch.where((taken > others) & (wanted > 0), 1, torch.where(taken > 0, 1 - none, 0))


def recall_statistics(
    queries: Tensor,
    keys: Tensor,
    k: Sequence[int] = RECALLS,
    query_groups: Tensor | None = None,
    key_groups: Tensor | None = None,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """For each query the probability that a match is among the k most similar keys, ties in random order.

    Args:
        queries: (Q, d).
        keys: (N, d).
        k: K cut-offs.
        query_groups: (Q,) whole numbers; keys of the query's group match. None: key i alone matches query i.
        key_groups: (N,).
        chunk: queries compared at once; no Q × N matrix is held.

    Returns:
        (Q, K) float32, 0 or 1 without ties, and (Q, K) chance, keys in random order. Queries without a match have 0.
    """
    queries, keys = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
    query_groups = torch.arange(len(queries), device=keys.device) if query_groups is None else query_groups
    key_groups = torch.arange(len(keys), device=keys.device) if key_groups is None else key_groups
    cuts = torch.tensor(list(k), device=keys.device)
    found = queries.new_zeros(len(queries), len(cuts))
    chance = torch.zeros_like(found)
    for start in range(0, len(queries) if len(keys) else 0, chunk):
        similarity = queries[start : start + chunk] @ keys.T
        match = query_groups[start : start + chunk, None] == key_groups[None]
        best = similarity.masked_fill(~match, -2.0).amax(1, keepdim=True)
        above = (similarity > best + _TIE).sum(1, keepdim=True)
        tied = (similarity - best).abs() <= _TIE
        others, wanted = (tied & ~match).sum(1, keepdim=True), (tied & match).sum(1, keepdim=True)
        found[start : start + chunk] = _any_of(cuts - above, others, wanted)
        every = match.sum(1, keepdim=True)
        chance[start : start + chunk] = _any_of(cuts.expand(len(every), -1), len(keys) - every, every)
    return found, chance


def precision_statistics(
    queries: Tensor,
    keys: Tensor,
    query_classes: Tensor,
    key_classes: Tensor,
    k: Sequence[int] = PRECISIONS,
    own_key: Tensor | None = None,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """For each query the share of relevant items among the k most similar keys, ties in random order.

    Args:
        queries: (Q, d).
        keys: (N, d).
        query_classes: (Q,) long.
        key_classes: (N,) long, relevant if equal to the query's; or (N, C) labels, relevant if 1 for the query's class
            (ConVIRT's candidates may have several).
        k: K cut-offs.
        own_key: (Q,) the key that is the query itself and is no candidate (image to image); −1 for none.
        chunk: queries compared at once; no Q × N matrix is held.

    Returns:
        (Q, K) float32, NaN where there are fewer than k candidates, and (Q,) chance: the share of relevant candidates.
    """
    queries, keys = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
    found = queries.new_full((len(queries), len(k)), torch.nan)
    chance = queries.new_full((len(queries),), torch.nan)
    for start in range(0, len(queries) if len(keys) else 0, chunk):
        similarity = queries[start : start + chunk] @ keys.T
        wanted = query_classes[start : start + chunk]
        relevant = wanted[:, None] == key_classes[None] if key_classes.ndim == 1 else key_classes.T[wanted] == 1
        candidates = similarity.new_full((len(similarity), 1), float(len(keys)))
        if own_key is not None:
            own = own_key[start : start + chunk, None] == torch.arange(len(keys), device=keys.device)
            similarity, relevant = similarity.masked_fill(own, -torch.inf), relevant & ~own
            candidates = candidates - own.sum(1, keepdim=True)
        chance[start : start + chunk] = (relevant.sum(1, keepdim=True) / candidates)[:, 0]
        found[start : start + chunk] = precision_of(similarity, relevant, k, candidates[:, 0])
    return found, chance


def precision_of(similarity: Tensor, relevant: Tensor, k: Sequence[int], candidates: Tensor | None = None) -> Tensor:
    """For each query the share of relevant items among the k most similar, ties in random order.

    Args:
        similarity: (Q, N) cosines; −inf for an item that is no candidate.
        relevant: (Q, N) bool.
        k: K cut-offs.
        candidates: (Q,) how many items are; None: all.

    Returns:
        (Q, K) of the type of ``similarity``, NaN where there are fewer than k candidates.
    """
    count = similarity.shape[1]
    found = similarity.new_full((len(similarity), len(k)), torch.nan)
    ordered = similarity.topk(min(max(k, default=1), count), dim=1).values
    for place, cut in enumerate(k):
        if cut > count:
            continue
        last = ordered[:, cut - 1, None]
        above, tied = similarity > last + _TIE, (similarity - last).abs() <= _TIE
        left = (cut - above.sum(1)) / tied.sum(1)
        hits = (above & relevant).sum(1) + left * (tied & relevant).sum(1)
        enough = torch.ones_like(left, dtype=torch.bool) if candidates is None else candidates >= cut
        found[:, place] = torch.where(enough, hits / cut, torch.nan)
    return found


def pair_statistics(
    image: Tensor,
    text: Tensor,
    groups: Tensor | None = None,
    classes: Tensor | None = None,
    recalls: Sequence[int] = RECALLS,
    precisions: Sequence[int] = PRECISIONS,
) -> dict[str, Tensor]:
    """All that :func:`retrieval_measures` needs to know of a set of pairs, query by query.

    Args:
        image: (N, d) embeddings of the whole set.
        text: (N, d); text i belongs to image i.
        groups: (N,) whole numbers, equal for reports of equal text: any of them is a match.
        classes: (N,) long, the one class of each pair; None: no precision. −1: of no class, and then no query.
        recalls: cut-offs of recall.
        precisions: cut-offs of precision.

    Returns:
        Columns ``recall_i2t``, ``recall_t2i`` (N, K) and their ``chance_…``; with classes ``precision_i2t``,
        ``precision_t2i``, ``precision_i2i`` (N, K') and their ``chance_…`` (N,).
    """
    found: dict[str, Tensor] = {}
    for way, queries, keys in (("i2t", image, text), ("t2i", text, image)):
        found[f"recall_{way}"], found[f"chance_recall_{way}"] = recall_statistics(
            queries, keys, recalls, groups, groups
        )
    if classes is None:
        return found
    itself = torch.arange(len(image), device=image.device)
    for way, queries, keys in (("i2t", image, text), ("t2i", text, image), ("i2i", image, image)):
        precision, chance = precision_statistics(
            queries, keys, classes, classes, precisions, itself if way == "i2i" else None
        )
        known = classes >= 0
        found[f"precision_{way}"] = torch.where(known[:, None], precision, torch.nan)
        found[f"chance_precision_{way}"] = torch.where(known, chance, torch.nan)
    return found


def retrieval_measures(
    samples: Samples,
    weights: Tensor | None = None,
    *,
    recalls: Sequence[int] = RECALLS,
    precisions: Sequence[int] = PRECISIONS,
) -> dict[str, Tensor]:
    """All metrics of the table above, for the directions whose columns there are.

    Queries are what is weighted (and resampled); the items to choose from stay those of the whole set.

    Args:
        samples: one row per query: ``recall_<way>`` and ``chance_recall_<way>`` (N, K), ``precision_<way>`` (N, K') and
            ``chance_precision_<way>`` (N,), as :func:`pair_statistics` gives them.
        weights: (R, N) how often each query counts; None: once.
        recalls: the K cut-offs that the columns were taken at.
        precisions: the K'.

    Returns:
        Name to scalar, or to (R,) with weights; float64. A precision of more items than there are is NaN.

    Raises:
        ConfigError: another number of cut-offs than the columns have.
    """
    w = torch.ones(1, len(samples), device=samples.index.device) if weights is None else weights
    w = w.double()
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
        for place, cut in enumerate(cuts):
            result[f"{kind}@{cut}/{way}"] = weighted_mean(values[:, place], w)
            result[f"chance/{kind}@{cut}/{way}"] = weighted_mean(
                torch.where(values[:, place].isnan(), torch.nan, chance[:, place]), w
            )
    return result if weights is not None else {name: value.reshape(()) for name, value in result.items()}


class RetrievalMetric(SampleMetric):
    """:func:`pair_statistics` and :func:`retrieval_measures` as a metric that syncs over ranks, each row once.

    Args:
        classes: whether :meth:`update` is given the class of each pair.
        recalls: cut-offs of recall.
        precisions: cut-offs of precision.
    """

    def __init__(
        self, classes: bool = False, recalls: Sequence[int] = RECALLS, precisions: Sequence[int] = PRECISIONS
    ) -> None:
        super().__init__(self._measure, ["image", "text", "match", *(["classes"] if classes else [])])
        self.recalls, self.precisions = tuple(recalls), tuple(precisions)

    def update(
        self, preds: Tensor, target: Tensor, index: Tensor, group: Tensor | None = None, classes: Tensor | None = None
    ) -> None:
        """Adds a batch: images, texts (B, d), dataset rows (B,), groups of equal texts (None: all differ), classes."""
        columns = {"image": preds, "text": target, "match": index if group is None else group}
        self.store.update(index, **columns, **({} if classes is None else {"classes": classes}))

    def _measure(self, samples: Samples) -> dict[str, Tensor]:
        classes = samples.columns.get("classes")
        image, text = samples["image"], samples["text"]
        if not len(samples):  # of unknown width
            image = text = image[:, None]
        columns = pair_statistics(image, text, samples["match"], classes, self.recalls, self.precisions)
        return retrieval_measures(Samples(samples.index, columns), recalls=self.recalls, precisions=self.precisions)

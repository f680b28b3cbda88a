"""Tests of differences: DeLong's for two AUROCs on the same samples, Holm's correction for several tests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medvlp.errors import ConfigError
from medvlp.metrics.curves import known


@dataclass(frozen=True)
class DeLong:
    """Outcome of DeLong's test.

    Attributes:
        a: AUROC of the first scores.
        b: AUROC of the second.
        standard_error: of a − b.
        z: (a − b) / standard_error.
        p: two-sided, from the normal distribution. 1 for a difference of 0 without variance; NaN where the variance
            is 0 and the difference is not (one of the two ranks perfectly), or where a class has fewer than two
            samples: the test has nothing to say there.
    """

    a: float
    b: float
    standard_error: float
    z: float
    p: float


def _mid_ranks(values: Tensor) -> Tensor:
    """Ranks from 1, ties at their middle."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[place]


def _placements(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """For each positive the share of negatives below it, for each negative that of positives above it, ties half."""
    together, above, below = _mid_ranks(scores), _mid_ranks(scores[positive]), _mid_ranks(scores[~positive])
    m, n = len(above), len(below)
    return (together[positive] - above) / n, 1 - (together[~positive] - below) / m


def delong_test(a: Tensor, b: Tensor, labels: Tensor) -> DeLong:
    """DeLong, DeLong & Clarke-Pearson's paired test (1988) in the mid-rank form of Sun & Xu (2014), O(N log N).

    It takes the samples to be independent: with several images of a patient use the paired bootstrap
    (:func:`medvlp.metrics.bootstrap.paired_interval`).

    Args:
        a: (N,) scores of one method.
        b: (N,) of the other, on the same samples.
        labels: (N,) 1 positive, 0 negative; others are left out.

    Returns:
        See :class:`DeLong`; all NaN without a positive or a negative.

    Raises:
        ConfigError: the three differ in length.
    """
    if not a.shape == b.shape == labels.shape or a.ndim != 1:
        raise ConfigError(
            f"DeLong's test compares two scores of the same samples, got {[tuple(x.shape) for x in (a, b, labels)]}"
        )
    keep = known(labels)
    positive = labels[keep] == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return DeLong(math.nan, math.nan, math.nan, math.nan, math.nan)
    first, second = (_placements(side[keep], positive) for side in (a, b))
    auroc_a, auroc_b = float(first[0].mean()), float(second[0].mean())
    difference = auroc_a - auroc_b
    if m < 2 or n < 2:
        return DeLong(auroc_a, auroc_b, math.nan, math.nan, math.nan)
    variance = sum(float((x - y).var()) / len(x) for x, y in zip(first, second, strict=True))
    error = math.sqrt(variance)
    if error < 1e-12:
        same = abs(difference) < 1e-12
        return DeLong(auroc_a, auroc_b, 0.0, 0.0 if same else math.nan, 1.0 if same else math.nan)
    z = difference / error
    return DeLong(auroc_a, auroc_b, error, z, math.erfc(abs(z) / math.sqrt(2)))


def holm(p: Sequence[float] | Tensor) -> Tensor:
    """Holm's step-down correction: p-values that may be compared with the family's level one by one.

    Args:
        p: (n,) p-values; NaN ones count for nothing and stay.

    Returns:
        (n,) float64 adjusted p-values in [0, 1]; at least as large as the given ones.
    """
    values = torch.as_tensor(p, dtype=torch.float64)
    result = values.clone()
    there = ~values.isnan()
    ordered, order = values[there].sort()
    steps = torch.arange(len(ordered), 0, -1, dtype=torch.float64)
    adjusted = (ordered * steps).clamp_max(1)
    if len(adjusted):
        adjusted = adjusted.cummax(0).values
    back = torch.empty_like(adjusted)
    back[order] = adjusted
    result[there] = back
    return result

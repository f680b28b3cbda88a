"""Significance tests: DeLong's for two AUROCs on the same samples, and Holm's correction for several tests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from medvlp.errors import ConfigError
from medvlp.metrics.curves import known


@dataclass(frozen=True)
class DeLong:
    """Result of DeLong's test of two AUROCs, a and b.

    Attributes:
        standard_error: of a − b.
        z: (a − b) / standard_error.
        p: two-sided, from the normal distribution. 1 for a difference of 0 without variance; NaN where the test is not
            defined: zero variance with a difference (a perfect ranking), or a class with fewer than two samples.
    """

    a: float
    b: float
    standard_error: float
    z: float
    p: float


def _placements(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """For each positive the share of negatives below it, for each negative that of positives above it, ties half."""
    parts = (scores, scores[positive], scores[~positive])
    overall, among_positives, among_negatives = (
        torch.tensor(pd.Series(part.cpu().numpy()).rank().to_numpy(), device=scores.device) for part in parts
    )
    m, n = len(among_positives), len(among_negatives)
    return (overall[positive] - among_positives) / n, 1 - (overall[~positive] - among_negatives) / m


def delong_test(a: Tensor, b: Tensor, labels: Tensor) -> DeLong:
    """Run the paired test of DeLong, DeLong & Clarke-Pearson (1988) in the O(N log N) form of Sun & Xu (2014).

    It assumes independent samples; with several images per patient, use the paired bootstrap (``medvlp benchmark
    compare``). Labels, (N,), are 1 or 0; samples with any other are skipped. All NaN without a positive or a negative.
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
    error = math.sqrt(sum(float((x - y).var()) / len(x) for x, y in zip(first, second, strict=True)))
    if error < 1e-12:
        same = abs(difference) < 1e-12
        return DeLong(auroc_a, auroc_b, 0.0, 0.0 if same else math.nan, 1.0 if same else math.nan)
    z = difference / error
    return DeLong(auroc_a, auroc_b, error, z, math.erfc(abs(z) / math.sqrt(2)))


def holm(p: Sequence[float] | Tensor) -> Tensor:
    """Adjust (n,) p-values by Holm's step-down correction, to compare with the level of the family; NaN ones stay."""
    values = torch.as_tensor(p, dtype=torch.float64)
    count = int((~values.isnan()).sum())
    ordered, order = values.sort()  # NaN last
    steps = torch.arange(count, 0, -1, dtype=torch.float64)
    adjusted = torch.full_like(values, math.nan)
    adjusted[order[:count]] = (ordered[:count] * steps).clamp_max(1).cummax(0).values
    return adjusted

"""Confidence intervals by resampling patients."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medvlp.errors import ConfigError
from medvlp.metrics.samples import Samples

Measures = Callable[[Samples, Tensor | None], dict[str, Tensor]]
"""Samples and weights to named float64 values: scalars with None, (R,) with the (R, N) multiplicities of resamples."""

_CHUNK = 4_000_000
"""Weights held in memory at once."""


class Interval(tuple[float, float]):
    """``(low, high)``; both NaN if no resample has a value.

    Attributes:
        undefined: number of skipped resamples in which the metric is undefined (no positive was drawn, for example).
    """

    undefined: int


def group_codes(names: Sequence[Any]) -> Tensor:
    """Number the patients: (N,) long, equal for equal identifiers."""
    return torch.from_numpy(np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].astype(np.int64))


def resample_weights(
    groups: Tensor, resamples: int, seed: int, strata: Tensor | None = None, chunk: int | None = None
) -> Iterator[Tensor]:
    """Draw patients with replacement and yield the multiplicity of each sample in each resample.

    Each resample draws as many of the (N,) ``groups`` as exist, with all their samples, so that the number of samples
    varies. Each of the (N,) ``strata`` keeps its number of groups; a group belongs to the largest stratum of its
    samples (with labels as strata, a patient with one positive image is positive). The draws do not depend on
    ``chunk``, the number of resamples per tensor (None: about 16 MB).

    Yields:
        (r, N) float32 on the device of ``groups``; the r add up to ``resamples``.
    """
    if resamples < 1 or not len(groups):
        raise ConfigError(f"a bootstrap needs samples and resamples, got {len(groups)} and {resamples}")
    codes = np.unique(groups.cpu().numpy(), return_inverse=True)[1]
    stratum = np.zeros(codes.max() + 1, np.int64)
    if strata is not None:
        np.maximum.at(stratum, codes, np.unique(strata.cpu().numpy(), return_inverse=True)[1])
    members = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    streams = [np.random.default_rng([seed, s]) for s in range(len(members))]
    chunk = chunk or max(1, _CHUNK // len(groups))
    sample_group = torch.from_numpy(codes).to(groups.device)
    for start in range(0, resamples, chunk):
        r = min(chunk, resamples - start)
        counts = torch.zeros(r, len(stratum))
        for candidates, stream in zip(members, streams, strict=True):
            drawn = torch.from_numpy(candidates[stream.integers(0, len(candidates), (r, len(candidates)))])
            counts.scatter_add_(1, drawn, torch.ones(drawn.shape))
        yield counts.to(groups.device)[:, sample_group]


def distribution(
    fn: Measures, samples: Samples, groups: Tensor, resamples: int = 2000, seed: int = 0, strata: Tensor | None = None
) -> dict[str, Tensor]:
    """Compute each metric of ``fn`` in each bootstrap resample of the patients; see :func:`resample_weights`.

    Returns:
        Name to (R,) float64, NaN where the metric is undefined in a resample. Metrics with a single value for all
        resamples (thresholds, class counts) are expanded. Equal seeds and (N,) ``groups`` give equal resamples.
    """
    parts: dict[str, list[Tensor]] = {}
    for weights in resample_weights(groups.to(samples.index.device), resamples, seed, strata):
        for name, value in fn(samples, weights).items():
            parts.setdefault(name, []).append(value.double().expand(len(weights)))
    return {name: torch.cat(values) for name, values in parts.items()}


def interval(
    fn: Measures,
    samples: Samples,
    groups: Tensor,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    strata: Tensor | None = None,
) -> dict[str, Interval]:
    """Return percentile intervals of all metrics at coverage ``level``, all from the same resamples of the patients.

    See :func:`distribution` for the arguments. With a single patient, intervals have no width.
    """
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2])
    intervals = {}
    for name, values in distribution(fn, samples, groups, resamples, seed, strata).items():
        intervals[name] = Interval(values.nanquantile(edges.to(values)).tolist())
        intervals[name].undefined = int(values.isnan().sum())
    return intervals

"""Confidence intervals by resampling patients."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medvlp.errors import ConfigError
from medvlp.metrics.samples import Samples

Measures = Callable[[Samples, Tensor | None], dict[str, Tensor]]
"""Samples and weights, None or (R, N), to named scalars, or named (R,)."""

_CHUNK = 4_000_000
"""Weights held at once."""


class Interval(tuple[float, float]):
    """``(low, high)``, which also knows how many resamples had no value.

    Attributes:
        undefined: resamples in which the metric is not defined (no positive drawn, for example). They are left out.
    """

    undefined: int

    def __new__(cls, low: float, high: float, undefined: int = 0) -> "Interval":
        """NaN, NaN where no resample has a value."""
        made = super().__new__(cls, (low, high))
        made.undefined = undefined
        return made


def group_codes(names: Sequence[Any]) -> Tensor:
    """(N,) long, equal for equal names: groups for :func:`resample_weights` from patients' identifiers."""
    return torch.from_numpy(np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].astype(np.int64))


def resample_weights(
    groups: Tensor, resamples: int, seed: int, strata: Tensor | None = None, chunk: int | None = None
) -> Iterator[Tensor]:
    """How often each sample counts in each bootstrap resample; all samples of a group are drawn together.

    As many groups as there are are drawn with replacement, so the number of samples varies where groups differ in
    size. The draws depend on the seed and the groups alone, not on the chunk.

    Args:
        groups: (N,) long, the patient of each sample.
        resamples: R.
        seed: of the draws.
        strata: (N,) long; as many groups are drawn from each stratum as it has. A group belongs to the largest
            stratum of its samples (with strata = labels: a patient with one positive image is positive).
        chunk: resamples held at once; None: about 16 MB.

    Yields:
        (r, N) float32 on the device of ``groups``; the r add up to R.

    Raises:
        ConfigError: no sample, or less than one resample.
    """
    if resamples < 1 or not len(groups):
        raise ConfigError(f"a bootstrap needs samples and resamples, got {len(groups)} and {resamples}")
    codes = np.unique(groups.cpu().numpy(), return_inverse=True)[1]
    stratum = np.zeros(codes.max() + 1, np.int64)
    if strata is not None:
        labels = np.unique(strata.cpu().numpy(), return_inverse=True)[1]
        np.maximum.at(stratum, codes, labels)
    members = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    streams = [np.random.default_rng([seed, s]) for s in range(len(members))]
    chunk = chunk or max(1, _CHUNK // len(groups))
    sample_group = torch.from_numpy(codes).to(groups.device)
    for start in range(0, resamples, chunk):
        r = min(chunk, resamples - start)
        counts = torch.zeros(r, len(stratum))
        for own, stream in zip(members, streams, strict=True):
            drawn = torch.from_numpy(own[stream.integers(0, len(own), (r, len(own)))])
            counts.scatter_add_(1, drawn, torch.ones(drawn.shape))
        yield counts.to(groups.device)[:, sample_group]


def _interval(values: Tensor, level: float) -> Interval:
    values = values.double()
    undefined = int(values.isnan().sum())
    low, high = values.nanquantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]).to(values)).tolist()
    return Interval(low, high, undefined)


def distribution(
    fn: Measures,
    samples: Samples,
    groups: Tensor,
    resamples: int = 2000,
    seed: int = 0,
    strata: Tensor | None = None,
) -> dict[str, Tensor]:
    """Each measure in each resample.

    Args:
        fn: one of the ``<task>_measures``, its options bound.
        samples: N samples.
        groups: (N,) long, the patient of each sample.
        resamples: R.
        seed: of the draws; equal seeds and groups give equal resamples.
        strata: see :func:`resample_weights`.

    Returns:
        Name to (R,) float64; NaN where the measure is not defined in a resample. Measures without one value per
        resample (thresholds, counts of classes) are expanded.
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
    """Percentile intervals of all measures, from the same resamples of the patients.

    Args:
        fn: one of the ``<task>_measures``, its options bound.
        samples: N samples.
        groups: (N,) long, the patient of each sample; one patient alone gives an interval of no width.
        resamples: how many.
        level: coverage.
        seed: of the draws.
        strata: see :func:`resample_weights`.

    Returns:
        Name to (low, high); resamples without a value are left out and counted in ``.undefined``. NaN where the
        measure is undefined in all.
    """
    found = distribution(fn, samples, groups, resamples, seed, strata)
    return {name: _interval(values, level) for name, values in found.items()}


def paired_interval(
    fn: Measures,
    a: Samples,
    b: Samples,
    groups: Tensor,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    strata: Tensor | None = None,
) -> dict[str, Interval]:
    """Percentile intervals of the difference of two methods, a minus b, on identical resamples.

    Args:
        fn: one of the ``<task>_measures``, its options bound.
        a: predictions of one method.
        b: predictions of the other, of the same samples.
        groups: (N,) long, the patient of each sample.
        resamples: how many.
        level: coverage.
        seed: of the draws.
        strata: see :func:`resample_weights`.

    Returns:
        Name to (low, high) of the difference, of the measures that both have. An interval without 0 excludes
        equality. A resample in which either is undefined is left out.

    Raises:
        ConfigError: the two hold different samples.
    """
    if not torch.equal(a.index.cpu(), b.index.cpu()):
        raise ConfigError(
            f"a paired comparison needs the same samples: {len(a)} and {len(b)} were given, with different indices; "
            "evaluate both on one split"
        )
    first, second = (distribution(fn, side, groups, resamples, seed, strata) for side in (a, b))
    return {name: _interval(first[name] - second[name], level) for name in first if name in second}

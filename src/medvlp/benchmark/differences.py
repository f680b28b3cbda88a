"""Differences between the cells of a table, and which of them are more than chance.

A cell holds one row per run, where a run is a combination of seeds. Two cells are compared on identical resamples of
the patients, run by run where both have the run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from medvlp.benchmark.recompute import Predictions
from medvlp.benchmark.resampled import Resampled, Row
from medvlp.benchmark.rows import is_multiclass
from medvlp.errors import ConfigError
from medvlp.metrics.significance import DeLong, delong_test, holm

RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """One cell minus another.

    Attributes:
        value: mean over runs of the difference.
        low: lower end of its interval.
        high: upper end.
        p: two-sided, that there is none; NaN where it is not defined in any resample.
        test: what gave interval and p.
        runs: runs compared: pairs, or all of both cells where they share none.
        paired: whether the cells share runs. Patients are paired always.
    """

    value: float
    low: float
    high: float
    p: float
    test: Literal["bootstrap", "delong"]
    runs: int
    paired: bool = True


@dataclass(frozen=True)
class Best:
    """The best of a row of cells.

    Attributes:
        leader: its method; None where no cell has a value.
        second: the method after it; None where there is no other.
        p: method to the Holm-corrected p-value of the leader against it.
        differences: method to the leader minus it.
        significant: whether the leader differs from the second. That alone makes it bold.
    """

    leader: str | None
    second: str | None
    p: dict[str, float]
    differences: dict[str, Difference]
    significant: bool


_SHARED = Resampled()


def difference(
    a_rows: Sequence[Row],
    b_rows: Sequence[Row],
    metric: str,
    folder: str | Path,
    resamples: int = RESAMPLES,
    seed: int = 0,
    *,
    folder_b: str | Path | None = None,
    level: float = 0.95,
    store: Resampled | None = None,
) -> Difference:
    """One cell of a table minus another.

    The patients are drawn with replacement, the same for all runs of both cells. With several runs the runs are drawn
    too (a two-level bootstrap): two trainings that differ in the seed alone often differ by more than the interval over
    the patients of either, so an interval over patients would say how sure we are of these very networks, not of the
    method. The deviations of the runs from their mean are stretched by √(K / (K − 1)), without which drawing K of K
    runs has too small a variance. In simulations 95 % intervals then hold the truth in 92 to 97 % of all cases from
    three runs on; with two runs in 84 %, if their spread is three times that over patients.

    With one run in each cell, an AUROC of one class and one image per patient, interval and p are DeLong's; where that
    has nothing to say (one of the two ranks perfectly), the bootstrap's. Otherwise p is twice the smaller share of
    resamples on either side of 0, of which one is counted on each side beforehand, so that p is never 0.

    Args:
        a_rows: a cell: one row per run, of :func:`medvlp.benchmark.rows.records`.
        b_rows: the other.
        metric: its name.
        folder: that of the results file.
        resamples: of the patients.
        seed: of the draws.
        folder_b: that of ``b_rows``, if another.
        level: of the interval.
        store: keeps what was resampled; one for the process if None.

    Raises:
        ConfigError: a run comes twice in a cell, a cell is empty, or the two were scored on different samples.
        DataError: predictions are missing or damaged.
    """
    store = store or _SHARED
    sides = _by_run(a_rows, metric), _by_run(b_rows, metric)
    folders = Path(folder), Path(folder if folder_b is None else folder_b)
    shared = [run for run in sides[0] if run in sides[1]]
    chosen = [[side[run] for run in shared] if shared else list(side.values()) for side in sides]
    _check_samples(chosen, folders, store)
    value = float(np.mean([r["value"] for r in chosen[0]]) - np.mean([r["value"] for r in chosen[1]]))
    runs = len(shared) or sum(map(len, chosen))
    if len(chosen[0]) == len(chosen[1]) == 1:
        found = _delong(chosen[0][0], chosen[1][0], metric, folders, store)
        if found is not None and not math.isnan(found.p):
            reach = found.standard_error * float(torch.special.ndtri(torch.tensor((1 + level) / 2)))
            return Difference(value, value - reach, value + reach, found.p, "delong", runs, bool(shared))
    drawn = [
        np.stack([store.of(row, metric, where, resamples, seed) for row in side]).astype(float)
        for side, where in zip(chosen, folders, strict=True)
    ]
    rng = np.random.default_rng([seed, 1])
    if shared:
        values = mean_of_drawn_runs(drawn[0] - drawn[1], rng)
    else:
        values = mean_of_drawn_runs(drawn[0], rng) - mean_of_drawn_runs(drawn[1], rng)
    low, high, p = _percentiles(values, level)
    return Difference(value, low, high, p, "bootstrap", runs, bool(shared))


def interval_of_mean(
    rows: Sequence[Row],
    metric: str,
    folder: str | Path,
    resamples: int = RESAMPLES,
    seed: int = 0,
    *,
    level: float = 0.95,
    store: Resampled | None = None,
) -> tuple[float, float]:
    """Percentile interval over patients of a cell's mean over runs.

    The patients that are drawn are the same in all runs; runs are not drawn, their spread is printed beside.

    Args:
        rows: the cell: one row per run.
        metric: its name.
        folder: that of the results file.
        resamples: of the patients.
        seed: of the draws.
        level: of the interval.
        store: see :func:`difference`.

    Returns:
        (low, high); NaN where the metric is not defined in any resample.

    Raises:
        ConfigError: as of :func:`difference`.
        DataError: as of :func:`difference`.
    """
    store = store or _SHARED
    runs = list(_by_run(rows, metric).values())
    _check_samples([runs], (Path(folder),), store)
    drawn = np.stack([store.of(row, metric, folder, resamples, seed) for row in runs]).astype(float)
    return _percentiles(drawn.mean(0), level)[:2]


def best_of(
    cells: Mapping[str, Sequence[Row]],
    metric: str,
    folder: str | Path,
    higher_is_better: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
    *,
    level: float = 0.95,
    store: Resampled | None = None,
) -> Best:
    """The best cell, and whether it is better than the others by more than chance.

    The leader is compared with each other method, and the p-values are corrected by Holm for that many comparisons.
    That the leader was chosen by the same data is not corrected for. Nothing is significant as long as the cells hold
    different runs, as they do while a benchmark is under way: means of different runs do not say who leads.

    Args:
        cells: method to its rows of one column, one per run; those without a value take no part.
        metric: its name.
        folder: that of the results file.
        higher_is_better: whether the largest value leads.
        resamples: of the patients.
        seed: of the draws.
        level: 1 minus the p-value below which a difference counts.
        store: see :func:`difference`.

    Raises:
        ConfigError: as of :func:`difference`.
        DataError: as of :func:`difference`.
    """
    means = {
        method: float(np.mean([row["value"] for row in rows]))
        for method, rows in cells.items()
        if rows and all(row["value"] is not None and not math.isnan(row["value"]) for row in rows)
    }
    order = sorted(means, key=lambda method: means[method], reverse=higher_is_better)
    if len(order) < 2:
        return Best(order[0] if order else None, None, {}, {}, False)
    leader, *others = order
    found = {
        method: difference(cells[leader], cells[method], metric, folder, resamples, seed, level=level, store=store)
        for method in others
    }
    corrected = holm([found[method].p for method in others]).tolist()
    comparable = len({frozenset(_by_run(cells[method], metric)) for method in order}) == 1
    significant = comparable and corrected[0] < 1 - level
    return Best(leader, others[0], dict(zip(others, corrected, strict=True)), found, significant)


def _by_run(rows: Sequence[Row], metric: str) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:
        run = row.get("bm_run") or f"seed{row['seed']}"
        if row["metric"] != metric:
            raise ConfigError(f"a cell of {metric} was given a row of {row['metric']} (line {row.get('line')})")
        if row["value"] is None or math.isnan(row["value"]):
            raise ConfigError(f"{metric} of run {run} (line {row.get('line')}) is not defined: leave the cell out")
        if run in found:
            raise ConfigError(
                f"run {run} comes twice in one cell (lines {found[run].get('line')} and {row.get('line')}), with other "
                "settings or another checkpoint; choose one of them"
            )
        found[run] = row
    if not found:
        raise ConfigError(f"a cell of {metric} has no rows: there is nothing to compare")
    return found


def _check_samples(sides: Sequence[Sequence[Row]], folders: Sequence[Path], store: Resampled) -> None:
    first: Predictions | None = None
    for rows, folder in zip(sides, folders, strict=True):
        for row in rows:
            own = store.predictions(row, folder)
            first = first or own
            if own is not first and not own.same_samples(first):
                raise ConfigError(
                    f"{row.get('bm_method', row['method'])}, run {row.get('bm_run', row['seed'])}: scored on other "
                    f"samples than what it is compared with ({len(own.ids)} and {len(first.ids)}); evaluate both on "
                    "one split"
                )


def mean_of_drawn_runs(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The runs' level of the two-level bootstrap of :func:`difference`.

    Args:
        values: (K, R), a number of each of K runs in each of R resamples of the patients.
        rng: what draws the runs.

    Returns:
        (R,) means over K runs drawn with replacement in each resample, their deviation from the mean over all runs
        stretched by √(K / (K − 1)); of one run its own numbers.
    """
    runs, resamples = values.shape
    if runs == 1:
        return values[0]
    mean = values.mean(0)
    drawn = np.take_along_axis(values, rng.integers(0, runs, (runs, resamples)), 0).mean(0)
    return mean + math.sqrt(runs / (runs - 1)) * (drawn - mean)


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float, float]:
    """Interval and two-sided p of (R,) resampled values; NaN ones are left out."""
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()
    side = min(int((values <= 0).sum()), int((values >= 0).sum()))
    return low, high, min(1.0, 2 * (1 + side) / (1 + len(values)))


def _delong(a: Row, b: Row, metric: str, folders: Sequence[Path], store: Resampled) -> DeLong | None:
    """DeLong's test, where it applies."""
    kind, _, label = metric.partition("/")
    names = (a.get("notes") or {}).get("classes") or []
    if kind != "auroc" or a["task"] not in ("classification", "zero_shot") or is_multiclass(a.get("notes")):
        return None
    if (label not in names) if label else len(names) != 1:
        return None
    sides = [store.predictions(row, folder) for row, folder in zip((a, b), folders, strict=True)]
    if len(set(sides[0].groups)) < len(sides[0].groups):
        return None
    at = names.index(label) if label else 0
    first, second = (side.samples["score"][:, at] for side in sides)
    labels = sides[0].samples["label"][:, at]
    if names != ((b.get("notes") or {}).get("classes") or []) or first.shape != second.shape:
        return None
    return delong_test(first, second, labels)

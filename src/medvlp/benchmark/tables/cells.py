"""From collected rows to cells: means over runs, intervals over patients, and the one that is bold."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from medvlp.benchmark.differences import RESAMPLES, best_of, interval_of_mean
from medvlp.benchmark.resampled import Resampled
from medvlp.benchmark.rows import by_run, records
from medvlp.benchmark.tables.model import CANNOT, NOT_RUN, NUMBER, Cell, Reported

_NOT_SHARES = ("cnr",)
"""Metrics that are no share in [0, 1]: printed as they are, with three digits."""


@dataclass
class Statistics:
    """How intervals and significance are found.

    Attributes:
        folder: that of the results file, which predictions are relative to.
        resamples: of the patients; 0 for no intervals but those of the rows, and nothing bold.
        level: of the intervals, and 1 minus the p-value below which the best is bold.
        store: keeps what was resampled.
    """

    folder: Path
    resamples: int = RESAMPLES
    level: float = 0.95
    store: Resampled = field(default_factory=Resampled)

    def interval(self, rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[float | None, float | None]:
        """Interval of the mean over runs; of one run, what its row says. None, None where there is none.

        Raises:
            ConfigError: the runs were scored on different samples.
            DataError: predictions are missing or damaged.
        """
        first = rows[0]
        if len(rows) == 1 and first.get("low") is not None and first.get("level") == self.level:
            return first["low"], first["high"]
        if not self.resamples or not _with_predictions(rows):
            return None, None
        low, high = interval_of_mean(rows, metric, self.folder, self.resamples, level=self.level, store=self.store)
        return (None, None) if math.isnan(low) else (low, high)

    def best(self, cells: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> str | None:
        """The method that leads its column by more than chance, if any.

        Raises:
            ConfigError: the methods were scored on different samples.
            DataError: predictions are missing or damaged.
        """
        if not self.resamples or not all(_with_predictions(rows) for rows in cells.values()):
            return None
        return best_of(cells, metric, self.folder, self.resamples, level=self.level, store=self.store)


def _with_predictions(rows: Sequence[Mapping[str, Any]]) -> bool:
    return all(row.get("predictions") for row in rows)


def print_scale(metric: str) -> tuple[float, int]:
    """Factor and digits with which a metric is printed: shares in per cent with one digit, others as they are."""
    return (1.0, 3) if metric.partition("/")[0].startswith(_NOT_SHARES) else (100.0, 1)


def decimals_of(printed: str | None) -> int | None:
    """Digits after the point of a printed number; None where it is none."""
    if not printed or not any(digit.isdigit() for digit in printed):
        return None
    return len(printed.partition(".")[2])


def missing(reported: Reported | None = None, cannot: bool = False) -> Cell:
    """A cell without a value of ours: "/" where the method cannot, else the paper's mark or "-"."""
    status = CANNOT if cannot else NOT_RUN
    if not cannot and reported is not None and reported.status != NUMBER:
        status = reported.status
    return Cell(status=status, reported=reported)


def cell_of(
    rows: pd.DataFrame,
    metric: str,
    statistics: Statistics,
    reported: Reported | None = None,
    scale: float = 100.0,
    decimals: int = 1,
) -> Cell:
    """A cell with a value.

    It is printed with as many digits as the paper's value beside it has.

    Args:
        rows: of one method and column, one per run; at least one.
        metric: theirs.
        statistics: where the interval comes from.
        reported: what the paper has there.
        scale: factor from the metric's unit to what is printed.
        decimals: digits after the point where the paper has no value.

    Returns:
        The cell; without a value, and with a reason, where the metric is not defined in any run.

    Raises:
        ConfigError: a run comes twice.
        DataError: predictions are missing or damaged.
    """
    own = records(rows)
    by_run(own)  # refuses a run that is given twice
    defined = [row for row in own if row["value"] is not None]
    undefined = len(own) - len(defined)
    reason = f"{metric} is not defined in {undefined} of {len(own)} runs" if undefined else ""
    made = Cell(
        status=NUMBER,
        reported=reported,
        jobs=tuple(dict.fromkeys(_job(row) for row in own)),
        lines=tuple(int(row["line"]) for row in own if row.get("line") is not None),
        scale=scale,
        decimals=_first(decimals_of(reported.printed if reported else None), decimals),
        std_decimals=_first(decimals_of(reported.std if reported else None), decimals),
        reason=reason,
    )
    if not defined:
        return replace(made, status=NOT_RUN)
    values = [row["value"] for row in defined]
    low, high = statistics.interval(defined, metric)
    std = stdev(values) if len(values) > 1 else None
    return replace(made, value=fmean(values), std=std, low=low, high=high, runs=len(values))


def _first(given: int | None, otherwise: int) -> int:
    return otherwise if given is None else given


def _job(row: Mapping[str, Any]) -> str:
    return row.get("job") or (row.get("config_sha256") or "")[:12] or f"line {row.get('line')}"


def column_of(
    names: Sequence[str | None],
    rows: pd.DataFrame,
    metric: str,
    statistics: Statistics,
    *,
    cannot: Collection[str],
    reported: Sequence[Reported | None],
    scale: float,
    decimals: int,
) -> list[Cell]:
    """Return the cells of a column; the best is marked if it is better than the second by more than chance.

    Args:
        names: method of each cell; None where no method of ours belongs.
        rows: all rows of the column.
        metric: theirs.
        statistics: gives intervals and significance.
        cannot: methods that do not support the task.
        reported: the paper's values.
        scale: factor from the metric's unit to what is printed.
        decimals: digits after the point where the paper has no value.
    """
    parts = {str(name): part for name, part in rows.groupby("bm_method", sort=False)}
    cells = [
        cell_of(parts[name], metric, statistics, paper, scale, decimals)
        if name is not None and name in parts
        else missing(paper, name in cannot)
        for name, paper in zip(names, reported, strict=True)
    ]
    given = {
        name: records(parts[name]) for name, cell in zip(names, cells, strict=True) if name and cell.value is not None
    }
    leader = statistics.best(given, metric) if len(given) > 1 else None
    return [replace(cell, best=name is not None and name == leader) for name, cell in zip(names, cells, strict=True)]

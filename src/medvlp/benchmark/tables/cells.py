"""From collected rows to cells (means over runs, intervals over patients, and the one that is bold) and footnotes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from medvlp.benchmark.differences import Statistics
from medvlp.benchmark.rows import by_run, mixed_versions, records
from medvlp.benchmark.tables.model import CANNOT, NOT_RUN, NUMBER, Cell, Reported, Table

_NOT_SHARES = ("cnr",)
"""Metrics that are no share in [0, 1]: printed as they are, with three digits."""

PHANTOM = (
    "The images are of the phantom, drawn by a program: these numbers say nothing about clinical performance, and are "
    "not to be compared with those of the papers."
)
"""Stands below every table with a value from the phantom."""


def print_scale(metric: str) -> tuple[float, int]:
    """Return the factor and digits to print a metric with: shares in per cent with one digit, others as they are."""
    return (1.0, 3) if metric.partition("/")[0].startswith(_NOT_SHARES) else (100.0, 1)


def missing(reported: Reported | None = None, cannot: bool = False) -> Cell:
    """Return a cell without a value of ours: "/" where the method cannot, else the paper's mark or "-"."""
    mark = NOT_RUN if reported is None or reported.status == NUMBER else reported.status
    return Cell(status=CANNOT if cannot else mark, reported=reported)


def _digits(printed: str | None, otherwise: int) -> int:
    """Return the digits after the point of a printed number; ``otherwise`` if it is none."""
    return len(printed.partition(".")[2]) if printed and any(map(str.isdigit, printed)) else otherwise


def _cell(
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    statistics: Statistics,
    reported: Reported | None,
    scale: float,
    decimals: int,
) -> Cell:
    """Return the cell of a method's rows, one per run; without a value if the metric is not defined in any run."""
    by_run(rows)  # refuses a run that is given twice
    defined = [row for row in rows if row["value"] is not None]
    undefined = len(rows) - len(defined)
    cell = Cell(
        status=NUMBER if defined else NOT_RUN,
        reported=reported,
        jobs=tuple(dict.fromkeys(_job(row) for row in rows)),
        lines=tuple(int(row["line"]) for row in rows if row.get("line") is not None),
        scale=scale,
        decimals=_digits(reported.printed if reported else None, decimals),
        std_decimals=_digits(reported.std if reported else None, decimals),
        reason=f"{metric} is not defined in {undefined} of {len(rows)} runs" if undefined else "",
    )
    if not defined:
        return cell
    values = [row["value"] for row in defined]
    low, high = statistics.interval(defined, metric)
    std = stdev(values) if len(values) > 1 else None
    return replace(cell, value=fmean(values), std=std, low=low, high=high, runs=len(values))


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
        rows: all rows of the column, of one metric.
        metric: that metric.
        statistics: gives intervals and significance.
        cannot: methods that do not support the task.
        reported: the paper's values.
        scale: factor from the metric's unit to what is printed.
        decimals: digits after the point where the paper has no value.

    Raises:
        ConfigError: a run is given twice.
        DataError: predictions are missing or damaged.
    """
    parts: dict[Any, list[dict[str, Any]]] = {
        name: records(part) for name, part in rows.groupby("bm_method", sort=False)
    }
    cells = [
        _cell(parts[name], metric, statistics, paper, scale, decimals)
        if name in parts
        else missing(paper, name in cannot)
        for name, paper in zip(names, reported, strict=True)
    ]
    given = {name: parts[name] for name, cell in zip(names, cells, strict=True) if name and cell.value is not None}
    leader = statistics.best(given, metric) if len(given) > 1 else None
    return [replace(cell, best=name is not None and name == leader) for name, cell in zip(names, cells, strict=True)]


def footnotes(table: Table, rows: pd.DataFrame, statistics: Statistics, absent: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the sentences about our values in a table.

    Args:
        table: with its cells.
        rows: the rows that fill it.
        statistics: how intervals and bold were found.
        absent: methods with results of the same columns that the table has no row for.
    """
    cells = [cell for *_, cell in table.cells()]
    notes = [PHANTOM] if rows["phantom"].any() else []
    if any(cell.value is not None for cell in cells):
        notes.append(_values(rows, statistics))
        if any(cell.reported for cell in cells):
            notes.append("In parentheses the paper's value.")
    # a mark that stands for both, ours and the paper's, is explained as the paper's
    marks = {c.status for c in cells if not c.reason and not (c.reported and c.reported.printed == c.status)}
    texts = {NOT_RUN: "'-': not run.", CANNOT: "'/': the method cannot do this task."}
    notes += [text for mark, text in texts.items() if mark in marks]
    notes += dict.fromkeys(f"{cell.reason}; the mean is of the others." for cell in cells if cell.reason and cell.runs)
    notes += dict.fromkeys(f"{cell.reason}." for cell in cells if cell.reason and not cell.runs)
    notes += filter(None, [mixed_versions(rows)])
    if absent:
        notes.append(f"Results without a row in this table: {', '.join(absent)}; the own tables have them.")
    return tuple(notes)


def _values(rows: pd.DataFrame, statistics: Statistics) -> str:
    level = f"{statistics.level:.0%}".replace("%", " %")
    text = "Per cent, but for values with three digits after the point: mean over runs ± standard deviation over runs"
    if statistics.resamples:
        text += (
            f" [{level} bootstrap interval of the mean over patients]. Bold: the best of its column, and different "
            f"from the second (p < {1 - statistics.level:.2g}, corrected by Holm for the comparisons of the column); "
            "none where cells of a column hold different runs"
        )
    runs = sorted(rows.groupby(["bm_method", "bm_task", "fraction"], dropna=False)["bm_run"].nunique().unique())
    several = f"{runs[0]} to {runs[-1]}" if len(runs) > 1 else f"{runs[0]}"
    return f"{text}. Runs per cell: {several}."

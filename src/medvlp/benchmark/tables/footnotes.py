"""The sentences below a table."""

import pandas as pd

from medvlp.benchmark.rows import mixed_versions
from medvlp.benchmark.tables.cells import Statistics
from medvlp.benchmark.tables.layouts import Layout
from medvlp.benchmark.tables.model import CANNOT, NOT_RUN, Table

PHANTOM = (
    "The images are of the phantom, drawn by a program: these numbers say nothing about clinical performance, and are "
    "not to be compared with those of the papers."
)
"""Stands below every table with a value from the phantom."""


LEFT_OUT = "Measured on the phantom; the paper's values, of real images, are left out"
BESIDE = "PHANTOM BESIDE PAPER: our values are measured on drawn images and cannot be compared with the paper's"
"""Captions of a paper's layout with values from the phantom."""


def of_paper(one: Layout) -> tuple[str, ...]:
    """What the paper's marks mean, and what a reader must know of the table."""
    marks = (f"'{mark}' among the paper's values: {meaning}." for mark, meaning in one.marks.items())
    return (*marks, *one.remarks)


def of_rows(table: Table, rows: pd.DataFrame, statistics: Statistics, absent: list[str]) -> tuple[str, ...]:
    """What our values are.

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
    own = {
        cell.status
        for cell in cells
        if not cell.reason and not (cell.reported and cell.reported.printed == cell.status)
    }
    if NOT_RUN in own:
        notes.append("'-': not run.")
    if CANNOT in own:
        notes.append("'/': the method cannot do this task.")
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

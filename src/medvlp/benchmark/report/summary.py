"""What a page shows of a results file: its methods, the conditions of its values, and means over runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import pandas as pd

from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.rows import COLUMN, is_multiclass, primary_of
from medvlp.benchmark.tables import Cell, Table
from medvlp.benchmark.tables.cells import print_scale
from medvlp.benchmark.tables.model import NUMBER

_CHANCE = {"auroc": 0.5}
"""Score of guessing, for metrics where it does not depend on the data."""


@dataclass(frozen=True)
class Method:
    """A method of the page. Its number, from 0, fixes how charts draw it."""

    name: str
    title: str
    number: int


@dataclass(frozen=True)
class Condition:
    """What a value was measured on: :data:`medvlp.benchmark.rows.COLUMN`; no fraction where no labels are used."""

    bm_task: str
    task: str
    protocol: str
    dataset: str
    part: str
    fraction: float | None

    @property
    def subtitle(self) -> str:
        """What the title of the task leaves open."""
        return f"{self.task.replace('_', ' ')}, {self.dataset} {self.part}, protocol {self.protocol}"

    def without_fraction(self) -> "Condition":
        """Return what all fractions of a task share."""
        return replace(self, fraction=None)


Scores = dict[tuple[Condition, str], dict[float | None, dict[str, Cell]]]
"""Cells with a value: by task (a condition without fraction) and metric, then by fraction, then by method."""


def fraction_key(fraction: float | None) -> str:
    """Return how the page's filters name a share of the training part."""
    return "none" if fraction is None else f"{fraction:g}"


def fraction_text(fraction: float | None) -> str:
    """Return ``10 %`` or ``no training``."""
    return "no training" if fraction is None else f"{100 * fraction:g} %"


def mean_text(cell: Cell) -> str:
    """Return ``65.6 ± 1.7``, or ``65.6`` for one run."""
    return f"{cell.mean_text} ± {cell.std_text}" if cell.std_text else cell.mean_text


def methods_of(grid: GridFile) -> list[Method]:
    """Return the methods in the order of the tables, then those that only have pictures."""
    titles = dict(grid.methods)
    for panel in grid.panels:
        titles.setdefault(panel.method, panel.title or panel.method)
    return [Method(name, title, number) for number, (name, title) in enumerate(titles.items())]


def with_conditions(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the column ``condition`` to the rows of :func:`medvlp.benchmark.rows.collected`."""
    columns = [frame[name] for name in COLUMN[:-1]]
    fractions = [None if pd.isna(share) else share for share in frame["fraction"]]
    conditions: Any = [Condition(*key) for key in zip(*columns, fractions, strict=True)]
    return frame.assign(condition=conditions)


def conditions_of(frame: pd.DataFrame) -> list[Condition]:
    """Return the conditions of all rows: tasks in the order of the file, the fractions of each ascending."""
    conditions = frame["condition"].unique().tolist()
    tasks = list(dict.fromkeys(condition.without_fraction() for condition in conditions))
    return sorted(conditions, key=lambda c: (tasks.index(c.without_fraction()), c.fraction or 0.0))


def scores_of(tables: Iterable[Table], by_line: Mapping[int, Condition]) -> Scores:
    """Return the values of our own tables, so that charts show the same numbers.

    Args:
        tables: our own.
        by_line: line of the results file to the condition of its row.
    """
    scores: Scores = {}
    for table in tables:
        for b, r, c, cell in table.cells():
            method = table.blocks[b].rows[r].method
            if cell.value is not None and method is not None:
                condition = by_line[cell.lines[0]]
                fractions = scores.setdefault((condition.without_fraction(), table.columns[c].metric), {})
                fractions.setdefault(condition.fraction, {})[method] = cell
    return scores


def class_scores(
    frame: pd.DataFrame, conditions: Sequence[Condition], methods: Sequence[Method]
) -> list[dict[str, Any]]:
    """Return the scores by class of every condition that has such, of each task the largest fraction first."""
    parts: dict[Any, pd.DataFrame] = dict(list(frame.groupby("condition", sort=False)))
    items: list[dict[str, Any]] = []
    for _, same in groupby(conditions, key=Condition.without_fraction):
        first = len(items)
        for condition in reversed(list(same)):
            metric = _metric_with_classes(condition, parts[condition])
            cells = _class_cells(parts[condition], metric) if metric else {}
            if cells:
                columns = [method for method in methods if any(method.name in row for row in cells.values())]
                rows = [(name, [row.get(method.name) for method in columns]) for name, row in cells.items()]
                item = {"condition": condition, "metric": metric, "chance": _CHANCE.get(str(metric))}
                items.append({**item, "methods": columns, "classes": rows, "folded": len(items) > first})
    return items


def _metric_with_classes(condition: Condition, rows: pd.DataFrame) -> str | None:
    """Return the primary metric, else AUROC, if it has classes; the suffix of recall@10/i2t is a direction."""
    names = set(rows["metric"])
    primary = primary_of(condition.task, names, is_multiclass(rows.iloc[0].get("notes")))
    candidates = [metric for metric in (primary, "auroc") if metric and "/" not in metric]
    return next((metric for metric in candidates if any(name.startswith(f"{metric}/") for name in names)), None)


def _class_cells(rows: pd.DataFrame, metric: str) -> dict[str, dict[str, Cell]]:
    """Return the mean over runs by class and method."""
    scale, decimals = print_scale(metric)
    by_class = rows[rows["metric"].str.startswith(f"{metric}/")].dropna(subset="value")
    cells: dict[str, dict[str, Cell]] = {}
    for (name, method), part in by_class.groupby(["metric", "bm_method"], sort=False)["value"]:
        std = float(part.std()) if len(part) > 1 else None
        cell = Cell(NUMBER, float(part.mean()), std, scale=scale, decimals=decimals, std_decimals=decimals)
        cells.setdefault(str(name).removeprefix(f"{metric}/"), {})[str(method)] = cell
    return cells

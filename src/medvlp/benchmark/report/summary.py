"""Means over runs, as the charts show them, and what a page's filters know a thing by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.report.svg import Look, look
from medvlp.benchmark.rows import COLUMN
from medvlp.benchmark.tables import Table
from medvlp.benchmark.tables.cells import print_scale

NO_TRAINING = "none"
"""Value of the page's fraction filter for what is not trained on labels."""


@dataclass(frozen=True)
class Method:
    """A method of the page.

    Attributes:
        name: in the grid.
        title: as printed.
        look: how charts draw it.
    """

    name: str
    title: str
    look: Look


@dataclass(frozen=True)
class Condition:
    """What a number was measured on, by whose rules: the columns of :data:`medvlp.benchmark.rows.COLUMN`.

    Attributes:
        bm_task: name of the task's column in the grid.
        task: what was measured.
        protocol: by whose rules.
        dataset: corpus.
        part: of its split.
        fraction: share of the training part; None where nothing is trained on labels.
    """

    bm_task: str
    task: str
    protocol: str
    dataset: str
    part: str
    fraction: float | None

    @property
    def subtitle(self) -> str:
        """What the name of the task leaves open."""
        task = self.task.replace("_", " ")
        return f"{task}, {self.dataset} {self.part}, protocol {self.protocol}"

    @property
    def fraction_text(self) -> str:
        """``10 %``, or ``no training``."""
        return fraction_text(self.fraction)

    @property
    def fraction_key(self) -> str:
        """Value of the page's filter."""
        return fraction_key(self.fraction)

    def without_fraction(self) -> "Condition":
        """The same for all fractions."""
        return Condition(self.bm_task, self.task, self.protocol, self.dataset, self.part, None)


@dataclass(frozen=True)
class Mean:
    """A metric of a method, over its runs.

    Attributes:
        method: its name in the grid.
        condition: on what.
        metric: by its protocol name.
        value: mean over runs.
        std: sample standard deviation between runs; None for one.
        runs: how many.
        scale: factor to what is printed: 100 for per cent.
        decimals: digits after the point.
    """

    method: str
    condition: Condition
    metric: str
    value: float
    std: float | None
    runs: int
    scale: float = 100.0
    decimals: int = 1

    @property
    def shown(self) -> float:
        """The mean as it is printed."""
        return self.value * self.scale

    @property
    def ends(self) -> tuple[float, float]:
        """One standard deviation below and above the mean, as they are printed."""
        spread = (self.std or 0.0) * self.scale
        return self.shown - spread, self.shown + spread

    @property
    def text(self) -> str:
        """``65.6 ± 1.7``."""
        return f"{self.mean_text} ± {self.std_text}" if self.std_text else self.mean_text

    @property
    def mean_text(self) -> str:
        """``65.6``."""
        return f"{self.shown:.{self.decimals}f}"

    @property
    def std_text(self) -> str:
        """``1.7``; empty for one run."""
        return "" if self.std is None else f"{self.std * self.scale:.{self.decimals}f}"


def unit_of(means: Sequence[Mean]) -> str:
    """`` (%)`` where the means are printed in per cent, else empty."""
    return " (%)" if means and means[0].scale == 100 else ""


def fraction_key(fraction: float | None) -> str:
    """A share of the training part as the page's filters name it."""
    return NO_TRAINING if fraction is None or pd.isna(fraction) else f"{fraction:g}"


def fraction_text(fraction: float | None) -> str:
    """A share of the training part in words: ``10 %``."""
    return "no training" if fraction is None or pd.isna(fraction) else f"{100 * fraction:g} %"


def condition_of(values: Sequence[object]) -> Condition:
    """From the values of the columns :data:`medvlp.benchmark.rows.COLUMN`."""
    bm_task, task, protocol, dataset, part, fraction = values
    share = float(fraction) if isinstance(fraction, int | float) and not pd.isna(fraction) else None
    return Condition(str(bm_task), str(task), str(protocol), str(dataset), str(part), share)


def methods_of(grid: GridFile) -> list[Method]:
    """The methods in the order of the tables, then those that only pictures name."""
    named = dict(grid.methods)
    for panel in grid.panels:
        named.setdefault(panel.method, panel.title or panel.method)
    return [Method(name, title, look(n)) for n, (name, title) in enumerate(named.items())]


def conditions_of(frame: pd.DataFrame) -> list[Condition]:
    """What was measured: in the rows' order of tasks, the fractions ascending."""
    found = [condition_of(values) for values in frame[list(COLUMN)].drop_duplicates().itertuples(index=False)]
    first = {condition.without_fraction(): n for n, condition in reversed(list(enumerate(found)))}
    return sorted(found, key=lambda c: (first[c.without_fraction()], -1.0 if c.fraction is None else c.fraction))


def means_of_rows(frame: pd.DataFrame) -> list[Mean]:
    """Means over runs of every metric of the rows given; runs without a value are left out, as in the tables."""
    found = []
    for key, part in frame.groupby(["bm_method", *COLUMN, "metric"], dropna=False, sort=False):
        values = part["value"].dropna()
        if values.empty:
            continue
        method, *condition, metric = key
        std = float(values.std(ddof=1)) if len(values) > 1 else None
        numbers = (float(values.mean()), std, len(values), *print_scale(str(metric)))
        found.append(Mean(str(method), condition_of(condition), str(metric), *numbers))
    return found


def means_of_tables(tables: Sequence[Table], by_line: Mapping[int, Condition]) -> list[Mean]:
    """The values of tables, so that charts show the same numbers.

    Args:
        tables: our own.
        by_line: line of the results file to what it was measured on.
    """
    found = []
    for table in tables:
        for block, row, column, cell in table.cells():
            method = table.blocks[block].rows[row].method
            if cell.value is not None and cell.lines and method is not None:
                condition, metric = by_line[cell.lines[0]], table.columns[column].metric
                numbers = (cell.value, cell.std, cell.runs, cell.scale, cell.decimals)
                found.append(Mean(method, condition, metric, *numbers))
    return found


def curves_of(means: Sequence[Mean]) -> dict[tuple[Condition, str], list[Mean]]:
    """The means of every task and metric that were measured at two fractions or more."""
    found: dict[tuple[Condition, str], list[Mean]] = {}
    for mean in means:
        if mean.condition.fraction is not None:
            found.setdefault((mean.condition.without_fraction(), mean.metric), []).append(mean)
    return {key: part for key, part in found.items() if len({mean.condition.fraction for mean in part}) > 1}

"""Fill the papers' tables with our results, with the papers' numbers, or with both."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import pandas as pd

from medvlp.benchmark.differences import Statistics
from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.tables.cells import column_of, footnotes, missing
from medvlp.benchmark.tables.layouts import Layout, LayoutBlock, LayoutRow, Spec, layout, layouts
from medvlp.benchmark.tables.model import Block, Column, Row, Table
from medvlp.errors import ConfigError

OURS = "Ours"
"""Heading over the methods that no paper has."""

ONE_OF = (
    ("split_sha256", "the part was drawn from other splits; keep one of them in the results file"),
    ("phantom", "one is of the phantom and one is not; keep one of them in the results file"),
)
"""Keys of which every column has one value, and the remedy if it has two."""

_CHOICES = (("protocol", "choose one with --protocol"), ("part", "choose one with --part"))

LEFT_OUT = "Measured on the phantom; the paper's values, of real images, are left out"
BESIDE = "PHANTOM BESIDE PAPER: our values are measured on drawn images and cannot be compared with the paper's"
"""Captions of a paper's layout with values from the phantom."""


def reported_tables(names: Iterable[str] | None = None) -> list[Table]:
    """Return the papers' tables with their own numbers alone; of all layouts if ``names`` is None."""
    tables = []
    for one in map(layout, layouts() if names is None else names):
        blocks = []
        for block in one.blocks:
            cells = [[missing(one.reported_cell(row, spec)) for spec in block.columns] for row in block.rows]
            rows = [Row(row.label, tuple(line), facts=row.facts) for row, line in zip(block.rows, cells, strict=True)]
            blocks.append(Block(block.title, tuple(rows)))
        columns = [Column(spec.labels, fraction=spec.fraction) for spec in one.blocks[0].columns]
        tables.append(replace(_table(one, columns, blocks), reported_only=True, footnotes=_remarks(one)))
    return tables


def paper_tables(
    frame: pd.DataFrame,
    grid: GridFile,
    statistics: Statistics,
    names: Iterable[str] | None = None,
    *,
    metrics: Sequence[str] = (),
    source: str = "",
    beside_phantom: bool = False,
) -> list[Table]:
    """Return the papers' tables with our results and the papers' numbers beside them.

    Methods that no paper has follow under a heading of their own. A table with a result on the phantom omits the
    paper's numbers, which are of real images. Tables without any of our results are returned too: see
    :meth:`~medvlp.benchmark.tables.model.Table.has_values`.

    Arguments and errors are those of :func:`~medvlp.benchmark.tables.own.own_tables`; ``names`` chooses layouts (all if
    None), and ``beside_phantom`` prints the paper's numbers beside results on the phantom, of which the captions warn.
    """
    chosen = [layout(name) for name in (layouts() if names is None else names)]
    return [_PaperTable(one, frame, grid, statistics, metrics).table(source, beside_phantom) for one in chosen]


def require_one(rows: pd.DataFrame, key: str, where: str, remedy: str) -> None:
    """Raise a :class:`~medvlp.errors.ConfigError` that names a line of each if rows have several values of a key."""
    if rows[key].nunique() > 1:
        lines = rows.drop_duplicates(key)
        values = " and ".join(f"{row[key]} (line {row['line']})" for _, row in lines.iterrows())
        raise ConfigError(f"{where}: the rows hold two values of {key}: {values}; a column never mixes them: {remedy}")


def _table(one: Layout, columns: Iterable[Column], blocks: Iterable[Block]) -> Table:
    return Table(
        *(one.name, one.title, one.caption, tuple(columns), tuple(blocks)),
        row_header=one.row_header,
        fact_names=one.fact_names,
    )


def _remarks(one: Layout) -> tuple[str, ...]:
    """Return what the paper's marks mean, and what a reader must know of the table."""
    return (*(f"'{mark}' among the paper's values: {meaning}." for mark, meaning in one.marks.items()), *one.remarks)


@cache
def _names_of_papers() -> frozenset[str]:
    """Return all names under which some layout looks for a method."""
    rows = (row for one in layouts().values() for block in one.blocks for row in block.rows)
    return frozenset(name for row in rows for name in row.names)


@dataclass(frozen=True)
class _Filling:
    """Our rows in one column of one block, which share metric and protocol; metric is "" if there are none."""

    spec: Spec
    rows: pd.DataFrame
    metric: str


class _PaperTable:
    """One layout and the results that fill it."""

    def __init__(
        self, one: Layout, frame: pd.DataFrame, grid: GridFile, statistics: Statistics, metrics: Sequence[str]
    ) -> None:
        self.layout, self.frame, self.grid, self.statistics, self.metrics = one, frame, grid, statistics, metrics
        self.present = set(frame["bm_method"].unique())
        self.ours = [name for name in grid.methods if name in self.present - _names_of_papers()]

    def table(self, source: str, beside_phantom: bool) -> Table:
        one = self.layout
        fillings = [[self._filling(block, spec) for spec in block.columns] for block in one.blocks]
        used = pd.concat([f.rows for columns in fillings for f in columns])
        phantom = bool(used["phantom"].any())
        papers = beside_phantom or not phantom
        blocks, placed = [], set[int]()
        for block, columns in zip(one.blocks, fillings, strict=True):
            # if several blocks accept the same rows of ours, they are in the first of them
            rest = pd.concat([f.rows[~f.rows["line"].isin(placed)] for f in columns])
            placed |= set(rest["line"])
            ours = [name for name in self.ours if name in set(rest["bm_method"])]
            blocks += self._blocks(block, ours, columns, papers)
        table = _table(one, map(_header, zip(*fillings, strict=True)), blocks)
        notes = (*footnotes(table, used, self.statistics, self._absent(used)), *_protocols(fillings))
        caption = f"{one.caption}. {BESIDE if papers else LEFT_OUT}" if phantom else one.caption
        notes = (*notes, *_remarks(one)) if papers else notes
        return replace(table, source=source, phantom=phantom, caption=caption, footnotes=notes)

    def _method(self, row: LayoutRow) -> str | None:
        """Return the first of a row's names that has results."""
        return next((name for name in row.names if name in self.present), None)

    def _filling(self, block: LayoutBlock, spec: Spec) -> _Filling:
        frame, methods = self.frame, {self._method(row) for row in block.rows}
        rows = frame[
            (frame["task"] == spec.task)
            & (frame["dataset"] == spec.dataset)
            & frame["protocol"].isin(spec.accepts)
            & frame["bm_method"].isin({*methods, *self.ours})
        ]
        known = rows["bm_method"].isin(methods)
        if self.layout.ablation:  # methods of ours are only shown at the fraction of the paper's variants
            rows = rows[known | rows["fraction"].isin(_of_fraction(rows[known], spec)["fraction"])]
        present = set(rows["metric"])
        requested = [name for name in spec.metrics if {name, name.partition("/")[0]}.intersection(self.metrics)]
        metric = next((name for name in (*requested, *spec.metrics) if name in present), "")
        rows = _of_fraction(rows[rows["metric"] == metric], spec)
        where = f"{self.layout.title}, column {' '.join(spec.labels)}"
        for key, remedy in (*_CHOICES, *ONE_OF):
            require_one(rows, key, where, remedy)
        for method, part in rows.groupby("bm_method"):
            if part["bm_task"].nunique() > 1:
                tasks = " and ".join(part["bm_task"].unique())
                raise ConfigError(f"{where}: {method} has results of {tasks}; choose one with --task")
        return _Filling(spec, rows, metric)

    def _blocks(self, block: LayoutBlock, ours: list[str], columns: list[_Filling], papers: bool) -> list[Block]:
        """Return a block of the paper, and a block of the methods that no paper has."""
        blank = ("",) * len(self.layout.fact_names)
        added = [LayoutRow("", self.grid.methods[name], None, (name,), blank) for name in ours]
        rows, names = [*block.rows, *added], [*map(self._method, block.rows), *ours]
        cells = []
        for filling in columns:
            spec, tasks = filling.spec, set(filling.rows["bm_task"])
            cells.append(
                column_of(
                    *(names, filling.rows, filling.metric, self.statistics),
                    cannot=[name for name, cannot in self.grid.cannot.items() if tasks.intersection(cannot)],
                    reported=[self.layout.reported_cell(row, spec) if papers else None for row in rows],
                    scale=spec.scale,
                    decimals=spec.decimals,
                )
            )
        filled = [
            Row(row.label, line, name, row.facts)
            for row, name, line in zip(rows, names, zip(*cells, strict=True), strict=True)
        ]
        count = len(block.rows)
        title = ", ".join(part for part in (OURS, block.title) if part)
        return [Block(block.title, tuple(filled[:count])), *([Block(title, tuple(filled[count:]))] if ours else [])]

    def _absent(self, used: pd.DataFrame) -> list[str]:
        """Return methods with results in this table's columns but no row in it; ablations compare only variants."""
        accepted = {(spec.task, spec.dataset, protocol) for spec in self.layout.columns for protocol in spec.accepts}
        keys = zip(self.frame["task"], self.frame["dataset"], self.frame["protocol"], strict=True)
        others = _names_of_papers() if self.layout.ablation else frozenset()
        methods = self.frame.loc[[key in accepted for key in keys], "bm_method"].unique()
        return [name for name in methods if name not in {*used["bm_method"], *others}]


def _header(column: Sequence[_Filling]) -> Column:
    """Return a column with the metric and the fraction that all its blocks share."""
    metrics, fractions = {f.metric for f in column}, {f.spec.fraction for f in column}
    return Column(
        column[0].spec.labels,
        metrics.pop() if len(metrics) == 1 else "",
        fraction=fractions.pop() if len(fractions) == 1 else None,
    )


def _of_fraction(rows: pd.DataFrame, spec: Spec) -> pd.DataFrame:
    if spec.fraction is None:
        return rows[rows["fraction"].isna()]
    exact = rows[(rows["fraction"] - spec.fraction).abs() < 1e-9]
    fractions = rows["fraction"].dropna().unique()
    if len(exact) or not spec.any_fraction or not len(fractions):
        return exact
    if len(fractions) > 1:
        raise ConfigError(
            f"{' '.join(spec.labels)}: none of the fractions {', '.join(f'{f:g}' for f in sorted(fractions))} is the "
            f"paper's {spec.fraction:g}; choose one with --fraction"
        )
    return rows


def _protocols(fillings: list[list[_Filling]]) -> tuple[str, ...]:
    """Say which protocol, metric and fraction of ours stand beside which of the paper's."""
    datasets: dict[tuple[str, ...], list[str]] = {}
    for filling in (f for columns in fillings for f in columns if len(f.rows)):
        printed, first = filling.spec.printed, filling.rows.iloc[0]
        metric = filling.metric.partition("/")[0]
        fraction = f"; fraction {first['fraction']:g}" if filling.spec.any_fraction else ""
        ours = f"{metric} by protocol {first['protocol']}{fraction}"
        key = (printed["task"], printed["metric"], ours, printed["protocol"])
        datasets.setdefault(key, []).append(printed["dataset"])
    return tuple(
        f"{task.capitalize()} on {', '.join(dict.fromkeys(names))}, {metric}: ours is {ours}; the paper's protocol: "
        f"{protocol}."
        for (task, metric, ours, protocol), names in datasets.items()
    )

"""The papers' tables, filled with our results, with the papers' numbers, or with both."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd

from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.tables.cells import Statistics, cell_of, missing, with_best
from medvlp.benchmark.tables.footnotes import BESIDE, LEFT_OUT, of_paper, of_rows
from medvlp.benchmark.tables.layouts import Layout, LayoutBlock, LayoutRow, Spec, layout, layouts
from medvlp.benchmark.tables.model import Block, Cell, Column, Row, Table
from medvlp.benchmark.tables.reported import as_reported
from medvlp.errors import ConfigError

OURS = "Ours"
"""Heading over the methods that no paper has."""


@dataclass(frozen=True)
class Filling:
    """What of ours stands in one column of one block.

    Attributes:
        spec: the column.
        rows: the rows of the results with its metric and its one protocol; none where nothing was run.
        metric: theirs; "" for none.
    """

    spec: Spec
    rows: pd.DataFrame
    metric: str


def reported_tables(names: Iterable[str] | None = None) -> list[Table]:
    """The papers' tables with their own numbers alone.

    Args:
        names: of layouts; all if None.

    Raises:
        ConfigError: there is no such layout.
    """
    return [_reported_table(layout(name)) for name in (layouts() if names is None else names)]


def paper_tables(
    frame: pd.DataFrame,
    folder: str | Path,
    names: Iterable[str] | None = None,
    *,
    statistics: Statistics | None = None,
    metrics: Sequence[str] = (),
    source: str = "",
    grid: GridFile | None = None,
    beside_phantom: bool = False,
) -> list[Table]:
    """The papers' tables with our results and the papers' numbers beside them.

    Methods that no paper has follow under a heading of their own. A table with a result on the phantom leaves the
    paper's numbers out, which are of real images.

    Args:
        frame: rows of :func:`medvlp.benchmark.rows.collected`.
        folder: that of the results file.
        names: of layouts; all if None. A table in which none of our rows has a place comes back all the same: see
            :meth:`~medvlp.benchmark.tables.model.Table.has_values`.
        statistics: intervals and significance; with the defaults if None.
        metrics: metrics to show where a column may have them, in the place of the preferred ones.
        source: how the results file is called in links.
        grid: with the methods and tasks of the frame; read from the folder if None.
        beside_phantom: print the paper's numbers beside results on the phantom; the captions say so.

    Raises:
        ConfigError: no such layout, or two protocols, splits, parts or fractions in one column.
        DataError: predictions are missing or damaged.
    """
    statistics = statistics or Statistics(Path(folder))
    grid = grid or GridFile.read(folder, frame)
    chosen = [layout(name) for name in (layouts() if names is None else names)]
    return [_filled_table(one, frame, grid, statistics, metrics, source, beside_phantom) for one in chosen]


def _reported_table(one: Layout) -> Table:
    blocks = []
    for block in one.blocks:
        rows = []
        for row in block.rows:
            found = [one.reported_cell(row, spec) for spec in block.columns]
            made = tuple(missing(None if cell is None else as_reported(cell)) for cell in found)
            rows.append(Row(row.label, made, facts=row.facts))
        blocks.append(Block(block.title, tuple(rows)))
    columns = tuple(Column(spec.labels, fraction=spec.fraction) for spec in one.blocks[0].columns)
    return replace(_table(one, columns, tuple(blocks)), reported_only=True, footnotes=of_paper(one))


def _table(one: Layout, columns: tuple[Column, ...], blocks: tuple[Block, ...]) -> Table:
    return Table(
        name=one.name,
        title=one.title,
        caption=one.caption,
        columns=columns,
        blocks=blocks,
        row_header=one.row_header,
        fact_names=one.fact_names,
    )


def _filled_table(
    one: Layout,
    frame: pd.DataFrame,
    grid: GridFile,
    statistics: Statistics,
    metrics: Sequence[str],
    source: str,
    beside_phantom: bool,
) -> Table:
    present = set(frame["bm_method"].unique())
    mine = [name for name in grid.methods if name in present - _names_of_papers()]
    fillings = [
        [_filling(one, block, spec, frame, present, mine, metrics) for spec in block.columns] for block in one.blocks
    ]
    used = pd.concat([f.rows for columns in fillings for f in columns])
    phantom = bool(used["phantom"].any())
    papers = beside_phantom or not phantom
    blocks, placed = [], set[int]()
    for block, columns in zip(one.blocks, fillings, strict=True):
        # blocks may accept the same rows of ours, which stand in the first of them
        rest = pd.concat([f.rows[~f.rows["line"].isin(placed)] for f in columns])
        own = [name for name in mine if name in set(rest["bm_method"])]
        placed |= set(rest["line"])
        blocks += _blocks(one, block, own, columns, present, grid, statistics, papers)
    columns_ = tuple(_header(column) for column in zip(*fillings, strict=True))
    table = replace(_table(one, columns_, tuple(blocks)), source=source, phantom=phantom)
    notes = (*of_rows(table, used, statistics, _absent(one, used, frame)), *_protocols(fillings))
    if phantom:
        table = replace(table, caption=f"{table.caption}. {BESIDE if papers else LEFT_OUT}")
    return replace(table, footnotes=(*notes, *of_paper(one)) if papers else notes)


@cache
def _names_of_papers() -> frozenset[str]:
    """All names under which some layout looks for a method."""
    rows = (row for one in layouts().values() for block in one.blocks for row in block.rows)
    return frozenset(name for row in rows for name in (*row.benchmark, row.label, row.method))


def _blocks(
    one: Layout,
    block: LayoutBlock,
    own: Sequence[str],
    columns: Sequence[Filling],
    present: Collection[str],
    grid: GridFile,
    statistics: Statistics,
    papers: bool,
) -> list[Block]:
    """The rows of a block of the paper, and under another heading those of methods that no paper has."""
    blank = ("",) * len(one.fact_names)
    rows = [*block.rows, *(LayoutRow("", grid.methods[name], None, (name,), blank) for name in own)]
    names = [*(_method(row, present) for row in block.rows), *own]
    made = [_column(one, rows, names, filling, grid, statistics, papers) for filling in columns]
    found = tuple(
        Row(row.label, cells, name, row.facts)
        for row, name, cells in zip(rows, names, zip(*made, strict=True), strict=True)
    )
    count = len(block.rows)
    title = ", ".join(part for part in (OURS, block.title) if part)
    return [Block(block.title, found[:count]), *([Block(title, found[count:])] if own else [])]


def _header(column: Sequence[Filling]) -> Column:
    """A column with the metric and the fraction that all its blocks share."""
    metrics, fractions = {f.metric for f in column}, {f.spec.fraction for f in column}
    return Column(
        column[0].spec.labels,
        metrics.pop() if len(metrics) == 1 else "",
        fraction=fractions.pop() if len(fractions) == 1 else None,
    )


def _method(row: LayoutRow, present: Collection[str]) -> str | None:
    """Which of the grid's methods fills a row: the first of its names that there is, or the printed one."""
    return next((name for name in (*row.benchmark, row.label, row.method) if name in present), None)


def _filling(
    one: Layout,
    block: LayoutBlock,
    spec: Spec,
    frame: pd.DataFrame,
    present: Collection[str],
    mine: Sequence[str],
    metrics: Sequence[str],
) -> Filling:
    methods = {_method(row, present) for row in block.rows}
    rows = frame[
        (frame["task"] == spec.task)
        & (frame["dataset"] == spec.dataset)
        & frame["protocol"].isin(spec.accepts)
        & frame["bm_method"].isin({*methods, *mine})
    ]
    known = rows["bm_method"].isin(methods)
    if one.ablation:  # whatever fraction and metric the variants have: a method of ours has a place beside them alone
        rows = rows[known | rows["fraction"].isin(_of_fraction(rows[known], spec)["fraction"])]
    rows, metric = _of_metric(rows, spec, metrics)
    rows = _of_fraction(rows, spec)
    where = f"{one.title}, column {' '.join(spec.labels)}"
    for key, remedy in (("protocol", "choose one with --protocol"), ("part", "choose one with --part"), *ONE_OF):
        require_one(rows, key, where, remedy)
    _refuse_two_tasks(rows, where)
    return Filling(spec, rows, metric)


def _of_metric(rows: pd.DataFrame, spec: Spec, metrics: Sequence[str]) -> tuple[pd.DataFrame, str]:
    present = set(rows["metric"])
    wanted = [name for name in spec.metrics if name.partition("/")[0] in metrics or name in metrics]
    metric = next((name for name in (*wanted, *spec.metrics) if name in present), "")
    return rows[rows["metric"] == metric], metric


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


ONE_OF = (
    ("split_sha256", "the part was drawn from other splits; keep one of them in the results file"),
    ("phantom", "one is of the phantom and one is not; keep one of them in the results file"),
)
"""Further keys of which a column has one value, and what to do where it has two."""


def require_one(rows: pd.DataFrame, key: str, where: str, remedy: str) -> None:
    """Raises unless all rows of a column have one value of a key.

    Raises:
        ConfigError: they have several; the text names a line of each.
    """
    if rows[key].nunique() > 1:
        lines = rows.drop_duplicates(key)
        found = " and ".join(f"{row[key]} (line {row['line']})" for _, row in lines.iterrows())
        raise ConfigError(f"{where}: the rows hold two values of {key}: {found}; a column never mixes them: {remedy}")


def _refuse_two_tasks(rows: pd.DataFrame, where: str) -> None:
    for method, own in rows.groupby("bm_method"):
        if own["bm_task"].nunique() > 1:
            found = " and ".join(own["bm_task"].unique())
            raise ConfigError(f"{where}: {method} has results of {found}; choose one with --task")


def _column(
    one: Layout,
    rows: Sequence[LayoutRow],
    names: Sequence[str | None],
    filling: Filling,
    grid: GridFile,
    statistics: Statistics,
    papers: bool,
) -> list[Cell]:
    spec = filling.spec
    tasks = set(filling.rows["bm_task"])
    filled: dict[str, Cell] = {}
    parts: dict[str, pd.DataFrame] = {}
    cells: list[Cell] = []
    for row, name in zip(rows, names, strict=True):
        found = one.reported_cell(row, spec) if papers else None
        paper = None if found is None else as_reported(found)
        own = filling.rows[filling.rows["bm_method"] == name]
        if len(own) and name is not None:
            cell = cell_of(own, filling.metric, statistics, paper, spec.scale, spec.decimals)
            filled[name], parts[name] = cell, own
        else:
            cell = missing(paper, bool(tasks.intersection(grid.cannot.get(name or "", ()))))
        cells.append(cell)
    marked = with_best(filled, parts, filling.metric, statistics)
    return [marked.get(name or "", cell) if cell.jobs else cell for name, cell in zip(names, cells, strict=True)]


def _protocols(fillings: list[list[Filling]]) -> tuple[str, ...]:
    """Which protocol, metric and fraction of ours stand beside which of the paper's."""
    sentences: dict[tuple[str, ...], list[str]] = {}
    for filling in (f for columns in fillings for f in columns if len(f.rows)):
        printed, first = filling.spec.printed, filling.rows.iloc[0]
        metric = filling.metric.partition("/")[0]
        fraction = f"; fraction {first['fraction']:g}" if filling.spec.any_fraction else ""
        key = (printed["task"], printed["metric"], f"{metric} by protocol {first['protocol']}{fraction}")
        sentences.setdefault((*key, printed["protocol"]), []).append(printed["dataset"])
    return tuple(
        f"{task.capitalize()} on {', '.join(dict.fromkeys(datasets))}, {metric}: ours is {ours}; the paper's protocol: "
        f"{protocol}."
        for (task, metric, ours, protocol), datasets in sentences.items()
    )


def _absent(one: Layout, used: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """Methods with results in this table's columns but no row in it; an ablation has methods of its own."""
    specs = [spec for block in one.blocks for spec in block.columns]
    rows = frame[
        [
            any(t == s.task and d == s.dataset and p in s.accepts for s in specs)
            for t, d, p in zip(frame["task"], frame["dataset"], frame["protocol"], strict=True)
        ]
    ]
    others = _names_of_papers() if one.ablation else frozenset()
    return [name for name in rows["bm_method"].unique() if name not in {*used["bm_method"], *others}]

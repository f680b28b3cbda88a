"""Our own tables: whatever was run, one table per family of tasks."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from medvlp.benchmark.differences import Statistics
from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.rows import is_multiclass, left_out, primary_of, records
from medvlp.benchmark.tables.cells import column_of, footnotes, print_scale
from medvlp.benchmark.tables.model import Block, Cell, Column, Row, Table
from medvlp.benchmark.tables.paper import ONE_OF, require_one
from medvlp.errors import ConfigError

_DISTINCT = (
    *((key, "give them different names in the grid") for key in ("task", "protocol", "dataset", "part")),
    *ONE_OF,
)


_TITLES = {"summary": "Overview", "own-zero_shot": "Zero-shot classification"}


def own_tables(
    frame: pd.DataFrame,
    grid: GridFile,
    statistics: Statistics,
    *,
    metrics: Sequence[str] = (),
    source: str = "",
    summary: bool = False,
) -> list[Table]:
    """Return one table per family of tasks: methods by tasks of the grid and fractions, each with its primary metric.

    Args:
        frame: rows of :func:`medvlp.benchmark.rows.collected`.
        grid: with the methods and tasks of the frame; rows and columns are in its order.
        statistics: gives intervals and significance.
        metrics: shown where a task has them, instead of its primary one.
        source: name of the results file in links.
        summary: return everything in one table, named ``summary``, instead of tables named ``own-<family>``.

    Raises:
        ConfigError: two protocols, datasets or parts under one task of the grid, or no task with a known metric.
        DataError: predictions are missing or damaged.
    """
    families = _families(frame, grid, metrics)
    if summary:
        families = {"summary": [column for columns in families.values() for column in columns]}
    lost = rows_left_out(frame, grid, metrics)
    return [_table(name, columns, grid, statistics, source, lost) for name, columns in families.items()]


def rows_left_out(frame: pd.DataFrame, grid: GridFile, metrics: Sequence[str] = ()) -> str:
    """Name the runs that :func:`own_tables` cannot show; empty if there are none."""
    parts = [frame[frame["bm_task"] == task] for task in grid.tasks]
    return left_out((part, _metric(part, grid, metrics)) for part in parts if len(part))


def _families(frame: pd.DataFrame, grid: GridFile, metrics: Sequence[str]) -> dict[str, list[pd.DataFrame]]:
    """Return the rows of each column (a task of the grid at one fraction, with one metric), by name of the table."""
    families: dict[str, list[pd.DataFrame]] = {}
    for task in grid.tasks:
        rows = frame[frame["bm_task"] == task]
        for key, remedy in _DISTINCT:
            require_one(rows, key, f"task {task}", remedy)
        metric = _metric(rows, grid, metrics) if len(rows) else None
        if metric is not None:
            columns = families.setdefault(f"own-{rows['task'].iloc[0]}", [])
            columns += [part for _, part in rows[rows["metric"] == metric].groupby("fraction", dropna=False)]
    if not families:
        raise ConfigError(
            f"no primary metric is known of {', '.join(frame['task'].unique())}; table --metric NAME shows one, such "
            f"as {min(frame['metric'])}"
        )
    return families


def _metric(rows: pd.DataFrame, grid: GridFile, requested: Sequence[str]) -> str | None:
    """Return the requested metric, else the grid's, else the task's primary one; None if the rows have none of them."""
    row, present = records(rows.iloc[:1])[0], set(rows["metric"])
    for metric in (*requested, grid.tasks[row["bm_task"]].metric):
        if metric in present:
            return metric
    return primary_of(row["task"], present, is_multiclass(row.get("notes")))


def _table(
    name: str, columns: list[pd.DataFrame], grid: GridFile, statistics: Statistics, source: str, lost: str
) -> Table:
    used = pd.concat(columns)
    tasks, present = set(used["bm_task"]), set(used["bm_method"])
    family = name.removeprefix("own-")
    methods = [name for name in grid.methods if name in present or tasks.intersection(grid.cannot.get(name, ()))]
    cells = zip(*(_cells(column, methods, grid, statistics) for column in columns), strict=True)
    rows = [Row(grid.methods[method], line, method) for method, line in zip(methods, cells, strict=True)]
    table = Table(
        name=name,
        title=_TITLES.get(name, family.replace("_", " ").capitalize()),
        caption=f"On {', '.join(used['dataset'].unique())} ({', '.join(used['part'].unique())})",
        columns=tuple(_header(column, grid) for column in columns),
        blocks=(Block("", tuple(rows)),),
        source=source,
        family=family,
        phantom=bool(used["phantom"].any()),
    )
    return replace(table, footnotes=(*footnotes(table, used, statistics), *filter(None, [lost])))


def _header(column: pd.DataFrame, grid: GridFile) -> Column:
    row = records(column.iloc[:1])[0]
    share = "no training" if row["fraction"] is None else f"{row['fraction']:.6%}".rstrip("0%").rstrip(".") + " %"
    labels = (grid.tasks[row["bm_task"]].title, f"{row['protocol']}: {row['metric']}", share)
    return Column(labels, row["metric"], fraction=row["fraction"])


def _cells(column: pd.DataFrame, methods: list[str], grid: GridFile, statistics: Statistics) -> list[Cell]:
    task, metric = column.iloc[0][["bm_task", "metric"]]
    scale, decimals = print_scale(metric)
    return column_of(
        *(methods, column, metric, statistics),
        cannot=[name for name, tasks in grid.cannot.items() if task in tasks],
        reported=[None] * len(methods),
        scale=scale,
        decimals=decimals,
    )

"""Our own tables: whatever was run, one table per family of tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.rows import is_multiclass, left_out, primary_of, records
from medvlp.benchmark.tables.cells import Statistics, column_of, print_scale
from medvlp.benchmark.tables.footnotes import of_rows
from medvlp.benchmark.tables.model import Block, Cell, Column, Row, Table
from medvlp.benchmark.tables.paper import ONE_OF, require_one
from medvlp.errors import ConfigError

_DISTINCT = (
    *((key, "give them different names in the grid") for key in ("task", "protocol", "dataset", "part")),
    *ONE_OF,
)


@dataclass(frozen=True)
class _Group:
    """Rows of one column: one task of the grid at one fraction, with one metric."""

    task: str
    protocol: str
    metric: str
    fraction: float | None
    rows: pd.DataFrame


def own_tables(
    frame: pd.DataFrame,
    folder: str | Path,
    *,
    statistics: Statistics | None = None,
    metrics: Sequence[str] = (),
    source: str = "",
    grid: GridFile | None = None,
) -> list[Table]:
    """Return one table per family of tasks: methods by tasks of the grid and fractions, each with its primary metric.

    Rows and columns are in the order of the grid, if ``grid.json`` is in the folder.

    Args:
        frame: rows of :func:`medvlp.benchmark.rows.collected`.
        folder: that of the results file.
        statistics: intervals and significance; default settings if None.
        metrics: shown where a task has them, instead of its primary one.
        source: name of the results file in links.
        grid: with the methods and tasks of the frame; read from the folder if None.

    Returns:
        Tables named ``own-<family>``, in the order of the grid's tasks.

    Raises:
        ConfigError: two protocols, datasets or parts under one task of the grid, or no task with a known metric.
        DataError: predictions are missing or damaged.
    """
    statistics = statistics or Statistics(Path(folder))
    grid = grid or GridFile.read(folder, frame)
    lost = _lost(frame, grid, metrics)
    tables = []
    for family, groups in _families(frame, grid, metrics).items():
        title = "Zero-shot classification" if family == "zero_shot" else family.replace("_", " ").capitalize()
        tables.append(_table(f"own-{family}", title, groups, grid, statistics, source, lost))
    return tables


def summary_table(
    frame: pd.DataFrame,
    folder: str | Path,
    *,
    statistics: Statistics | None = None,
    metrics: Sequence[str] = (),
    source: str = "",
) -> Table:
    """Return everything that was run in one table, ``summary``: methods by all tasks of the grid and fractions.

    Arguments and errors are those of :func:`own_tables`.
    """
    statistics = statistics or Statistics(Path(folder))
    grid = GridFile.read(folder, frame)
    groups = [group for family in _families(frame, grid, metrics).values() for group in family]
    return _table("summary", "Overview", groups, grid, statistics, source, _lost(frame, grid, metrics))


def rows_left_out(frame: pd.DataFrame, folder: str | Path, metrics: Sequence[str] = ()) -> str:
    """Name the runs that :func:`own_tables` cannot show, with the same arguments; empty if there are none."""
    return _lost(frame, GridFile.read(folder, frame), metrics)


def _lost(frame: pd.DataFrame, grid: GridFile, metrics: Sequence[str]) -> str:
    parts = [frame[frame["bm_task"] == task] for task in grid.tasks]
    return left_out((part, _metric(part, grid, metrics)) for part in parts if len(part))


def _families(frame: pd.DataFrame, grid: GridFile, metrics: Sequence[str]) -> dict[str, list[_Group]]:
    """Return the columns of each kind of task, in the order of the grid."""
    families: dict[str, list[_Group]] = {}
    for task in grid.tasks:
        rows = frame[frame["bm_task"] == task]
        for key, remedy in _DISTINCT:
            require_one(rows, key, f"task {task}", remedy)
        metric = _metric(rows, grid, metrics) if len(rows) else None
        if metric is not None:
            first = rows.iloc[0]
            groups = families.setdefault(first["task"], [])
            for _, part in rows[rows["metric"] == metric].groupby("fraction", dropna=False):
                fraction = records(part.iloc[:1])[0]["fraction"]
                groups.append(_Group(task, first["protocol"], metric, fraction, part))
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
    name: str, title: str, groups: list[_Group], grid: GridFile, statistics: Statistics, source: str, lost: str
) -> Table:
    used = pd.concat([group.rows for group in groups])
    tasks, present = {group.task for group in groups}, set(used["bm_method"])
    methods = [name for name in grid.methods if name in present or tasks.intersection(grid.cannot.get(name, ()))]
    columns = [_cells(group, methods, grid, statistics) for group in groups]
    rows = [
        Row(grid.methods[method], cells, method)
        for method, cells in zip(methods, zip(*columns, strict=True), strict=True)
    ]
    table = Table(
        name=name,
        title=title,
        caption=f"On {', '.join(used['dataset'].unique())} ({', '.join(used['part'].unique())})",
        columns=tuple(_header(group, grid) for group in groups),
        blocks=(Block("", tuple(rows)),),
        source=source,
        family=name.removeprefix("own-"),
        phantom=bool(used["phantom"].any()),
    )
    return replace(table, footnotes=(*of_rows(table, used, statistics, []), *filter(None, [lost])))


def _header(group: _Group, grid: GridFile) -> Column:
    share = "no training" if group.fraction is None else f"{group.fraction:.6%}".rstrip("0%").rstrip(".") + " %"
    labels = (grid.tasks[group.task].title, f"{group.protocol}: {group.metric}", share)
    return Column(labels, group.metric, fraction=group.fraction)


def _cells(group: _Group, methods: list[str], grid: GridFile, statistics: Statistics) -> list[Cell]:
    scale, decimals = print_scale(group.metric)
    return column_of(
        *(methods, group.rows, group.metric, statistics),
        cannot=[name for name, tasks in grid.cannot.items() if group.task in tasks],
        reported=[None] * len(methods),
        scale=scale,
        decimals=decimals,
    )

"""Our own tables: whatever was run, one table per family of tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.rows import is_multiclass, left_out, primary_of, records
from medvlp.benchmark.tables.cells import Statistics, cell_of, missing, print_scale, with_best
from medvlp.benchmark.tables.footnotes import of_rows
from medvlp.benchmark.tables.model import Block, Cell, Column, Row, Table
from medvlp.benchmark.tables.paper import ONE_OF, require_one
from medvlp.errors import ConfigError

_TITLES = {
    "classification": "Classification",
    "zero_shot": "Zero-shot classification",
    "segmentation": "Segmentation",
    "detection": "Detection",
    "grounding": "Grounding",
    "retrieval": "Retrieval",
}


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
    """One table per family of tasks: methods by tasks of the grid and fractions, each with its primary metric.

    Rows and columns are in the order of the grid, where ``grid.json`` lies in the folder.

    Args:
        frame: rows of :func:`medvlp.benchmark.rows.collected`.
        folder: that of the results file.
        statistics: intervals and significance; with the defaults if None.
        metrics: metrics to show where a task has them, in the place of its primary one.
        source: how the results file is called in links.
        grid: with the methods and tasks of the frame; read from the folder if None.

    Returns:
        Tables named ``own-<family>``, in the order of the grid's tasks.

    Raises:
        ConfigError: two protocols, datasets or parts under one task of the grid, or no task with a known metric.
        DataError: predictions are missing or damaged.
    """
    statistics = statistics or Statistics(Path(folder))
    grid = grid or GridFile.read(folder, frame)
    found = []
    for family, groups in _families(frame, grid, metrics).items():
        title = _TITLES.get(family, family.replace("_", " ").capitalize())
        found.append(_table(f"own-{family}", title, groups, grid, statistics, source, _lost(frame, grid, metrics)))
    return found


def summary_table(
    frame: pd.DataFrame,
    folder: str | Path,
    *,
    statistics: Statistics | None = None,
    metrics: Sequence[str] = (),
    source: str = "",
    grid: GridFile | None = None,
) -> Table:
    """Everything that was run in one table: methods by all tasks of the grid and fractions.

    Arguments and errors are those of :func:`own_tables`; with few fractions it is a table that fits a page.

    Returns:
        A table named ``summary``.
    """
    statistics = statistics or Statistics(Path(folder))
    grid = grid or GridFile.read(folder, frame)
    groups = [group for family in _families(frame, grid, metrics).values() for group in family]
    return _table("summary", "Overview", groups, grid, statistics, source, _lost(frame, grid, metrics))


def rows_left_out(frame: pd.DataFrame, folder: str | Path, metrics: Sequence[str] = ()) -> str:
    """Name the runs that :func:`own_tables` cannot show, with the same arguments; empty if there are none."""
    return _lost(frame, GridFile.read(folder, frame), metrics)


def _lost(frame: pd.DataFrame, grid: GridFile, metrics: Sequence[str]) -> str:
    parts = [frame[frame["bm_task"] == task] for task in grid.tasks]
    return left_out((own, _metric(own, grid, metrics)) for own in parts if len(own))


def _families(frame: pd.DataFrame, grid: GridFile, metrics: Sequence[str]) -> dict[str, list[_Group]]:
    """The columns of each kind of task, in the order of the grid."""
    families: dict[str, list[_Group]] = {}
    for task in grid.tasks:
        own = frame[frame["bm_task"] == task]
        for key in ("task", "protocol", "dataset", "part"):
            require_one(own, key, f"task {task}", "give them different names in the grid")
        for key, remedy in ONE_OF:
            require_one(own, key, f"task {task}", remedy)
        if len(own):
            metric = _metric(own, grid, metrics)
            if metric is not None:
                families.setdefault(own.iloc[0]["task"], []).extend(_groups(own[own["metric"] == metric]))
    if not families:
        raise ConfigError(
            f"no primary metric is known of {', '.join(frame['task'].unique())}; table --metric NAME shows one, such "
            f"as {min(frame['metric'])}"
        )
    return families


def _groups(rows: pd.DataFrame) -> list[_Group]:
    task, protocol, metric = rows.iloc[0][["bm_task", "protocol", "metric"]]
    fractions = sorted(rows["fraction"].dropna().unique()) or [None]
    return [_Group(task, protocol, metric, fraction, _at(rows, fraction)) for fraction in fractions]


def _at(rows: pd.DataFrame, fraction: float | None) -> pd.DataFrame:
    return rows[rows["fraction"].isna()] if fraction is None else rows[rows["fraction"] == fraction]


def _metric(own: pd.DataFrame, grid: GridFile, asked: Sequence[str]) -> str | None:
    """The metric asked for, else the grid's, else the task's primary one; None if none of them is there."""
    row, present = records(own.iloc[:1])[0], set(own["metric"])
    for metric in (*asked, grid.tasks[row["bm_task"]].metric):
        if metric in present:
            return metric
    return primary_of(row["task"], present, is_multiclass(row.get("notes")))


def _table(
    name: str, title: str, groups: list[_Group], grid: GridFile, statistics: Statistics, source: str, lost: str
) -> Table:
    used = pd.concat([group.rows for group in groups])
    present = set(used["bm_method"])
    tasks = {group.task for group in groups}
    methods = [name for name in grid.methods if name in present or tasks.intersection(grid.cannot.get(name, ()))]
    columns = [_column(group, methods, grid, statistics) for group in groups]
    rows = [
        Row(grid.methods[method], cells, method)
        for method, cells in zip(methods, zip(*columns, strict=True), strict=True)
    ]
    table = Table(
        name=name,
        title=title,
        caption=_caption(groups),
        columns=tuple(_header(group, grid) for group in groups),
        blocks=(Block("", tuple(rows)),),
        source=source,
        family=name.removeprefix("own-"),
        phantom=bool(used["phantom"].any()),
    )
    return replace(table, footnotes=(*of_rows(table, used, statistics, []), *filter(None, [lost])))


def _caption(groups: list[_Group]) -> str:
    datasets = dict.fromkeys(dataset for group in groups for dataset in group.rows["dataset"])
    parts = dict.fromkeys(part for group in groups for part in group.rows["part"])
    return f"On {', '.join(datasets)} ({', '.join(parts)})"


def _header(group: _Group, grid: GridFile) -> Column:
    share = "no training" if group.fraction is None else f"{group.fraction:.6%}".rstrip("0%").rstrip(".") + " %"
    labels = (grid.tasks[group.task].title, f"{group.protocol}: {group.metric}", share)
    return Column(labels, group.metric, fraction=group.fraction)


def _column(group: _Group, methods: list[str], grid: GridFile, statistics: Statistics) -> list[Cell]:
    scale, decimals = print_scale(group.metric)
    parts = {name: rows for name, rows in group.rows.groupby("bm_method", sort=False)}
    cells = {
        str(name): cell_of(rows, group.metric, statistics, scale=scale, decimals=decimals)
        for name, rows in parts.items()
    }
    cells = with_best(cells, {str(name): rows for name, rows in parts.items()}, group.metric, statistics)
    return [cells.get(name) or missing(cannot=group.task in grid.cannot.get(name, ())) for name in methods]

"""What the grid says of the order of rows and columns, and of what a method cannot do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medvlp.errors import DataError
from medvlp.results import read_json

FILE = "grid.json"


@dataclass(frozen=True)
class Plan:
    """Rows and columns of the grid whose results are printed.

    Attributes:
        methods: names in order, to their titles.
        tasks: names in order, to their titles.
        cannot: method to the tasks for which "/" is printed.
        metrics: task to the metric that the grid wants printed, where it names one.
    """

    methods: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    cannot: Mapping[str, frozenset[str]] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)


def plan_of(folder: str | Path, frame: pd.DataFrame) -> Plan:
    """The plan of the grid beside a results file; without one, the order in which rows came.

    Methods and tasks that only the rows have follow those of the grid.

    Args:
        folder: that of the results file.
        frame: its rows.

    Raises:
        DataError: ``grid.json`` cannot be read.
    """
    grid = _grid(Path(folder) / FILE)
    methods, tasks = dict(grid["methods"]), {name: task["title"] for name, task in grid["tasks"].items()}
    for row in frame.drop_duplicates(["bm_method"]).itertuples():
        methods.setdefault(str(row.bm_method), str(row.bm_title))
    for name in frame["bm_task"].unique():
        tasks.setdefault(name, name)
    return Plan(
        methods=methods,
        tasks=tasks,
        cannot={name: frozenset(found) for name, found in grid["cannot"].items()},
        metrics={name: task["metric"] for name, task in grid["tasks"].items() if task.get("metric")},
    )


def _grid(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"methods": {}, "tasks": {}, "cannot": {}}
    remedy = "run medvlp benchmark run again, which writes it"
    content = read_json(path, remedy)
    for key, kind, what in (("methods", str, "texts"), ("tasks", dict, "objects"), ("cannot", list, "lists")):
        found = content.get(key)
        if not isinstance(found, dict) or not all(isinstance(value, kind) for value in found.values()):
            raise DataError(f"{path}: {key} is no object of {what}; {remedy}")
    texts = [text for task in content["tasks"].values() for text in (task.get("title"), task.get("metric", ""))]
    if not all(isinstance(text, str) for text in [*texts, *(t for found in content["cannot"].values() for t in found)]):
        raise DataError(f"{path}: a name, title or metric is no text; {remedy}")
    return content

"""What the grid says of the order of rows and columns, and of what a method cannot do."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medvlp.errors import DataError

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
    methods = {name: (spec or {}).get("title") or name for name, spec in (grid.get("methods") or {}).items()}
    tasks = {name: (spec or {}).get("title") or name for name, spec in (grid.get("tasks") or {}).items()}
    for row in frame.drop_duplicates(["bm_method"]).itertuples():
        methods.setdefault(str(row.bm_method), str(row.bm_title))
    for name in frame["bm_task"].unique():
        tasks.setdefault(name, name)
    return Plan(
        methods=methods,
        tasks=tasks,
        cannot=_cannot(grid, frame),
        metrics={
            name: spec["metric"] for name, spec in (grid.get("tasks") or {}).items() if (spec or {}).get("metric")
        },
    )


def _grid(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}); run medvlp benchmark run again, which writes it") from error
    grid = content.get("grid") if isinstance(content, dict) else None
    if not isinstance(grid, dict) or not isinstance(grid.get("methods"), dict):
        raise DataError(f"{path}: there is no grid with methods in it; run medvlp benchmark run again, which writes it")
    return grid


def _cannot(grid: Mapping[str, Any], frame: pd.DataFrame) -> dict[str, frozenset[str]]:
    """What the grid says; and a bare encoder has no text side, so nothing without training."""
    untrained = set(frame.loc[frame["fraction"].isna(), "bm_task"])
    found = {}
    for name, spec in (grid.get("methods") or {}).items():
        own = set((spec or {}).get("cannot") or ())
        found[name] = frozenset(own | untrained if (spec or {}).get("encoder") else own)
    return found

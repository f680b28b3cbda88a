"""Read result rows as a table, and choose the metric that is shown first."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin

import pandas as pd

from medvlp.errors import ConfigError, DataError
from medvlp.results import ResultRow, numbered_rows, warn_of_broken

_FIELDS = fields(ResultRow)
_REQUIRED = [f.name for f in _FIELDS if f.default is MISSING and f.default_factory is MISSING]
_TYPES = {f.name: dict if get_origin(f.type) is dict else (*get_args(f.type), f.type)[0] for f in _FIELDS}
_NEVER_NULL = [f.name for f in _FIELDS if f.name in _REQUIRED and f.type is str]
_NAMES = {int: "a number", float: "a number", str: "a string", dict: "an object"}

COLUMN = ("bm_task", "task", "protocol", "dataset", "part", "fraction")
"""Columns of the frame that identify a column of a table, apart from the metric."""

CELL = ("bm_method", *COLUMN, "metric")
"""Columns of the frame that identify a cell of a table, whose rows are its runs."""

PRIMARY: dict[str, tuple[str, ...]] = {
    "classification": ("auroc",),
    "zero_shot": ("auroc",),
    "segmentation": ("dice_positive",),
    "detection": ("map_coco",),
    "grounding": ("iou", "miou"),
    "retrieval": ("recall@10/i2t", "precision@5/i2t", "precision@5/i2i", "precision@5/p2i"),
}
"""The primary metric of each task: the first of these that the rows have.

Grounding protocols with several thresholds have ``miou``; the metrics of retrieval depend on its directions. Multiclass
classification uses accuracy (:func:`primary_of`), as the papers report for COVIDx.
"""

_NOT_PERFORMANCE = ("classes_absent", "images_mgca", "floor/", "chance/", "prior_")


def is_performance(metric: str) -> bool:
    """Return whether a metric measures the method (larger is better), not the data, as counts and floors do."""
    return not metric.startswith(_NOT_PERFORMANCE)


def primary_of(task: str, metrics: Collection[str], multiclass: bool = False) -> str | None:
    """Return the primary metric of a task; None if the task is unknown or has none of these metrics.

    ``multiclass`` says whether it is a classification with mutually exclusive labels.
    """
    candidates = ("accuracy",) if multiclass and task == "classification" else PRIMARY.get(task, ())
    return next((metric for metric in candidates if metric in metrics), None)


def is_multiclass(notes: Mapping[str, Any] | None) -> bool:
    """Return whether the labels of a row exclude each other (as in COVIDx), by its notes."""
    return ((notes or {}).get("model") or {}).get("labels") == "multiclass"


def primary_rows(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows with the primary metric of their column (:data:`COLUMN`), and :func:`left_out` of the others."""
    parts: list[tuple[pd.DataFrame, str | None]] = []
    for _, part in frame.groupby(list(COLUMN), dropna=False, sort=False):
        first = part.iloc[0]
        parts.append((part, primary_of(first["task"], set(part["metric"]), is_multiclass(first["notes"]))))
    return (pd.concat([part[part["metric"] == metric] for part, metric in parts]) if parts else frame), left_out(parts)


def left_out(parts: Iterable[tuple[pd.DataFrame, str | None]]) -> str:
    """Return a sentence on the runs that have no row of the metric that is shown, with the number of their rows.

    Each part has the rows of all metrics of a task, and its metric; None if none is known. Empty without such runs.
    """
    count: Counter[str] = Counter()
    for rows, metric in parts:
        shown = (rows["metric"] == metric).groupby([rows[key] for key in (*CELL[:-1], "bm_run")], dropna=False)
        why = "of whose task no primary metric is known" if metric is None else f"of runs without {metric}"
        for name, task in rows.loc[~shown.transform("any"), ["bm_task", "task"]].itertuples(index=False):
            count[f"of {name} ({task}), {why}"] += 1
    text = "; ".join(f"{number} row{'s' if number > 1 else ''} {which}" for which, number in count.items())
    return f"Left out: {text}." if text else ""


def mixed_versions(frame: pd.DataFrame) -> str:
    """Name the versions of medvlp and torch that made the rows; empty if there is one of each."""
    texts = []
    rows = [row if isinstance(row, dict) else {} for row in frame["versions"]] if "versions" in frame else []
    for name in ("medvlp", "torch"):
        count = Counter(str(row.get(name, "unknown")) for row in rows)
        if len(count) > 1:
            texts.append(f"{name} {', '.join(f'{version} ({count[version]})' for version in sorted(count))}")
    return f"Mixed versions, with the number of rows: {'; '.join(texts)}." if texts else ""


def collected(path: str | Path, latest: bool = True) -> pd.DataFrame:
    """Read a results file, of a benchmark or of single runs; truncated lines are skipped with a warning.

    The frame has the keys of :mod:`medvlp.results` as columns (None is NaN in those of numbers) and instead of
    ``benchmark`` these: ``bm_grid``, ``bm_method``, ``bm_title``, ``bm_task``, ``bm_run``, ``seed_pretrain``,
    ``seed_data``, ``seed_head``, ``job``, ``pretrain_job``. Rows of single runs have the row's ``method`` as method and
    title, ``<task>/<dataset>`` as task and ``seed<seed>`` as run. ``phantom`` is whether the row was measured on the
    phantom, ``line`` its line in the file.

    Args:
        path: a JSON Lines file.
        latest: of rows with equal cell, run, settings and checkpoint (a job that ran twice) keep the last.

    Raises:
        DataError: the file does not exist or has no row, or a row is invalid.
    """
    path = Path(path)
    rows, broken = numbered_rows(path)
    warn_of_broken(path, broken)
    if not rows:
        raise DataError(f"{path}: no result rows; medvlp benchmark run and medvlp test write them")
    frame = pd.DataFrame([_flat(row, f"{path}, line {line}") | {"line": line} for line, row in rows.items()])
    for name in [name for name, kind in _TYPES.items() if kind is float and name in frame]:
        frame[name] = pd.to_numeric(frame[name])
    if latest:
        same = [*CELL, "bm_run", "seed", "checkpoint", *(["config_sha256"] if "config_sha256" in frame else [])]
        frame = frame[~frame.duplicated(same, keep="last")].reset_index(drop=True)
    return frame


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries, with None instead of NaN."""
    return [
        {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def by_run(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the rows of a cell by run; a run that is given twice is a :class:`~medvlp.errors.ConfigError`."""
    runs: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        run = row.get("bm_run") or f"seed{row['seed']}"
        if run in runs:
            cell = ", ".join(f"{row[key]}" for key in CELL if row.get(key) is not None)
            raise ConfigError(
                f"{cell}: run {run} is given twice (lines {runs[run].get('line')} and {row.get('line')}), with other "
                "settings or another checkpoint; keep one of them in the results file"
            )
        runs[run] = row
    return runs


def _fits(value: Any, kind: type) -> bool:
    if value is None or kind not in (int, float):
        return isinstance(value, kind | None)
    try:  # NaN stands for an undefined metric; infinity and 10^400 for nothing
        return isinstance(value, kind | int) and not isinstance(value, bool) and not math.isinf(float(value))
    except OverflowError:
        return False


def _flat(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Check a row and replace its key ``benchmark`` by columns."""
    if missing := [key for key in _REQUIRED if key not in row]:
        raise DataError(f"{where}: the row has no {', '.join(missing)}; run medvlp benchmark run or test again")
    for key, kind in _TYPES.items():
        value = row.get(key)
        if not _fits(value, kind) or (value is None and key in _NEVER_NULL):
            huge = isinstance(value, int) and value.bit_length() > 64
            text = "an integer with too many digits" if huge else f"{value!r:.60}"
            raise DataError(f"{where}: {key} is {text}, not {_NAMES[kind]}; run the evaluation again")
    if row["fraction"] is not None and not 0 < row["fraction"] <= 1:
        raise DataError(f"{where}: fraction is {row['fraction']}, not in (0, 1]; run the evaluation again")
    cell = row.get("benchmark")
    if cell is None:
        task = f"{row['task']}/{row['dataset']}"
        cell = {"method": row["method"], "task": task, "run": f"seed{row['seed']}", "job": None}
    if missing := [key for key in ("method", "task", "run", "job") if not isinstance(cell, dict) or key not in cell]:
        raise DataError(f"{where}: benchmark has no {', '.join(missing)}; run medvlp benchmark run again")
    seeds = cell.get("seeds") or {}
    names = [cell.get(key) for key in ("method", "task", "run", "job", "title", "grid", "pretrain_job")]
    if None in names[:3] or not all(isinstance(name, str | None) for name in names) or not isinstance(seeds, dict):
        raise DataError(f"{where}: benchmark has a name that is not a string; run medvlp benchmark run again")
    data = (row.get("notes") or {}).get("data")
    return {key: value for key, value in row.items() if key != "benchmark"} | {
        "bm_grid": cell.get("grid"),
        "bm_method": cell["method"],
        "bm_title": cell.get("title") or cell["method"],
        "bm_task": cell["task"],
        "bm_run": cell["run"],
        **{f"seed_{name}": seeds.get(name) for name in ("pretrain", "data", "head")},
        "job": cell["job"],
        "pretrain_job": cell.get("pretrain_job"),
        "phantom": isinstance(data, Mapping) and bool(data.get("phantom")),
    }

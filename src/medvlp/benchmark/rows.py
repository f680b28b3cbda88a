"""Collected result rows as a table, and which of a task's many metrics is looked at first."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pandas as pd

from medvlp.errors import DataError
from medvlp.results import ResultRow, numbered_rows, warn_of_broken

_REQUIRED = tuple(f.name for f in fields(ResultRow) if f.default is MISSING and f.default_factory is MISSING)
_NUMBERS = ("value", "low", "high", "level", "fraction", "seconds")
_COUNTS = ("seed", "resamples", "samples", "groups")
_TEXTS = ("method", "checkpoint", "task", "protocol", "dataset", "part", "metric")
_TEXTS_OR_NONE = (
    *("split", "split_sha256", "predictions", "predictions_sha256", "config_sha256"),
    *("hardware", "time"),
)
_BENCHMARK = ("method", "task", "run", "job")
_SEEDS = ("pretrain", "data", "head")

COLUMN = ("bm_task", "task", "protocol", "dataset", "part", "fraction")
"""Columns of the frame that tell one column of a table from another, the metric left aside."""

CELL = ("bm_method", *COLUMN, "metric")
"""Columns of the frame that are equal for the rows of one cell of a table: its runs."""

PRIMARY: dict[str, tuple[str, ...]] = {
    "classification": ("auroc",),
    "zero_shot": ("auroc",),
    "segmentation": ("dice_positive",),
    "detection": ("map_coco",),
    "grounding": ("iou", "miou"),
    "retrieval": ("recall@10/i2t", "precision@5/i2t", "precision@5/i2i", "precision@5/p2i"),
}
"""The metric of each task that is looked at first: the first of these that the rows have.

Of protocols with several thresholds grounding has ``miou``, and which of retrieval's there are depends on its
directions. Multiclass classification has its accuracy first (:func:`primary_of`), as the papers report for COVIDx.
"""

_NOT_PERFORMANCE = ("classes_absent", "images_mgca", "floor/", "chance/", "prior_")


def is_performance(metric: str) -> bool:
    """Whether a metric says how good the method is (larger is better in all that do).

    Counts (``classes_absent``), floors, chance levels and priors describe the data.
    """
    return not metric.startswith(_NOT_PERFORMANCE)


def primary_of(task: str, metrics: Collection[str], multiclass: bool = False) -> str | None:
    """The metric that is looked at first.

    Args:
        task: name of the task as rows have it.
        metrics: those that there are.
        multiclass: of classification whose labels exclude each other.

    Returns:
        Its name; None where the task is unknown or has none of its candidates.
    """
    wanted = ("accuracy",) if multiclass and task == "classification" else PRIMARY.get(task, ())
    return next((metric for metric in wanted if metric in metrics), None)


def is_multiclass(notes: Mapping[str, Any] | None) -> bool:
    """Whether the labels of a row exclude each other (COVIDx's three), by its notes."""
    return ((notes or {}).get("model") or {}).get("labels") == "multiclass"


def on_phantom(notes: Any) -> bool:
    """Whether a row was measured on the phantom, by its notes."""
    data = notes.get("data") if isinstance(notes, Mapping) else None
    return isinstance(data, Mapping) and bool(data.get("phantom"))


def primary_rows(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Of each column of a table (:data:`COLUMN`) the rows with its primary metric.

    Returns:
        The rows, and a sentence about runs without one (see :func:`left_out`).
    """
    parts: list[tuple[pd.DataFrame, str | None]] = []
    for _, part in frame.groupby(list(COLUMN), dropna=False, sort=False):
        first = part.iloc[0]
        parts.append((part, primary_of(first["task"], set(part["metric"]), is_multiclass(first["notes"]))))
    return (pd.concat([part[part["metric"] == metric] for part, metric in parts]) if parts else frame), left_out(parts)


def left_out(parts: Iterable[tuple[pd.DataFrame, str | None]]) -> str:
    """Name the runs that have no row of the metric that is shown of them.

    Args:
        parts: rows of all metrics of a task, and the metric; None where none is known.

    Returns:
        A sentence with the number of their rows; empty if there are none.
    """
    count: Counter[str] = Counter()
    for rows, metric in parts:
        shown = (rows["metric"] == metric).groupby([rows[key] for key in (*CELL[:-1], "bm_run")], dropna=False)
        why = "of whose task no primary metric is known" if metric is None else f"of runs without {metric}"
        for name, task in rows.loc[~shown.transform("any"), ["bm_task", "task"]].itertuples(index=False):
            count[f"of {name} ({task}), {why}"] += 1
    found = "; ".join(f"{number} row{'s' if number > 1 else ''} {which}" for which, number in count.items())
    return f"Left out: {found}." if found else ""


def mixed_versions(frame: pd.DataFrame) -> str:
    """Name the versions of medvlp and of torch that rows were made with; empty if they have one of each."""
    found = []
    rows = [row if isinstance(row, dict) else {} for row in frame["versions"]] if "versions" in frame else []
    for name in ("medvlp", "torch"):
        count = Counter(str(row.get(name, "unknown")) for row in rows)
        if len(count) > 1:
            found.append(f"{name} {', '.join(f'{version} ({count[version]})' for version in sorted(count))}")
    return f"Mixed versions, with the number of rows: {'; '.join(found)}." if found else ""


def line_numbers(path: str | Path) -> tuple[list[int], list[int]]:
    """Where the rows of a file are.

    Returns:
        The lines (from 1) that :func:`~medvlp.results.read_rows` reads, in its order; and those that it cannot,
        because they were cut short.
    """
    rows, cut = numbered_rows(path)
    return list(rows), cut


def collected(path: str | Path, latest: bool = True) -> pd.DataFrame:
    """Reads a results file: a benchmark's, or that of single runs.

    The frame has the keys of :mod:`medvlp.results` as columns (None as NaN in those of numbers) and in place of
    ``benchmark`` these: ``bm_grid``, ``bm_method``, ``bm_title``, ``bm_task``, ``bm_run``, ``seed_pretrain``,
    ``seed_data``, ``seed_head``, ``job``, ``pretrain_job``. Rows of single runs have the row's ``method`` as method and
    title, ``<task>/<dataset>`` as task and ``seed<seed>`` as run. ``phantom`` says whether the row was measured on the
    phantom, ``line`` is the row's line in the file.

    Args:
        path: a JSON Lines file.
        latest: of rows with equal cell, run, settings and checkpoint (a job that ran twice) keep the last.

    Returns:
        One row per result, in the file's order; :func:`records` gives dictionaries again.

    Raises:
        DataError: no such file, no row in it, or a row without a key that is needed. Lines cut short are warned of
            and left out.
    """
    path = Path(path)
    rows, cut = numbered_rows(path)
    warn_of_broken(path, cut)
    if not rows:
        raise DataError(f"{path}: no result row in it; medvlp benchmark run and medvlp test write them")
    frame = pd.DataFrame([_flat(row, path, line) for line, row in rows.items()])
    for name in _NUMBERS:
        if name in frame:
            frame[name] = pd.to_numeric(frame[name])
    if latest:
        own = [*CELL, "bm_run", "seed", "checkpoint", *(["config_sha256"] if "config_sha256" in frame else [])]
        frame = frame[~frame.duplicated(own, keep="last")].reset_index(drop=True)
    return frame


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as dictionaries, with None where it has NaN."""
    found = frame.to_dict("records")
    return [{str(k): None if isinstance(v, float) and v != v else v for k, v in row.items()} for row in found]  # noqa: PLR0124


def _is_number(value: Any, kind: Any) -> bool:
    """Whether it is one that computes: NaN stands for an undefined metric, infinity and 10^400 for nothing."""
    if value is None:
        return True
    try:
        return isinstance(value, kind) and not isinstance(value, bool) and not math.isinf(float(value))
    except OverflowError:
        return False


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 64:
        return "an integer of more digits than a number has"
    return repr(value) if len(repr(value)) < 60 else f"{repr(value)[:60]}…"


def _flat(row: dict[str, Any], path: Path, line: int) -> dict[str, Any]:
    where = f"{path}, line {line}"
    if missing := [key for key in _REQUIRED if key not in row]:
        raise DataError(
            f"{where}: the row has no {', '.join(missing)}; write it anew with medvlp benchmark run or test"
        )
    for key in (*_NUMBERS, *_COUNTS):
        if not _is_number(row.get(key), int if key in _COUNTS else int | float):
            raise DataError(f"{where}: {key} is {_short(row[key])}, not a number; write the row anew")
    if row["fraction"] is not None and not 0 < row["fraction"] <= 1:
        raise DataError(f"{where}: fraction is {row['fraction']}, not in (0, 1]; write the row anew")
    for key in (*_TEXTS, *_TEXTS_OR_NONE):
        if not isinstance(row.get(key), str if key in _TEXTS else str | None):
            raise DataError(f"{where}: {key} is {_short(row[key])}, not a text; write the row anew")
    for key in ("notes", "versions"):
        if not isinstance(row.get(key), dict | None):
            raise DataError(f"{where}: {key} is {_short(row[key])}, not an object; write the row anew")
    own = row.get("benchmark")
    if own is None:
        task = f"{row['task']}/{row['dataset']}"
        own = {"method": row["method"], "task": task, "run": f"seed{row['seed']}", "job": None}
    if not isinstance(own, dict) or any(key not in own for key in _BENCHMARK):
        lost = [key for key in _BENCHMARK if not isinstance(own, dict) or key not in own]
        raise DataError(f"{where}: benchmark has no {', '.join(lost)}; collect the results again")
    seeds = own.get("seeds") or {}
    names = [own.get(key) for key in ("method", "task", "run", "job", "title", "grid", "pretrain_job")]
    if None in names[:3] or not all(isinstance(name, str | None) for name in names) or not isinstance(seeds, dict):
        raise DataError(f"{where}: benchmark has a name that is no text; collect the results again")
    flat = {key: value for key, value in row.items() if key != "benchmark"}
    return flat | {
        "bm_grid": own.get("grid"),
        "bm_method": own["method"],
        "bm_title": own.get("title") or own["method"],
        "bm_task": own["task"],
        "bm_run": own["run"],
        **{f"seed_{name}": seeds.get(name) for name in _SEEDS},
        "job": own["job"],
        "pretrain_job": own.get("pretrain_job"),
        "phantom": on_phantom(row.get("notes")),
        "line": line,
    }

"""The result rows behind every cell: per method, task and fraction a table of metrics by runs, with what made them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medvlp.benchmark.report.summary import Condition, Method, condition_of, conditions_of
from medvlp.benchmark.rows import COLUMN
from medvlp.store import value_sha256

_RUN = ("bm_run", "seed", "checkpoint", "config_sha256")
"""Columns that tell runs of one group apart."""

_HASH = 12  # digits of a hash that are printed


@dataclass(frozen=True)
class Group:
    """The rows of one method, task, protocol and fraction.

    Attributes:
        anchor: id on the page.
        method: the method.
        condition: on what it was measured.
        runs: names of the runs: the columns.
        facts: what made the runs: a label, and its value for each run.
        metrics: the metric, and its value with the interval for each run; empty where a run has none.
        rows: how many result rows these are.
    """

    anchor: str
    method: Method
    condition: Condition
    runs: tuple[str, ...]
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    metrics: tuple[tuple[str, tuple[str, ...]], ...]
    rows: int


def anchor_of(method: str, condition: Condition) -> str:
    """Id under which the rows of a method and condition are listed."""
    key = [method, condition.bm_task, condition.task, condition.protocol, condition.dataset, condition.part]
    return f"rows-{value_sha256([*key, condition.fraction_key])[:_HASH]}"


def groups_of(frame: pd.DataFrame, methods: Sequence[Method]) -> list[Group]:
    """All rows, in the order of tasks, fractions, methods.

    Args:
        frame: rows as of :func:`medvlp.benchmark.rows.collected`.
        methods: all methods of the page.
    """
    by_name = {method.name: method for method in methods}
    places = {method.name: place for place, method in enumerate(methods)}
    order = {condition: place for place, condition in enumerate(conditions_of(frame))}
    found = []
    for (name, *values), part in frame.groupby(["bm_method", *COLUMN], dropna=False, sort=False):
        found.append(_group(by_name[str(name)], condition_of(values), part))
    return sorted(found, key=lambda group: (order[group.condition], places[group.method.name]))


def _group(method: Method, condition: Condition, part: pd.DataFrame) -> Group:
    keys = [name for name in _RUN if name in part]
    runs = [run for _, run in part.groupby(keys, dropna=False, sort=False)]
    facts = [_facts(run) for run in runs]
    labels = dict.fromkeys(label for own in facts for label in own)
    values = [_values(run) for run in runs]
    metrics = dict.fromkeys(str(metric) for metric in part["metric"])
    return Group(
        anchor=anchor_of(method.name, condition),
        method=method,
        condition=condition,
        runs=tuple(str(run["bm_run"].iloc[0]) for run in runs),
        facts=tuple((label, tuple(own.get(label, "") for own in facts)) for label in labels),
        metrics=tuple((metric, tuple(own.get(metric, "") for own in values)) for metric in metrics),
        rows=len(part),
    )


def _values(run: pd.DataFrame) -> dict[str, str]:
    columns = (run["metric"], run["value"], *(run.get(name, [None] * len(run)) for name in ("low", "high")))
    found = {}
    for metric, value, low, high in zip(*columns, strict=True):
        if pd.isna(value):
            found[str(metric)] = "not defined"
            continue
        between = "" if pd.isna(low) or pd.isna(high) else f" [{low:.4f}, {high:.4f}]"
        found[str(metric)] = f"{value:.4f}{between}"
    return found


def _facts(run: pd.DataFrame) -> dict[str, str]:
    """What made a run; keys without a value are left out."""
    row: Mapping[str, Any] = {str(key): value for key, value in run.iloc[0].items()}
    lines = run["line"]
    seeds = [
        f"{name} {_whole(row[f'seed_{name}'])}" for name in ("pretrain", "data", "head") if _known(row, f"seed_{name}")
    ]
    found = {
        "seeds": ", ".join(seeds) or _whole(row["seed"]),
        "job": _short(row, "job"),
        "pre-training job": _short(row, "pretrain_job"),
        "config": _short(row, "config_sha256"),
        "checkpoint": _short(row, "checkpoint"),
        "split": " ".join(part for part in (_text(row, "split"), _short(row, "split_sha256")) if part),
        "images, patients": f"{_text(row, 'samples')}, {_text(row, 'groups')}" if _known(row, "samples") else "",
        "predictions": _text(row, "predictions"),
        "hash of predictions": _short(row, "predictions_sha256"),
        "seconds": f"{row['seconds']:.1f}" if _known(row, "seconds") else "",
        "hardware": _text(row, "hardware"),
        "written": _text(row, "time"),
        "lines of the file": f"{lines.min()} to {lines.max()}" if len(lines) > 1 else str(lines.iloc[0]),
    }
    return {label: value for label, value in found.items() if value}


def _known(row: Mapping[str, Any], key: str) -> bool:
    value = row.get(key)
    return value is not None and not (isinstance(value, float) and pd.isna(value))


def _text(row: Mapping[str, Any], key: str) -> str:
    return str(row[key]) if _known(row, key) else ""


def _short(row: Mapping[str, Any], key: str) -> str:
    return _text(row, key)[:_HASH]


def _whole(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

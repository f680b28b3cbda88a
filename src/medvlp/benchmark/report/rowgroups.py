"""The result rows behind every cell: per method and condition a table of metrics by runs, with what made the runs."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from medvlp.benchmark.report.summary import Condition, Method, fraction_key
from medvlp.benchmark.rows import records
from medvlp.store import value_sha256

_RUN = ("bm_run", "seed", "checkpoint", "config_sha256")
"""Columns that tell the runs of a group apart."""

_DIGITS = 12
"""Digits of a hash that are printed."""


def anchor_of(method: str, condition: Condition) -> str:
    """Return the id of the rows of a method and condition on the page."""
    key = [method, condition.bm_task, condition.task, condition.protocol, condition.dataset, condition.part]
    return f"rows-{value_sha256([*key, fraction_key(condition.fraction)])[:_DIGITS]}"


def row_groups(
    frame: pd.DataFrame, conditions: Sequence[Condition], methods: Sequence[Method]
) -> list[list[dict[str, Any]]]:
    """Return all rows by task, and within a task by fraction and method."""
    groups: dict[tuple[Condition, str], dict[Any, list[dict[str, Any]]]] = {}
    for row in records(frame):
        runs = groups.setdefault((row["condition"], row["bm_method"]), {})
        runs.setdefault(tuple(row.get(name) for name in _RUN), []).append(row)
    return [
        [
            _group(method, condition, list(groups[condition, method.name].values()))
            for condition in same
            for method in methods
            if (condition, method.name) in groups
        ]
        for _, same in groupby(conditions, key=Condition.without_fraction)
    ]


def _group(method: Method, condition: Condition, runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "anchor": anchor_of(method.name, condition),
        "method": method,
        "condition": condition,
        "runs": [run[0]["bm_run"] for run in runs],
        "facts": _by_label([_facts(run) for run in runs]),
        "metrics": _by_label([_metrics(run) for run in runs]),
        "rows": sum(map(len, runs)),
    }


def _by_label(runs: list[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """Return one line per label with the text of each run; empty where a run has none."""
    return [
        (label, [run.get(label, "") for run in runs]) for label in dict.fromkeys(key for run in runs for key in run)
    ]


def _metrics(run: list[dict[str, Any]]) -> dict[str, str]:
    texts = {}
    for row in run:
        value, low, high = (row.get(name) for name in ("value", "low", "high"))
        interval = "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"
        texts[row["metric"]] = "not defined" if value is None else f"{value:.4f}{interval}"
    return texts


def _facts(run: list[dict[str, Any]]) -> dict[str, str]:
    """Return what made a run, without labels that have no value."""
    row, lines = run[0], [row["line"] for row in run]

    def text(key: str) -> str:
        value = row.get(key)
        return "" if value is None else f"{value:.0f}" if isinstance(value, float) else str(value)

    def digits(key: str) -> str:
        return text(key)[:_DIGITS]

    seeds = [f"{name} {text(f'seed_{name}')}" for name in ("pretrain", "data", "head") if text(f"seed_{name}")]
    facts = {
        "seeds": ", ".join(seeds) or text("seed"),
        "job": digits("job"),
        "pre-training job": digits("pretrain_job"),
        "config": digits("config_sha256"),
        "checkpoint": digits("checkpoint"),
        "split": f"{text('split')} {digits('split_sha256')}".strip(),
        "images, patients": f"{text('samples')}, {text('groups')}" if text("samples") else "",
        "predictions": text("predictions"),
        "hash of predictions": digits("predictions_sha256"),
        "seconds": f"{row['seconds']:.1f}" if text("seconds") else "",
        "hardware": text("hardware"),
        "written": text("time"),
        "lines of the file": f"{min(lines)} to {max(lines)}" if len(lines) > 1 else text("line"),
    }
    return {label: value for label, value in facts.items() if value}

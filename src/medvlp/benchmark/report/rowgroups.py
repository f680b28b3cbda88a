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
    parts = dict(list(frame.groupby(["condition", "bm_method"], sort=False)))
    return [
        [_group(method, c, parts[c, method.name]) for c in same for method in methods if (c, method.name) in parts]
        for _, same in groupby(conditions, key=Condition.without_fraction)
    ]


def _group(method: Method, condition: Condition, rows: pd.DataFrame) -> dict[str, Any]:
    runs = [run for _, run in rows.groupby([name for name in _RUN if name in rows], dropna=False, sort=False)]
    return {
        "anchor": anchor_of(method.name, condition),
        "method": method,
        "condition": condition,
        "runs": [run["bm_run"].iloc[0] for run in runs],
        "facts": _by_label([_facts(run) for run in runs]),
        "metrics": _by_label([_metrics(run) for run in runs]),
        "rows": len(rows),
    }


def _by_label(runs: list[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """Return one line per label with the text of each run; empty where a run has none."""
    return [
        (label, [run.get(label, "") for run in runs]) for label in dict.fromkeys(key for run in runs for key in run)
    ]


def _metrics(run: pd.DataFrame) -> dict[str, str]:
    texts = {}
    for row in records(run.reindex(columns=["metric", "value", "low", "high"])):
        interval = "" if None in (row["low"], row["high"]) else f" [{row['low']:.4f}, {row['high']:.4f}]"
        texts[row["metric"]] = "not defined" if row["value"] is None else f"{row['value']:.4f}{interval}"
    return texts


def _facts(run: pd.DataFrame) -> dict[str, str]:
    """Return what made a run, without labels that have no value."""
    row = records(run.iloc[:1])[0]

    def text(key: str) -> str:
        value = row.get(key)
        return "" if value is None else f"{value:.0f}" if isinstance(value, float) else str(value)

    def digits(key: str) -> str:
        return text(key)[:_DIGITS]

    seeds = [f"{name} {text(f'seed_{name}')}" for name in ("pretrain", "data", "head") if text(f"seed_{name}")]
    lines = run["line"]
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
        "lines of the file": f"{lines.min()} to {lines.max()}" if len(lines) > 1 else text("line"),
    }
    return {label: value for label, value in facts.items() if value}

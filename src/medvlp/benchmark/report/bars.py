"""Scores by class: classes by methods, every number with a bar behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from medvlp.benchmark.report.summary import Condition, Mean, Method, conditions_of, means_of_rows
from medvlp.benchmark.rows import is_multiclass, primary_of

CHANCE = {"auroc": 0.5}
"""What guessing scores, for metrics of which that does not depend on the data."""


@dataclass(frozen=True)
class Bars:
    """The scores by class of one task and fraction.

    Attributes:
        condition: the task with its fraction.
        metric: what the bars show, without the class.
        chance: what guessing scores; None where that depends on the data.
        methods: the columns.
        classes: name of the class, and per method its mean; None where there is none.
        folded: whether a larger fraction of the task is shown before it.
    """

    condition: Condition
    metric: str
    chance: float | None
    methods: tuple[Method, ...]
    classes: tuple[tuple[str, tuple[Mean | None, ...]], ...]
    folded: bool


def bars(frame: pd.DataFrame, methods: Sequence[Method]) -> list[Bars]:
    """The scores by class of every task that has such; of several fractions the largest comes first.

    Args:
        frame: rows as of :func:`medvlp.benchmark.rows.collected`.
        methods: all methods of the page.
    """
    by_class = frame[frame["metric"].str.contains("/", regex=False)]
    if by_class.empty:
        return []
    wanted = _wanted(frame)
    means: dict[Condition, list[Mean]] = {}
    for mean in means_of_rows(by_class):
        if mean.metric.split("/", 1)[0] == wanted.get(mean.condition):
            means.setdefault(mean.condition, []).append(mean)
    found: list[Bars] = []
    order = {condition.without_fraction(): n for n, condition in reversed(list(enumerate(conditions_of(frame))))}
    for condition in sorted(means, key=lambda c: (order[c.without_fraction()], -(c.fraction or 0.0))):
        folded = any(made.condition.without_fraction() == condition.without_fraction() for made in found)
        found.append(_bars(condition, wanted[condition], means[condition], methods, folded))
    return found


def _wanted(frame: pd.DataFrame) -> dict[Condition, str]:
    """The metric whose classes are shown: a task's primary one, or AUROC where that has no classes.

    A primary metric with a direction after its slash (``recall@10/i2t``) has no classes.
    """
    found = {}
    for condition in conditions_of(frame):
        rows = frame[(frame["bm_task"] == condition.bm_task) & (frame["protocol"] == condition.protocol)]
        rows = rows[(rows["dataset"] == condition.dataset) & (rows["part"] == condition.part)]
        names = set(rows["metric"])
        primary = primary_of(condition.task, names, is_multiclass(rows.iloc[0].get("notes")))
        for metric in (primary, "auroc"):
            if metric and "/" not in metric and any(name.startswith(f"{metric}/") for name in names):
                found[condition] = metric
                break
    return found


def _bars(condition: Condition, metric: str, means: Sequence[Mean], methods: Sequence[Method], folded: bool) -> Bars:
    own = {(mean.method, mean.metric.split("/", 1)[1]): mean for mean in means}
    columns = tuple(method for method in methods if any(method.name == name for name, _ in own))
    names = dict.fromkeys(name for _, name in own)
    classes = tuple((name, tuple(own.get((method.name, name)) for method in columns)) for name in names)
    return Bars(condition, metric, CHANCE.get(metric), columns, classes, folded)

"""What pre-training cost, beside what it brought: a table, and a small chart per task."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import pandas as pd
from markupsafe import Markup

from medvlp.benchmark.gridfile import Cost, GridFile
from medvlp.benchmark.report import svg
from medvlp.benchmark.report.summary import Condition, Mean, Method, unit_of

_SIZE = (340, 220)
_PLOT = svg.Frame(left=38, top=20, right=330, bottom=178)
_NONE_X = _PLOT.left + 24  # where methods without pre-training stand

_TIMES = ((1, "1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min"), (3600, "1 h"), (36000, "10 h"), (360000, "100 h"))


@dataclass(frozen=True)
class Spent:
    """What a method's pre-training cost, as the mean over its runs.

    Attributes:
        method: the method.
        runs: how many pre-training runs the mean is of; 0 where the method has none.
        cost: mean of each figure over the runs that have it.
        devices: what they ran on.
        watts: the powers that the energy estimates assume.
    """

    method: Method
    runs: int
    cost: Cost
    devices: tuple[str, ...]
    watts: tuple[float, ...]


@dataclass(frozen=True)
class CostChart:
    """One task's scores over the time of pre-training.

    Attributes:
        condition: the task, at its largest fraction.
        metric: what is drawn.
        picture: inline SVG with its text alternative.
        means: the scores by method.
    """

    condition: Condition
    metric: str
    picture: Markup
    means: dict[str, Mean]


def spent(frame: pd.DataFrame, grid: GridFile, methods: Sequence[Method]) -> list[Spent]:
    """The cost of each method's pre-training jobs.

    A method's jobs are those that its result rows name, and those in its own name: two methods of the grid may share
    one encoder.

    Returns:
        One entry per method; nothing where no job of the grid has a cost.
    """
    costs = {job.hash: job.cost for job in grid.jobs if job.kind == "pretrain" and job.cost is not None}
    if not costs:
        return []
    named: dict[str, set[str]] = {}
    for job in grid.jobs:
        if job.hash in costs:
            named.setdefault(job.method, set()).add(job.hash)
    pairs = frame[["bm_method", "pretrain_job"]].drop_duplicates()
    for method, job_hash in pairs.itertuples(index=False):
        if job_hash in costs:
            named.setdefault(str(method), set()).add(job_hash)
    return [_mean(method, [costs[h] for h in sorted(named.get(method.name, ()))]) for method in methods]


def _mean(method: Method, costs: Sequence[Cost]) -> Spent:
    names = [f.name for f in fields(Cost) if f.name != "device"]
    known = {name: [value for cost in costs if (value := getattr(cost, name)) is not None] for name in names}
    means: dict[str, Any] = {name: fmean(values) for name, values in known.items() if values}
    figures = Cost(**means)
    devices = tuple(sorted({cost.device for cost in costs if cost.device}))
    watts = tuple(sorted({cost.watts for cost in costs if cost.watts is not None}))
    return Spent(method, len(costs), figures, devices, watts)


def largest(means: Iterable[Mean]) -> dict[tuple[Condition, str], dict[str, Mean]]:
    """Of every task and metric the means at its largest fraction, by method."""
    groups: dict[tuple[Condition, str], list[Mean]] = {}
    for mean in means:
        groups.setdefault((mean.condition.without_fraction(), mean.metric), []).append(mean)
    found = {}
    for (_, metric), part in groups.items():
        top = max((mean.condition for mean in part), key=lambda c: c.fraction or 0.0)
        found[top, metric] = {mean.method: mean for mean in part if mean.condition == top}
    return found


def cost_charts(costs: Sequence[Spent], means: Sequence[Mean]) -> list[CostChart]:
    """A chart for every task in which two methods or more have a score, one of them with a known time."""
    found = []
    for (condition, metric), own in largest(means).items():
        there = [entry for entry in costs if entry.method.name in own]
        if len(there) > 1 and any(entry.cost.seconds for entry in there):
            found.append(CostChart(condition, metric, _draw(condition, metric, own, there), own))
    return found


def _draw(condition: Condition, metric: str, own: dict[str, Mean], there: Sequence[Spent]) -> Markup:
    words = "; ".join(
        f"{e.method.title}: {own[e.method.name].text} after {duration(e.cost.seconds) or 'no pre-training here'}"
        for e in there
    )
    unit = unit_of(list(own.values()))
    title = f"Score and time of pre-training, {condition.bm_task}"
    picture = svg.drawing(*_SIZE, title, f"{metric}{unit} over the time of pre-training. {words}.")
    low, high = svg.padded([end for entry in there for end in own[entry.method.name].ends], floor=0.0)
    y = svg.linear(low, high, _PLOT.bottom, _PLOT.top)
    seconds = [e.cost.seconds for e in there if e.cost.seconds]
    some_without = len(seconds) < len(there)
    x = _time_scale(seconds, some_without)
    _PLOT.y_axis(picture, y, svg.ticks(low, high), metric + unit)
    _PLOT.x_axis(picture, _time_marks(x, seconds, some_without), "time of pre-training, log")
    for entry in there:
        mean, how = own[entry.method.name], entry.method.look
        # methods that share a pre-training, or have none, stand side by side
        beside = [other for other in there if other.cost.seconds == entry.cost.seconds]
        place = (x(entry.cost.seconds) if entry.cost.seconds else _NONE_X) + 7.0 * (
            beside.index(entry) - (len(beside) - 1) / 2
        )
        group = svg.element(picture, "g", data_method=entry.method.name)
        svg.element(group, "title", f"{entry.method.title}: {mean.text}")
        if mean.std is not None:
            bottom, top = (y(end) for end in mean.ends)
            svg.element(group, "line", x1=place, x2=place, y1=bottom, y2=top, class_=f"spread {how.colour}")
        svg.mark(group, how, place, y(mean.shown))
    return svg.markup(picture)


def _time_scale(seconds: Sequence[float], some_without: bool) -> svg.Scale:
    low, high = math.log10(min(seconds)), math.log10(max(seconds))
    margin = max((high - low) * 0.1, 0.2)
    scale = svg.linear(low - margin, high + margin, _PLOT.left + (60 if some_without else 0), _PLOT.right)
    return lambda value: scale(math.log10(value))


def _time_marks(x: svg.Scale, seconds: Sequence[float], some_without: bool) -> list[tuple[float, str]]:
    left = _PLOT.left + (60 if some_without else 0)
    marks = [(x(at), text) for at, text in _TIMES if left + 12 <= x(at) <= _PLOT.right - 12]
    if len(marks) < 2:  # all within one step of the fixed ticks: name the ends themselves
        marks = [(x(at), duration(at)) for at in dict.fromkeys((min(seconds), max(seconds)))]
        if len(marks) > 1 and marks[1][0] - marks[0][0] < 60:
            marks = marks[:1]
    return [(_NONE_X, "none"), *marks] if some_without else marks


def duration(seconds: float | None) -> str:
    """A time in words, of two units at most: ``2 h 05 min``; empty for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60:02d} s" if whole % 60 else "")
    minutes = whole % 3600 // 60
    return f"{whole // 3600} h" + (f" {minutes:02d} min" if minutes else "")


def count(number: float | None) -> str:
    """A number of parameters, shortened: ``23.5 M``; empty for None."""
    if number is None:
        return ""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return f"{number:.0f}"


def number(value: float | None) -> str:
    """A figure with three digits that count, without an exponent: ``1234``, ``12.3``, ``0.0123``; empty for None."""
    if value is None:
        return ""
    places = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{places}f}"


def assumptions(costs: Sequence[Spent]) -> list[str]:
    """What the figures rest on, for the notes under the table."""
    watts = sorted({value for entry in costs for value in entry.watts})
    devices = dict.fromkeys(device for entry in costs for device in entry.devices)
    notes = [f"Pre-training ran on {', '.join(devices)}."] if devices else []
    if watts:
        powers = " or ".join(f"{value:g} W" for value in watts)
        notes.append(f"Energy is time multiplied by an assumed constant power of {powers} per device, not measured.")
    if any(not entry.runs for entry in costs):
        notes.append("Methods without runs were not pre-trained here; what it cost elsewhere is not known.")
    return notes

"""Charts of scores over label fractions and over the time of pre-training: positions and texts; charts.html draws them.

Colours are classes of the page's style sheet, so that charts follow the light and the dark scheme; every method also
has its own mark and dash.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from medvlp.benchmark.report.cost import duration
from medvlp.benchmark.report.summary import Method, Scores, fraction_text, mean_text
from medvlp.benchmark.tables import Cell
from medvlp.benchmark.tables.cells import print_scale

# the plot area of every chart, in CSS pixels
_LEFT, _RIGHT, _TOP = 38, 330, 20
_TIMES = ((1, "1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min"), (3600, "1 h"), (36000, "10 h"), (360000, "100 h"))

_Series = tuple[Method, str, list[tuple[float, Cell]]]
"""A method, its text in the chart, and its points: x in pixels, and a score."""


def learning_curves(scores: Scores, methods: Sequence[Method]) -> list[dict[str, Any]]:
    """Return a chart and its numbers for every task with scores at two or more fractions."""
    curves = []
    for (task, metric), by_fraction in scores.items():
        fractions = sorted(fraction for fraction in by_fraction if fraction is not None)
        if len(fractions) < 2:
            continue
        numbers = [(method, [by_fraction[f].get(method.name) for f in fractions]) for method in methods]
        numbers = [(method, cells) for method, cells in numbers if any(cells)]
        x = _linear(math.log10(fractions[0]), math.log10(fractions[-1]), _LEFT + 26, _RIGHT - 26)
        marks = [(x(math.log10(fraction)), fraction_text(fraction)) for fraction in fractions]
        series, words = [], []
        for index, (method, cells) in enumerate(numbers):
            # side by side, so that the spreads of equal means can be told apart
            shift = (index - (len(numbers) - 1) / 2) * min(5.0, 36 / len(numbers))
            points = [(at + shift, text, cell) for (at, text), cell in zip(marks, cells, strict=True) if cell]
            series.append((method, method.title, [(at, cell) for at, _, cell in points]))
            words.append(f"{method.title}: {', '.join(f'{mean_text(cell)} at {text}' for _, text, cell in points)}")
        label = f"Learning curves, {task.bm_task}. {_axis(metric)} over the share of labels. {'; '.join(words)}."
        chart = _chart(label, metric, "share of the labels, log scale", marks, series, bottom=190)
        curves.append(
            {"condition": task, "chart": {**chart, "connected": True}, "metric": metric}
            | {"fractions": [text for _, text in marks], "numbers": numbers}
        )
    return curves


def cost_charts(scores: Scores, costs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a chart for every task in which two or more methods have a score, one of them with a known time.

    Args:
        scores: those of the largest fraction are drawn.
        costs: as of :func:`medvlp.benchmark.report.cost.costs_of`.
    """
    charts = []
    for (task, metric), by_fraction in scores.items():
        fraction = max(by_fraction, key=lambda share: share or 0.0)
        cells = by_fraction[fraction]
        entries = [(entry["method"], entry["seconds"]) for entry in costs if entry["method"].name in cells]
        times = [seconds for _, seconds in entries if seconds]
        if len(entries) < 2 or not times:
            continue
        x, marks = _time_axis(times, some_without=len(times) < len(entries))
        series, words = [], []
        for method, seconds in entries:
            # methods that share a pre-training, or have none, stand side by side
            beside = [other for other, time in entries if time == seconds]
            at = x(seconds) + 7.0 * (beside.index(method) - (len(beside) - 1) / 2)
            text = f"{method.title}: {mean_text(cells[method.name])}"
            series.append((method, text, [(at, cells[method.name])]))
            words.append(f"{text} after {duration(seconds) or 'no pre-training here'}")
        title = f"Score and time of pre-training, {task.bm_task}"
        label = f"{title}. {_axis(metric)} over the time of pre-training. {'; '.join(words)}."
        chart = _chart(label, metric, "time of pre-training, log", marks, series, bottom=178)
        item = {"condition": replace(task, fraction=fraction), "chart": {**chart, "connected": False}}
        charts.append({**item, "metric": metric, "cells": cells})
    return charts


def _time_axis(
    times: Sequence[float], some_without: bool
) -> tuple[Callable[[float | None], float], list[tuple[float, str]]]:
    """Return the map of seconds to pixels, with a place for methods without pre-training, and the labelled ticks."""
    left, none = _LEFT + (60 if some_without else 0), _LEFT + 24
    low, high = math.log10(min(times)), math.log10(max(times))
    margin = max((high - low) * 0.1, 0.2)
    scale = _linear(low - margin, high + margin, left, _RIGHT)

    def x(seconds: float | None) -> float:
        return scale(math.log10(seconds)) if seconds else none

    marks = [(x(at), text) for at, text in _TIMES if left + 12 <= x(at) <= _RIGHT - 12]
    if len(marks) < 2:  # all times within one step of the fixed ticks: label the ends
        marks = [(x(at), duration(at)) for at in dict.fromkeys((min(times), max(times)))]
        if len(marks) > 1 and marks[1][0] - marks[0][0] < 60:
            marks = marks[:1]
    return x, [(none, "none"), *marks] if some_without else marks


def _chart(
    label: str, metric: str, x_label: str, marks: Sequence[tuple[float, str]], series: Sequence[_Series], bottom: int
) -> dict[str, Any]:
    """Return what the macro ``chart`` of charts.html draws.

    Args:
        label: the text alternative.
        metric: of the scores.
        x_label: of the horizontal axis.
        marks: positions in pixels and texts of its ticks.
        series: one per method.
        bottom: y of the horizontal axis in pixels.
    """
    low, high = padded([end for *_, points in series for _, cell in points for end in _ends(cell)])
    y = _linear(low, high, bottom, _TOP)
    at = ticks(low, high)
    digits = max(0, -math.floor(math.log10(min(b - a for a, b in pairwise(at))) + 1e-9)) if len(at) > 1 else 2
    return {
        "label": label,
        "bottom": bottom,
        "y_label": _axis(metric),
        "y_marks": [(_px(y(value)), f"{value:.{digits}f}") for value in at],
        "x_label": x_label,
        "x_marks": [(_px(x), text) for x, text in marks],
        "series": [
            {"method": method, "title": title, "points": [(_px(x), *_point(cell, y)) for x, cell in points]}
            for method, title, points in series
        ],
    }


def _point(cell: Cell, y: Callable[[float], float]) -> tuple[str, list[str]]:
    """Return the height of a mean and the ends of its spread, in pixels; no ends for one run."""
    low, high = _ends(cell)
    return _px(y((low + high) / 2)), [_px(y(low)), _px(y(high))] if cell.std is not None else []


def _ends(cell: Cell) -> tuple[float, float]:
    """Return one standard deviation below and above the mean, as printed."""
    value, std = cell.value or 0.0, cell.std or 0.0
    return (value - std) * cell.scale, (value + std) * cell.scale


def _axis(metric: str) -> str:
    return f"{metric} (%)" if print_scale(metric)[0] == 100 else metric


def _px(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between two values."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999), 10 * power)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def padded(values: Sequence[float]) -> tuple[float, float]:
    """Return a range somewhat wider than the values, not below 0 unless they are; nearly equal ones look equal."""
    low, high = min(values), max(values)
    least = max(abs(high) * 0.05, 0.01)
    margin = (high - low) * 0.08 if high - low > 0.1 * least else least
    return max(low - margin, 0.0) if low >= 0 else low - margin, high + margin

"""Learning curves over label fractions: a small chart per task, and its numbers as a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from markupsafe import Markup

from medvlp.benchmark.report import svg
from medvlp.benchmark.report.summary import Condition, Mean, Method, curves_of, fraction_key, fraction_text, unit_of

_SIZE = (340, 230)
_PLOT = svg.Frame(left=38, top=20, right=330, bottom=190)


@dataclass(frozen=True)
class Curve:
    """A chart and the numbers in it.

    Attributes:
        condition: the task, without a fraction.
        metric: what is drawn.
        picture: inline SVG with its text alternative.
        fractions: shares of the training part, ascending: the columns of the numbers.
        numbers: per method, its mean at each fraction; None where there is none.
    """

    condition: Condition
    metric: str
    picture: Markup
    fractions: tuple[tuple[str, str], ...]
    numbers: tuple[tuple[Method, tuple[Mean | None, ...]], ...]


def curves(means: Sequence[Mean], methods: Sequence[Method]) -> list[Curve]:
    """A chart for every task that was measured at two fractions or more.

    Args:
        means: of primary metrics.
        methods: all methods of the page, which fixes their order and looks.
    """
    found = []
    for (condition, metric), part in curves_of(means).items():
        fractions = sorted({mean.condition.fraction or 0.0 for mean in part})
        numbers = []
        for method in methods:
            own = {mean.condition.fraction: mean for mean in part if mean.method == method.name}
            if own:
                numbers.append((method, tuple(own.get(fraction) for fraction in fractions)))
        picture = _draw(condition, metric, fractions, numbers)
        labels = tuple((fraction_key(fraction), fraction_text(fraction)) for fraction in fractions)
        found.append(Curve(condition, metric, picture, labels, tuple(numbers)))
    return found


def _draw(
    condition: Condition,
    metric: str,
    fractions: Sequence[float],
    numbers: Sequence[tuple[Method, tuple[Mean | None, ...]]],
) -> Markup:
    picture = svg.drawing(*_SIZE, f"Learning curves, {condition.bm_task}", _words(metric, fractions, numbers))
    points = [mean for _, row in numbers for mean in row if mean is not None]
    ends = [end for mean in points for end in mean.ends]
    low, high = svg.padded(ends, floor=0.0)
    y = svg.linear(low, high, _PLOT.bottom, _PLOT.top)
    x = svg.linear(math.log10(fractions[0]), math.log10(fractions[-1]), _PLOT.left + 26, _PLOT.right - 26)
    _PLOT.y_axis(picture, y, svg.ticks(low, high), metric + unit_of(points))
    marks = [(x(math.log10(fraction)), fraction_text(fraction)) for fraction in fractions]
    _PLOT.x_axis(picture, marks, "share of the labels, log scale")
    for place, (method, row) in enumerate(numbers):
        # side by side, so that the spreads of methods with equal means can be told apart
        shift = (place - (len(numbers) - 1) / 2) * min(5.0, 36 / len(numbers))
        group = svg.element(picture, "g", data_method=method.name)
        svg.element(group, "title", method.title)
        _series(group, method.look, [(mark[0] + shift, mean) for mark, mean in zip(marks, row, strict=True)], y)
    return svg.markup(picture)


def _series(group: Element, how: svg.Look, row: list[tuple[float, Mean | None]], y: svg.Scale) -> None:
    there = [(x, mean) for x, mean in row if mean is not None]
    path = " ".join(f"{x:.1f},{y(mean.shown):.1f}" for x, mean in there)
    svg.element(group, "polyline", points=path, class_=f"line {how.colour}", stroke_dasharray=how.dash)
    for x, mean in there:
        if mean.std is not None:
            low, high = (y(end) for end in mean.ends)
            svg.element(group, "line", x1=x, x2=x, y1=low, y2=high, class_=f"spread {how.colour}")
        svg.mark(group, how, x, y(mean.shown))


def _words(metric: str, fractions: Sequence[float], numbers: Sequence[tuple[Method, tuple[Mean | None, ...]]]) -> str:
    """The numbers in the chart, as a sentence."""
    parts = []
    for method, row in numbers:
        values = [f"{mean.text} at {fraction_text(f)}" for f, mean in zip(fractions, row, strict=True) if mean]
        parts.append(f"{method.title}: {', '.join(values)}")
    unit = unit_of([mean for _, row in numbers for mean in row if mean])
    return f"{metric}{unit} over the share of labels. {'; '.join(parts)}."

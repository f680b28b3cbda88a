"""Inline SVG for charts: scales, axes, one mark per method.

Colours are classes that the page's style sheet resolves, so that charts follow the light and the dark scheme; every
method also has a shape and a dash of its own, so that they are told apart without colour.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree as ET

from markupsafe import Markup

COLOURS = 8
"""Colours of the style sheet: classes ``c0`` to ``c7``."""

Scale = Callable[[float], float]
"""From a value to pixels."""

_DASHES = ("", "6 2", "2 2", "8 2 2 2", "4 1.5", "1 2", "10 3", "6 2 1 2 1 2")

_SHAPES: tuple[str, ...] = (
    "M-3.6,0A3.6,3.6 0 1 0 3.6,0A3.6,3.6 0 1 0 -3.6,0Z",  # circle
    "M-3.2,-3.2H3.2V3.2H-3.2Z",  # square
    "M0,-4.2L4.1,3.2H-4.1Z",  # triangle
    "M0,-4.8L4.2,0L0,4.8L-4.2,0Z",  # diamond
    "M0,4.2L4.1,-3.2H-4.1Z",  # triangle, downwards
    "M-1.4,-4.2H1.4V-1.4H4.2V1.4H1.4V4.2H-1.4V1.4H-4.2V-1.4H-1.4Z",  # plus
    "M-4.2,-2.2L-2.2,-4.2L0,-2L2.2,-4.2L4.2,-2.2L2,0L4.2,2.2L2.2,4.2L0,2L-2.2,4.2L-4.2,2.2L-2,0Z",  # cross
    "M0,-4.6L4.4,-1.4L2.7,3.8H-2.7L-4.4,-1.4Z",  # pentagon
)


@dataclass(frozen=True)
class Look:
    """How a method is drawn in every chart of the page.

    Attributes:
        colour: CSS class.
        shape: SVG path around the origin.
        dash: ``stroke-dasharray`` of its lines; "" for a solid one.
        filled: false for methods after the first eight, which repeat colours and shapes with open marks.
    """

    colour: str
    shape: str
    dash: str
    filled: bool


def look(position: int) -> Look:
    """The look of the n-th method, from 0."""
    place = position % COLOURS
    return Look(f"c{place}", _SHAPES[place], _DASHES[place], position < COLOURS)


def element(parent: ET.Element | None, tag: str, text: str | None = None, **attributes: object) -> ET.Element:
    """A new element; ``_`` in names becomes ``-``, floats are cut to two digits.

    Args:
        parent: what it is put into; None for a root.
        tag: its name.
        text: its text; escaped when written.
        attributes: its attributes; ``class_`` is "class"; empty strings are left out.
    """
    plain = {
        key.rstrip("_").replace("_", "-"): f"{value:.2f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else str(value)
        for key, value in attributes.items()
        if value != ""
    }
    made = ET.Element(tag, plain) if parent is None else ET.SubElement(parent, tag, plain)
    made.text = text
    return made


def drawing(width: int, height: int, title: str, text: str) -> ET.Element:
    """An empty picture with its text alternative.

    Args:
        width: in CSS pixels.
        height: in CSS pixels.
        title: what it is.
        text: what it shows.
    """
    label = f"{title}. {text}" if text else title
    return element(
        None, "svg", viewBox=f"0 0 {width} {height}", width=width, height=height, role="img", aria_label=label
    )


def markup(svg: ET.Element) -> Markup:
    """The picture as HTML, all texts escaped."""
    return Markup(ET.tostring(svg, encoding="unicode"))


def mark(parent: ET.Element, how: Look, x: float, y: float) -> ET.Element:
    """A method's mark at a point."""
    return element(
        parent,
        "path",
        d=how.shape,
        transform=f"translate({x:.2f} {y:.2f})",
        class_=f"mark {how.colour}{'' if how.filled else ' open'}",
    )


def swatch(how: Look) -> Markup:
    """A piece of a method's line with its mark, for legends; decorative, since the name stands beside it."""
    svg = element(None, "svg", viewBox="0 0 28 12", width=28, height=12, aria_hidden="true", class_="swatch")
    element(svg, "line", x1=0, x2=28, y1=6, y2=6, class_=f"line {how.colour}", stroke_dasharray=how.dash)
    mark(svg, how, 14, 6)
    return markup(svg)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two values, about as many as asked for.

    Args:
        low: lower end.
        high: upper end, above it.
        about: how many.
    """
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def padded(values: Sequence[float], floor: float | None = None) -> tuple[float, float]:
    """A range somewhat wider than the values; of equal or nearly equal ones a range in which they look equal.

    Args:
        values: at least one.
        floor: the range does not go below it where the values do not.
    """
    low, high = min(values), max(values)
    least = max(abs(high) * 0.05, 0.01)
    margin = (high - low) * 0.08 if high - low > 0.1 * least else least
    bottom = low - margin
    if floor is not None and low >= floor:
        bottom = max(bottom, floor)
    return bottom, high + margin


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """The map of [low, high] onto [start, end]."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


@dataclass(frozen=True)
class Frame:
    """The plot area of a chart, in CSS pixels."""

    left: int
    top: int
    right: int
    bottom: int

    def y_axis(self, svg: ET.Element, scale: Scale, at: Sequence[float], label: str) -> None:
        """Grid lines with numbers on the left, and the axis' label above them."""
        places = _places(at)
        for value in at:
            y = scale(value)
            element(svg, "line", x1=self.left, x2=self.right, y1=y, y2=y, class_="grid")
            element(svg, "text", f"{value:.{places}f}", x=self.left - 5, y=y + 3.5, text_anchor="end", class_="tick")
        element(svg, "text", label, x=4, y=11, class_="axis")

    def x_axis(self, svg: ET.Element, marks: Sequence[tuple[float, str]], label: str) -> None:
        """The base line with labelled ticks, and the axis' label below them.

        Args:
            svg: the picture.
            marks: places in pixels and what is written there.
            label: of the axis.
        """
        element(svg, "line", x1=self.left, x2=self.right, y1=self.bottom, y2=self.bottom, class_="base")
        for x, text in marks:
            element(svg, "line", x1=x, x2=x, y1=self.bottom, y2=self.bottom + 4, class_="base")
            element(svg, "text", text, x=x, y=self.bottom + 15, text_anchor="middle", class_="tick")
        middle = (self.left + self.right) / 2
        element(svg, "text", label, x=middle, y=self.bottom + 30, text_anchor="middle", class_="axis")


def _places(values: Sequence[float]) -> int:
    """Digits after the point that tell the values apart."""
    steps = [abs(b - a) for a, b in pairwise(values)]
    return max(0, -math.floor(math.log10(min(steps)) + 1e-9)) if steps else 2

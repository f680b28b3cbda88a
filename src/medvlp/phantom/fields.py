"""Drawing primitives on square float32 fields: grids, smooth noise, antialiased strokes, connected parts.

Lengths are in units of the image side: 0 is the left or upper edge, 1 the right or lower edge.
Nothing here calls BLAS, whose sums depend on the number of threads: the same seed must give the same bytes.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources

import numpy as np
from PIL import Image, ImageDraw

from medvlp.phantom.model import Box

FIELD_MM = 400.0  # side of every image in millimetres, at the patient

Stroke = tuple[np.ndarray, float, int]
Shape = tuple[np.ndarray, int]

# Root mean square of the cubic B-spline's weights over both axes: brings smooth noise back to unit variance.
_SPLINE_RMS = 0.479


@lru_cache(maxsize=8)
def axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel centres: columns (1, size) and rows (size, 1), float32 in (0, 1), read-only."""
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    line.flags.writeable = False
    return line[None, :], line[:, None]


@lru_cache(maxsize=64)
def _spline(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    # Indices (4, size) and weights (4, size, 1) of the uniform cubic B-spline from cells + 3 knots.
    at = (np.arange(size) + 0.5) / size * cells
    first = np.minimum(at.astype(np.int64), cells - 1)
    t = at - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    return np.stack([first + k for k in range(4)]), weights[:, :, None].astype(np.float32)


def _upsample(rows: np.ndarray, size: int) -> np.ndarray:
    index, weights = _spline(size, rows.shape[0] - 3)
    out = rows[index[0]] * weights[0]
    for k in range(1, 4):
        out += rows[index[k]] * weights[k]
    return out


def texture(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Return smooth noise of zero mean and unit variance, (size, size) float32, with ``cells`` noise cells a side.

    The random numbers drawn do not depend on ``size``, so a field looks the same at every resolution.
    """
    grid = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    grid *= 1 / _SPLINE_RMS
    # The small step first: only the large result's layout in memory matters for what is computed with it.
    return _upsample(np.ascontiguousarray(_upsample(grid.T, size).T), size)


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """Return a linear step from 0 to 1, centred on distance 0 and ``width`` wide, float32 of the same shape."""
    out = distance * (1.0 / width)
    out += 0.5
    return np.clip(out, 0.0, 1.0, out=out)


def bump(distance: np.ndarray) -> np.ndarray:
    """Return (1 − d²)², a smooth hill: 1 where the normalised distance is 0, and 0 from 1 on."""
    out = distance * distance
    np.subtract(1.0, out, out=out)
    np.maximum(out, 0.0, out=out)
    out *= out
    return out


def ellipse(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """Return the squared distance from a centre over the radii, 1 on the outline."""
    return ((x - centre[0]) * (1 / radii[0])) ** 2 + ((y - centre[1]) * (1 / radii[1])) ** 2


def uniform(seed: Sequence[int] | int, count: int) -> list[float]:
    """Return the first numbers in [−1, 1) of a seed."""
    return np.random.default_rng(seed).uniform(-1, 1, count).tolist()


@cache
def _shapes() -> dict[str, list[dict[str, str]]]:
    # Name of the shape to its rows of the table: one for each control point or corner.
    points: dict[str, list[dict[str, str]]] = {}
    with resources.files("medvlp.phantom").joinpath("shapes.csv").open(encoding="utf-8") as file:
        for point in csv.DictReader(file):
            points.setdefault(point["shape"], []).append(point)
    return points


@cache
def _terms(expression: str) -> list[list[float | str]]:
    terms = [[factor.strip() for factor in term.split("*")] for term in expression.split(" + ")]
    return [[factor if factor[0].isalpha() else float(factor) for factor in factors] for factors in terms]


def _evaluate(expression: str, parameters: Mapping[str, float]) -> float:
    """Return the value of a sum of products of numbers and named parameters, such as "apex + 0.02*habitus"."""
    total = 0.0
    for factors in _terms(expression):
        total += math.prod(parameters[factor] if isinstance(factor, str) else factor for factor in factors)
    return total


def paths(shape: str, view: str, parameters: Mapping[str, float]) -> dict[str, tuple[np.ndarray, float, int]]:
    """Return the parts of a shape of ``shapes.csv`` in one view, "frontal" or "lateral".

    Each has control points or corners (n, 2), in body coordinates x and y, a width in millimetres (0 for a polygon) and
    a grey, 0 to 255. ``parameters`` are the values of the names in the coordinates.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    pens: dict[str, tuple[float, int]] = {}
    for row in _shapes()[shape]:
        if row["view"] == view:
            point = _evaluate(row["x"], parameters), _evaluate(row["y"], parameters)
            points.setdefault(row["part"], []).append(point)
            pens[row["part"]] = float(row["width_mm"] or 0), int(row["grey"])
    return {part: (np.array(points[part]), *pens[part]) for part in points}


def contour(rows: np.ndarray, name: str, **parameters: float) -> np.ndarray:
    """Return a contour of the body, smooth through or near its control points in ``shapes.csv``.

    These are (n,) float32 distances from the midline in equally spaced rows (n,), constant beyond the outer points.
    """
    ordinates, distances = ([_evaluate(point[axis], parameters) for point in _shapes()[name]] for axis in "yx")
    out = np.interp(rows, ordinates, distances)
    half = max(1, round(len(rows) * 0.018))
    kernel = np.hanning(2 * half + 3)[1:-1]
    padded = np.concatenate([np.full(half, out[0]), out, np.full(half, out[-1])])
    return np.convolve(padded, kernel / kernel.sum(), mode="valid").astype(np.float32)


def strokes(size: int, lines: Sequence[Stroke] = (), shapes: Sequence[Shape] = ()) -> np.ndarray:
    """Draw antialiased polygons and, over them, polylines; later strokes replace earlier ones.

    Args:
        size: side of the field in pixels.
        lines: (points (n, 2) of x and y in image units, width in image units, grey 0 to 255) each.
        shapes: (corners (n, 2), grey) of filled polygons.

    Returns:
        (size, size) float32 in [0, 1].
    """
    factor = 2 if size >= 200 else 4
    scale = size * factor
    canvas = Image.new("L", (scale, scale))
    pen = ImageDraw.Draw(canvas)
    for corners, grey in shapes:
        pen.polygon((np.asarray(corners) * scale).ravel().tolist(), fill=grey)
    for points, width, grey in lines:
        pixels = max(1, round(width * scale))
        # A stroke thinner than a subpixel is drawn one wide, and paler in proportion.
        fill = grey if pixels > 1 else max(1, round(grey * min(1.0, width * scale)))
        pen.line((np.asarray(points) * scale).ravel().tolist(), fill=fill, width=pixels)
    out = np.asarray(canvas.reduce(factor), dtype=np.float32)
    out *= 1 / 255
    return out


def _joined(starts: list[int], ends: list[int], stride: int) -> list[int]:
    """Return one number per run of pixels, the same for all runs of a part."""
    parent = list(range(len(starts)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    above = 0
    for run, (start, end) in enumerate(zip(starts, ends, strict=True)):
        # Runs of the row above, shifted down one row, touch this one if they overlap it by one pixel or a corner.
        while ends[above] + stride < start:
            above += 1
        other = above
        while other < run and starts[other] + stride <= end:
            if ends[other] + stride >= start:
                parent[root(run)] = root(other)
            other += 1
    return [root(run) for run in range(len(starts))]


def parts(mask: np.ndarray, smallest: float = 0.03) -> tuple[np.ndarray, tuple[Box, ...]]:
    """Find the 8-connected parts of a mask (h, w), and erase crumbs.

    Crumbs are below ``smallest`` of the largest part's area, or below 3 pixels beside a larger part.

    Returns:
        The cleaned mask (a new array if something was erased) and the box of each part, the largest part first.
    """
    stride = mask.shape[1] + 1
    edges = np.diff(np.pad(mask, ((0, 0), (0, 1))).ravel().astype(np.int8), prepend=np.int8(0))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    if not starts.size:
        return mask, ()
    runs: dict[int, list[int]] = {}
    for run, part in enumerate(_joined(starts.tolist(), ends.tolist(), stride)):
        runs.setdefault(part, []).append(run)
    areas = {part: int((ends[own] - starts[own]).sum()) for part, own in runs.items()}
    largest = max(areas.values())
    limit = max(largest * smallest, min(3, largest))
    if min(areas.values()) < limit:
        mask = mask.copy()
    kept: list[tuple[int, Box]] = []
    for part, own in runs.items():
        rows, left = np.divmod(starts[own], stride)
        right = left + ends[own] - starts[own]
        if areas[part] >= limit:
            box = (int(left.min()), int(rows[0]), int(right.max()), int(rows[-1]) + 1)
            kept.append((areas[part], box))
            continue
        for row, start, end in zip(rows, left, right, strict=True):
            mask[row, start:end] = False
    kept.sort(key=lambda pair: (-pair[0], pair[1][1], pair[1][0]))
    return mask, tuple(box for _, box in kept)


def split_parts(masks: Iterable[np.ndarray]) -> tuple[tuple[np.ndarray, ...], tuple[tuple[Box, ...], ...]]:
    """Return the cleaned masks and the boxes of their :func:`parts`."""
    cleaned = [parts(mask) for mask in masks]
    return tuple(mask for mask, _ in cleaned), tuple(boxes for _, boxes in cleaned)

"""Drawing primitives on square float32 fields: grids, smooth noise, antialiased strokes, connected parts.

Lengths are in units of the image side: 0 is the left or upper edge, 1 the right or lower edge.
Nothing here calls BLAS, whose sums depend on the number of threads: the same seed must give the same bytes.
"""

import csv
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

import numpy as np
from PIL import Image, ImageDraw

FIELD_MM = 400.0
"""Side of every image in millimetres, at the patient."""

Box = tuple[int, int, int, int]
Stroke = tuple[np.ndarray, float, int]
Shape = tuple[np.ndarray, int]

# Root mean square of the cubic B-spline's weights over both axes: brings smooth noise back to unit variance.
_SPLINE_RMS = 0.479


@lru_cache(maxsize=8)
def axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the pixel centres.

    Args:
        size: side of the image in pixels.

    Returns:
        Columns (1, size) and rows (size, 1), float32, in (0, 1); read-only.
    """
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    line.flags.writeable = False
    return line[None, :], line[:, None]


@lru_cache(maxsize=64)
def _spline(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (4, size) and weights (4, size, 1) of the uniform cubic B-spline from cells + 3 knots."""
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


def texture(rng: np.random.Generator, size: int, cells: int, cells_x: int = 0) -> np.ndarray:
    """Smooth noise of zero mean and unit variance.

    The random numbers drawn do not depend on ``size``, so a field looks the same at every resolution.

    Args:
        rng: source of the noise.
        size: side of the field in pixels.
        cells: number of noise cells along the height, at least 1.
        cells_x: number along the width; 0 takes ``cells``.

    Returns:
        (size, size) float32.
    """
    grid = rng.standard_normal((cells + 3, (cells_x or cells) + 3), dtype=np.float32)
    grid *= 1 / _SPLINE_RMS
    # The small step first: only the large result's layout in memory matters for what is computed with it.
    return _upsample(np.ascontiguousarray(_upsample(grid.T, size).T), size)


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """A linear step from 0 to 1, centred on distance 0 and ``width`` wide, float32 of the same shape."""
    out = distance * (1.0 / width)
    out += 0.5
    return np.clip(out, 0.0, 1.0, out=out)


def bump(distance: np.ndarray) -> np.ndarray:
    """A smooth hill, 1 where the normalised distance is 0 and 0 from 1 on: (1 − d²)²."""
    out = distance * distance
    np.subtract(1.0, out, out=out)
    np.maximum(out, 0.0, out=out)
    out *= out
    return out


def curve(rows: np.ndarray, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """A smooth curve through or near control points.

    Args:
        rows: (n,) ordinates at which it is wanted, equally spaced.
        points: (ordinate, value) pairs with rising ordinates; constant beyond both ends.

    Returns:
        (n,) float32 values.
    """
    where, value = zip(*points, strict=True)
    out = np.interp(rows, where, value)
    half = max(1, round(len(rows) * 0.018))
    kernel = np.hanning(2 * half + 3)[1:-1]
    padded = np.concatenate([np.full(half, out[0]), out, np.full(half, out[-1])])
    return np.convolve(padded, kernel / kernel.sum(), mode="valid").astype(np.float32)


@lru_cache
def _control_points() -> dict[str, list[dict[str, str]]]:
    points: dict[str, list[dict[str, str]]] = {}
    with resources.files("medvlp.phantom").joinpath("anatomy.csv").open(encoding="utf-8") as file:
        for point in csv.DictReader(file):
            points.setdefault(point["contour"], []).append(point)
    return points


def contour(rows: np.ndarray, name: str, **parameters: float) -> np.ndarray:
    """Draw a contour of the body from its control points in ``anatomy.csv``.

    A point lies in row ``row + offset * unit`` at ``distance + factor * parameter`` from the midline; ``row``, ``unit``
    and ``parameter`` are names of parameters, 0, 1 and 0 where they are empty.

    Args:
        rows: (n,) equally spaced ordinates.
        name: the contour.
        **parameters: the patient's proportions.

    Returns:
        (n,) float32 distances from the midline, as from :func:`curve`.
    """
    points = [
        (
            parameters.get(point["row"], 0.0) + float(point["offset"]) * parameters.get(point["unit"], 1.0),
            float(point["distance"]) + float(point["factor"] or 0) * parameters.get(point["parameter"], 0.0),
        )
        for point in _control_points()[name]
    ]
    return curve(rows, points)


def strokes(size: int, lines: Sequence[Stroke] = (), shapes: Sequence[Shape] = ()) -> np.ndarray:
    """Antialiased polygons and, over them, polylines.

    Args:
        size: side of the field in pixels.
        lines: (points (n, 2) of x and y in image units, width in image units, grey 0 to 255) each.
        shapes: (corners (n, 2), grey) of filled polygons.

    Returns:
        (size, size) float32 in [0, 1]; later strokes replace earlier ones.
    """
    factor = 2 if size >= 200 else 4
    canvas = Image.new("L", (size * factor, size * factor))
    pen = ImageDraw.Draw(canvas)
    scale = size * factor
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


def parts(mask: np.ndarray, smallest: float = 0.03) -> tuple[np.ndarray, tuple[Box, ...]]:
    """The 8-connected parts of a mask, crumbs removed.

    Args:
        mask: (h, w) bool.
        smallest: parts below this share of the largest part's area, or below 3 pixels beside a larger part,
            are erased.

    Returns:
        The cleaned mask (a new array where something was erased), and one box (x0, y0, x1, y1) for each part, x1
        and y1 exclusive, from the largest part to the smallest.
    """
    rows, width = mask.shape
    padded = np.zeros((rows, width + 1), dtype=np.int8)
    padded[:, :-1] = mask
    edges = np.diff(padded.ravel(), prepend=np.int8(0))
    starts, ends = np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist()
    if not starts:
        return mask, ()
    stride = width + 1
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
    boxes: dict[int, list[int]] = {}
    for run, (start, end) in enumerate(zip(starts, ends, strict=True)):
        row, left = divmod(start, stride)
        right = left + end - start
        box = boxes.setdefault(root(run), [left, row, right, row + 1, 0])
        box[0], box[2], box[3] = min(box[0], left), max(box[2], right), row + 1
        box[4] += end - start
    largest = max(box[4] for box in boxes.values())
    limit = max(largest * smallest, min(3, largest))
    crumbs = {key for key, box in boxes.items() if box[4] < limit}
    if crumbs:
        mask = mask.copy()
        for run, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if root(run) in crumbs:
                row, left = divmod(start, stride)
                mask[row, left : left + end - start] = False
    kept = sorted((box for key, box in boxes.items() if key not in crumbs), key=lambda box: (-box[4], box[1], box[0]))
    return mask, tuple((box[0], box[1], box[2], box[3]) for box in kept)

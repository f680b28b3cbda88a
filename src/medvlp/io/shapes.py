"""Annotation shapes of all corpora as short strings, and masks drawn from them.

==========================  =====================================================================================
``rectangle x0 y0 x1 y1``   corners: x0 <= x1, y0 <= y1
``ellipse x0 y0 x1 y1``     the corners of the box around it
``polygon x y x y ...``     three or more vertices, not closed; self-crossings by the even-odd rule
``rle gap length ...``      runs down the columns as in SIIM-ACR Pneumothorax; ``rle -1`` is empty
==========================  =====================================================================================

Coordinates are numbers in pixels of the original image. They name pixel **edges**: (0, 0) is the outer corner of the
first pixel, whose centre lies at (0.5, 0.5), so x1 and y1 are exclusive, and a rectangle of whole numbers has
(x1 - x0) (y1 - y0) pixels. A pixel is inside if its centre is; a centre on an outline counts as inside on the left
and upper side only (for an ellipse on every side), so that shapes which share an edge share no pixel.

A gap of an RLE counts pixels from the end of the previous run (from pixel 0 for the first), **not** from the start of
the image. Other encodings (absolute 1-based starts; COCO's) decode to garbage here without an error.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from medvlp.errors import DataError

Box = tuple[float, float, float, float]

_OBJECT_CXR_TYPES = {"0": "rectangle", "1": "ellipse", "2": "polygon"}
_KINDS = (*_OBJECT_CXR_TYPES.values(), "rle")
_NO_MASK = ("", "-1")
# 18 digits fit into int64; the sum is checked separately
_RUNS = re.compile(r"[0-9]{1,18}(?:\s+[0-9]{1,18})*")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_CROSSINGS_AT_ONCE = 1 << 20  # bounds the memory of a polygon of very many vertices


def draw(shapes: Sequence[str], height: int, width: int) -> np.ndarray:
    """Draw the union of shapes, cut to the image, as bool (height, width); boxes without area draw nothing.

    Raises:
        DataError: a shape is malformed, or an RLE runs past the image; :func:`check` does not raise.
    """
    mask = np.zeros((height, width), dtype=bool)
    for number, shape in enumerate(shapes, 1):
        try:
            kind, body = _split(shape)
            if kind == "rle":
                mask |= decode_siim(body, height, width)
            else:
                _paint(mask, kind, _numbers(kind, body))
        except DataError as error:
            raise DataError(f"shape {number} of {len(shapes)}: {error}") from error
    return mask


def bounds(shape: str, height: int, width: int) -> Box:
    """Return the box around a shape, as annotated, not cut to the image: (x0, y0, x1, y1); zeros for an empty RLE."""
    kind, body = _split(shape)
    if kind != "rle":
        return _box(_numbers(kind, body))
    mask = decode_siim(body, height, width)
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def check(shape: str, height: int, width: int) -> str:
    """Return what is wrong with a shape, without drawing it, or "".

    A box is "empty" without width or height, as MGCA stores images without objects.
    """
    try:
        kind, body = _split(shape)
        if kind == "rle":
            end = siim_extent(body)
            return "RLE runs past the image" if end > height * width else "" if end else "empty RLE"
        x0, y0, x1, y1 = _box(_numbers(kind, body))
    except DataError:
        return "malformed shape"
    if x0 == x1 or y0 == y1:
        return "empty box"
    return "" if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height else "box outside the image"


def parse_object_cxr(annotation: str) -> list[str]:
    """Parse one cell of Object-CXR's tables, ``type n n n ...`` joined by ``;``, to shapes in the notation above.

    Types are 0 rectangle, 1 ellipse (both by two corners), 2 polygon (vertices); numbers are whole; "" means no object.

    Raises:
        DataError: the cell is not of this grammar; the message names the object.
    """
    if not isinstance(annotation, str):
        raise DataError(f"an annotation must be text, not {type(annotation).__name__}; fill empty cells with ''")
    if not annotation.strip():
        return []
    objects = annotation.split(";")
    return [_object_cxr(words.split(), f"object {n} of {len(objects)}") for n, words in enumerate(objects, 1)]


def _object_cxr(words: list[str], where: str) -> str:
    if not words:
        raise DataError(f"{where} is empty; remove the extra ';'")
    kind = _OBJECT_CXR_TYPES.get(words[0])
    if kind is None:
        raise DataError(f"{where}: the type is not 0 (rectangle), 1 (ellipse) or 2 (polygon); check the row")
    for word in words[1:]:
        digits = word.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()):
            raise DataError(f"{where}: a coordinate is no whole number; check the row")
    if kind != "polygon" and len(words) != 5:
        raise DataError(f"{where}: {kind} with {len(words) - 1} numbers instead of 4; check the row")
    if kind == "polygon" and (len(words) < 7 or len(words) % 2 == 0):
        raise DataError(f"{where}: polygon with {len(words) - 1} numbers; it needs 6, 8, 10, ...; check the row")
    return " ".join([kind, *words[1:]])


def _split(shape: str) -> tuple[str, str]:
    kind, _, body = shape.strip().partition(" ") if isinstance(shape, str) else ("", "", "")
    if kind not in _KINDS:
        raise DataError(f"malformed shape: it must begin with {', '.join(_KINDS)}; check the annotation")
    return kind, body


def _numbers(kind: str, body: str) -> np.ndarray:
    try:
        numbers = np.array([float(word) for word in body.split()], dtype=np.float64)
    except ValueError:
        raise DataError(f"malformed shape: {kind} with a coordinate that is no number; check the annotation") from None
    if not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > 1e9:
        raise DataError(f"malformed shape: {kind} with a coordinate beyond any image; check the annotation")
    if kind == "polygon" and (len(numbers) < 6 or len(numbers) % 2):
        raise DataError(f"malformed shape: polygon with {len(numbers)} numbers; it needs 6, 8, 10, ...")
    if kind != "polygon":
        if len(numbers) != 4:
            raise DataError(f"malformed shape: {kind} with {len(numbers)} numbers instead of 4; check the annotation")
        if numbers[0] > numbers[2] or numbers[1] > numbers[3]:
            raise DataError(f"malformed shape: {kind} with its corners in the wrong order; write x0 y0 x1 y1")
    return numbers


def _box(numbers: np.ndarray) -> Box:
    x, y = numbers[0::2], numbers[1::2]
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def _first_centre(edge: np.ndarray | float, size: int) -> np.ndarray:
    # the first pixel whose centre is not before the edge
    return np.clip(np.ceil(np.asarray(edge) - 0.5), 0, size).astype(np.int64)


def _window(mask: np.ndarray, numbers: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the pixels whose centres may lie inside."""
    x0, y0, x1, y1 = _box(numbers)
    height, width = mask.shape
    rows = slice(int(_first_centre(y0, height)), int(_first_centre(y1, height)))
    return rows, slice(int(_first_centre(x0, width)), int(_first_centre(x1, width)))


def _paint(mask: np.ndarray, kind: str, numbers: np.ndarray) -> None:
    if kind == "rectangle":
        mask[_window(mask, numbers)] = True
    elif kind == "ellipse":
        _paint_ellipse(mask, numbers)
    else:
        _paint_polygon(mask, numbers)


def _paint_ellipse(mask: np.ndarray, numbers: np.ndarray) -> None:
    x0, y0, x1, y1 = _box(numbers)
    if x0 == x1 or y0 == y1:
        return
    rows, columns = _window(mask, np.array([x0, y0, x1 + 1, y1 + 1]))
    u = (np.arange(columns.start, columns.stop) + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
    v = (np.arange(rows.start, rows.stop) + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
    mask[rows, columns] |= u[None] ** 2 + v[:, None] ** 2 <= 1


def _paint_polygon(mask: np.ndarray, numbers: np.ndarray) -> None:
    """Scan lines: every edge flips, in each row it crosses, all pixels from the crossing rightwards."""
    rows, columns = _window(mask, numbers)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if height <= 0 or width <= 0:
        return
    xa, ya = numbers[0::2], numbers[1::2]
    xb, yb = np.roll(xa, -1), np.roll(ya, -1)
    # half-open in y, so that a vertex on a centre line counts for one of its two edges
    first = np.clip(_first_centre(np.minimum(ya, yb), mask.shape[0]), rows.start, rows.stop)
    last = np.clip(_first_centre(np.maximum(ya, yb), mask.shape[0]), rows.start, rows.stop)
    # one column more than needed takes the crossings right of the window
    flips = np.zeros(height * (width + 1), dtype=np.int64)
    for part in _chunks(last - first):
        counts = (last - first)[part]
        edge = np.repeat(np.arange(part.start, part.stop), counts)
        row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        x = xa[edge] + (row + 0.5 - ya[edge]) * (xb[edge] - xa[edge]) / (yb[edge] - ya[edge])
        column = np.clip(_first_centre(x, mask.shape[1]), columns.start, columns.stop) - columns.start
        flips += np.bincount((row - rows.start) * (width + 1) + column, minlength=len(flips))
    # uint8 wraps at 256, which keeps the parity
    odd = np.cumsum(flips.reshape(height, width + 1)[:, :width], axis=1, dtype=np.uint8) & 1
    mask[rows, columns] |= odd.astype(bool)


def _chunks(counts: np.ndarray) -> list[slice]:
    """Consecutive edges with about _CROSSINGS_AT_ONCE crossings together."""
    group = (np.cumsum(counts) - counts) // _CROSSINGS_AT_ONCE
    starts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(counts)]
    return [slice(a, b) for a, b in pairwise(starts)]


def decode_siim(rle: str, height: int, width: int) -> np.ndarray:
    """Draw one string as bool (height, width); the mask of an image is the union of its strings, which may overlap.

    "-1", " -1" and "" stand for no pneumothorax.

    Raises:
        DataError: the string is no such encoding, or its runs go past the last pixel.
    """
    values = _runs(rle)
    end, pixels = _end(values), height * width
    if end > pixels:
        raise DataError(f"RLE runs past the image: ends at {end} of {pixels} pixels; check the image size and the row")
    flat = np.zeros(pixels, dtype=bool)
    inside = np.zeros(len(values), dtype=bool)
    inside[1::2] = True
    flat[:end] = np.repeat(inside, values)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def siim_extent(rle: str) -> int:
    """Return the number of pixels up to the end of the last run, without drawing: 0 for an empty mask."""
    return _end(_runs(rle))


def _end(values: np.ndarray) -> int:
    # numbers near 10^18 could overflow a sum of int64
    return int(values.sum()) if values.sum(dtype=np.float64) < 2.0**62 else sum(values.tolist())


def _runs(rle: str) -> np.ndarray:
    if not isinstance(rle, str):
        raise DataError(f"an RLE must be text, not {type(rle).__name__}; read the column as text")
    rle = rle.strip()
    if rle in _NO_MASK:
        return np.zeros(0, dtype=np.int64)
    if not _RUNS.fullmatch(rle):
        raise DataError(_complaint(rle.split()))
    values = np.array(rle.split(), dtype=np.int64)
    if len(values) % 2:
        raise DataError(f"RLE has an odd number of values ({len(values)}); it needs pairs of gap and length")
    empty = np.flatnonzero(values[1::2] == 0)
    if len(empty):
        raise DataError(f"RLE has a run of length 0 (value {2 * int(empty[0]) + 2} of {len(values)}); fetch it again")
    return values


def _complaint(words: list[str]) -> str:
    for number, word in enumerate(words, 1):
        where = f"(value {number} of {len(words)})"
        if not _INTEGER.fullmatch(word):
            return f"RLE has a value that is no whole number {where}; fetch the table again"
        if word.startswith("-"):
            return f"RLE has a negative {'gap' if number % 2 else 'length'} {where}; fetch the table again"
        if word.startswith("+") or len(word) > 18:
            return f"RLE has a value that is no pixel count {where}; fetch the table again"
    return "RLE is not readable; fetch the table again"

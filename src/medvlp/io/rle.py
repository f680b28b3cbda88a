"""Run-length encoded masks of SIIM-ACR Pneumothorax: relative gaps, counted down the columns.

A string holds pairs ``gap length``. A gap counts pixels from the end of the previous run (from pixel 0 for the first
pair), **not** from the start of the image. Other encodings (absolute 1-based starts; COCO's) decode to garbage here
without an error.
"""

import re

import numpy as np

from medvlp.errors import DataError

_NO_MASK = ("", "-1")
# 18 digits fit into int64; the sum is checked apart
_NUMBERS = re.compile(r"[0-9]{1,18}(?:\s+[0-9]{1,18})*")
_INTEGER = re.compile(r"[+-]?[0-9]+")


def decode_siim(rle: str, height: int, width: int) -> np.ndarray:
    """Draw one string as bool (height, width); the mask of an image is the union of its strings, which may overlap.

    "-1", " -1" and "" stand for no pneumothorax.

    Raises:
        DataError: the string is no such encoding, or its runs go past the last pixel.
    """
    values = _values(rle)
    end, pixels = _end(values), height * width
    if end > pixels:
        raise DataError(f"RLE runs past the image: ends at {end} of {pixels} pixels; check the image size and the row")
    flat = np.zeros(pixels, dtype=bool)
    inside = np.zeros(len(values), dtype=bool)
    inside[1::2] = True
    flat[:end] = np.repeat(inside, values)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def siim_extent(rle: str) -> int:
    """Return the number of pixels up to the end of the last run, without drawing: 0 for an empty mask.

    Raises:
        DataError: the string is no such encoding.
    """
    return _end(_values(rle))


def _end(values: np.ndarray) -> int:
    # numbers near 10^18 could overflow a sum of int64
    return int(values.sum()) if values.sum(dtype=np.float64) < 2.0**62 else sum(values.tolist())


def _values(rle: str) -> np.ndarray:
    if not isinstance(rle, str):
        raise DataError(f"an RLE must be text, not {type(rle).__name__}; read the column as text")
    rle = rle.strip()
    if rle in _NO_MASK:
        return np.zeros(0, dtype=np.int64)
    if not _NUMBERS.fullmatch(rle):
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

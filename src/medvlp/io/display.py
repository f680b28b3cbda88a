"""Stored values of a DICOM file to grey levels of 8 bits, by the standard's pipeline or as papers' code does."""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from medvlp.io.images import stretched

_RLE = "1.2.840.10008.1.2.5"
_UNEVEN = ("PixelPaddingValue", "ModalityLUTSequence", "VOILUTSequence")  # with these, every value counts


def text_of(data: Any, tag: str) -> str:
    """Return a tag as text without outer spaces, "" if it is absent or broken."""
    with suppress(Exception):  # values are parsed on first access, so damage shows here
        return str(data.get(tag) or "").strip()
    return ""


def _number(data: Any, tag: str) -> float | None:
    value = data.get(tag)
    if not isinstance(value, str | int | float) and value is not None:
        value = next(iter(value), None)
    if value is None or value == "":
        return None
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{tag} is {number}")
    return number


def _is_grey(data: Any) -> bool:
    return text_of(data, "PhotometricInterpretation").startswith("MONOCHROME")


def _bits(values: np.ndarray, data: Any) -> int:
    # luma and palettes fill their type
    width = values.dtype.itemsize * 8
    if values.dtype.kind == "f":
        raise ValueError("floating-point pixels have no bit depth")
    return min(int(data.get("BitsStored") or width), width) if _is_grey(data) else width


def grey_levels(stored: np.ndarray, data: Any, intensity: str) -> np.ndarray:
    """Turn stored cells (H, W) into uint8 by a rule of :data:`medvlp.io.images.INTENSITIES`.

    All rules are functions of the value, so they work on the values that occur. Windows, tables or numbers that make
    no sense raise any exception.
    """
    photometric = text_of(data, "PhotometricInterpretation")
    narrow = stored.dtype.itemsize <= 2
    if narrow:
        index = stored.view(f"u{stored.dtype.itemsize}")
        raw = np.arange(256**stored.dtype.itemsize, dtype=index.dtype).view(stored.dtype)
        counts = ((raw >= stored.min()) & (raw <= stored.max())).astype(np.int64)
    else:
        raw, index, counts = np.unique(stored, return_inverse=True, return_counts=True)
    values = _cells(raw, data) if _is_grey(data) and stored.dtype.kind != "f" else raw
    used = counts > 0
    # counting takes longer than all the rest, and where levels rise or fall with the values, their ends are enough
    uneven = intensity == "medklip" or any(tag in data for tag in _UNEVEN)
    if narrow and (uneven or not np.array_equal(values[used], raw[used])):
        counts = np.bincount(index.ravel(), minlength=len(raw))
        used = counts > 0
    inverse = photometric == "MONOCHROME1" and intensity != "medklip"
    if intensity in ("standard", "minmax"):
        used &= ~_padding(raw, values, data)
        inverse |= photometric == "MONOCHROME2" and text_of(data, "PresentationLUTShape").upper() == "INVERSE"
    table = np.zeros(len(raw), np.uint8)  # what is not used, padding, stays black
    if used.any() and (levels := RULES[intensity](values[used], counts[used], data)) is not None:
        table[used] = 255 - levels if inverse else levels
    if stored.dtype == np.uint8 and np.array_equal(table[counts > 0], raw[counts > 0]):
        return stored.copy()
    return np.take(table, index.reshape(stored.shape))


def _cells(raw: np.ndarray, data: Any) -> np.ndarray:
    """Values without the bits above HighBit, in which overlays may lie, and below it by more than BitsStored."""
    width, bits = raw.dtype.itemsize * 8, _bits(raw, data)
    top = bits - 1
    if not data.file_meta.TransferSyntaxUID.is_encapsulated or data.file_meta.TransferSyntaxUID == _RLE:
        top = int(data.get("HighBit") or top)
    if not bits - 1 <= top < width:
        top = bits - 1
    return (raw << (width - 1 - top)) >> (width - bits)


def _padding(raw: np.ndarray, values: np.ndarray, data: Any) -> np.ndarray:
    """Which values are no image: by PixelPaddingValue and PixelPaddingRangeLimit, or not finite."""
    if not _is_grey(data):
        return np.zeros(len(raw), bool)
    prefix = {4: "Float", 8: "DoubleFloat"}[raw.dtype.itemsize] if raw.dtype.kind == "f" else ""
    first = _number(data, f"{prefix}PixelPaddingValue")
    last = _number(data, f"{prefix}PixelPaddingRangeLimit")
    if first is None:
        return np.logical_not(np.isfinite(raw))
    low, high = sorted((first, first if last is None else last))
    if prefix:
        return np.logical_not(np.isfinite(raw)) | ((raw >= low) & (raw <= high))
    width, signed = raw.dtype.itemsize * 8, raw.dtype.kind == "i"
    if signed and low >= 2 ** (width - 1):  # written as unsigned, whatever the pixels are
        low, high = low - 2**width, high - 2**width
    bits = _bits(raw, data)
    lowest = -(2 ** (bits - 1)) if signed else 0
    # a value beyond BitsStored marks padding by bits that are no part of the image
    cells = values if lowest <= low and high < lowest + 2**bits else raw
    return (cells >= low) & (cells <= high)


def _modality(values: np.ndarray, data: Any) -> np.ndarray:
    if table := _table(data, "ModalityLUTSequence"):
        return _look_up(values, *table[:2])
    slope, intercept = _number(data, "RescaleSlope"), _number(data, "RescaleIntercept")
    if slope is None and intercept is None:
        return values
    if slope == 0:
        raise ValueError("RescaleSlope is 0")
    return values * (1.0 if slope is None else slope) + (intercept or 0.0)


def _table(data: Any, sequence: str) -> tuple[np.ndarray, int, int] | None:
    """Entries, first value mapped and bits of the first table of a sequence with something in it."""
    for item in data.get(sequence) or ():
        descriptor, entries = item.get("LUTDescriptor"), item.get("LUTData")
        if not descriptor or entries is None or entries == b"":
            continue
        count, first, bits = (int(value) for value in descriptor)
        count = count % 65536 or 65536
        if not 1 <= bits <= 16:
            raise ValueError(f"{sequence} with {bits} bits per entry")
        if isinstance(entries, bytes):
            kind = "u1" if len(entries) < 2 * count else "<u2" if data.original_encoding[1] else ">u2"
            table = np.frombuffer(entries, kind, min(count, len(entries)))
        else:
            table = np.atleast_1d(np.asarray(entries, np.int64)) % 65536
            if len(table) < count <= 2 * len(table):  # two entries of 8 bits in a word
                table = table.astype("<u2").view("u1")
        if len(table) < count:
            raise ValueError(f"{sequence} with {len(table)} of {count} entries")
        return np.minimum(table[:count], 2**bits - 1).astype(np.int64), first, bits
    return None


def _look_up(values: np.ndarray, table: np.ndarray, first: int) -> np.ndarray:
    if first >= 1 << 15 and values.min() < 0:  # a negative number, written as unsigned
        first -= 1 << 16
    return np.take(table, np.rint(values).astype(np.int64) - first, mode="clip")


def _displayed(stored: np.ndarray, data: Any) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Values after modality and VOI transformation, and their range if something names it."""
    if not _is_grey(data):  # PS3.3 defines these tables for one channel only
        return stored, (0.0, 255.0) if stored.dtype == np.uint8 else None
    values = _modality(stored, data)
    if table := _table(data, "VOILUTSequence"):
        return _look_up(values, *table[:2]), (0.0, 2.0 ** table[2] - 1)
    centre, width = _number(data, "WindowCenter"), _number(data, "WindowWidth")
    if centre is not None and width is not None:
        return _windowed(values, centre, width, text_of(data, "VOILUTFunction").upper() or "LINEAR"), (0.0, 1.0)
    if stored.dtype.kind != "f" and _bits(stored, data) == 8:
        lowest = -128 if stored.dtype.kind == "i" else 0
        ends = sorted(_modality(np.array([lowest, lowest + 255]), data).tolist())
        if ends == [0, 255] or (lowest == 0 and np.array_equal(values, stored)):
            return values, (0.0, 255.0)
    return values, None


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Window of PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0…1."""
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ValueError(f"WindowWidth is {width:g}")
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function != "LINEAR":
        raise ValueError(f"VOILUTFunction is {function}")
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return stretched(values.astype(np.float64), low, high)


def _standard(stored: np.ndarray, counts: np.ndarray, data: Any, by_range: bool = False) -> np.ndarray | None:
    values, limits = _displayed(stored, data)
    if limits is None or by_range:
        limits = float(values.min()), float(values.max())
    return _scaled(values, *limits) if limits[0] < limits[1] else None


def _full_range(stored: np.ndarray, counts: np.ndarray, data: Any) -> np.ndarray:
    bits = _bits(stored, data)
    low = -float(2 ** (bits - 1)) if stored.dtype.kind == "i" else 0.0
    return _scaled(stored, low, low + 2**bits - 1)


def _mgca(stored: np.ndarray, counts: np.ndarray, data: Any) -> np.ndarray:
    # OpenCV's convertScaleAbs, which the code uses: absolute value, rounded to even, saturated
    top = float(stored.max())
    scaled = stored * (255.0 / top) if top else np.zeros(stored.shape)
    return np.clip(np.rint(np.abs(scaled)), 0, 255).astype(np.uint8)


def _image_max(stored: np.ndarray, counts: np.ndarray, data: Any) -> np.ndarray:
    top = float(stored.max())
    scaled = stored / top * 255 if top > 0 else np.zeros(stored.shape)
    return np.clip(scaled, 0, 255).astype(np.uint8)  # cut, not rounded, as in the code


def _medklip(stored: np.ndarray, counts: np.ndarray, data: Any) -> np.ndarray:
    """scikit-image's equalize_hist with 256 bins on values / 255, as the code calls it, then cut to 8 bits."""
    levels = stored / 255.0
    histogram, edges = np.histogram(levels, bins=256, weights=counts)
    cumulated = histogram.cumsum() / counts.sum()
    equalised = 255 * np.interp(levels, (edges[:-1] + edges[1:]) / 2, cumulated)
    return equalised.astype(np.uint8)


RULES: dict[str, Callable[[np.ndarray, np.ndarray, Any], np.ndarray | None]] = {
    "standard": _standard,
    "mgca": _mgca,
    "medklip": _medklip,
    "minmax": partial(_standard, by_range=True),
    "full_range": _full_range,
    "image_max": _image_max,
}

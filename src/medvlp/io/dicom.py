"""DICOM radiographs to grey levels of 8 bits."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

from medvlp.errors import ConfigError, UnreadableItemError
from medvlp.io.headers import (
    DAMAGED,
    decoder_problem,
    file_problem,
    first_line,
    length_problem,
    open_dicom,
    read_header,
    tag_problem,
    unreadable,
)
from medvlp.io.jpeg import decode_jpeg

_SPACING_TAGS = ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing")
_PIXEL_TAGS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_UNEVEN = ("PixelPaddingValue", "ModalityLUTSequence", "VOILUTSequence")  # with these, every value counts
_DEFER = 1 << 16  # bytes; longer elements (the pixels) are left in the file until the header has been checked
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601


@dataclass(frozen=True)
class DicomImage:
    """One decoded radiograph.

    Args:
        pixels: uint8 (H, W), bright = dense tissue, whatever the file's photometric interpretation.
        spacing_mm: (row, column) distance of pixel centres in millimetres at the detector, or None if not given.
        photometric: PhotometricInterpretation as stored, for example "MONOCHROME1".
        view: ViewPosition as stored ("PA", "AP", "LL", …), "" if absent.
    """

    pixels: np.ndarray
    spacing_mm: tuple[float, float] | None
    photometric: str
    view: str


def read_dicom(path: str | Path, intensity: str = "standard", damaged: str = "refuse") -> DicomImage:
    """Read a radiograph; of a file with several frames, the first.

    The rule "standard" follows the standard's display pipeline (DICOM PS3.4, N.2): modality LUT or rescale, VOI LUT
    or window (the first of several, as viewers do), inversion, then to 8 bits. With a window or VOI LUT, its range
    becomes 0…255; without one, values of 8 bits are kept where they span 0…255 by the header, and others are scaled
    by the range that occurs, because a detector's full range is seldom used. MONOCHROME1 is inverted, and so is
    MONOCHROME2 with PresentationLUTShape INVERSE; both together mean one inversion, as PS3.3 C.8.11.3 has it. Pixel
    padding (PixelPaddingValue, PixelPaddingRangeLimit) is black and does not count for the range; so are values of
    a floating-point file that are not finite. A constant picture without window is black.

    "minmax" follows the same pipeline. The other rules repeat other people's code, which knows neither padding nor
    PresentationLUTShape. Colour files become luma by ITU-R 601 under every rule before anything else.

    Args:
        path: the file.
        intensity: one of :data:`medvlp.io.images.INTENSITIES`. "medklip" alone leaves MONOCHROME1 dark on bright.
        damaged: "refuse" a file whose decoder warns of damage, or "accept" the pixels that it gives nevertheless.

    Returns:
        The pixels and what a task needs to know about them.

    Raises:
        ConfigError: an unknown intensity rule.
        UnreadableItemError: the file is missing, truncated, damaged, no image, or larger than 200 megapixels; a tag
            that decoding needs is missing; no decoder for its transfer syntax is installed; or its window or tables
            make no sense. Tags that only describe the image, such as the spacing, refuse nothing.
    """
    if intensity not in _RULES:
        raise ConfigError(f'there is no intensity rule "{intensity}"; there are {", ".join(_RULES)}')
    path = Path(path)
    if problem := file_problem(path):
        raise unreadable(path, problem)
    try:
        data = open_dicom(path, defer_size=_DEFER)
        pixels_tag = next((tag for tag in _PIXEL_TAGS if tag in data), "")
        if not pixels_tag:  # or with so few that pydicom passes over them
            raise unreadable(path, read_header(path).problem or "DICOM file without pixel data")
        if problem := tag_problem(data, pixels_tag == "PixelData"):
            raise unreadable(path, problem)
        photometric = _text(data, "PhotometricInterpretation")
    except UnreadableItemError:
        raise
    except Exception as error:  # broken files raise anything from struct.error to AttributeError in the parser
        raise unreadable(path, f"not a readable DICOM file ({first_line(error)})") from error
    stored = _decode(path, data, photometric, damaged)
    try:
        pixels = _shown(stored, data, intensity, photometric)
    except Exception as error:  # windows, tables and numbers that make no sense
        remedy = "try intensity: full_range, which needs neither window nor table, or fetch the file again"
        raise unreadable(path, f"invalid window, table or header value ({first_line(error)})", remedy) from error
    return DicomImage(pixels, _spacing(data), photometric, _text(data, "ViewPosition"))


def _decode(path: Path, data: Any, photometric: str, damaged: str) -> np.ndarray:
    """Stored cells (H, W) of the first frame, unused bits included; colour as luma in the range of its depth."""
    reason, remedy = decoder_problem(data)
    if reason:
        raise unreadable(path, reason, remedy)
    grey = photometric.startswith("MONOCHROME")
    try:
        if not data.get("NumberOfFrames"):  # 0 and empty count as absent
            data.NumberOfFrames = 1
        plain = not data.file_meta.TransferSyntaxUID.is_encapsulated and "PixelData" in data
        if plain and (problem := length_problem(data, len(data.PixelData), lambda start: data.PixelData[start:])):
            raise unreadable(path, problem)
        strict = _strict_jpeg(path, data) if damaged == "refuse" else None
        if strict is not None and grey and strict.shape == (data.Rows, data.Columns) and not data.PixelRepresentation:
            return strict
        with _overheard() as warned:
            array = pixel_array(data, index=0, correct_unused_bits=not grey)
        if damaged == "refuse" and warned:
            raise unreadable(path, f"{DAMAGED} ({warned[0]})")
        if photometric == "PALETTE COLOR":
            array = apply_color_lut(array, data)
        if array.ndim == 3:  # colour; pydicom has already turned YCbCr into RGB
            top = np.iinfo(array.dtype).max
            array = np.clip(np.rint(array[..., :3] @ _LUMA), 0, top).astype(array.dtype)
        if array.ndim != 2 or not array.size or array.dtype.kind not in "iuf":
            raise ValueError(f"pixel array of {array.ndim} dimensions, {array.size} values, type {array.dtype}")
    except UnreadableItemError:
        raise
    except Exception as error:  # decoder plug-ins have no common error class
        reason = read_header(path).problem or f"truncated or broken pixel data ({' '.join(str(error).split())})"
        raise unreadable(path, reason) from error
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _strict_jpeg(path: Path, data: Any) -> np.ndarray | None:
    """Luma of the first frame of 8-bit JPEG, or an error if the decoder warns; None for other kinds."""
    if data.file_meta.TransferSyntaxUID not in (JPEGBaseline8Bit, JPEGExtended12Bit) or int(data.BitsStored) > 8:
        return None
    frame = get_frame(data.PixelData, 0, number_of_frames=int(data.NumberOfFrames))
    try:
        return decode_jpeg(frame)
    except ValueError as error:
        raise unreadable(path, f"{DAMAGED} ({first_line(error)})") from error


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What pydicom logs in this thread of run lengths that decode to more than the image."""
    heard: list[str] = []
    thread, logger, handler = get_ident(), logging.getLogger("pydicom"), logging.Handler(logging.WARNING)
    handler.addFilter(lambda record: record.thread == thread and "RLE segment contains non" in record.getMessage())
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)


def _text(data: Any, tag: str) -> str:
    with suppress(Exception):  # values are parsed on first access, so damage shows here
        return str(data.get(tag) or "").strip()
    return ""


def _spacing(data: Any) -> tuple[float, float] | None:
    for tag in _SPACING_TAGS:
        with suppress(Exception):  # decimal commas, units, one value for two
            row, column = (float(v) for v in data.get(tag))
            if 0 < row < math.inf and 0 < column < math.inf:
                return row, column
    return None


def _number(data: Any, tag: str) -> float | None:
    """First value of a tag; None if it is absent or empty."""
    value = data.get(tag)
    if not isinstance(value, str | int | float) and value is not None:
        value = next(iter(value), None)
    if value is None or value == "":
        return None
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{tag} is {number}")
    return number


def _is_grey(data: Any) -> bool:
    return _text(data, "PhotometricInterpretation").startswith("MONOCHROME")


def _bits(values: np.ndarray, data: Any) -> int:
    """Depth of the values: BitsStored; luma and palettes fill their type."""
    width = values.dtype.itemsize * 8
    if values.dtype.kind == "f":
        raise ValueError("floating-point pixels have no bit depth")
    return min(int(data.get("BitsStored") or width), width) if _is_grey(data) else width


# ---------------------------------------------------------------------- stored cells to grey levels


def _shown(stored: np.ndarray, data: Any, intensity: str, photometric: str) -> np.ndarray:
    """Grey levels by a rule. All rules are functions of the value, so they work on the values that occur."""
    narrow = stored.dtype.itemsize <= 2
    if narrow:
        place = stored.view(f"u{stored.dtype.itemsize}")
        raw = np.arange(256**stored.dtype.itemsize, dtype=place.dtype).view(stored.dtype)
        counts = ((raw >= stored.min()) & (raw <= stored.max())).astype(np.int64)
    else:
        raw, place, counts = np.unique(stored, return_inverse=True, return_counts=True)
    values = _cells(raw, data) if _is_grey(data) and stored.dtype.kind != "f" else raw
    used = counts > 0
    # counting takes longer than all the rest, and where levels rise or fall with the values, their ends are enough
    uneven = intensity == "medklip" or any(tag in data for tag in _UNEVEN)
    if narrow and (uneven or not np.array_equal(values[used], raw[used])):
        counts = np.bincount(place.ravel(), minlength=len(raw))
        used = counts > 0
    inverse = photometric == "MONOCHROME1" and intensity != "medklip"
    if intensity in ("standard", "minmax"):
        used &= ~_padding(raw, values, data)
        inverse |= photometric == "MONOCHROME2" and _text(data, "PresentationLUTShape").upper() == "INVERSE"
    table = np.zeros(len(raw), np.uint8)  # what is not used, padding, stays black
    if used.any() and (levels := _RULES[intensity](values[used], counts[used], data)) is not None:
        table[used] = 255 - levels if inverse else levels
    if stored.dtype == np.uint8 and np.array_equal(table[counts > 0], raw[counts > 0]):
        return stored.copy()
    return table[place.reshape(stored.shape)]


def _cells(raw: np.ndarray, data: Any) -> np.ndarray:
    """Values without the bits above HighBit, in which overlays may lie, and below it by more than BitsStored."""
    width, bits = raw.dtype.itemsize * 8, _bits(raw, data)
    top = bits - 1
    if not data.file_meta.TransferSyntaxUID.is_encapsulated or data.file_meta.TransferSyntaxUID == RLELossless:
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
        return ~np.isfinite(raw)
    low, high = sorted((first, first if last is None else last))
    if prefix:
        return ~np.isfinite(raw) | ((raw >= low) & (raw <= high))
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
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)]


def _displayed(stored: np.ndarray, data: Any) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Values after modality and VOI transformation, and their range if something names it."""
    if not _is_grey(data):  # PS3.3 defines these tables for one channel only
        return stored, (0.0, 255.0) if stored.dtype == np.uint8 else None
    values = _modality(stored, data)
    if table := _table(data, "VOILUTSequence"):
        return _look_up(values, *table[:2]), (0.0, 2.0 ** table[2] - 1)
    centre, width = _number(data, "WindowCenter"), _number(data, "WindowWidth")
    if centre is not None and width is not None:
        return _windowed(values, centre, width, _text(data, "VOILUTFunction").upper() or "LINEAR"), (0.0, 1.0)
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
    return np.clip(np.rint((values.astype(np.float64) - low) * (255.0 / (high - low))), 0, 255).astype(np.uint8)


def _by_occurring_range(values: np.ndarray) -> np.ndarray | None:
    low, high = float(values.min()), float(values.max())
    return _scaled(values, low, high) if low < high else None


def _standard(stored: np.ndarray, counts: np.ndarray, data: Any) -> np.ndarray | None:
    values, limits = _displayed(stored, data)
    return _by_occurring_range(values) if limits is None else _scaled(values, *limits)


def _minmax(stored: np.ndarray, counts: np.ndarray, data: Any) -> np.ndarray | None:
    return _by_occurring_range(_displayed(stored, data)[0])


def _full_range(stored: np.ndarray, counts: np.ndarray, data: Any) -> np.ndarray:
    bits = _bits(stored, data)
    low = -float(2 ** (bits - 1)) if stored.dtype.kind == "i" else 0.0
    return _scaled(stored, low, low + 2**bits - 1)


def _mgca(stored: np.ndarray, counts: np.ndarray, data: Any) -> np.ndarray:
    # OpenCV's convertScaleAbs, which the code uses: absolute value, rounded to even, saturated
    top = float(stored.max())
    if top == 0:
        return np.zeros(stored.shape, np.uint8)
    return np.clip(np.rint(np.abs(stored * (255.0 / top))), 0, 255).astype(np.uint8)


def _image_max(stored: np.ndarray, counts: np.ndarray, data: Any) -> np.ndarray:
    top = float(stored.max())
    if top <= 0:
        return np.zeros(stored.shape, np.uint8)
    return np.clip(stored / top * 255, 0, 255).astype(np.uint8)  # cut, not rounded, as in the code


def _medklip(stored: np.ndarray, counts: np.ndarray, data: Any) -> np.ndarray:
    """scikit-image's equalize_hist with 256 bins on values / 255, as the code calls it, then cut to 8 bits."""
    levels = stored / 255.0
    histogram, edges = np.histogram(levels, bins=256, weights=counts)
    cumulated = histogram.cumsum() / counts.sum()
    return (255 * np.interp(levels, (edges[:-1] + edges[1:]) / 2, cumulated)).astype(np.uint8)


_RULES: dict[str, Callable[[np.ndarray, np.ndarray, Any], np.ndarray | None]] = {
    "standard": _standard,
    "mgca": _mgca,
    "medklip": _medklip,
    "minmax": _minmax,
    "full_range": _full_range,
    "image_max": _image_max,
}

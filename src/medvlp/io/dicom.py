"""DICOM radiographs to grey levels of 8 bits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, get_decoder, pixel_array

from medvlp.errors import ConfigError, UnreadableItemError
from medvlp.io.headers import bomb, file_problem, first_line, inflation_bomb, unreadable

_SPACING_TAGS = ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing")
_DEFER = 1 << 16  # bytes; longer elements (the pixels) are left in the file until the header has been checked
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601

# packages with a decoder, by a part of the transfer syntax's name; the first that fits
_DECODERS = (
    ("JPEG 2000", "pip install 'medvlp[dicom]'"),
    ("JPEG-LS", "pip install pyjpegls"),
    ("JPEG", "pip install pylibjpeg pylibjpeg-libjpeg (GPL-3.0)"),
)


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


def read_dicom(path: str | Path, intensity: str = "standard") -> DicomImage:
    """Read a radiograph; of a file with several frames, the first.

    The rule "standard" follows the standard's display pipeline (DICOM PS3.4, N.2): modality LUT or rescale, VOI LUT
    or window (the first of several, as viewers do), inversion of MONOCHROME1, then to 8 bits. With a window, its
    range becomes 0…255; without one, 8-bit files keep their values, and deeper ones are scaled by the range that
    occurs, because a detector's full range is seldom used. Colour files become luma by ITU-R 601 under every rule
    before anything else.

    Args:
        path: the file.
        intensity: one of :data:`medvlp.io.images.INTENSITIES`. "medklip" alone leaves MONOCHROME1 dark on bright.

    Returns:
        The pixels and what a task needs to know about them.

    Raises:
        ConfigError: an unknown intensity rule.
        UnreadableItemError: the file is missing, truncated, no image, or larger than 200 megapixels; no decoder for
            its transfer syntax is installed; or its window or tables make no sense.
    """
    if intensity not in _RULES:
        raise ConfigError(f'there is no intensity rule "{intensity}"; there are {", ".join(_RULES)}')
    path = Path(path)
    if problem := file_problem(path):
        raise unreadable(path, problem)
    try:
        if too_large := inflation_bomb(path):
            raise unreadable(path, too_large)
        data = pydicom.dcmread(path, defer_size=_DEFER)
        # values are parsed on first access, so damage shows here
        photometric = str(data.get("PhotometricInterpretation", "") or "").strip()
        view = str(data.get("ViewPosition", "") or "").strip()
    except UnreadableItemError:
        raise
    except Exception as error:  # broken files raise anything from struct.error to AttributeError in the parser
        raise unreadable(path, f"not a readable DICOM file ({first_line(error)})") from error
    if "PixelData" not in data:
        raise unreadable(path, "DICOM file without pixel data")
    stored = _decode(path, data, photometric)
    try:
        pixels = _RULES[intensity](stored, data)
        if photometric == "MONOCHROME1" and intensity != "medklip":
            pixels = 255 - pixels
        spacing = _spacing(data)
    except Exception as error:  # windows, tables and numbers that pydicom or numpy stumble over
        remedy = "try intensity: full_range, which needs neither window nor table, or fetch the file again"
        raise unreadable(path, f"invalid window, table or header value ({first_line(error)})", remedy) from error
    return DicomImage(np.ascontiguousarray(pixels), spacing, photometric, view)


def _decode(path: Path, data: Any, photometric: str) -> np.ndarray:
    """Stored values (H, W) of the first frame; colour as luma in the range of its depth."""
    try:
        if too_large := bomb(int(data.Rows), int(data.Columns)):
            raise unreadable(path, too_large)
        array = pixel_array(data, index=0)
        if photometric == "PALETTE COLOR":
            array = apply_color_lut(array, data)
        if array.ndim == 3:  # colour; pydicom has already turned YCbCr into RGB
            top = np.iinfo(array.dtype).max
            array = np.clip(np.rint(array[..., :3] @ _LUMA), 0, top).astype(array.dtype)
        if array.ndim != 2 or not array.size or array.dtype.kind not in "iu":
            raise ValueError(f"pixel array of {array.ndim} dimensions, {array.size} values, type {array.dtype}")
    except UnreadableItemError:
        raise
    except Exception as error:  # decoder plug-ins have no common error class
        syntax = getattr(getattr(data, "file_meta", None), "TransferSyntaxUID", None)
        if syntax is not None and not _decodable(syntax):
            name = str(getattr(syntax, "name", syntax))
            remedy = next((r for part, r in _DECODERS if part in name), "convert it with another tool")
            raise unreadable(path, f"no decoder for {name} is installed", remedy) from error
        raise unreadable(path, f"truncated or broken pixel data ({first_line(error)})") from error
    return array


def _decodable(syntax: Any) -> bool:
    """Whether a missing decoder cannot be the reason for a failure."""
    try:
        return not syntax.is_compressed or bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False
    except Exception:  # a damaged or private identifier, or several of them
        return True


def _spacing(data: Any) -> tuple[float, float] | None:
    for tag in _SPACING_TAGS:
        value = data.get(tag)
        if value is not None and len(value) == 2 and all(float(v) > 0 for v in value):
            return float(value[0]), float(value[1])
    return None


def _bits(stored: np.ndarray, data: Any) -> int:
    """Depth of the values: BitsStored; luma fills its type."""
    colour = int(data.get("SamplesPerPixel", 1) or 1) > 1 or data.get("PhotometricInterpretation") == "PALETTE COLOR"
    return stored.dtype.itemsize * 8 if colour else int(data.get("BitsStored", 0) or stored.dtype.itemsize * 8)


def _displayed(stored: np.ndarray, data: Any) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Values after modality LUT and VOI LUT or window, and the range that the window stands for, if there is one."""
    if int(data.get("SamplesPerPixel", 1) or 1) > 1:
        return stored, None  # PS3.3 defines these tables for one channel only
    values = apply_modality_lut(stored, data)
    if data.get("VOILUTSequence"):
        values = np.rint(values).astype(np.int32)  # a table is looked up with integers
    limits = _window(data)
    return (values if limits is None else apply_voi_lut(values, data, index=0)), limits


def _window(data: Any) -> tuple[float, float] | None:
    """The range of values after the VOI transformation, or None if the file has none."""
    if data.get("VOILUTSequence"):
        item = data.VOILUTSequence[0]
        bits = int(item.LUTDescriptor[2])
        return 0.0, float(2**bits - 1)
    if data.get("WindowCenter") is None or data.get("WindowWidth") is None:
        return None
    # pydicom maps a window onto the range of the stored values; pushing the extremes through gives that range
    extremes = np.array([[-1e12, 1e12]], dtype=np.float64)
    with np.errstate(over="ignore"):  # of a sigmoid
        low, high = apply_voi_lut(extremes, data, index=0)[0]
    return float(low), float(high)


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    span = max(high - low, 1e-9)  # a constant image becomes black
    return np.clip(np.rint((values.astype(np.float64) - low) * (255.0 / span)), 0, 255).astype(np.uint8)


def _standard(stored: np.ndarray, data: Any) -> np.ndarray:
    values, limits = _displayed(stored, data)
    if limits is not None:
        return _scaled(values, *limits)
    if _bits(stored, data) == 8 and values.dtype == np.uint8:
        return values
    return _scaled(values, float(values.min()), float(values.max()))


def _minmax(stored: np.ndarray, data: Any) -> np.ndarray:
    values, _ = _displayed(stored, data)
    return _scaled(values, float(values.min()), float(values.max()))


def _full_range(stored: np.ndarray, data: Any) -> np.ndarray:
    bits = _bits(stored, data)
    low = -float(2 ** (bits - 1)) if stored.dtype.kind == "i" else 0.0
    return _scaled(stored, low, low + 2**bits - 1)


def _mgca(stored: np.ndarray, data: Any) -> np.ndarray:
    # OpenCV's convertScaleAbs, which the code uses: absolute value, rounded to even, saturated
    top = float(stored.max())
    if top == 0:
        return np.zeros(stored.shape, np.uint8)
    return np.clip(np.rint(np.abs(stored * (255.0 / top))), 0, 255).astype(np.uint8)


def _image_max(stored: np.ndarray, data: Any) -> np.ndarray:
    top = float(stored.max())
    if top <= 0:
        return np.zeros(stored.shape, np.uint8)
    return np.clip(stored / top * 255, 0, 255).astype(np.uint8)  # cut, not rounded, as in the code


def _medklip(stored: np.ndarray, data: Any) -> np.ndarray:
    """scikit-image's equalize_hist with 256 bins on values / 255, as the code calls it, then cut to 8 bits."""
    low, high = int(stored.min()), int(stored.max())
    if high - low < 1 << 16:  # counting needs no sorting, but a place for every value in between
        place = stored.astype(np.int64) - low
        counts = np.bincount(place.ravel())
        levels = np.arange(low, high + 1) / 255.0
    else:
        values, place, counts = np.unique(stored, return_inverse=True, return_counts=True)
        levels = values / 255.0
    histogram, edges = np.histogram(levels, bins=256, weights=counts)
    cumulated = histogram.cumsum() / counts.sum()
    table = np.interp(levels, (edges[:-1] + edges[1:]) / 2, cumulated)
    return (255 * table).astype(np.uint8)[place.reshape(stored.shape)]


_RULES: dict[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "standard": _standard,
    "mgca": _mgca,
    "medklip": _medklip,
    "minmax": _minmax,
    "full_range": _full_range,
    "image_max": _image_max,
}

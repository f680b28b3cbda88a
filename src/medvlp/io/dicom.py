"""DICOM radiographs to display-ready grey levels; needs the extra ``medvlp[dicom]``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.errors import UnreadableItemError

_SPACING_TAGS = ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing")


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


def read_dicom(path: str | Path) -> DicomImage:
    """Read a single-frame radiograph.

    The order is that of the standard's display pipeline (DICOM PS3.4, N.2): modality LUT or rescale, VOI LUT or
    window (the first of several, as viewers do), inversion of MONOCHROME1, then to 8 bits. With a window, its range
    becomes 0…255; without one, 8-bit files keep their values, and deeper ones are scaled by the range that occurs,
    because a detector's full range is seldom used. Colour files become luma by ITU-R 601.

    Args:
        path: the file.

    Returns:
        The pixels and what a task needs to know about them.

    Raises:
        UnreadableItemError: pydicom or a decoder for the file's transfer syntax is not installed, or the file is
            missing, truncated, or no image.
    """
    path = Path(path)
    try:
        import pydicom
    except ImportError as error:
        raise _unreadable(path, "pydicom is not installed", "pip install 'medvlp[dicom]'") from error
    try:
        data = pydicom.dcmread(path)
    except FileNotFoundError as error:
        raise _unreadable(path, "missing file", "check the path, or fetch the file again") from error
    except Exception as error:  # broken files raise anything from struct.error to AttributeError in the parser
        raise _unreadable(path, f"not a readable DICOM file ({_line(error)})", "fetch the file again") from error
    if "PixelData" not in data:
        raise _unreadable(path, "DICOM file without pixel data", "leave it out of the table")
    try:
        pixels = _to_grey(data)
    except Exception as error:  # decoder plug-ins have no common error class
        syntax = getattr(data.file_meta, "TransferSyntaxUID", None) if hasattr(data, "file_meta") else None
        if syntax is not None and not _decodable(syntax):
            raise _unreadable(
                path,
                f"no decoder for {getattr(syntax, 'name', syntax)} is installed",
                "pip install 'medvlp[dicom]', and pylibjpeg-libjpeg (GPL-3.0) for lossless JPEG",
            ) from error
        raise _unreadable(path, f"truncated or broken pixel data ({_line(error)})", "fetch the file again") from error
    return DicomImage(
        pixels,
        _spacing(data),
        str(data.get("PhotometricInterpretation", "")).strip(),
        str(data.get("ViewPosition", "") or "").strip(),
    )


def _unreadable(path: Path, reason: str, remedy: str) -> UnreadableItemError:
    return UnreadableItemError(f"cannot read {path}: {reason}; {remedy}", item_id=path.stem, reason=reason)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _decodable(syntax: Any) -> bool:
    from pydicom.pixels import get_decoder

    if not syntax.is_compressed:
        return True
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _spacing(data: Any) -> tuple[float, float] | None:
    for tag in _SPACING_TAGS:
        value = data.get(tag)
        if value is not None and len(value) == 2 and all(float(v) > 0 for v in value):
            return float(value[0]), float(value[1])
    return None


def _to_grey(data: Any) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    photometric = str(data.get("PhotometricInterpretation", "MONOCHROME2")).strip()
    array = data.pixel_array
    if int(data.get("NumberOfFrames", 1) or 1) > 1:
        array = array[0]
    if array.ndim == 3:  # colour; pydicom has already turned YCbCr into RGB
        return np.clip(np.rint(array[..., :3] @ np.array([0.299, 0.587, 0.114])), 0, 255).astype(np.uint8)
    if array.ndim != 2:
        raise ValueError(f"pixel array of {array.ndim} dimensions")
    values = apply_modality_lut(array, data)
    if data.get("VOILUTSequence"):
        values = np.rint(values).astype(np.int32)  # a table is looked up with integers
    limits = _window(data)
    if limits is not None:
        grey = _scaled(apply_voi_lut(values, data, index=0), *limits)
    elif int(data.get("BitsStored", 16)) == 8 and values.dtype == np.uint8:
        grey = values
    else:
        grey = _scaled(values, float(values.min()), float(values.max()))
    return np.ascontiguousarray(255 - grey if photometric == "MONOCHROME1" else grey)


def _window(data: Any) -> tuple[float, float] | None:
    """The range of values after the VOI transformation, or None if the file has none."""
    from pydicom.pixels import apply_voi_lut

    if data.get("VOILUTSequence"):
        item = data.VOILUTSequence[0]
        bits = int(item.LUTDescriptor[2])
        return 0.0, float(2**bits - 1)
    if data.get("WindowCenter") is None or data.get("WindowWidth") is None:
        return None
    # pydicom maps a window onto the range of the stored values; pushing the extremes through gives that range
    extremes = np.array([[-1e12, 1e12]], dtype=np.float64)
    low, high = apply_voi_lut(extremes, data, index=0)[0]
    return float(low), float(high)


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    span = max(high - low, 1e-9)  # a constant image becomes black
    return np.clip(np.rint((values.astype(np.float64) - low) * (255.0 / span)), 0, 255).astype(np.uint8)

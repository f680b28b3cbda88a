"""Image files of any kind to one grey channel of 8 bits."""

import functools
import os
import warnings
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np

from medvlp.errors import UnreadableItemError, check_choice
from medvlp.io.headers import (
    DAMAGED,
    MAX_PIXELS,
    bomb,
    file_kind,
    file_problem,
    first_line,
    unreadable,
)
from medvlp.io.rasters import decode_jpeg, open_raster, orientation, png_flaw, significant_bits

Damaged = Literal["refuse", "accept"]
"""What to do with a file whose decoder warns of damage."""

DARK = 1 << 14
"""16-bit values that stay below come out darker than a quarter."""

INTENSITIES: dict[str, str] = {
    "standard": "DICOM: the display pipeline of PS3.4 N.2 (LUT, window, MONOCHROME1 inverted); 16-bit PNG: v / 257",
    "mgca": "DICOM: v · 255 / max of the stored values, then MONOCHROME1 inverted, no window; else standard "
    "(code of MGCA and GLoRIA)",
    "medklip": "DICOM: stored values equalised by histogram, MONOCHROME1 not inverted; else standard (code of MedKLIP)",
    "minmax": "the display pipeline, then the values that occur to 0…255; every format (CXR-CLIP, BenchX, BioViL)",
    "full_range": "stored values by the range of their bit depth, MONOCHROME1 inverted, no window (torchxrayvision)",
    "image_max": "stored values by their maximum, cut to whole numbers; every format (code of KAD, for PadChest)",
}
"""Rules from stored values to 0…255 that :func:`read_image` knows, each with what it does and who uses it."""


def check_reading(intensity: str, damaged: str = "refuse") -> None:
    """Raise :class:`~medvlp.errors.ConfigError` for unknown settings of :func:`read_image`."""
    check_choice("intensity rule", intensity, INTENSITIES)
    check_choice("value of damaged", damaged, get_args(Damaged))


def reading_name(intensity: str, damaged: str = "refuse") -> str:
    """Return the name under which pixels read with these settings are stored."""
    return intensity if damaged == "refuse" else f"{intensity}+damaged"


@functools.cache
def warn_dark(what: str, remedy: str) -> None:
    """Warn once of 16-bit values so low that the picture is nearly black."""
    warnings.warn(f"the values of {what} stay below {DARK}, so it comes out dark: {remedy}", stacklevel=3)


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale low…high to 0…255 in the precision of the values, rounded; what lies beyond saturates. Returns uint8."""
    return np.clip(np.rint((values - low) * (255.0 / (high - low))), 0, 255).astype(np.uint8)


def read_image(path: str | Path, intensity: str = "standard", damaged: Damaged = "refuse") -> np.ndarray:
    """Read a JPEG, PNG or DICOM file as grey levels; the content tells the kind, not the name.

    docs/datasets/images.md describes what becomes of 16 bits and of damaged files. Colour becomes luma by ITU-R 601
    (Pillow's "L"); transparency is ignored, since the alpha channels of released radiographs carry nothing; palettes
    and 1-bit images are expanded to 0…255. The EXIF orientation is applied, as OpenCV's reader does, with which MGCA
    and GLoRIA load. (Pillow alone ignores it. No released corpus known to us has a value other than 1, upright.)

    Args:
        path: the file.
        intensity: one of :data:`INTENSITIES`; for DICOM see also :func:`medvlp.io.dicom.read_dicom`.
        damaged: "refuse" a file whose decoder warns of damage, or "accept" the pixels that it returns nevertheless.

    Returns:
        uint8 (H, W), writable.

    Raises:
        ConfigError: an unknown intensity rule or value of damaged.
        UnreadableItemError: the file is missing, truncated, damaged, no image, or larger than 200 megapixels (a
            decompression bomb, refused before its pixels take memory).
    """
    check_reading(intensity, damaged)
    path = Path(path)
    if problem := file_problem(path):
        raise unreadable(path, problem)
    try:
        with path.open("rb") as file:
            kind = file_kind(file)
            jpeg = kind == "JPEG"
            if jpeg or kind == "PNG":
                with open_raster(file, kind) as image:
                    if problem := bomb(*image.size, os.fstat(file.fileno()).st_size if jpeg else MAX_PIXELS):
                        raise unreadable(path, problem)
                    turn = orientation(image)
                    values, top = _jpeg(path, file, image, damaged) if jpeg else _png(file, image)
    except UnreadableItemError:
        raise
    except PermissionError as error:
        raise unreadable(path, "permission denied") from error
    except Exception as error:  # Pillow reports broken files as OSError, SyntaxError, ValueError, struct.error, …
        raise unreadable(path, f"truncated or broken image ({first_line(error)})") from error
    if not kind:
        raise unreadable(path, "not a JPEG, PNG or DICOM file")
    if kind == "DICOM":
        from medvlp.io.dicom import read_dicom  # pydicom takes longer to import than most images to read

        return read_dicom(path, intensity, damaged)
    return np.require(_upright(_to_8_bits(values, intensity, top), turn), requirements=["C", "W"])


def _jpeg(path: Path, file: IO[bytes], image: Any, damaged: Damaged) -> tuple[np.ndarray, int]:
    """uint8, and the value that is white."""
    image.draft("L", None)  # leaves out the colour planes
    if damaged == "refuse":
        file.seek(0)
        try:
            levels = decode_jpeg(file.read())
        except ValueError as error:
            image.load()  # raises if the file is truncated or no JPEG that Pillow knows
            raise unreadable(path, f"{DAMAGED} ({first_line(error)})") from error
        if levels is not None and image.mode == "L":  # CMYK takes Pillow's conversion
            return levels, 255
    return np.array(image if image.mode == "L" else image.convert("L")), 255


def _png(file: IO[bytes], image: Any) -> tuple[np.ndarray, int]:
    """uint8 or, from files of 16 bits and one channel, integers up to 65535; and the value that is white."""
    wide = image.mode.startswith("I")  # Pillow's names for 16 bits of grey; older versions say "I"
    values = np.array(image if wide or image.mode == "L" else image.convert("L"))
    # where rows are missing, the last one is blank, or the last but one of an interlaced file
    if flaw := png_flaw(file, count=bool((values[-2:] == values[-2:, :1]).all(1).any())):
        raise ValueError(flaw)
    if not wide:
        return values, 255
    bits, largest = significant_bits(file), int(values.max())
    return values, 2**bits - 1 if 0 < bits < 16 and largest < 2**bits else 65535


def _to_8_bits(values: np.ndarray, intensity: str, top: int) -> np.ndarray:
    wide = values.dtype != np.uint8
    if intensity not in ("minmax", "image_max") and not wide:
        return values
    levels, largest = np.arange(65536 if wide else 256, dtype=np.float32), int(values.max())
    if intensity == "minmax":
        low = int(values.min())
        return np.take(stretched(levels, low, max(largest, low + 1)), values)  # a constant image becomes black
    if intensity == "image_max":
        return np.take(np.clip(levels.astype(np.float64) / max(largest, 1) * 255, 0, 255).astype(np.uint8), values)
    if top == 65535 and 0 < largest < DARK:
        warn_dark("a 16-bit PNG", "if it holds 12 bits, say, set intensity: minmax, or write them to the file (sBIT)")
    return np.take(stretched(levels, 0, top), values)


def _upright(array: np.ndarray, turn: int) -> np.ndarray:
    """Undo an EXIF orientation 1…8."""
    if turn >= 5:
        array = array.T
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array[::-1] if turn in (3, 4, 7, 8) else array

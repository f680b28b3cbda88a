"""Image files of any kind to one grey channel of 8 bits."""

from pathlib import Path

import numpy as np

from medvlp.errors import ConfigError, UnreadableItemError
from medvlp.io.headers import (
    ImageHeader,
    bomb,
    file_kind,
    file_problem,
    first_line,
    open_raster,
    orientation,
    read_header,
    unreadable,
)

__all__ = ["INTENSITIES", "ImageHeader", "read_header", "read_image"]

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


def read_image(path: str | Path, min_side: int = 0, intensity: str = "standard") -> np.ndarray:
    """Read a JPEG, PNG or DICOM file as grey levels; the kind is told by the content, not by the name.

    Colour becomes luma by ITU-R 601 (Pillow's "L"); transparency is ignored, since the alpha channels of released
    radiographs carry nothing; palettes and 1-bit images are expanded to 0…255. Under "standard", 16-bit PNGs are
    scaled by the range of their bit depth, v / 257 rounded, **not** by the values that occur, so that pixel values
    stay comparable between images. JPEG files stay in one channel while they are decoded.

    The EXIF orientation of photographs is applied, as OpenCV's reader does, with which MGCA and GLoRIA load: a
    picture taken with a turned camera comes out upright, and the annotation tools of today show it so. (Pillow alone
    ignores it. No released corpus known to us has a value other than 1, upright.)

    Args:
        path: the file; a symbolic link is followed.
        min_side: if positive, a JPEG is decoded at the smallest DCT scale (1/2, 1/4, 1/8) whose sides are at least
            this many pixels. 0 decodes in full. "minmax" and "image_max" see the values of the smaller image.
        intensity: one of :data:`INTENSITIES`; for DICOM see also :func:`medvlp.io.dicom.read_dicom`.

    Returns:
        uint8 (H, W), writable.

    Raises:
        ConfigError: an unknown intensity rule.
        UnreadableItemError: the file is missing, truncated, no image, or larger than 200 megapixels (a decompression
            bomb, refused before its pixels take memory).
    """
    if intensity not in INTENSITIES:
        raise ConfigError(f'there is no intensity rule "{intensity}"; there are {", ".join(INTENSITIES)}')
    path = Path(path)
    if problem := file_problem(path):
        raise unreadable(path, problem)
    try:
        with path.open("rb") as file:
            kind = file_kind(file)
            if kind in ("JPEG", "PNG"):
                with open_raster(file, kind) as image:
                    if too_large := bomb(*image.size):
                        raise unreadable(path, too_large)
                    turn = orientation(image)
                    values = _grey(image, kind, min_side)
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

        return read_dicom(path, intensity).pixels
    return np.require(_upright(_to_8_bits(values, intensity), turn), requirements=["C", "W"])


def _grey(image, kind: str, min_side: int) -> np.ndarray:
    """uint8 or, from PNG files of 16 bits and one channel, integers up to 65535."""
    if kind == "JPEG":
        # with a size, draft also lets the decoder shrink; without one, it only drops the colour planes
        image.draft("L", (min_side, min_side) if min_side > 0 else None)
    # Pillow's names for 16 bits of grey; older versions say "I"
    return np.array(image if image.mode == "L" or image.mode.startswith("I") else image.convert("L"))


def _to_8_bits(values: np.ndarray, intensity: str) -> np.ndarray:
    wide = values.dtype != np.uint8
    if intensity not in ("minmax", "image_max") and not wide:
        return values
    levels = np.arange(65536 if wide else 256, dtype=np.float32)
    if intensity == "minmax":
        low, high = int(values.min()), int(values.max())
        table = np.rint((levels - low) * (255.0 / max(high - low, 1)))  # a constant image becomes black
    elif intensity == "image_max":
        table = levels.astype(np.float64) / max(int(values.max()), 1) * 255
    else:
        table = np.rint(levels * (255.0 / 65535.0))
    return np.clip(table, 0, 255).astype(np.uint8)[values]


def _upright(array: np.ndarray, turn: int) -> np.ndarray:
    """Undo an EXIF orientation 1…8."""
    if turn >= 5:
        array = array.T
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array[::-1] if turn in (3, 4, 7, 8) else array

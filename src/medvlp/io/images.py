"""Image files of any kind to one grey channel of 8 bits."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from medvlp.errors import UnreadableItemError

# Radiographs exceed Pillow's guess at a decompression bomb (89 megapixels raises a warning) only far above any
# real detector, so its limits stay as they are.

_DICOM_MAGIC_AT = 128
_WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def is_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM: "DICM" after a preamble of 128 bytes."""
    with path.open("rb") as file:
        return file.read(_DICOM_MAGIC_AT + 4)[_DICOM_MAGIC_AT:] == b"DICM"


def read_image(path: str | Path, min_side: int = 0) -> np.ndarray:
    """Read a JPEG, PNG or DICOM file as grey levels; the kind is told by the content, not by the name.

    Colour becomes luma by ITU-R 601 (Pillow's "L"); transparency is ignored, since the alpha channels of released
    radiographs carry nothing; palettes and 1-bit images are expanded to 0…255. 16-bit PNGs are scaled by the range of
    their bit depth, v / 257 rounded, **not** by the values that occur, so that pixel values stay comparable between
    images. JPEG files stay in one channel while they are decoded.

    Args:
        path: the file.
        min_side: if positive, a JPEG is decoded at the smallest DCT scale (1/2, 1/4, 1/8) whose sides are at least
            this many pixels. 0 decodes in full.

    Returns:
        uint8 (H, W), writable.

    Raises:
        UnreadableItemError: the file is missing, truncated, or no image.
    """
    path = Path(path)
    try:
        if is_dicom(path):
            from medvlp.io.dicom import read_dicom

            return read_dicom(path).pixels
        with Image.open(path) as image:
            return _grey(image, min_side)
    except FileNotFoundError as error:
        raise _unreadable(path, "missing file", "check the path, or fetch the file again") from error
    except IsADirectoryError as error:
        raise _unreadable(path, "a folder, not a file", "check the path") from error
    except PermissionError as error:
        raise _unreadable(path, "permission denied", "check the rights of the file") from error
    except UnidentifiedImageError as error:
        raise _unreadable(path, "not a JPEG, PNG or DICOM file", "fetch the file again") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow reports truncated data as OSError, broken PNG chunks as SyntaxError
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _unreadable(path, f"truncated or broken image ({text})", "fetch the file again") from error


def _unreadable(path: Path, reason: str, remedy: str) -> UnreadableItemError:
    return UnreadableItemError(f"cannot read {path}: {reason}; {remedy}", item_id=path.stem, reason=reason)


def _grey(image: Image.Image, min_side: int) -> np.ndarray:
    if image.format in ("JPEG", "MPO"):
        # with a size, draft also lets the decoder shrink; without one, it only drops the colour planes
        image.draft("L", (min_side, min_side) if min_side > 0 else None)
    if image.mode in _WIDE_MODES:
        return _wide_to_8_bits(np.asarray(image))
    return np.array(image if image.mode == "L" else image.convert("L"))


def _wide_to_8_bits(values: np.ndarray) -> np.ndarray:
    v = np.asarray(values, dtype=np.float32)
    # "I" also stands for 16 bits in PNG files; only values beyond them mean a true 32-bit image
    top = 65535.0 if v.max(initial=0) <= 65535 else float(2**32 - 1)
    return np.clip(np.rint(v * (255.0 / top)), 0, 255).astype(np.uint8)

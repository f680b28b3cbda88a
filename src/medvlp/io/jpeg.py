"""JPEG decoding that tells damage: libjpeg goes on after most of it, with a warning that Pillow does not pass on."""

import functools
import warnings

import numpy as np

try:
    import simplejpeg
except ImportError:  # no wheel for this platform
    simplejpeg = None


def decode_jpeg(data: bytes, width: int = 0, height: int = 0) -> np.ndarray | None:
    """Decode to luma at one of libjpeg's scales, with the same pixels as Pillow, and with an error for any damage.

    Args:
        data: the file.
        width: columns wanted, at that scale; 0 for full size.
        height: rows wanted, likewise.

    Returns:
        uint8 (height, width), or None if simplejpeg is not installed.

    Raises:
        ValueError: libjpeg warns of damage, or cannot decode.
    """
    if simplejpeg is None:
        _warn_once()
        return None
    return simplejpeg.decode_jpeg(data, "GRAY", min_height=height, min_width=width, strict=True)[..., 0]


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "simplejpeg is not installed, so damage inside of JPEG files goes unnoticed; pip install simplejpeg",
        stacklevel=4,
    )

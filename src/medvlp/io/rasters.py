"""JPEG and PNG files, and the checks that Pillow omits.

libjpeg continues after most damage with a warning that Pillow does not pass on; Pillow ignores the checksums of a PNG's
image data and leaves missing rows black.
"""

import functools
import os
import struct
import warnings
import zlib
from typing import IO

import numpy as np
from PIL import ImageFile, JpegImagePlugin, PngImagePlugin

try:
    import simplejpeg
except ImportError:  # no wheel for this platform
    simplejpeg = None

_TAIL = 512  # bytes in which the end marker is looked for first
_END = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB\x60\x82"}
_ORIENTATION = 0x0112
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PLAIN = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def open_raster(file: IO[bytes], kind: str) -> ImageFile.ImageFile:
    """Open a "JPEG" or "PNG" without decoding it; a broken header raises any exception."""
    # not Image.open, which has a global limit of its own; and of a multi-picture JPEG only the first is needed
    return JpegImagePlugin.JpegImageFile(file) if kind == "JPEG" else PngImagePlugin.PngImageFile(file)


def orientation(image: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation 1…8 of an image just opened; 1 (upright) if the tag is missing or invalid."""
    if "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block has no common error class, and says nothing of the picture
        return 1
    return value if value in range(1, 9) else 1


def has_end(file: IO[bytes], kind: str, scan: int) -> bool:
    """Whether the end marker closes the file, but for padding; cameras may append more, so all of it is searched."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(scan, size - _TAIL))
    if file.read().rstrip(b"\0").endswith(_END[kind]):
        return True
    file.seek(scan)
    # the marker cannot occur inside of a JPEG's compressed data, and hardly by chance in a PNG's
    return _END[kind] in file.read()


def decode_jpeg(data: bytes) -> np.ndarray | None:
    """Decode to luma, uint8 (H, W), with the same pixels as Pillow; None if simplejpeg is not installed.

    Raises:
        ValueError: libjpeg warns of damage, or cannot decode.
    """
    if simplejpeg is None:
        _warn_once()
        return None
    return np.asarray(simplejpeg.decode_jpeg(data, "GRAY", strict=True)[..., 0])


@functools.cache
def _warn_once() -> None:
    reason = "simplejpeg is not installed, so damage inside of JPEG files goes unnoticed; pip install simplejpeg"
    warnings.warn(reason, stacklevel=4)


def significant_bits(file: IO[bytes]) -> int:
    """Return how many bits of a grey PNG's samples are significant by its sBIT chunk; 0 if it does not say."""
    file.seek(8)
    while len(start := file.read(8)) == 8 and start[4:] not in (b"IDAT", b"IEND"):
        content = file.read(int.from_bytes(start[:4]))
        if start[4:] == b"sBIT" and content:
            return content[0]
        file.seek(4, os.SEEK_CUR)  # checksum
    return 0


def _inflated_length(header: bytes) -> int:
    """Return the size of the inflated image data: a filter byte and the packed samples of every row."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    total = 0
    for left, top, across, down in _ADAM7 if interlaced else _PLAIN:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * depth * _CHANNELS[colour] // 8))
    return total


def png_flaw(file: IO[bytes], count: bool) -> str:
    """Return what is wrong with the image data of a PNG file that Pillow decoded, or ""; ``count`` inflates it."""
    file.seek(8)
    inflater, needed, inflated = zlib.decompressobj(), 0, 0
    while len(start := file.read(8)) == 8 and (kind := start[4:]) != b"IEND":
        content = file.read(int.from_bytes(start[:4]))
        checksum = int.from_bytes(file.read(4))
        if kind in (b"IHDR", b"PLTE", b"IDAT") and zlib.crc32(content, zlib.crc32(kind)) != checksum:
            return f"{kind.decode()} chunk that does not match its checksum"
        if kind == b"IHDR":
            needed = _inflated_length(content)
        elif kind == b"IDAT" and count and inflated < needed:
            inflated += len(inflater.decompress(content, needed - inflated))
    return f"image data of {inflated} bytes instead of {needed}" if count and inflated < needed else ""

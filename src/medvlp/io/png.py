"""Checks of PNG files that Pillow leaves out: checksums of the image data, and rows that are not there."""

import struct
import zlib
from typing import IO

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PLAIN = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _length(header: bytes) -> int:
    """Bytes of the inflated image data by the header: a filter byte and the packed samples of every row."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    total = 0
    for left, top, across, down in _ADAM7 if interlaced else _PLAIN:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * depth * _CHANNELS[colour] // 8))
    return total


def png_flaw(file: IO[bytes], count: bool) -> str:
    """Say what is wrong with the image data of a PNG file that Pillow decoded.

    Args:
        file: the file.
        count: inflate the data to see whether they hold all rows. Pillow leaves missing rows black.

    Returns:
        The flaw, or "".
    """
    file.seek(8)
    inflater, needed, found = zlib.decompressobj(), 0, 0
    while len(start := file.read(8)) == 8 and (kind := start[4:]) != b"IEND":
        content = file.read(int.from_bytes(start[:4]))
        checksum = int.from_bytes(file.read(4))
        if kind in (b"IHDR", b"PLTE", b"IDAT") and zlib.crc32(content, zlib.crc32(kind)) != checksum:
            return f"{kind.decode()} chunk that does not match its checksum"
        if kind == b"IHDR":
            needed = _length(content)
        elif kind == b"IDAT" and count and found < needed:
            found += len(inflater.decompress(content, needed - found))
    return f"image data of {found} bytes instead of {needed}" if count and found < needed else ""

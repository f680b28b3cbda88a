"""What an image file is, by its first and last bytes, before any pixel is decoded."""

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from medvlp.errors import UnreadableItemError
from medvlp.io.rasters import has_end, open_raster, orientation

MAX_PIXELS = 200_000_000
"""Rows x columns above which a file counts as a decompression bomb; radiographs have up to about 20 million."""

HEAD = 132
"""Number of first bytes by which :func:`file_kind` recognises a file."""

DAMAGED = "damaged inside"
"""Reason for a file whose decoder warns of damage, before the decoder's words."""

_PIXELS_PER_BYTE = 4096  # of a JPEG; Huffman codes take at least a bit for 64 pixels, arithmetic codes less
_REMEDIES = {
    "missing file": "check the path, or fetch the file again",
    "a folder, not a file": "check the path",
    "not a regular file": "check the path",
    "not a JPEG, PNG or DICOM file": "convert it, or fetch the file again",
    "permission denied": "check the rights of the file",
    "DICOM file without pixel data": "leave it out of the table",
    DAMAGED: "fetch the file again, or set damaged: accept to take its pixels as they are",
}


@dataclass(frozen=True)
class ImageHeader:
    """Result of :func:`read_header`; unknown values are 0 or "".

    Args:
        format: "JPEG", "PNG" or "DICOM".
        width: columns of what ``read_image`` returns (EXIF orientation applied).
        height: rows, likewise.
        mode: Pillow's name of the stored channels ("L", "RGB", "RGBA", "I;16", …); "" for DICOM.
        bits: bits per channel as stored (DICOM: BitsStored).
        photometric: DICOM's PhotometricInterpretation, for example "MONOCHROME1".
        problem: "" for a file that seems sound, otherwise what is wrong, in a few words.
    """

    format: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    bits: int = 0
    photometric: str = ""
    problem: str = ""


def unreadable(path: Path, reason: str, remedy: str = "") -> UnreadableItemError:
    """Return the error for one file, with the usual remedy if none is given."""
    usual = "leave it out of the table, or make it smaller" if reason.startswith("decomp") else "fetch the file again"
    remedy = remedy or _REMEDIES.get(reason.split(" (", maxsplit=1)[0], usual)
    return UnreadableItemError(f"cannot read {path}: {reason}; {remedy}", item_id=path.stem, reason=reason)


def first_line(error: BaseException) -> str:
    """Return an exception's text in one line, for use inside another message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def bomb(width: int, height: int, stored: int = MAX_PIXELS) -> str:
    """Return the reason for refusing an image of that size, stored in that many bytes, or ""."""
    pixels = width * height
    if pixels > MAX_PIXELS:
        return f"decompression bomb: {pixels} pixels"
    return f"truncated JPEG ({stored} bytes for {pixels} pixels)" if pixels > _PIXELS_PER_BYTE * stored else ""


def file_problem(path: Path) -> str:
    """Return why a path is not a readable file with content, or ""."""
    try:
        status = path.stat()
    except PermissionError:
        return "permission denied"
    except FileNotFoundError:
        return "missing file"
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a zero byte in the name
        return f"missing file ({first_line(error)})"
    if stat.S_ISDIR(status.st_mode):
        return "a folder, not a file"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return "" if status.st_size else "zero-byte file"


def file_kind(file: IO[bytes]) -> str:
    """Return "JPEG", "PNG", "DICOM" or "" by the content; leaves the file at its beginning."""
    head = file.read(HEAD)
    file.seek(0)
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    # without preamble, a data set begins with its meta information, group 2, or at once with group 8
    bare = head[:2] in (b"\2\0", b"\x08\0") and head[2:3] < b"\x20" and head[3:4] == b"\0" and len(head) == HEAD
    return "DICOM" if head[128:] == b"DICM" or bare or head[:3] == b"\0\x08\0" else ""


def read_header(path: str | Path, within: str | Path | None = None) -> ImageHeader:
    """Describe an image file by its header and its last bytes, and say what is wrong with it.

    Nothing is decoded, so damage in the middle of a file goes unnoticed. No file raises, however broken. With
    ``within``, the root of a corpus, a path that leads out of it, by a link or otherwise, is a problem.
    """
    path = Path(path)
    problem = (_outside(path, Path(within)) if within is not None else "") or file_problem(path)
    if problem:
        return ImageHeader(problem=problem)
    try:
        with path.open("rb") as file:
            kind = file_kind(file)
            if not kind:
                return ImageHeader(problem="not a JPEG, PNG or DICOM file")
            try:
                if kind != "DICOM":
                    return _raster_header(file, kind)
                from medvlp.io.dicom import dicom_header  # pydicom takes longer to import than most headers to read

                return dicom_header(file, path)
            except Exception as error:  # parsers of broken files raise anything from struct.error to KeyError
                return ImageHeader(format=kind, problem=f"broken header ({first_line(error)})")
    except OSError as error:
        denied = isinstance(error, PermissionError)
        return ImageHeader(problem="permission denied" if denied else f"cannot be opened ({first_line(error)})")


def _outside(path: Path, root: Path) -> str:
    try:
        if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
            return ""
        spelled = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))
    except (OSError, ValueError):
        return ""  # file_problem names what is wrong with such a path
    return "symbolic link out of the corpus" if spelled else "path out of the corpus"


def _raster_header(file: IO[bytes], kind: str) -> ImageHeader:
    with open_raster(file, kind) as image:
        scan = file.tell() if kind == "JPEG" else 0
        width, height = image.size if orientation(image) < 5 else image.size[::-1]
        header = ImageHeader(kind, width, height, image.mode)
        jpeg_bits = int(getattr(image, "bits", 8))
        whole = has_end(file, kind, scan)
        file.seek(24)
        bits = jpeg_bits if kind == "JPEG" else file.read(1)[0]
        stored = file.seek(0, os.SEEK_END) if kind == "JPEG" else MAX_PIXELS
    problem = bomb(width, height, stored) or ("" if whole else f"truncated {kind} (no end marker)")
    return replace(header, bits=bits, problem=problem)

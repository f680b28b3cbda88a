"""What an image file is, told from its first and last bytes, before any pixel is decoded."""

import os
import stat
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from PIL import ImageFile, JpegImagePlugin, PngImagePlugin

from medvlp.errors import UnreadableItemError

MAX_PIXELS = 200_000_000
"""Rows x columns above which a file counts as a decompression bomb; radiographs have up to about 20 million."""

_HEAD = 132  # bytes that tell the kind
_TAIL = 512  # bytes in which the end marker is looked for first
_PNG_END = b"IEND\xaeB\x60\x82"
_JPEG_END = b"\xff\xd9"
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # the tag (7FE0,0010), little and big endian
_ORIENTATION = 0x0112
_UNDEFINED = 0xFFFFFFFF
_DEFLATED = "1.2.840.10008.1.2.1.99"  # the transfer syntax Deflated Explicit VR Little Endian
_META_START = 144  # preamble, "DICM", and the element that tells the length of what follows

_REMEDIES = {
    "missing file": "check the path, or fetch the file again",
    "a folder, not a file": "check the path",
    "not a regular file": "check the path",
    "not a JPEG, PNG or DICOM file": "convert it, or fetch the file again",
    "permission denied": "check the rights of the file",
    "DICOM file without pixel data": "leave it out of the table",
}


@dataclass(frozen=True)
class ImageHeader:
    """What :func:`read_header` found; unknown values are 0 or "".

    Args:
        format: "JPEG", "PNG" or "DICOM".
        width: columns, in pixels, of what ``read_image`` returns (EXIF orientation applied).
        height: rows, likewise.
        mode: Pillow's name of the stored channels ("L", "RGB", "RGBA", "I;16", …); "" for DICOM.
        bits: bits per channel as stored (DICOM: BitsStored).
        photometric: DICOM's PhotometricInterpretation, for example "MONOCHROME1"; "" for other formats.
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
    """The error for one file, with the usual remedy if none is given."""
    usual = "leave it out of the table, or make it smaller" if reason.startswith("decomp") else "fetch the file again"
    remedy = remedy or _REMEDIES.get(reason, usual)
    return UnreadableItemError(f"cannot read {path}: {reason}; {remedy}", item_id=path.stem, reason=reason)


def first_line(error: BaseException) -> str:
    """An exception's text in one line, for use inside another message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def bomb(width: int, height: int) -> str:
    """The reason for refusing an image of that size, or ""."""
    return f"decompression bomb: {width * height} pixels" if width * height > MAX_PIXELS else ""


def inflation_bomb(path: Path) -> str:
    """The reason for refusing a DICOM file that is deflated as a whole and too large once inflated, or "".

    pydicom inflates such a file before anything of it can be read; here it is inflated piece by piece, to count.

    Args:
        path: a DICOM file.

    Returns:
        "decompression bomb: …" or "".

    Raises:
        Exception: nearly anything, if the header is broken.
    """
    from pydicom.filereader import read_file_meta_info

    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != _DEFLATED:
        return ""
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(_META_START + int(meta.FileMetaInformationGroupLength))
        while piece := inflater.unconsumed_tail or file.read(1 << 16):
            total += len(inflater.decompress(piece, 1 << 20))
            if total > 2 * MAX_PIXELS:  # pixels of 16 bits
                return f"decompression bomb: more than {2 * MAX_PIXELS} bytes"
    return ""


def file_problem(path: Path) -> str:
    """Why a path cannot be opened as a file with something in it, or ""."""
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
    """The format of a file by its content: "JPEG", "PNG", "DICOM" or ""; leaves the file at its beginning."""
    head = file.read(_HEAD)
    file.seek(0)
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "DICOM" if head[128:] == b"DICM" else ""


def open_raster(file: IO[bytes], kind: str) -> ImageFile.ImageFile:
    """Open a JPEG or PNG file without decoding it.

    The plug-ins are called directly, because ``Image.open`` refuses at a limit of its own, which is global, and
    because the further pictures of a multi-picture JPEG are never wanted.

    Args:
        file: opened for reading in binary.
        kind: "JPEG" or "PNG".

    Returns:
        Pillow's image, not loaded.

    Raises:
        Exception: nearly anything, if the header is broken.
    """
    return JpegImagePlugin.JpegImageFile(file) if kind == "JPEG" else PngImagePlugin.PngImageFile(file)


def orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1…8 of an image just opened; 1 (upright) where the tag is missing or makes no sense."""
    if "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block has no common error class, and says nothing of the picture
        return 1
    return value if value in range(1, 9) else 1


def read_header(path: str | Path, within: str | Path | None = None) -> ImageHeader:
    """Describe an image file by its header and its last bytes, and say what is wrong with it.

    Nothing is decoded, so damage in the middle of a file goes unnoticed. Problems found are: "missing file", "a
    folder, not a file", "not a regular file", "permission denied", "zero-byte file", "symbolic link out of the
    corpus", "path out of the corpus", "not a JPEG, PNG or DICOM file", "truncated JPEG (no end marker)", "truncated
    PNG (no end marker)", "truncated DICOM file", "DICOM file without pixel data", "decompression bomb: N pixels",
    "broken header (…)".

    Args:
        path: the file.
        within: root of the corpus; a path that leads out of it, by a link or otherwise, is a problem.

    Returns:
        The header. It never raises for a file, however broken.
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
                return _dicom_header(file, path) if kind == "DICOM" else _raster_header(file, kind)
            except Exception as error:  # parsers of broken files raise anything from struct.error to KeyError
                return ImageHeader(format=kind, problem=f"broken header ({first_line(error)})")
    except PermissionError:
        return ImageHeader(problem="permission denied")
    except OSError as error:
        return ImageHeader(problem=f"cannot be opened ({first_line(error)})")


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
        whole = _ends_with(file, _JPEG_END, scan) if kind == "JPEG" else _ends_with(file, _PNG_END, 0)
        file.seek(24)
        bits = jpeg_bits if kind == "JPEG" else file.read(1)[0]
    problem = bomb(width, height) or ("" if whole else f"truncated {kind} (no end marker)")
    return replace(header, bits=bits, problem=problem)


def _ends_with(file: IO[bytes], marker: bytes, scan: int) -> bool:
    """Whether the end marker closes the file, but for padding; cameras may append more, so then all is searched."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(scan, size - _TAIL))
    if file.read().rstrip(b"\0").endswith(marker):
        return True
    file.seek(scan)
    # the marker cannot occur inside of a JPEG's compressed data, and hardly by chance in a PNG's
    return marker in file.read()


def _dicom_header(file: IO[bytes], path: Path) -> ImageHeader:
    from pydicom import dcmread

    if too_large := inflation_bomb(path):
        return ImageHeader("DICOM", problem=too_large)
    tags = ["Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel", "NumberOfFrames"]
    data = dcmread(file, stop_before_pixels=True, specific_tags=[*tags, "PhotometricInterpretation"])
    height, width = int(data.get("Rows", 0) or 0), int(data.get("Columns", 0) or 0)
    photometric = str(data.get("PhotometricInterpretation", "") or "").strip()
    header = ImageHeader("DICOM", width, height, "", int(data.get("BitsStored", 0) or 0), photometric)
    # a deflated file is no longer read from the file itself
    deflated = getattr(data.file_meta, "TransferSyntaxUID", None) == _DEFLATED
    return replace(header, problem=bomb(width, height) or ("" if deflated else _pixel_problem(file, data)))


def _pixel_problem(file: IO[bytes], data: Any) -> str:
    """Whether the pixel data, at which the reader stopped, are there to their end."""
    little, implicit = data.original_encoding[1], data.original_encoding[0]
    order: Any = "little" if little else "big"
    start = file.read(8)
    if start[:4] not in _PIXEL_DATA:
        return "DICOM file without pixel data" if not start else "truncated DICOM file"
    if implicit:
        length = int.from_bytes(start[4:], order)
    else:
        length = int.from_bytes(start[6:] if start[4:6] not in (b"OB", b"OW", b"UN") else file.read(4), order)
    here = file.tell()
    left = file.seek(0, os.SEEK_END) - here
    if length != _UNDEFINED:
        bits = int(data.get("BitsAllocated", 8) or 8) * int(data.get("SamplesPerPixel", 1) or 1)
        frames = int(data.get("NumberOfFrames", 1) or 1)
        needed = int(data.get("Rows", 0) or 0) * int(data.get("Columns", 0) or 0) * frames * bits // 8
        subsampled = "422" in str(data.get("PhotometricInterpretation", ""))
        short = length < needed and not subsampled
        return "truncated DICOM file" if length > left or short else ""
    file.seek(here)
    while True:  # one item for the offset table, then few per frame: a radiograph has about two
        item = file.read(8)
        if len(item) < 8:
            return "truncated DICOM file"
        if item[:4] == b"\xfe\xff\xdd\xe0":
            return ""
        length = int.from_bytes(item[4:], "little")
        if item[:4] != b"\xfe\xff\x00\xe0" or length == _UNDEFINED:
            return "truncated DICOM file"
        file.seek(length, os.SEEK_CUR)

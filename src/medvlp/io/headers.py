"""What an image file is, told from its first and last bytes, before any pixel is decoded."""

import os
import stat
import zlib
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from PIL import ImageFile, JpegImagePlugin, PngImagePlugin

from medvlp.errors import UnreadableItemError

MAX_PIXELS = 200_000_000
"""Rows x columns above which a file counts as a decompression bomb; radiographs have up to about 20 million."""

_HEAD = 132  # bytes that tell the kind
_TAIL = 512  # bytes in which the end marker is looked for first
_PIXELS_PER_BYTE = 4096  # of a JPEG; Huffman codes take at least a bit for 64 pixels, arithmetic codes less
_PNG_END = b"IEND\xaeB\x60\x82"
_JPEG_END = b"\xff\xd9"
# the tags of pixels as integers, floats and doubles, (7FE0,0010), (7FE0,0008) and (7FE0,0009), in both byte orders
_PIXEL_DATA = {b"\xe0\x7f" + e for e in (b"\x10\0", b"\x08\0", b"\x09\0")}
_PIXEL_DATA |= {b"\x7f\xe0" + e for e in (b"\0\x10", b"\0\x08", b"\0\x09")}
_LONG_VR = (
    b"OB",
    b"OW",
    b"UN",
    b"OF",
    b"OD",
)  # two empty bytes follow, then a length of four
_ORIENTATION = 0x0112
_UNDEFINED = 0xFFFFFFFF
_NEEDED = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated")
_ALLOWED: dict[str, Container[int]] = {
    "Rows": range(1, 65536),
    "Columns": range(1, 65536),
    "SamplesPerPixel": (1, 3),
    "BitsAllocated": (1, *range(8, 65, 8)),
    "PixelRepresentation": (0, 1),
    "PlanarConfiguration": (0, 1),
}
_NEEDED_WHOLE = ("BitsStored", "PixelRepresentation")  # of pixels that are whole numbers

# packages with a decoder, by a part of the transfer syntax's name; the first that fits
_DECODERS = (
    ("JPEG 2000", "pip install 'medvlp[dicom]'"),
    ("JPEG-LS", "pip install pyjpegls"),
    ("JPEG", "pip install pylibjpeg pylibjpeg-libjpeg (GPL-3.0)"),
)

DAMAGED = "damaged inside"
"""Reason for a file whose decoder warns of damage, before the decoder's words."""

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
    remedy = remedy or _REMEDIES.get(reason.split(" (", maxsplit=1)[0], usual)
    return UnreadableItemError(f"cannot read {path}: {reason}; {remedy}", item_id=path.stem, reason=reason)


def first_line(error: BaseException) -> str:
    """An exception's text in one line, for use inside another message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def bomb(width: int, height: int, stored: int = MAX_PIXELS) -> str:
    """The reason for refusing an image of that size, stored in that many bytes, or ""."""
    pixels = width * height
    if pixels > MAX_PIXELS:
        return f"decompression bomb: {pixels} pixels"
    few = pixels > _PIXELS_PER_BYTE * stored
    return f"truncated JPEG ({stored} bytes for {pixels} pixels)" if few else ""


def open_dicom(path: Path, file: IO[bytes] | None = None, **options: Any) -> Any:
    """Read a DICOM file with or without preamble and file meta information.

    pydicom inflates a deflated file before anything of it can be read; here it is inflated piece by piece first, to
    count.

    Args:
        path: a file of kind "DICOM".
        file: the same, opened; left where reading stopped.
        options: of ``pydicom.dcmread``.

    Returns:
        pydicom's data set, with a transfer syntax wherever it can be told.

    Raises:
        UnreadableItemError: a decompression bomb.
        Exception: nearly anything, if the header is broken.
    """
    from pydicom import dcmread, uid
    from pydicom.filereader import read_dataset

    with path.open("rb") as again:
        bare = file_kind(again) == "DICOM" and again.read(_HEAD)[128:] != b"DICM"
        again.seek(0 if bare else _HEAD)
        meta = read_dataset(again, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
            while piece := inflater.unconsumed_tail or again.read(1 << 16):
                total += len(inflater.decompress(piece, 1 << 20))
                if total > 2 * MAX_PIXELS:  # pixels of 16 bits
                    raise unreadable(path, f"decompression bomb: more than {2 * MAX_PIXELS} bytes")
    data = dcmread(file or path, force=bare, **options)
    if not data.file_meta.get("TransferSyntaxUID"):
        implicit, little = data.original_encoding
        plain = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        data.file_meta.TransferSyntaxUID = plain if little else uid.ExplicitVRBigEndian
    return data


def tag_problem(data: Any, whole: bool = True) -> str:
    """Which tag that decoding needs is missing from a DICOM data set or makes no sense, or a size beyond the limit.

    Args:
        data: pydicom's data set.
        whole: whether its pixels are whole numbers.

    Returns:
        "" if nothing is wrong.
    """
    needed = (
        _NEEDED
        + (_NEEDED_WHOLE if whole else ())
        + (("PlanarConfiguration",) if data.get("SamplesPerPixel") == 3 else ())
    )
    if absent := [tag for tag in needed if data.get(tag) in (None, "")]:
        return f"DICOM file without {', '.join(absent)}"
    allowed = {**_ALLOWED, "BitsStored": range(1, int(data.BitsAllocated) + 1)}
    for tag in needed:
        if tag in allowed and int(data.get(tag)) not in allowed[tag]:
            return f"DICOM file with {tag} {data.get(tag)}"
    return bomb(int(data.Rows), int(data.Columns))


def decoder_problem(data: Any) -> tuple[str, str]:
    """Why no installed package decodes a DICOM data set, and the remedy; ("", "") if one does."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    syntax = data.file_meta.get("TransferSyntaxUID")
    try:
        plugins = get_decoder(syntax).available_plugins if syntax.is_compressed else ("none needed",)
    except NotImplementedError:
        plugins = ()
    except Exception:  # a damaged or private identifier, or several of them: the decoder will say it
        return "", ""
    # Pillow counts as a decoder of this one, and decodes 8 bits alone
    bits = int(data.get("BitsStored") or 0)
    if plugins and not (syntax == JPEGExtended12Bit and bits > 8 and set(plugins) == {"pillow"}):
        return "", ""
    remedy = next((r for part, r in _DECODERS if part in syntax.name), "convert it with another tool")
    return f"no decoder for {syntax.name} is installed", remedy


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
    # without preamble, a data set begins with its meta information, group 2, or at once with group 8
    bare = head[:2] in (b"\2\0", b"\x08\0") and head[2:3] < b"\x20" and head[3:4] == b"\0" and len(head) == _HEAD
    return "DICOM" if head[128:] == b"DICM" or bare or head[:3] == b"\0\x08\0" else ""


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


def significant_bits(file: IO[bytes]) -> int:
    """How many bits of a grey PNG's samples mean something by its sBIT chunk; 0 if it does not say."""
    file.seek(8)
    while len(start := file.read(8)) == 8 and start[4:] not in (b"IDAT", b"IEND"):
        content = file.read(int.from_bytes(start[:4]))
        if start[4:] == b"sBIT" and content:
            return content[0]
        file.seek(4, os.SEEK_CUR)  # checksum
    return 0


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
    PNG (no end marker)", "truncated DICOM file", "DICOM file without pixel data", "DICOM file without Rows" or
    "DICOM file with Rows 0" (or another tag that decoding needs), "no decoder for … is installed", "decompression
    bomb: N pixels", "broken header (…)".

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
        stored = file.seek(0, os.SEEK_END) if kind == "JPEG" else MAX_PIXELS
    problem = bomb(width, height, stored) or ("" if whole else f"truncated {kind} (no end marker)")
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
    tags = [*_NEEDED, *_NEEDED_WHOLE, "NumberOfFrames", "PlanarConfiguration"]
    try:
        data = open_dicom(path, file, stop_before_pixels=True, specific_tags=tags)
    except UnreadableItemError as error:
        return ImageHeader("DICOM", problem=error.reason)
    height, width = int(data.get("Rows", 0) or 0), int(data.get("Columns", 0) or 0)
    photometric = str(data.get("PhotometricInterpretation", "") or "").strip()
    header = ImageHeader("DICOM", width, height, "", int(data.get("BitsStored", 0) or 0), photometric)
    # a deflated file is no longer read from the file itself
    deflated = data.file_meta.get("TransferSyntaxUID") == "1.2.840.10008.1.2.1.99"
    return replace(header, problem=_data_problem(data, None if deflated else file))


def length_problem(data: Any, length: int, rest: Callable[[int], bytes]) -> str:
    """Compare the length of uncompressed pixel data with the size that the tags give, or return "".

    Zeros beyond the image are padding, and so is anything shorter than a row and a column.

    Args:
        data: pydicom's data set.
        length: of the pixel data in bytes.
        rest: returns the pixel data from an offset on.
    """
    pixels = int(data.Rows) * int(data.Columns) * max(int(data.get("NumberOfFrames") or 1), 1)
    depth = int(data.BitsAllocated) * int(data.SamplesPerPixel)
    if "422" in str(data.get("PhotometricInterpretation", "")):
        return ""
    needed = pixels * depth // 8
    if length < needed:
        return "truncated DICOM file"
    padding = max(min(int(data.Rows), int(data.Columns)) * depth // 8, 2)
    if length - needed < padding or not any(rest(needed)):
        return ""
    return "DICOM file with more pixel data than Rows and Columns say"


def _data_problem(data: Any, file: IO[bytes] | None) -> str:
    """What is wrong with a data set, and with the pixels at which reading stopped, if they are in the file."""
    if file is None:
        return tag_problem(data)
    implicit, little = data.original_encoding
    order: Any = "little" if little else "big"
    start = file.read(8)
    if start[:4] not in _PIXEL_DATA:
        return "truncated DICOM file" if start else "DICOM file without pixel data"
    whole = start[:4] in (b"\xe0\x7f\x10\0", b"\x7f\xe0\0\x10")
    if problem := tag_problem(data, whole) or decoder_problem(data)[0]:
        return problem
    # some files are implicit from the second element on, whatever their transfer syntax says
    if implicit or not start[4:6].isalpha():
        length = int.from_bytes(start[4:], order)
    else:
        length = int.from_bytes(file.read(4) if start[4:6] in _LONG_VR else start[6:], order)
    here = file.tell()
    left = file.seek(0, os.SEEK_END) - here
    if length != _UNDEFINED:
        if length > left:
            return "truncated DICOM file"

        def rest(start: int) -> bytes:
            file.seek(here + start)
            return file.read(length - start)

        return length_problem(data, length, rest)
    file.seek(here)
    return "" if _items_end(file) else "truncated DICOM file"


def _items_end(file: IO[bytes]) -> bool:
    """Whether a sequence of encapsulated frames is there to its end."""
    while True:  # one item for the offset table, then few per frame: a radiograph has about two
        item = file.read(8)
        length = int.from_bytes(item[4:], "little")
        if item[:4] != b"\xfe\xff\x00\xe0" or len(item) < 8 or length == _UNDEFINED:
            return item[:4] == b"\xfe\xff\xdd\xe0" and len(item) == 8
        file.seek(length, os.SEEK_CUR)

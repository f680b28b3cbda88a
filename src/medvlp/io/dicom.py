"""DICOM radiographs: header, checks, and decoding to grey levels of 8 bits."""

import logging
import os
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import get_ident
from typing import IO, Any

import numpy as np
from pydicom import dcmread, uid
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from medvlp.errors import UnreadableItemError, check_choice
from medvlp.io import headers
from medvlp.io.display import RULES, grey_levels, text_of
from medvlp.io.headers import DAMAGED, HEAD, ImageHeader, bomb, file_kind, file_problem, first_line, unreadable
from medvlp.io.rasters import decode_jpeg

_PIXEL_TAGS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# the same as bytes, (7FE0,0010), (7FE0,0008) and (7FE0,0009), in both byte orders
_PIXEL_DATA = {b"\xe0\x7f" + e for e in (b"\x10\0", b"\x08\0", b"\x09\0")}
_PIXEL_DATA |= {b"\x7f\xe0" + e for e in (b"\0\x10", b"\0\x08", b"\0\x09")}
_LONG_VR = (b"OB", b"OW", b"UN", b"OF", b"OD")  # two empty bytes follow, then a length of four
_UNDEFINED = 0xFFFFFFFF
_DEFER = 1 << 16  # bytes; longer elements (the pixels) are left in the file until the header has been checked
_NEEDED = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated")
_NEEDED_WHOLE = ("BitsStored", "PixelRepresentation")  # of pixels that are whole numbers
_ALLOWED: dict[str, Container[int]] = {
    "Rows": range(1, 65536),
    "Columns": range(1, 65536),
    "SamplesPerPixel": (1, 3),
    "BitsAllocated": (1, *range(8, 65, 8)),
    "PixelRepresentation": (0, 1),
    "PlanarConfiguration": (0, 1),
}
# packages with a decoder, by a part of the transfer syntax's name; the first that fits
_DECODERS = (
    ("JPEG 2000", "pip install 'medvlp[dicom]'"),
    ("JPEG-LS", "pip install pyjpegls"),
    ("JPEG", "pip install pylibjpeg pylibjpeg-libjpeg (GPL-3.0)"),
)
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601


def read_dicom(path: str | Path, intensity: str = "standard", damaged: str = "refuse") -> np.ndarray:
    """Read a radiograph; of a file with several frames, the first.

    docs/datasets/images.md describes the rule "standard", the display pipeline of DICOM PS3.4 N.2. "minmax" follows the
    same pipeline; the other rules repeat published code, which ignores padding and PresentationLUTShape. Colour files
    become luma by ITU-R 601 under every rule before anything else.

    Args:
        path: the file.
        intensity: one of :data:`medvlp.io.images.INTENSITIES`. "medklip" alone leaves MONOCHROME1 dark on bright.
        damaged: "refuse" a file whose decoder warns of damage, or "accept" the pixels that it returns nevertheless.

    Returns:
        uint8 (H, W), bright = dense tissue, whatever the file's photometric interpretation.

    Raises:
        ConfigError: an unknown intensity rule.
        UnreadableItemError: the file is missing, truncated, damaged, no image, or larger than 200 megapixels; decoding
            needs a tag or a decoder that is missing; or its window or tables make no sense.
    """
    check_choice("intensity rule", intensity, RULES)
    path = Path(path)
    if problem := file_problem(path):
        raise unreadable(path, problem)
    try:
        data = _open(path, defer_size=_DEFER)
        pixels_tag = next((tag for tag in _PIXEL_TAGS if tag in data), "")
        if not pixels_tag:  # or with so few that pydicom passes over them
            raise unreadable(path, headers.read_header(path).problem or "DICOM file without pixel data")
        if reasons := _problem(data, pixels_tag == "PixelData"):
            raise unreadable(path, *reasons)
    except UnreadableItemError:
        raise
    except Exception as error:  # broken files raise anything from struct.error to AttributeError in the parser
        raise unreadable(path, f"not a readable DICOM file ({first_line(error)})") from error
    stored = _decode(path, data, damaged)
    try:
        return grey_levels(stored, data, intensity)
    except Exception as error:  # windows, tables and numbers that make no sense
        remedy = "try intensity: full_range, which needs neither window nor table, or fetch the file again"
        raise unreadable(path, f"invalid window, table or header value ({first_line(error)})", remedy) from error


def dicom_header(file: IO[bytes], path: Path) -> ImageHeader:
    """Describe a DICOM file that is opened; see :func:`medvlp.io.headers.read_header`."""
    tags = [*_NEEDED, *_NEEDED_WHOLE, "NumberOfFrames", "PlanarConfiguration"]
    try:
        data = _open(path, file, stop_before_pixels=True, specific_tags=tags)
    except UnreadableItemError as error:
        return ImageHeader("DICOM", problem=error.reason)
    height, width, bits = (int(data.get(tag, 0) or 0) for tag in ("Rows", "Columns", "BitsStored"))
    photometric = str(data.get("PhotometricInterpretation", "") or "").strip()
    header = ImageHeader("DICOM", width, height, "", bits, photometric)
    if data.file_meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        problem, _ = _problem(data) or ("", "")  # its pixels were not read from the file itself
    else:
        problem = _stored_problem(data, file)
    return replace(header, problem=problem)


def _open(path: Path, file: IO[bytes] | None = None, **options: Any) -> Any:
    """Read a DICOM file with or without preamble and file meta information; ``file`` is left where reading stopped.

    A broken header raises any exception. Since pydicom inflates a deflated file before anything of it can be read, it
    is inflated piece by piece first, to count.
    """
    with path.open("rb") as again:
        bare = file_kind(again) == "DICOM" and again.read(HEAD)[128:] != b"DICM"
        again.seek(0 if bare else HEAD)
        meta = read_dataset(again, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            inflater, total, limit = zlib.decompressobj(-zlib.MAX_WBITS), 0, 2 * headers.MAX_PIXELS  # of 16 bits
            while piece := inflater.unconsumed_tail or again.read(1 << 16):
                total += len(inflater.decompress(piece, 1 << 20))
                if total > limit:
                    raise unreadable(path, f"decompression bomb: more than {limit} bytes")
    data = dcmread(file or path, force=bare, **options)
    if not data.file_meta.get("TransferSyntaxUID"):
        implicit, little = data.original_encoding
        plain = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        data.file_meta.TransferSyntaxUID = plain if little else uid.ExplicitVRBigEndian
    return data


def _problem(data: Any, whole: bool = True) -> tuple[str, str] | None:
    """Return the first reason why a data set cannot be decoded, and its remedy ("" for the usual one), or None."""
    planar = ("PlanarConfiguration",) if data.get("SamplesPerPixel") == 3 else ()
    needed = (*_NEEDED, *(_NEEDED_WHOLE if whole else ()), *planar)
    if absent := [tag for tag in needed if data.get(tag) in (None, "")]:
        return f"DICOM file without {', '.join(absent)}", ""
    allowed = {**_ALLOWED, "BitsStored": range(1, int(data.BitsAllocated) + 1)}
    for tag in needed:
        if tag in allowed and int(data.get(tag)) not in allowed[tag]:
            return f"DICOM file with {tag} {data.get(tag)}", ""
    if reason := bomb(int(data.Rows), int(data.Columns)):
        return reason, ""
    syntax = data.file_meta.get("TransferSyntaxUID")
    try:
        plugins = get_decoder(syntax).available_plugins if syntax.is_compressed else ("none needed",)
    except NotImplementedError:
        plugins = ()
    except Exception:  # a damaged or private identifier, or several of them: the decoder will say it
        return None
    # Pillow counts as a decoder of this one, and decodes 8 bits alone
    bits = int(data.get("BitsStored") or 0)
    if plugins and not (syntax == uid.JPEGExtended12Bit and bits > 8 and set(plugins) == {"pillow"}):
        return None
    remedy = next((r for part, r in _DECODERS if part in syntax.name), "convert it with another tool")
    return f"no decoder for {syntax.name} is installed", remedy


def _stored_problem(data: Any, file: IO[bytes]) -> str:
    """Return what is wrong with a data set, or with its pixels, at which reading stopped."""
    implicit, little = data.original_encoding
    start = file.read(8)
    if start[:4] not in _PIXEL_DATA:
        return "truncated DICOM file" if start else "DICOM file without pixel data"
    if problem := _problem(data, whole=start[:4] in (b"\xe0\x7f\x10\0", b"\x7f\xe0\0\x10")):
        return problem[0]
    # some files are implicit from the second element on, whatever their transfer syntax says
    field = start[4:]
    if not implicit and start[4:6].isalpha():
        field = file.read(4) if start[4:6] in _LONG_VR else start[6:]
    length = int.from_bytes(field, "little" if little else "big")
    here = file.tell()
    left = file.seek(0, os.SEEK_END) - here
    if length == _UNDEFINED:
        file.seek(here)
        return "" if _items_end(file) else "truncated DICOM file"
    if length > left:
        return "truncated DICOM file"

    def rest(start: int) -> bytes:
        file.seek(here + start)
        return file.read(length - start)

    return _length_problem(data, length, rest)


def _items_end(file: IO[bytes]) -> bool:
    """Whether a sequence of encapsulated frames is complete."""
    while True:  # one item for the offset table, then few per frame: a radiograph has about two
        item = file.read(8)
        length = int.from_bytes(item[4:], "little")
        if item[:4] != b"\xfe\xff\x00\xe0" or len(item) < 8 or length == _UNDEFINED:
            return item[:4] == b"\xfe\xff\xdd\xe0" and len(item) == 8
        file.seek(length, os.SEEK_CUR)


def _length_problem(data: Any, length: int, rest: Callable[[int], bytes]) -> str:
    """Compare the bytes of uncompressed pixel data with the size that the tags give; ``rest`` reads from an offset."""
    pixels = int(data.Rows) * int(data.Columns) * max(int(data.get("NumberOfFrames") or 1), 1)
    depth = int(data.BitsAllocated) * int(data.SamplesPerPixel)
    if "422" in str(data.get("PhotometricInterpretation", "")):
        return ""
    needed = pixels * depth // 8
    if length < needed:
        return "truncated DICOM file"
    # zeros beyond the image are padding, and so is anything shorter than a row and a column
    padding = max(min(int(data.Rows), int(data.Columns)) * depth // 8, 2)
    if length - needed < padding or not any(rest(needed)):
        return ""
    return "DICOM file with more pixel data than Rows and Columns say"


def _decode(path: Path, data: Any, damaged: str) -> np.ndarray:
    """Stored cells (H, W) of the first frame, unused bits included; colour as luma in the range of its depth."""
    photometric = text_of(data, "PhotometricInterpretation")
    grey = photometric.startswith("MONOCHROME")
    try:
        if not data.get("NumberOfFrames"):  # 0 and empty count as absent
            data.NumberOfFrames = 1
        plain = not data.file_meta.TransferSyntaxUID.is_encapsulated and "PixelData" in data
        if plain and (problem := _length_problem(data, len(data.PixelData), lambda start: data.PixelData[start:])):
            raise unreadable(path, problem)
        strict = _strict_jpeg(path, data) if damaged == "refuse" else None
        if strict is not None and grey and strict.shape == (data.Rows, data.Columns) and not data.PixelRepresentation:
            return strict
        with _decoder_warnings() as warned:
            array = pixel_array(data, index=0, correct_unused_bits=not grey)
        if damaged == "refuse" and warned:
            raise unreadable(path, f"{DAMAGED} ({warned[0]})")
        if photometric == "PALETTE COLOR":
            array = apply_color_lut(array, data)
        if array.ndim == 3:  # colour; pydicom has already turned YCbCr into RGB
            top = np.iinfo(array.dtype).max
            array = np.clip(np.rint(array[..., :3] @ _LUMA), 0, top).astype(array.dtype)
        if array.ndim != 2 or not array.size or array.dtype.kind not in "iuf":
            raise ValueError(f"pixel array of {array.ndim} dimensions, {array.size} values, type {array.dtype}")
    except UnreadableItemError:
        raise
    except Exception as error:  # decoder plug-ins have no common error class
        reason = f"truncated or broken pixel data ({' '.join(str(error).split())})"
        raise unreadable(path, headers.read_header(path).problem or reason) from error
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _strict_jpeg(path: Path, data: Any) -> np.ndarray | None:
    """Luma of the first frame of 8-bit JPEG, or an error if the decoder warns; None for other kinds."""
    syntax = data.file_meta.TransferSyntaxUID
    if syntax not in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit) or int(data.BitsStored) > 8:
        return None
    frame = get_frame(data.PixelData, 0, number_of_frames=int(data.NumberOfFrames))
    try:
        return decode_jpeg(frame)
    except ValueError as error:
        raise unreadable(path, f"{DAMAGED} ({first_line(error)})") from error


@contextmanager
def _decoder_warnings() -> Iterator[list[str]]:
    """Collect what pydicom logs in this thread of run lengths that decode to more than the image."""
    messages: list[str] = []
    thread, logger, handler = get_ident(), logging.getLogger("pydicom"), logging.Handler(logging.WARNING)
    handler.addFilter(lambda record: record.thread == thread and "RLE segment contains non" in record.getMessage())
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)

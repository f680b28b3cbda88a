"""Mutated images: PNG and JPEG in other clothes, with broken parts, or as another format.

How to run them: ``test_tables.py``.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
from mutations import Kind, Trial, attempt, mutate_bytes, refused
from PIL import Image
from pydicom.uid import UID

from medvlp.io.headers import read_header
from medvlp.io.images import read_image

HEIGHT, WIDTH = 24, 18
IMPLICIT, LITTLE, DEFLATED, BIG, JPEG, RLE = (
    UID(f"1.2.840.10008.1.2{end}") for end in ("", ".1", ".1.99", ".2", ".4.50", ".5")
)


def picture(rng: np.random.Generator, top: int = 255) -> np.ndarray:
    """Grey levels that differ at every place, smooth enough for JPEG."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    values = 0.5 + 0.3 * np.sin(x / 3 + rng.random()) * np.cos(y / 4) + 0.15 * rng.random((HEIGHT, WIDTH))
    return np.clip(values * top, 0, top).astype(np.uint8 if top < 256 else np.uint16)


def jpeg_bytes(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **{"quality": 95, **options})
    return stream.getvalue()


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def png_bytes(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


class Rasters(Kind):
    """PNG and JPEG files: the same picture in other clothes, and pictures that lost something."""

    name, share = "raster", 30

    def trial(self, trial: Trial) -> None:
        what = trial.pick("clothes clothes turned chunks chunks png png jpeg jpeg segments other bomb")
        pixels = picture(trial.rng)
        trial.note(what)
        content, expected = getattr(self, f"_{what}")(trial, pixels)
        path = trial.folder / trial.pick("x.png x.jpg x.dcm x")
        path.write_bytes(content)
        image = attempt(read_image, path)
        header = read_header(path)
        if isinstance(expected, str):  # must be refused
            assert refused(image), f"{expected} is read"
            return
        if refused(image):
            assert expected is None or what in ("chunks", "segments", "png"), f"{what} is refused: {image}"
            return
        assert image.dtype == np.uint8
        assert not header.problem or what not in ("clothes", "turned"), header.problem
        assert header.problem or (header.height, header.width) == image.shape, f"{header}, {image.shape}"
        if expected is not None:
            assert image.shape == expected.shape
            assert np.array_equal(image, expected), f"off by {np.abs(image.astype(int) - expected).max()}"

    def _clothes(self, trial: Trial, pixels: np.ndarray) -> tuple[bytes, Any]:
        """The same grey levels in every way that PNG can hold them."""
        image = Image.fromarray(pixels)
        how = trial.pick("RGB RGBA LA P 16 1 level JPEG trailing")
        trial.note(how)
        if how == "16":
            return encoded(Image.fromarray(pixels.astype(np.uint16) * 257), "PNG"), pixels
        if how == "1":
            bits = Image.fromarray(np.where(pixels > 128, 255, 0).astype(np.uint8)).convert("1")
            return encoded(bits, "PNG"), np.array(bits.convert("L"))
        if how == "JPEG":
            return jpeg_bytes(pixels, progressive=trial.often(0.5), optimize=trial.often(0.5), comment="x"), np.array(
                Image.open(io.BytesIO(jpeg_bytes(pixels)))
            )
        if how == "level":
            return encoded(image, "PNG", compress_level=int(trial.rng.integers(10))), pixels
        if how == "trailing":
            return encoded(image, "PNG") + trial.rng.bytes(40), pixels
        if how == "P":
            palette = image.convert("P")
            return encoded(palette, "PNG"), np.array(palette.convert("L"))
        return encoded(image.convert(how), "PNG"), pixels

    def _turned(self, trial: Trial, pixels: np.ndarray) -> tuple[bytes, Any]:
        """EXIF orientation, of a JPEG and of a PNG."""
        turn = int(trial.rng.integers(0, 11))
        exif = Image.Exif()
        exif[0x0112] = turn
        form = trial.one(["JPEG", "PNG"])
        content = encoded(Image.fromarray(pixels), form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))
        flat = np.array(Image.open(io.BytesIO(content)))
        upright = {
            2: flat[:, ::-1], 3: flat[::-1, ::-1], 4: flat[::-1], 5: flat.T,
            6: np.rot90(flat, -1), 7: flat[::-1, ::-1].T, 8: np.rot90(flat),
        }  # fmt: skip
        trial.note(f"{form} {turn}")
        return content, upright.get(turn, flat)

    def _chunks(self, trial: Trial, pixels: np.ndarray) -> tuple[bytes, Any]:
        """Chunks with right checksums that say something else."""
        chunks = png_chunks(encoded(Image.fromarray(pixels), "PNG"))
        head = bytearray(chunks[0][1])
        how = trial.pick("extra twice order drop size depth zlib split")
        trial.note(how)
        if how == "extra":  # harmless by the standard: a reader skips what is ancillary
            kind = trial.one([b"tEXt", b"vpAg", b"tIME", b"eXIf", b"iCCP", b"pHYs", b"zTXt", b"iTXt"])
            return png_bytes([chunks[0], (kind, trial.rng.bytes(int(trial.rng.integers(40)))), *chunks[1:]]), pixels
        if how == "split":
            data = chunks[1][1]
            at = int(trial.rng.integers(1, len(data)))
            return png_bytes([chunks[0], (b"IDAT", data[:at]), (b"IDAT", data[at:]), chunks[-1]]), pixels
        if how == "twice":
            return png_bytes([*chunks[:-1], trial.one(chunks), chunks[-1]]), None
        if how == "order":
            trial.rng.shuffle(chunks)
            return png_bytes([tuple(c) for c in chunks]), None
        if how == "drop":
            del chunks[int(trial.rng.integers(2))]
            return png_bytes(chunks), "a PNG without one of its chunks"
        if how == "size":  # more rows than there are
            head[4:8] = struct.pack(">I", HEIGHT + int(trial.one([1, 8, 4000])))
            return png_bytes([(b"IHDR", bytes(head)), *chunks[1:]]), "a PNG with fewer rows than it says"
        if how == "depth":
            head[8 + int(trial.rng.integers(5))] = int(trial.one([0, 1, 2, 3, 4, 5, 6, 16, 32, 255]))
            return png_bytes([(b"IHDR", bytes(head)), *chunks[1:]]), None
        return png_bytes([chunks[0], (b"IDAT", mutate_bytes(trial, chunks[1][1])), chunks[-1]]), None

    def _png(self, trial: Trial, pixels: np.ndarray) -> tuple[bytes, Any]:
        """Bytes of a PNG, in which every chunk has its checksum."""
        content = encoded(Image.fromarray(pixels), "PNG")
        changed = mutate_bytes(trial, content)
        return changed, pixels

    def _jpeg(self, trial: Trial, pixels: np.ndarray) -> tuple[bytes, Any]:
        """Bytes of a JPEG, which has no checksum: only what was cut off shows."""
        content = jpeg_bytes(pixels, progressive=trial.often(0.3))
        if trial.often(0.3):
            return content[: int(trial.rng.integers(3, len(content) - 2))], "a JPEG that was cut short"
        return mutate_bytes(trial, content), None

    def _segments(self, trial: Trial, pixels: np.ndarray) -> tuple[bytes, Any]:
        """A segment that a reader must skip."""
        content = jpeg_bytes(pixels)
        body = trial.rng.bytes(int(trial.rng.integers(60)))
        kind = int(trial.one([0xE2, 0xE3, 0xE5, 0xED, 0xEF, 0xFE, 0xE1]))
        segment = bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body
        return content[:2] + segment + content[2:], np.array(Image.open(io.BytesIO(content)))

    def _other(self, trial: Trial, pixels: np.ndarray) -> tuple[bytes, Any]:
        form = trial.pick("TIFF BMP GIF WEBP PPM TGA ICO JPEG2000")
        trial.note(form)
        content = encoded(Image.fromarray(pixels), form)
        return (
            mutate_bytes(trial, content) if trial.often(0.5) else content
        ), None if form == "PPM" else f"a {form} file"

    def _bomb(self, trial: Trial, pixels: np.ndarray) -> tuple[bytes, Any]:
        """Small files that claim to be huge."""
        width, height = trial.one(
            [(60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (15_000, 15_000), (65_535, 65_535)]
        )
        if trial.often(0.5):
            head = struct.pack(">IIBBBBB", width, height, int(trial.one([1, 8, 16])), 0, 0, 0, 0)
            body = zlib.compress(bytes(10_000_000), 9)
            return png_bytes([(b"IHDR", head), (b"IDAT", body), (b"IEND", b"")]), "a bomb"
        content = bytearray(jpeg_bytes(pixels, progressive=trial.often(0.5)))
        at = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
        content[at + 5 : at + 9] = struct.pack(">HH", min(height, 65_500), min(width, 65_500))
        return bytes(content), "a bomb" if min(height, 65_500) * min(width, 65_500) > 200_000_000 else None


def test_mutated_images(mutations):
    mutations(Rasters)

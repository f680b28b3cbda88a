"""Images damaged inside, which decoders fill up with a warning or without."""

import io
import struct
import warnings
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from medvlp.doctor.images import Annotations, look_at
from medvlp.errors import ConfigError, UnreadableItemError
from medvlp.io import rasters
from medvlp.io.headers import read_header
from medvlp.io.images import read_image, warn_dark

Y, X = np.mgrid[0:300, 0:260]
NOISE = np.random.default_rng(0).normal(0, 5, X.shape)
PICTURE = (127 + 60 * np.sin(X / 9) * np.cos(Y / 13) + NOISE).clip(0, 255).astype(np.uint8)
COLOUR = np.stack([PICTURE, PICTURE[::-1], PICTURE[:, ::-1]], -1)

needs_simplejpeg = pytest.mark.skipif(rasters.simplejpeg is None, reason="simplejpeg is not installed")


def encoded(array=PICTURE, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert("CMYK") if options.pop("cmyk", False) else image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def damaged(data):
    n = len(data)
    middle = slice(int(n * 0.4), int(n * 0.6))
    return {
        "second half gone": data[: n // 2] + data[-2:],
        "a fifth zeroed": data[: middle.start] + bytes(middle.stop - middle.start) + data[middle.stop :],
        "a fifth gone": data[: middle.start] + data[middle.stop :],
        "a marker in the midst": data[: n // 2] + b"\xff\xd9" + data[n // 2 + 2 :],
        "4 KiB zeroed": data[: n // 3] + bytes(4096) + data[n // 3 + 4096 :],
    }


def as_dicom(path, frame, syntax):
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    (data.Rows, data.Columns), data.SamplesPerPixel = PICTURE.shape, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = encapsulate([frame]) if syntax.is_encapsulated else frame
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = syntax.is_encapsulated
    data.save_as(path, enforce_file_format=True)
    return path


@needs_simplejpeg
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"array": COLOUR}, {"array": COLOUR, "cmyk": True}])
@pytest.mark.parametrize("how", list(damaged(b"")))
def test_damaged_jpegs_are_refused_unless_accepted(tmp_path, options, how):
    path = tmp_path / "x.jpg"
    path.write_bytes(damaged(encoded(**options))[how])
    for dicom in (False, True):
        file = as_dicom(tmp_path / "x.dcm", path.read_bytes(), JPEGBaseline8Bit) if dicom else path
        if dicom and "array" in options:
            continue
        with pytest.raises(UnreadableItemError, match=r"damaged inside \(.*damaged: accept|truncated") as caught:
            read_image(file)
        if not caught.value.reason.startswith("truncated"):
            assert read_image(file, damaged="accept").shape == PICTURE.shape
    with pytest.raises(ConfigError, match="expected one of: refuse, accept"):
        read_image(path, damaged="mend")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"optimize": True, "quality": 40},
        {"restart_marker_rows": 1},
        {"array": COLOUR},
        {"array": COLOUR, "subsampling": 0},
        {"array": COLOUR, "keep_rgb": True},
        {"array": COLOUR, "cmyk": True},
    ],
    ids=str,
)
def test_sound_jpegs_have_the_pixels_of_pillow(tmp_path, options):
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(**options) + b"what a camera appends")
    assert np.array_equal(read_image(path), read_image(path, damaged="accept"))


def test_a_missing_decoder_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "simplejpeg", None)
    rasters._warn_once.cache_clear()
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded())
    with pytest.warns(UserWarning, match="pip install simplejpeg"):
        first = read_image(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_image(path), first)


def test_few_bytes_that_claim_many_pixels(tmp_path):
    data = bytearray(encoded(np.zeros((16, 16), np.uint8)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 14142, 14142)
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    reason = f"truncated JPEG ({len(data)} bytes for {14142**2} pixels)"
    assert read_header(path).problem == reason
    for choice in ("refuse", "accept"):
        with pytest.raises(UnreadableItemError) as caught:
            read_image(path, damaged=choice)
        assert caught.value.reason == reason


@pytest.mark.parametrize("level", [0, 6])
def test_png_files_carry_checksums(tmp_path, level):
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG", compress_level=level)
    whole, rng = buffer.getvalue(), np.random.default_rng(1)
    for place in rng.integers(60, len(whole) - 16, 40):
        broken = bytearray(whole)
        broken[place] ^= 1 + int(rng.integers(255))
        (tmp_path / "x.png").write_bytes(broken)
        with pytest.raises(UnreadableItemError, match="broken"):
            read_image(tmp_path / "x.png")


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless], ids=["JPEG 2000", "RLE"])
def test_other_frames_that_lack_a_part(tmp_path, syntax):
    plain = pydicom.dcmread(as_dicom(tmp_path / "x.dcm", PICTURE.tobytes(), ExplicitVRLittleEndian))
    plain.compress(syntax)
    frame = next(generate_frames(plain.PixelData, number_of_frames=1))
    assert np.array_equal(read_image(as_dicom(tmp_path / "x.dcm", frame, syntax)), PICTURE)
    for how in ("second half gone", "a fifth gone"):
        with pytest.raises(UnreadableItemError, match="truncated or broken"):
            read_image(as_dicom(tmp_path / "x.dcm", damaged(frame)[how], syntax))


def test_run_lengths_that_decode_to_more_than_the_image(tmp_path):
    plain = pydicom.dcmread(as_dicom(tmp_path / "x.dcm", PICTURE.tobytes(), ExplicitVRLittleEndian))
    plain.compress(RLELossless)
    frame = next(generate_frames(plain.PixelData, number_of_frames=1))
    longer = frame[:64] + b"\x81\x07" + frame[64:]
    with pytest.warns(UserWarning, match="RLE"), pytest.raises(UnreadableItemError, match="damaged inside"):
        read_image(as_dicom(tmp_path / "x.dcm", longer, RLELossless))
    with pytest.warns(UserWarning, match="RLE"):
        assert read_image(tmp_path / "x.dcm", damaged="accept").shape == PICTURE.shape


@pytest.mark.parametrize(
    ("change", "suspicion"),
    [
        (lambda p: None, ""),
        (lambda p: p.__setitem__(slice(200, None), 128), "the last 100 rows are 128 throughout"),
        (lambda p: p.__setitem__(slice(200, None), 0), ""),  # a black border is common
        (lambda p: p.__setitem__(slice(296, None), 90), ""),
        (lambda p: p.fill(77), "constant: every pixel is 77"),
    ],
)
def test_doctor_suspects_flat_ends_and_constant_pictures(tmp_path, change, suspicion):
    pixels = PICTURE.copy()
    change(pixels)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    look = look_at(str(tmp_path / "x.png"), Annotations(), tmp_path, deep=True)
    assert (look.problem, look.suspicion) == ("", suspicion)


@needs_simplejpeg
def test_doctor_names_damage(tmp_path):
    (tmp_path / "x.jpg").write_bytes(damaged(encoded())["a fifth gone"])
    assert look_at(str(tmp_path / "x.jpg"), Annotations(), tmp_path, deep=True).problem.startswith("damaged inside")


# ---------------------------------------------------------------------- fewer bits in 16


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png16(path, values, bits):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 0, 0, 0, 0)
    marked = chunk(b"sBIT", bytes([bits])) if bits else b""
    parts = (chunk(b"IHDR", header), marked, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("bits", [10, 12, 14, 15])
def test_significant_bits_of_a_png_are_its_range(tmp_path, bits):
    values = PICTURE.astype(np.uint16) << (bits - 8)
    warn_dark.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(read_image(png16(tmp_path / "x.png", values, bits)) - PICTURE.astype(int)).max() <= 1
        # scaled up to 16 bits, as the PNG specification asks for
        scaled = png16(tmp_path / "y.png", PICTURE.astype(np.uint16) * 257, bits)
        assert np.array_equal(read_image(scaled), PICTURE)


def test_a_dark_16_bit_png_is_warned_of_once(tmp_path):
    path = png16(tmp_path / "x.png", PICTURE.astype(np.uint16) * 16, 0)
    warn_dark.cache_clear()
    with pytest.warns(UserWarning, match="intensity: minmax"):
        assert read_image(path).max() <= 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(path)
        read_image(path, intensity="minmax")

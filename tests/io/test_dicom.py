import contextlib
import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from skimage import exposure

from medvlp.errors import ConfigError, UnreadableItemError
from medvlp.io.dicom import read_dicom
from medvlp.io.headers import read_header
from medvlp.io.images import INTENSITIES, read_image

ROOT = Path(os.environ.get("MEDVLP_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))


def _write(path, array, *, bits=8, photometric="MONOCHROME2", syntax=ExplicitVRLittleEndian, **tags):
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.Rows, data.Columns = array.shape[:2]
    data.SamplesPerPixel = 1 if array.ndim == 2 else 3
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = array.dtype.itemsize * 8
    data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits - 1, int(array.dtype.kind == "i")
    if array.ndim == 3:
        data.PlanarConfiguration = 0
    data.PixelData = array.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


RAMP8 = np.arange(256, dtype=np.uint8).reshape(16, 16)
RAMP12 = (np.arange(256, dtype=np.uint16) * 8 + 100).reshape(16, 16)


def test_8_bits_stay_as_they_are(tmp_path):
    image = read_dicom(_write(tmp_path / "x.dcm", RAMP8 // 2, ViewPosition="PA", PixelSpacing=[0.2, 0.3]))
    assert np.array_equal(image, RAMP8 // 2)


def test_monochrome1_is_inverted(tmp_path):
    image = read_dicom(_write(tmp_path / "x.dcm", RAMP8, photometric="MONOCHROME1"))
    assert np.array_equal(image, 255 - RAMP8)


def test_12_bits_without_window_use_the_occurring_range(tmp_path):
    image = read_dicom(_write(tmp_path / "x.dcm", RAMP12, bits=12))
    assert np.array_equal(image, RAMP8)


def test_window(tmp_path):
    # linear window of PS3.3 C.11.2.1.2: y = (x − (c − 0.5)) / (w − 1) + 0.5
    image = read_dicom(_write(tmp_path / "x.dcm", RAMP12, bits=12, WindowCenter=1000, WindowWidth=1001))
    expected = np.clip((RAMP12 - 999.5) / 1000 + 0.5, 0, 1) * 255
    assert np.abs(image - expected).max() <= 1
    assert image.min() == 0
    assert image.max() == 255


def test_first_of_several_windows_after_rescale(tmp_path):
    path = _write(
        tmp_path / "x.dcm",
        RAMP12,
        bits=12,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=[1000, 5],
        WindowWidth=[1001, 7],
    )
    expected = np.clip((RAMP12 * 2.0 - 1000 - 999.5) / 1000 + 0.5, 0, 1) * 255
    assert np.abs(read_dicom(path) - expected).max() <= 1


def test_voi_table(tmp_path):
    item = Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.LUTData = (np.arange(256)[::-1] * 257).astype(np.uint16).tobytes()
    item["LUTData"].VR = "OW"
    path = _write(tmp_path / "x.dcm", RAMP8, VOILUTSequence=[item])
    assert np.array_equal(read_dicom(path), 255 - RAMP8)


def test_signed_pixels(tmp_path):
    signed = RAMP12.astype(np.int16) - 1000
    assert np.array_equal(read_dicom(_write(tmp_path / "x.dcm", signed, bits=16)), RAMP8)


def test_colour(tmp_path):
    colour = np.stack([RAMP8] * 3, -1)
    assert np.array_equal(read_dicom(_write(tmp_path / "x.dcm", colour, photometric="RGB")), RAMP8)


def test_constant_image(tmp_path):
    flat = np.full((4, 4), 700, np.uint16)
    assert read_dicom(_write(tmp_path / "x.dcm", flat, bits=12)).tolist() == np.zeros((4, 4)).tolist()


def test_found_by_content(tmp_path):
    path = _write(tmp_path / "x.jpg", RAMP8)
    assert np.array_equal(read_image(path), RAMP8)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGBaseline8Bit])
def test_compressed(tmp_path, syntax):
    buffer = io.BytesIO()
    if syntax == JPEG2000Lossless:
        Image.fromarray(RAMP8).save(buffer, "JPEG2000", irreversible=False, no_jp2=True)
    else:
        Image.fromarray(RAMP8).save(buffer, "JPEG", quality=100)
    data = pydicom.dcmread(_write(tmp_path / "x.dcm", RAMP8))
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([buffer.getvalue()])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "x.dcm")
    assert np.abs(read_dicom(tmp_path / "x.dcm").astype(int) - RAMP8).max() <= (syntax != JPEG2000Lossless) * 2


def test_truncated_and_without_pixels(tmp_path):
    path = _write(tmp_path / "x.dcm", np.zeros((64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UnreadableItemError, match=r"x\.dcm: (truncated|not a readable)"):
        read_dicom(path)
    data = pydicom.dcmread(_write(tmp_path / "y.dcm", RAMP8))
    del data.PixelData
    data.save_as(tmp_path / "y.dcm")
    with pytest.raises(UnreadableItemError, match="without pixel data"):
        read_dicom(tmp_path / "y.dcm")
    with pytest.raises(UnreadableItemError, match="missing file"):
        read_dicom(tmp_path / "z.dcm")
    (tmp_path / "t.dcm").write_text("text")
    with pytest.raises(UnreadableItemError, match="not a readable DICOM"):
        read_dicom(tmp_path / "t.dcm")


@pytest.mark.parametrize(
    ("syntax", "package"),
    [(JPEGLSLossless, "pyjpegls"), (JPEGLosslessSV1, "pylibjpeg-libjpeg"), (JPEG2000Lossless, r"medvlp\[dicom\]")],
)
def test_missing_decoder_is_named(tmp_path, monkeypatch, syntax, package):
    path = _write(tmp_path / "x.dcm", RAMP8)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([b"\x00\x01"])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    monkeypatch.setattr("medvlp.io.dicom.get_decoder", lambda syntax: SimpleNamespace(available_plugins=()))
    with pytest.raises(UnreadableItemError, match=f"no decoder for JPEG.*pip install.*{package}") as caught:
        read_dicom(path)
    assert read_header(path).problem == caught.value.reason


def test_pillow_alone_is_no_decoder_of_jpeg_with_12_bits(tmp_path, monkeypatch):
    data = pydicom.dcmread(_write(tmp_path / "x.dcm", RAMP12, bits=12))
    data.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    data.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "x.dcm")
    monkeypatch.setattr("medvlp.io.dicom.get_decoder", lambda syntax: SimpleNamespace(available_plugins=("pillow",)))
    with pytest.raises(UnreadableItemError, match=r"no decoder for JPEG Extended.*pylibjpeg-libjpeg"):
        read_dicom(tmp_path / "x.dcm")


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_run_lengths_and_jpeg_2000_of_every_depth(tmp_path, bits):
    array = ((np.arange(4096).reshape(64, 64) * 37) % 2**bits).astype(np.uint16)
    plain = read_dicom(_write(tmp_path / "x.dcm", array, bits=bits))
    for syntax in (RLELossless, JPEG2000Lossless):
        data = pydicom.dcmread(tmp_path / "x.dcm")
        data.compress(syntax)
        data.save_as(tmp_path / "y.dcm")
        assert np.array_equal(read_dicom(tmp_path / "y.dcm"), plain), syntax.name


def test_first_of_several_frames(tmp_path):
    frames = np.concatenate([RAMP8, 255 - RAMP8])
    path = _write(tmp_path / "x.dcm", frames, NumberOfFrames=2, Rows=16)
    assert np.array_equal(read_dicom(path), RAMP8)


def test_every_rule_has_a_description():
    from medvlp.io import dicom

    assert set(INTENSITIES) == set(dicom.RULES)
    with pytest.raises(ConfigError, match="medklip"):
        read_dicom("x.dcm", "mgac")


WINDOW = {"WindowCenter": 1000, "WindowWidth": 1001}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_intensity_of_mgca(tmp_path, photometric):
    import cv2

    path = _write(tmp_path / "x.dcm", RAMP12, bits=12, photometric=photometric, **WINDOW)
    expected = cv2.convertScaleAbs(RAMP12, alpha=255.0 / RAMP12.max())  # no window
    expected = cv2.bitwise_not(expected) if photometric == "MONOCHROME1" else expected
    assert np.array_equal(read_image(path, intensity="mgca"), expected)
    empty = _write(tmp_path / "0.dcm", np.zeros((4, 4), np.uint16), bits=12)
    assert not read_image(empty, intensity="mgca").any()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_intensity_of_medklip(tmp_path, photometric):
    values = np.random.default_rng(0).gamma(2, 300, (50, 40)).astype(np.uint16) % 4096
    path = _write(tmp_path / "x.dcm", values, bits=12, photometric=photometric, **WINDOW)
    expected = (255 * exposure.equalize_hist(values / 255.0)).astype(np.uint8)
    assert np.array_equal(read_image(path, intensity="medklip"), expected)  # inverted in neither case


def test_equalised_levels_are_used_evenly(tmp_path):
    values = (np.random.default_rng(1).random((64, 64)) ** 4 * 4095).astype(np.uint16)
    levels = read_image(_write(tmp_path / "x.dcm", values, bits=12), intensity="medklip")
    # the first bins hold more than their share of so dark an image, so only the upper half is even
    assert np.mean(levels >= 192) == pytest.approx(0.25, abs=0.01)
    order = np.argsort(values, axis=None)
    assert (np.diff(levels.ravel()[order].astype(int)) >= 0).all()
    assert (
        len(np.unique(read_image(_write(tmp_path / "c.dcm", np.full((4, 4), 7, np.uint16)), intensity="medklip"))) == 1
    )


def test_intensities_by_range_and_by_maximum(tmp_path):
    path = _write(tmp_path / "x.dcm", RAMP12, bits=12, photometric="MONOCHROME1", **WINDOW)
    assert np.array_equal(read_image(path, intensity="full_range"), 255 - np.rint(RAMP12 * (255 / 4095)))
    assert np.array_equal(read_image(path, intensity="image_max"), 255 - np.floor(RAMP12 / 2140 * 255))
    shown = np.clip((RAMP12 - 999.5) / 1000 + 0.5, 0, 1)
    assert np.abs(read_image(path, intensity="minmax") - 255 * (1 - shown)).max() <= 1
    signed = _write(tmp_path / "s.dcm", RAMP12.astype(np.int16) - 2048, bits=12)
    assert np.array_equal(read_image(signed, intensity="full_range"), np.rint(RAMP12 * (255 / 4095)))
    dark = _write(tmp_path / "d.dcm", RAMP8 // 2 + 10)
    stretched = read_image(dark, intensity="minmax")
    assert (stretched.min(), stretched.max()) == (0, 255)


def test_bomb_is_refused_before_decoding(tmp_path, monkeypatch):
    path = _write(tmp_path / "x.dcm", RAMP8, Rows=60000, Columns=60000)
    monkeypatch.setattr("medvlp.io.dicom.pixel_array", lambda *a, **k: pytest.fail("decoded"))
    with pytest.raises(UnreadableItemError, match="decompression bomb: 3600000000 pixels"):
        read_dicom(path)


def test_invalid_window_is_named_and_can_be_avoided(tmp_path):
    path = _write(tmp_path / "x.dcm", RAMP12, bits=12, WindowCenter=100, WindowWidth=0)
    with pytest.raises(UnreadableItemError, match=r"invalid window.*full_range"):
        read_dicom(path)
    assert read_dicom(path, "full_range").shape == (16, 16)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_never_raise_anything_else(tmp_path):
    whole = bytearray(_write(tmp_path / "x.dcm", RAMP12, bits=12, **WINDOW).read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(whole)
        for place in rng.integers(132, len(whole) - 512, 4):
            broken[place] = rng.integers(256)
        (tmp_path / "y.dcm").write_bytes(broken[: rng.integers(140, len(whole) + 200)])
        with contextlib.suppress(UnreadableItemError):
            assert read_dicom(tmp_path / "y.dcm").dtype == np.uint8


def test_real_files():
    folder = ROOT / "samples"
    if not folder.is_dir():
        pytest.skip("shared/data/samples is not here")
    plain, inverted = read_dicom(next(folder.glob("1.2.*.dcm"))), read_dicom(folder / "Fake_MONOHR1.dcm")
    assert plain.shape == (1024, 1024)
    assert np.array_equal(inverted, 255 - plain)
    for rule in set(INTENSITIES) - {"medklip"}:
        pair = [read_dicom(f, rule) for f in (next(folder.glob("1.2.*.dcm")), folder / "Fake_MONOHR1.dcm")]
        assert np.array_equal(pair[0], 255 - pair[1]), rule


@pytest.mark.parametrize("change", [{"Rows": 8}, {"Columns": 7}])
def test_more_pixels_than_the_header_says_are_refused(tmp_path, change):
    path = _write(tmp_path / "x.dcm", RAMP8, **change)
    with pytest.raises(UnreadableItemError, match="more pixel data"):
        read_dicom(path)
    assert "more pixel data" in read_header(path).problem


def test_zeros_beyond_the_image_are_padding(tmp_path):
    plain = read_dicom(_write(tmp_path / "x.dcm", RAMP8))
    path = _write(tmp_path / "y.dcm", RAMP8, PixelData=RAMP8.tobytes() + bytes(4 * RAMP8.shape[1]))
    assert not read_header(path).problem
    assert np.array_equal(read_dicom(path), plain)

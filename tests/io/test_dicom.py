import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="the dicom extra is not installed")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
)

from medvlp.errors import UnreadableItemError  # noqa: E402
from medvlp.io.dicom import read_dicom  # noqa: E402
from medvlp.io.images import read_image  # noqa: E402

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
    assert np.array_equal(image.pixels, RAMP8 // 2)
    assert image.spacing_mm == (0.2, 0.3)
    assert (image.photometric, image.view) == ("MONOCHROME2", "PA")


def test_monochrome1_is_inverted(tmp_path):
    image = read_dicom(_write(tmp_path / "x.dcm", RAMP8, photometric="MONOCHROME1"))
    assert np.array_equal(image.pixels, 255 - RAMP8)
    assert image.spacing_mm is None
    assert image.view == ""


def test_12_bits_without_window_use_the_occurring_range(tmp_path):
    image = read_dicom(_write(tmp_path / "x.dcm", RAMP12, bits=12))
    assert np.array_equal(image.pixels, RAMP8)


def test_window(tmp_path):
    # linear window of PS3.3 C.11.2.1.2: y = (x − (c − 0.5)) / (w − 1) + 0.5
    image = read_dicom(_write(tmp_path / "x.dcm", RAMP12, bits=12, WindowCenter=1000, WindowWidth=1001))
    expected = np.clip((RAMP12 - 999.5) / 1000 + 0.5, 0, 1) * 255
    assert np.abs(image.pixels - expected).max() <= 1
    assert image.pixels.min() == 0
    assert image.pixels.max() == 255


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
    assert np.abs(read_dicom(path).pixels - expected).max() <= 1


def test_voi_table(tmp_path):
    item = Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.LUTData = (np.arange(256)[::-1] * 257).astype(np.uint16).tobytes()
    item["LUTData"].VR = "OW"
    path = _write(tmp_path / "x.dcm", RAMP8, VOILUTSequence=[item])
    assert np.array_equal(read_dicom(path).pixels, 255 - RAMP8)


def test_signed_pixels(tmp_path):
    signed = RAMP12.astype(np.int16) - 1000
    assert np.array_equal(read_dicom(_write(tmp_path / "x.dcm", signed, bits=16)).pixels, RAMP8)


def test_colour(tmp_path):
    colour = np.stack([RAMP8] * 3, -1)
    assert np.array_equal(read_dicom(_write(tmp_path / "x.dcm", colour, photometric="RGB")).pixels, RAMP8)


def test_constant_image(tmp_path):
    flat = np.full((4, 4), 700, np.uint16)
    assert read_dicom(_write(tmp_path / "x.dcm", flat, bits=12)).pixels.tolist() == np.zeros((4, 4)).tolist()


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
    assert np.abs(read_dicom(tmp_path / "x.dcm").pixels.astype(int) - RAMP8).max() <= (syntax != JPEG2000Lossless) * 2


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


def test_missing_decoder_is_named(tmp_path, monkeypatch):
    path = _write(tmp_path / "x.dcm", RAMP8)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = encapsulate([b"\x00\x01"])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    monkeypatch.setattr("medvlp.io.dicom._decodable", lambda syntax: False)
    with pytest.raises(UnreadableItemError, match=r"no decoder for JPEG-LS.*medvlp\[dicom\]"):
        read_dicom(path)


def test_without_pydicom(tmp_path, monkeypatch):
    path = _write(tmp_path / "x.dcm", RAMP8)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UnreadableItemError, match=r"pip install 'medvlp\[dicom\]'"):
        read_image(path)


def test_real_files():
    folder = ROOT / "samples"
    if not folder.is_dir():
        pytest.skip("shared/data/samples is not here")
    plain, inverted = read_dicom(next(folder.glob("1.2.*.dcm"))), read_dicom(folder / "Fake_MONOHR1.dcm")
    assert plain.pixels.shape == (1024, 1024)
    assert plain.view == "PA"
    assert plain.spacing_mm == (0.168, 0.168)
    assert inverted.photometric == "MONOCHROME1"
    assert np.array_equal(inverted.pixels, 255 - plain.pixels)

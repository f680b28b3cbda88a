import os
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from medvlp.errors import UnreadableItemError
from medvlp.io.headers import ImageHeader, read_header
from medvlp.io.images import read_image

ROOT = Path(os.environ.get("MEDVLP_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
RAMP = np.arange(256, dtype=np.uint8).reshape(8, 32)


def _save(path, array=RAMP, **options):
    Image.fromarray(array).save(path, **options)
    return path


def _dicom(path, syntax=ExplicitVRLittleEndian, *, photometric="MONOCHROME2"):
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns, data.SamplesPerPixel, data.PixelRepresentation = 8, 32, 1, 0
    data.PhotometricInterpretation = photometric
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelData = (RAMP.astype(np.uint16) * 16).tobytes()
    data["PixelData"].VR = "OW"
    if syntax == RLELossless:
        data.compress(RLELossless)
    data.save_as(path, enforce_file_format=True)
    return path


SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless]


def test_sound_files(tmp_path):
    assert read_header(_save(tmp_path / "g.jpg")) == ImageHeader("JPEG", 32, 8, "L", 8)
    assert read_header(_save(tmp_path / "c.jpg", np.dstack([RAMP] * 3))) == ImageHeader("JPEG", 32, 8, "RGB", 8)
    assert read_header(_save(tmp_path / "g.png")) == ImageHeader("PNG", 32, 8, "L", 8)
    wide = read_header(_save(tmp_path / "w.png", RAMP.astype(np.uint16)))
    assert (wide.format, wide.bits, wide.problem) == ("PNG", 16, "")
    assert wide.mode.startswith("I")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_sound_dicom(tmp_path, syntax):
    header = read_header(_dicom(tmp_path / "x.dcm", syntax, photometric="MONOCHROME1"))
    assert header == ImageHeader("DICOM", 32, 8, "", 12, "MONOCHROME1")


def test_size_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _save(tmp_path / "x.jpg", exif=exif)
    header = read_header(path)
    assert (header.height, header.width) == (32, 8) == read_image(path).shape


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    found = {
        name: read_header(tmp_path / name).problem for name in ("none", "empty.png", "text.png", ".", "pipe", "loop")
    }
    assert found.pop("loop").startswith("missing file")
    assert found == {
        "none": "missing file",
        "empty.png": "zero-byte file",
        "text.png": "not a JPEG, PNG or DICOM file",
        ".": "a folder, not a file",
        "pipe": "not a regular file",
    }
    assert read_header("a\0b").problem
    assert read_header(tmp_path / ("x" * 300)).problem


@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_truncation_and_what_is_none(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (100, 100), dtype=np.uint8)
    path = _save(tmp_path / name, noise)
    whole = path.read_bytes()
    kind = {"x.jpg": "JPEG", "x.png": "PNG"}[name]
    for cut in (2, 10, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        header = read_header(path)
        assert header.problem == f"truncated {kind} (no end marker)"
        assert (header.width, header.height) == (100, 100)
    for appended in (b"\0" * 3000, b"what a camera appends" * 100):
        path.write_bytes(whole + appended)
        assert read_header(path).problem == ""


def test_thumbnail_does_not_hide_a_truncation(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (24, 24), dtype=np.uint8)
    path = _save(tmp_path / "x.jpg", noise, exif=b"Exif\0\0" + b"\xff\xd8 thumbnail \xff\xd9" * 20)
    data = path.read_bytes()
    path.write_bytes(data[:-60])
    assert read_header(path).problem == "truncated JPEG (no end marker)"


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_truncated_dicom(tmp_path, syntax):
    path = _dicom(tmp_path / "x.dcm", syntax)
    whole = path.read_bytes()
    for cut in (8, 100, 300):
        path.write_bytes(whole[:-cut])
        assert read_header(path).problem == "truncated DICOM file", cut
    path.write_bytes(whole[:150])
    assert read_header(path).problem


def test_dicom_without_pixels_or_with_too_few(tmp_path):
    data = pydicom.dcmread(_dicom(tmp_path / "x.dcm"))
    data.PixelData = data.PixelData[:100]
    data.save_as(tmp_path / "few.dcm")
    assert read_header(tmp_path / "few.dcm").problem == "truncated DICOM file"
    del data.PixelData
    data.save_as(tmp_path / "none.dcm")
    assert read_header(tmp_path / "none.dcm").problem == "DICOM file without pixel data"


def test_bombs(tmp_path):
    data = bytearray(_save(tmp_path / "x.png").read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "x.png").write_bytes(data)
    dicom = pydicom.dcmread(_dicom(tmp_path / "x.dcm"))
    dicom.Rows = dicom.Columns = 60000
    dicom.save_as(tmp_path / "x.dcm")
    for name in ("x.png", "x.dcm"):
        assert read_header(tmp_path / name).problem == "decompression bomb: 3600000000 pixels"


def test_deflated_files_and_bombs(tmp_path, monkeypatch):
    data = pydicom.dcmread(_dicom(tmp_path / "x.dcm"))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "deflated.dcm")
    assert read_header(tmp_path / "deflated.dcm") == ImageHeader("DICOM", 32, 8, "", 12, "MONOCHROME2")
    assert np.array_equal(read_image(tmp_path / "deflated.dcm"), read_image(tmp_path / "x.dcm"))
    monkeypatch.setattr("medvlp.io.headers.MAX_PIXELS", 200)
    assert read_header(tmp_path / "deflated.dcm").problem == "decompression bomb: more than 400 bytes"
    with pytest.raises(UnreadableItemError, match="decompression bomb: more than 400 bytes"):
        read_image(tmp_path / "deflated.dcm")


def test_links_out_of_the_corpus(tmp_path):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    corpus.mkdir()
    elsewhere.mkdir()
    _save(elsewhere / "x.png")
    _save(corpus / "inner.png")
    (corpus / "out.png").symlink_to(elsewhere / "x.png")
    (corpus / "in.png").symlink_to(corpus / "inner.png")
    (corpus / "folder").symlink_to(elsewhere)
    out = "symbolic link out of the corpus"
    assert read_header(corpus / "out.png", within=corpus).problem == out
    assert read_header(corpus / "folder/x.png", within=corpus).problem == out
    assert read_header(corpus / "../elsewhere/x.png", within=corpus).problem == "path out of the corpus"
    assert read_header(corpus / "in.png", within=corpus).problem == ""
    assert read_header(corpus / "out.png").problem == ""
    (tmp_path / "root").symlink_to(corpus)  # a corpus that is itself reached through a link
    assert read_header(tmp_path / "root/inner.png", within=tmp_path / "root").problem == ""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.dcm", "r.dcm"])
def test_damaged_headers_never_raise(tmp_path, name):
    if name.endswith("dcm"):
        path = _dicom(tmp_path / name, RLELossless if name == "r.dcm" else ExplicitVRLittleEndian)
    else:
        path = _save(tmp_path / name)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            broken[place] = rng.integers(256)
        path.write_bytes(broken[: rng.integers(1, 2 * len(whole))])
        assert isinstance(read_header(path), ImageHeader)


def test_real_files():
    files = [p for folder in ("samples", "figure1/images") for p in sorted((ROOT / folder).glob("*.*"))]
    if not files:
        pytest.skip("shared/data/samples is not here")
    for path in files:
        header = read_header(path, within=ROOT)
        assert header.problem == "", path.name
        if path.suffix in (".dcm", ".png"):  # large JPEG files take longer
            assert (header.height, header.width) == read_image(path).shape

"""DICOM files that show the same picture in other words come out the same; what differs follows PS3.3 and PS3.4 N.2."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from medvlp.errors import UnreadableItemError
from medvlp.io.dicom import read_dicom
from medvlp.io.headers import read_header
from medvlp.io.images import read_image

PICTURE = np.random.default_rng(3).integers(40, 168, (12, 14))  # 8 bits that do not fill their range
DEEP = np.random.default_rng(4).integers(100, 2200, (12, 14))
DEEP[0, :2] = 100, 2199
SPREAD = (DEEP - 100) * 255 / 2099


def write(path, values, dtype=np.uint8, bits=None, *, photometric="MONOCHROME2", syntax=ExplicitVRLittleEndian, **tags):
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    (data.Rows, data.Columns), data.SamplesPerPixel = values.shape[:2], 1
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = np.dtype(dtype).itemsize * 8
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(np.dtype(dtype).kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data.PixelData = values.astype(np.dtype(dtype).newbyteorder(order)).tobytes()
    data["PixelData"].VR = "OW"
    for name, value in tags.items():
        if value is Ellipsis:
            del data[name]
        else:
            setattr(data, name, value)
    if syntax.is_encapsulated:
        data.compress(syntax)
    data.save_as(
        path, enforce_file_format=True, little_endian=order == "<", implicit_vr=syntax == ImplicitVRLittleEndian
    )
    return path


def table(entries, first=0, bits=8, vr="OW"):
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    if vr == "OW":
        item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    else:
        item.add_new("LUTData", "US", [int(e) for e in entries])
    return item


def empty_table():
    item = Dataset()
    item.add_new(0x00283002, "SS", None)
    item.add_new(0x00283006, "OW", None)
    return item


SAME = {
    "16 bits allocated": {"dtype": np.uint16, "bits": 8},
    "32 bits allocated": {"dtype": np.uint32, "bits": 8},
    "signed with intercept": {"values": PICTURE - 128, "dtype": np.int8, "RescaleSlope": 1, "RescaleIntercept": 128},
    "16 bits, signed": {"values": PICTURE - 128, "dtype": np.int16, "bits": 8, "RescaleIntercept": 128},
    "identity rescale": {"RescaleSlope": "1.0", "RescaleIntercept": "0", "RescaleType": "US"},
    "empty rescale": {"RescaleSlope": None, "RescaleIntercept": None},
    "empty window": {"WindowCenter": None, "WindowWidth": None},
    "centre without width": {"WindowCenter": 12},
    "full window": {"WindowCenter": 128, "WindowWidth": 256},
    "full exact window": {"WindowCenter": "127.5", "WindowWidth": 255, "VOILUTFunction": "LINEAR_EXACT"},
    "empty tables": {"VOILUTSequence": [empty_table()], "ModalityLUTSequence": [empty_table()]},
    "sequences without items": {"VOILUTSequence": [], "ModalityLUTSequence": []},
    "table after an empty one": {"VOILUTSequence": [empty_table(), table(range(256))]},
    "identity VOI table": {"VOILUTSequence": [table(range(256), vr="US")]},
    "identity modality table": {"ModalityLUTSequence": [table(range(256), bits=16)]},
    "table of a part": {"ModalityLUTSequence": [table(range(40, 168), first=40)]},
    "MONOCHROME1": {"values": 255 - PICTURE, "photometric": "MONOCHROME1"},
    "MONOCHROME1, negative slope": {"photometric": "MONOCHROME1", "RescaleSlope": -1, "RescaleIntercept": 255},
    "negative slope": {"values": 255 - PICTURE, "RescaleSlope": -1, "RescaleIntercept": 255},
    "inverse shape": {"values": 255 - PICTURE, "PresentationLUTShape": "INVERSE"},
    "one inversion, said twice": {
        "values": 255 - PICTURE,
        "photometric": "MONOCHROME1",
        "PresentationLUTShape": "INVERSE",
    },
    "identity shape": {"PresentationLUTShape": "IDENTITY"},
    "overlay in unused bits": {"values": PICTURE + 256 * (PICTURE % 3), "dtype": np.uint16, "bits": 8},
    "high bit at the top": {"values": PICTURE * 256 + 7, "dtype": np.uint16, "bits": 8, "HighBit": 15},
    "no high bit": {"HighBit": ...},
    "empty padding": {"PixelPaddingValue": None},
    "padding that does not occur": {"PixelPaddingValue": 3},
    "no frames": {"NumberOfFrames": 0},
    "two frames": {"values": np.vstack([PICTURE, PICTURE[::-1]]), "NumberOfFrames": 2, "Rows": 12},
    "one pixel spacing": {"ImagerPixelSpacing": "0.139"},
    "implicit": {"syntax": ImplicitVRLittleEndian},
    "deflated": {"syntax": DeflatedExplicitVRLittleEndian},
    "big endian": {"syntax": ExplicitVRBigEndian, "dtype": np.uint16, "bits": 8},
    "run lengths": {"syntax": RLELossless},
}


@pytest.mark.parametrize("name", SAME)
def test_8_bits_that_mean_the_same_come_out_unchanged(tmp_path, name):
    path = write(tmp_path / "x.dcm", **{"values": PICTURE, **SAME[name]})
    assert np.array_equal(read_dicom(path), PICTURE)
    assert read_header(path).problem == ""


SAME_DEEP = {
    "12 bits": {"bits": 12},
    "32 bits allocated": {"dtype": np.uint32},
    "signed": {"values": DEEP - 2048, "dtype": np.int16, "bits": 12},
    "signed, high bits empty": {"values": (DEEP - 2048) & 0xFFF, "dtype": np.int16, "bits": 12},
    "overlays": {"values": DEEP + 4096 * (DEEP % 5), "bits": 12},
    "shifted up": {"values": DEEP * 16 + DEEP % 16, "bits": 12, "HighBit": 15},
    "rescaled": {"bits": 12, "RescaleSlope": "0.25", "RescaleIntercept": -1000},
    "slope alone": {"bits": 12, "RescaleSlope": "2"},
    "negative slope": {"values": 4095 - DEEP, "RescaleSlope": -3, "RescaleIntercept": 7},
    "MONOCHROME1": {"values": 4095 - DEEP, "photometric": "MONOCHROME1"},
    "two negations": {"photometric": "MONOCHROME1", "RescaleSlope": "-0.5", "RescaleIntercept": 0},
    "window": {"WindowCenter": "1150", "WindowWidth": "2100"},
    "window after slope": {
        "RescaleSlope": -10,
        "RescaleIntercept": 3000,
        "WindowCenter": "-8495",
        "WindowWidth": "20991",
        "photometric": "MONOCHROME1",
    },
    "several windows": {"WindowCenter": [1150, 3], "WindowWidth": [2100, 5]},
    "modality table": {"ModalityLUTSequence": [table(range(4096), bits=16)]},
    "signed VOI table": {
        "values": DEEP - 1200,
        "dtype": np.int16,
        "VOILUTSequence": [table(np.rint(np.arange(2100) * 65535 / 2099), first=-1100, bits=16)],
    },
    "big endian": {"syntax": ExplicitVRBigEndian},
    "deflated": {"syntax": DeflatedExplicitVRLittleEndian, "bits": 12},
    "run lengths": {"syntax": RLELossless, "bits": 12},
    "run lengths, shifted up": {"values": DEEP * 16, "syntax": RLELossless, "bits": 12, "HighBit": 15},
}


@pytest.mark.parametrize("name", SAME_DEEP)
def test_deeper_values_that_mean_the_same(tmp_path, name):
    path = write(tmp_path / "x.dcm", **{"values": DEEP, "dtype": np.uint16, **SAME_DEEP[name]})
    assert np.abs(read_dicom(path) - SPREAD).max() <= 1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("padding", "values", "dtype", "tags"),
    [
        ([65535], DEEP, np.uint16, {"PixelPaddingValue": 65535}),
        ([65535], DEEP, np.uint16, {"PixelPaddingValue": 65535, "bits": 12}),
        ([0], DEEP, np.uint16, {"PixelPaddingValue": 0, "bits": 12}),
        ([-2000], DEEP - 1024, np.int16, {"PixelPaddingValue": 63536}),
        ([-2000, -1990], DEEP - 1024, np.int16, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1985}),
        ([3, 9], DEEP, np.uint16, {"PixelPaddingValue": 9, "PixelPaddingRangeLimit": 3}),
        ([0, 4095], DEEP, np.uint32, {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 5}),
    ],
)
def test_padding_is_black_and_does_not_count(tmp_path, photometric, padding, values, dtype, tags):
    inside = np.ones(values.shape, bool)
    inside[2:, :3] = inside[2:, 9:11] = False
    padded = values.copy()
    padded[2:, :3], padded[2:, 9:11] = padding[0], padding[-1]
    if padding == [0, 4095]:  # beyond the range limit: pixels of the image
        padded[2:, 9:11], padding = 100, [0]
        inside[2:, 9:11] = True
    if dtype == np.int16:
        tags = {"PixelPaddingValue": tags["PixelPaddingValue"], **tags}
    path = tmp_path / "x.dcm"
    plain = write(path, padded, dtype, tags.pop("bits", None), photometric=photometric)
    data = pydicom.dcmread(plain)
    for name, value in tags.items():
        data.add_new(name, "SS" if value < 0 else "US", value)
    data.save_as(path)
    shown = (padded - 100 + (1024 if dtype == np.int16 else 0)) * 255 / 2099
    expected = np.where(inside, 255 - shown if photometric == "MONOCHROME1" else shown, 0)
    for rule in ("standard", "minmax"):
        assert np.abs(read_image(path, intensity=rule) - expected).max() <= 1


def test_padding_under_a_window_and_nothing_but_padding(tmp_path):
    values = DEEP.copy()
    values[3] = 4000
    tags = {"PixelPaddingValue": 4000, "WindowCenter": 1150, "WindowWidth": 2100}
    pixels = read_dicom(write(tmp_path / "x.dcm", values, np.uint16, photometric="MONOCHROME1", **tags))
    assert not pixels[3].any()
    assert np.abs(np.delete(pixels - (255 - SPREAD), 3, 0)).max() <= 1
    blank = write(tmp_path / "y.dcm", np.full((4, 4), 9), photometric="MONOCHROME1", PixelPaddingValue=9)
    assert not read_dicom(blank).any()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_constant_picture_is_black(tmp_path, photometric):
    path = write(tmp_path / "x.dcm", np.full((4, 4), 700), np.uint16, 12, photometric=photometric)
    assert not read_dicom(path).any()


@pytest.mark.parametrize("slope", [-2, 0.5])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions_of_the_standard(tmp_path, function, slope):
    tags = {"RescaleSlope": slope, "RescaleIntercept": 30, "WindowCenter": 200 * slope, "WindowWidth": 300}
    path = write(tmp_path / "x.dcm", DEEP, np.uint16, 12, VOILUTFunction=function, **tags)
    x, centre = DEEP * slope + 30, 200 * slope
    expected = {
        "LINEAR": np.clip((x - (centre - 0.5)) / 299 + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((x - centre) / 300 + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - centre) / 300)),
    }[function]
    assert np.abs(read_dicom(path) - 255 * expected).max() <= 1


def test_window_of_one_is_a_threshold(tmp_path):
    path = write(tmp_path / "x.dcm", DEEP, np.uint16, WindowCenter=1000, WindowWidth=1)
    assert np.array_equal(read_dicom(path), np.where(DEEP > 999, 255, 0))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"WindowCenter": 9, "WindowWidth": 0}, "WindowWidth is 0"),
        ({"WindowCenter": 9, "WindowWidth": -4}, "WindowWidth is -4"),
        ({"WindowCenter": 9, "WindowWidth": 0.5}, "WindowWidth is 0.5"),
        ({"WindowCenter": 9, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"}, "WindowWidth is 0"),
        ({"WindowCenter": 9, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "VOILUTFunction is CUBIC"),
        ({"RescaleSlope": 0, "RescaleIntercept": 3}, "RescaleSlope is 0"),
        ({"VOILUTSequence": [table([1, 2], bits=40)]}, "40 bits per entry"),
    ],
)
def test_windows_and_tables_that_make_no_sense(tmp_path, tags, reason):
    path = write(tmp_path / "x.dcm", PICTURE, **tags)
    with pytest.raises(UnreadableItemError, match=f"{reason}.*full_range"):
        read_dicom(path)
    assert np.array_equal(read_dicom(path, "full_range"), PICTURE)


def test_floating_point_pixels(tmp_path):
    values = DEEP / 1000 - 1
    values[5, 5], values[6, 6] = np.nan, -9
    path = write(tmp_path / "x.dcm", DEEP, np.uint32)
    data = pydicom.dcmread(path)
    del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
    data.FloatPixelData, data.FloatPixelPaddingValue = values.astype("<f4").tobytes(), -9
    data.save_as(path)
    expected = SPREAD.copy()
    expected[[5, 6], [5, 6]] = 0
    assert np.abs(read_dicom(path) - expected).max() <= 1
    assert read_header(path).problem == ""
    with pytest.raises(UnreadableItemError, match="floating-point pixels have no bit depth"):
        read_dicom(path, "full_range")


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_of_both_plane_orders(tmp_path, planar):
    colour = np.stack([PICTURE, PICTURE // 2, PICTURE // 3], -1)
    values = np.moveaxis(colour, -1, 0).reshape(36, 14) if planar else colour.reshape(12, 42)
    tags = {"Rows": 12, "Columns": 14, "SamplesPerPixel": 3, "PlanarConfiguration": planar}
    path = write(tmp_path / "x.dcm", values, photometric="RGB", PresentationLUTShape="INVERSE", **tags)
    assert np.array_equal(read_dicom(path), np.rint(colour @ [0.299, 0.587, 0.114]))


def test_palette(tmp_path):
    tags = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 16] for c in ("Red", "Green", "Blue")}
    tags |= {
        f"{c}PaletteColorLookupTableData": (np.arange(256) * 257).astype("<u2").tobytes() for c in ("Red", "Green")
    }
    tags["BluePaletteColorLookupTableData"] = tags["RedPaletteColorLookupTableData"]
    path = write(tmp_path / "x.dcm", PICTURE, photometric="PALETTE COLOR", **tags)
    assert np.abs(read_dicom(path, "full_range") - PICTURE).max() <= 1


@pytest.mark.parametrize("spacing", [b"0,1430\\0,1430", b"0.14mm\\0.14mm", b"nan   \\nan   ", b"0.0000\\0.0000"])
def test_a_bad_spacing_refuses_no_pixels(tmp_path, spacing):
    path = write(tmp_path / "x.dcm", PICTURE, PixelSpacing=["0.1430", "0.1430"], NominalScannedPixelSpacing=[0.2, 0.3])
    path.write_bytes(path.read_bytes().replace(b"0.1430\\0.1430", spacing))
    assert np.array_equal(read_dicom(path), PICTURE)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("meta", [True, False])
def test_files_without_preamble(tmp_path, syntax, meta):
    whole = write(tmp_path / "x.dcm", PICTURE, np.uint16, 8, syntax=syntax).read_bytes()
    length = 12 + int.from_bytes(whole[140:144], "little")
    (tmp_path / "bare.dcm").write_bytes(whole[132 if meta else 132 + length :])
    assert np.array_equal(read_image(tmp_path / "bare.dcm"), PICTURE)
    header = read_header(tmp_path / "bare.dcm")
    assert (header.format, header.width, header.height, header.problem) == ("DICOM", 14, 12, "")


@pytest.mark.parametrize(
    "tag", ["Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel", "PixelRepresentation"]
)
def test_a_missing_tag_is_named(tmp_path, tag):
    path = write(tmp_path / "x.dcm", PICTURE, **{tag: ...})
    with pytest.raises(UnreadableItemError, match=f"DICOM file without {tag};"):
        read_dicom(path)
    assert read_header(path).problem == f"DICOM file without {tag}"


@pytest.mark.parametrize(
    ("tag", "value"),
    [("Rows", 0), ("BitsStored", 0), ("BitsStored", 12), ("BitsAllocated", 12), ("SamplesPerPixel", 2)],
)
def test_a_tag_that_makes_no_sense_is_named(tmp_path, tag, value):
    path = write(tmp_path / "x.dcm", PICTURE, **{tag: value})
    with pytest.raises(UnreadableItemError, match=f"DICOM file with {tag} {value};"):
        read_dicom(path)
    assert read_header(path).problem == f"DICOM file with {tag} {value}"


def test_header_and_reader_agree_on_the_files_that_pydicom_ships():
    files = sorted((Path(pydicom.__file__).parent / "data/test_files").glob("*.dcm"))
    assert len(files) > 50
    for path in files:
        header = read_header(path)
        try:
            shape, reason = read_image(path).shape, ""
        except UnreadableItemError as error:
            shape, reason = (header.height, header.width), error.reason
        assert shape == (header.height, header.width), path.name
        # damage in the midst of compressed frames is not told by the header
        assert bool(header.problem) == bool(reason) or reason.startswith("truncated or broken pixel data"), path.name

"""Mutated DICOM files: elements of the header, and bytes.

How to run them: ``test_tables.py``.
"""

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from mutations import NUMBERS, TEXTS, Kind, Trial, attempt, mutate_bytes, refused
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from medvlp.io.dicom import read_dicom
from medvlp.io.headers import read_header
from medvlp.io.images import INTENSITIES

HEIGHT, WIDTH = 24, 18
IMPLICIT, LITTLE, DEFLATED, BIG, JPEG, RLE = (
    UID(f"1.2.840.10008.1.2{end}") for end in ("", ".1", ".1.99", ".2", ".4.50", ".5")
)


def picture(rng: np.random.Generator, top: int = 255) -> np.ndarray:
    """Grey levels that differ at every place, smooth enough for JPEG."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    values = 0.5 + 0.3 * np.sin(x / 3 + rng.random()) * np.cos(y / 4) + 0.15 * rng.random((HEIGHT, WIDTH))
    return np.clip(values * top, 0, top).astype(np.uint8 if top < 256 else np.uint16)


FREE = """PatientName PatientAge PatientSex StudyDate StudyTime AccessionNumber SeriesDescription InstanceNumber KVP
SeriesNumber BodyPartExamined ViewPosition PatientID Manufacturer PixelSpacing ImagerPixelSpacing PixelAspectRatio"""
SHOWN = """WindowCenter WindowWidth RescaleSlope RescaleIntercept PhotometricInterpretation VOILUTFunction Rows Columns
BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel NumberOfFrames PlanarConfiguration"""
"""Elements on which pixels depend; on those before, none does."""


def dicom(pixels: np.ndarray, bits: int, syntax: str, **tags: Any) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PatientName, data.PatientAge, data.ViewPosition = "A^B", "062Y", "PA"
    data.PixelSpacing = [0.2, 0.3]
    for name, value in tags.items():
        setattr(data, name, value)
    if syntax == JPEG:
        data.PixelData = encapsulate([jpeg_bytes(pixels)])
        data["PixelData"].is_undefined_length = True
    else:
        order = ">" if syntax == BIG else "<"
        data.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        data["PixelData"].VR = "OW" if bits > 8 else "OB"
    if syntax == RLE:
        data.compress(RLE, pixels)
    return data


def jpeg_bytes(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **{"quality": 95, **options})
    return stream.getvalue()


def saved(data: Dataset) -> bytes:
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


def number(data: Dataset, name: str) -> float | None:
    """The first number of an element; None where there is none."""
    value = data.get(name)
    if not isinstance(value, str | int | float) and value is not None:
        value = next(iter(value), None)
    return None if value is None or not str(value).strip() else float(value)


def displayed(stored: np.ndarray, data: Dataset) -> np.ndarray | None:
    """Grey levels by PS3.3 C.11.1 and C.11.2, of several numbers by the first; None where they mean nothing."""
    try:
        slope, intercept = number(data, "RescaleSlope"), number(data, "RescaleIntercept")
        scaled = slope is not None or intercept is not None
        values = stored * (1 if slope is None else slope) + (intercept or 0)
        function = str(data.get("VOILUTFunction") or "LINEAR").strip()
        centre, width = number(data, "WindowCenter"), number(data, "WindowWidth")
        if centre is not None and width is not None:
            if function == "LINEAR":
                step = (values > centre - 0.5).astype(float)
                share = (values - (centre - 0.5)) / (width - 1) + 0.5 if width > 1 else step
            elif function == "LINEAR_EXACT":
                share = (values - centre) / width + 0.5
            elif function == "SIGMOID":
                share = 1 / (1 + np.exp(-4 * (values - centre) / width))
            else:
                return None
            if width < 1 and (function == "LINEAR" or width <= 0):
                return None
            levels = np.clip(share, 0, 1) * 255
        elif int(data.BitsStored) == 8 and not scaled:
            levels = values
        else:
            levels = (values - values.min()) / max(values.max() - values.min(), 1e-9) * 255
    except (TypeError, ValueError, OverflowError):
        return None
    if not np.isfinite(levels).all():
        return None
    return 255 - levels if str(data.PhotometricInterpretation).strip() == "MONOCHROME1" else levels


class DicomHeaders(Kind):
    """Elements of a DICOM header with other values and types, or without."""

    name, share = "dicom_header", 24

    def trial(self, trial: Trial) -> None:
        bits = trial.one([8, 12, 16])
        pixels = picture(trial.rng, 2**bits - 1)
        syntax = trial.one([LITTLE, IMPLICIT, BIG, DEFLATED, RLE])
        tags: dict[str, Any] = {}
        if trial.often(0.6):
            tags |= {"WindowCenter": float(pixels.mean()), "WindowWidth": float(np.ptp(pixels))}
        if trial.often(0.4):
            tags |= {"RescaleSlope": 1.5, "RescaleIntercept": -10}
        data = dicom(pixels, bits, syntax, **tags)
        names = [trial.pick(FREE if trial.often(0.35) else SHOWN) for _ in range(int(trial.one([1, 1, 2])))]
        for name in names:
            self.change(trial, data, name)
        try:
            content = saved(data)
        except Exception:  # no file can hold such a value
            return
        path = trial.folder / "x.dcm"
        path.write_bytes(content)
        rule = trial.one(["standard"] * 4 + list(INTENSITIES))
        trial.note(f"{syntax.name[:24]}, {bits} bits, {rule}")
        image = attempt(read_dicom, path, rule)
        header = read_header(path)
        if refused(image):
            return
        shown = image
        assert shown.dtype == np.uint8
        assert (header.height, header.width) == shown.shape, f"header {header}, image {shown.shape}"
        again = pydicom.dcmread(path)
        geometry = {
            "Rows": HEIGHT,
            "Columns": WIDTH,
            "BitsAllocated": pixels.dtype.itemsize * 8,
            "SamplesPerPixel": 1,
            "NumberOfFrames": 1,
        }
        other = [n for n, v in geometry.items() if str(again.get(n, "1" if n == "NumberOfFrames" else "")) != str(v)]
        assert not other or shown.shape == (HEIGHT, WIDTH), f"{other} contradict the pixels, read as {shown.shape}"
        plain = not {"PixelRepresentation", "BitsStored", "HighBit", *other} & {*names, *other}
        if rule == "standard" and plain:
            try:
                expected = displayed(pixels, again)
            except Exception:
                expected = None
            assert expected is not None, "a window or rescale without meaning was applied"
            assert np.abs(shown - expected).max() <= 1.01, f"off by {np.abs(shown - expected).max():.1f}"

    def change(self, trial: Trial, data: Dataset, name: str) -> None:
        what = trial.pick("odd odd number number drop empty several")
        trial.note(f"{name} {what}")
        if what == "drop":
            data.pop(name, None)
            return
        value: Any = None
        if what == "several":
            value = [trial.one(NUMBERS[:12]), trial.one(NUMBERS[:12])]
        elif what == "number":
            value = trial.one(
                [0, 1, 2, 7, 8, 9, 12, 16, 17, 24, 32, 64, 255, 4096, 65535, -1, -0.5, 0.5, 1e-9, 1e9, 1e30]
            )
        elif what == "odd":
            value = trial.one(
                [
                    *TEXTS,
                    *NUMBERS,
                    "MONOCHROME1",
                    "MONOCHROME1 ",
                    "RGB",
                    "PALETTE COLOR",
                    "YBR_FULL",
                    "SIGMOID",
                    "LINEAR_EXACT",
                ]
            )
        trial.note(repr(value)[:30] if not isinstance(value, int) or abs(value) < 1e30 else "huge")
        try:
            setattr(data, name, value)
        except Exception:
            return
        if trial.often(0.15):  # another VR than the dictionary's
            data[name].VR = trial.pick("LO DS IS US UN SQ FD SS")


class DicomBytes(Kind):
    """The bytes of DICOM files, plain and compressed."""

    name, share = "dicom_bytes", 22

    def trial(self, trial: Trial) -> None:
        syntax = trial.one([LITTLE, IMPLICIT, DEFLATED, RLE, JPEG, JPEG])
        bits = 8 if syntax == JPEG else trial.one([8, 12])
        pixels = picture(trial.rng, 2**bits - 1)
        content = saved(dicom(pixels, bits, syntax))
        where = trial.pick("any header pixels cut length")
        trial.note(f"{syntax.name[:20]} {where}")
        start = content.rfind(b"\xe0\x7f\x10\x00") if syntax != DEFLATED else 400
        lost = 0
        if where == "any":
            changed = mutate_bytes(trial, content)
        elif where == "header":
            changed = mutate_bytes(trial, content[:start]) + content[start:]
        elif where == "pixels":
            changed = content[:start] + mutate_bytes(trial, content[start:])
        elif where == "cut":
            lost = int(trial.rng.integers(1, len(content) - start + 60))
            changed = content[: len(content) - lost]
        else:  # the length of an element
            places = [n for n in range(132, start + 4, 2)]
            at = trial.one(places)
            changed = (
                content[:at]
                + trial.one([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\xfe\xff", b"\x01\0"])
                + content[at + 4 :]
            )
            trial.note(f"at {at}")
        path = trial.folder / "x.dcm"
        path.write_bytes(changed)
        image = attempt(read_dicom, path, trial.one(list(INTENSITIES)) if where != "cut" else "standard")
        header = read_header(path)
        if refused(image):
            return
        assert image.dtype == np.uint8
        assert (header.height, header.width) == image.shape, f"{header}, image {image.shape}"
        if lost > 8 + 2 * (bits > 8) and syntax not in (DEFLATED,):
            whole = np.abs(image.astype(int) - displayed(pixels, dicom(pixels, bits, LITTLE))).max()
            assert whole < 20, f"a file that lost its last {lost} bytes is read, off by {whole}"


@pytest.mark.parametrize("kind", [DicomHeaders, DicomBytes], ids=lambda kind: kind.name)
def test_mutated_dicom_files(kind, mutations):
    mutations(kind)

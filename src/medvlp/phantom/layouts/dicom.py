"""DICOM files as RSNA and SIIM released them: two exports of the same kind of NIH ChestX-ray14 images."""

import io
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydicom import DataElement, config, dcmwrite
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit, SecondaryCaptureImageStorage

from medvlp.phantom.fields import FIELD_MM
from medvlp.phantom.layouts.common import encode_image
from medvlp.phantom.model import Study, read_table

# Fixed, for pydicom's own would change the bytes from version to version. The UID is a UUID's (DICOM PS3.5, B.2).
_IMPLEMENTATION = "2.25.237498270894513687264205183475609162748"
# The exports' identifiers hold the second they were made in, in 2018. These lie in the next century, so that none is
# ever the identifier of a real image.
_UIDS = "1.2.276.0.7230010.3.1.{kind}.8323329.{process}.{second}.{micro}"
_FIRST_SECOND = 4_102_444_800  # 2100-01-01
_CONSTANT = read_table("layouts/dicom.json")  # what is the same in every file


def released_uids(index: int, rng: np.random.Generator) -> list[str]:
    """Return UIDs of study, series and image in the form that the releases have.

    They are unique to ``index``, the position of the image in the phantom.
    """
    process, micro = (int(number) for number in rng.integers((100, 100_000), (32_768, 900_000)))
    return [
        _UIDS.format(kind=kind, process=process, second=_FIRST_SECOND + index, micro=micro + step)
        for kind, step in ((2, 1), (3, 0), (4, 2))
    ]


def random_uuid(rng: np.random.Generator) -> str:
    """Return a random UUID (version 4) in its usual form of 36 characters."""
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def released_file(
    pixels: np.ndarray, study: Study, uids: list[str], patient_id: str, age: int, *, monochrome1: bool = False
) -> bytes:
    """Encode an image with the attributes that every file of both corpora has.

    As released, PatientAge has no unit ("62" and not "062Y"), which is not valid DICOM. PixelSpacing is the phantom's.
    """
    view, spacing = study.views[0], f"{FIELD_MM / len(pixels):.6g}"
    header = _CONSTANT["header"] | {
        "SeriesDescription": f"view: {view}",
        "PatientName": patient_id,
        "PatientID": patient_id,
        "PatientSex": study.patient.sex,
        "PatientAge": str(age),
        "ViewPosition": view,
        "PixelSpacing": [spacing, spacing],
    }
    study_uid, series_uid, sop_uid = uids
    return dicom_bytes(
        pixels,
        sop_uid=sop_uid,
        series_uid=series_uid,
        study_uid=study_uid,
        attributes=header,
        monochrome1=monochrome1,
    )


def dicom_bytes(
    pixels: np.ndarray,
    *,
    sop_uid: str,
    series_uid: str,
    study_uid: str,
    attributes: Mapping[str, Any],
    monochrome1: bool = False,
    jpeg: bool = True,
) -> bytes:
    """Encode (H, W) uint8 grey levels, bright = dense, as a DICOM Secondary Capture file.

    ``attributes`` are more attributes by DICOM keyword, written as they are, valid or not. The transfer syntax is JPEG
    Baseline (Process 1), which is lossy, or else Explicit VR Little Endian.
    """
    data = Dataset()
    data.file_meta = meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(_IMPLEMENTATION)
    meta.ImplementationVersionName = "MEDVLP_PHANTOM"
    values = {
        "SOPClassUID": SecondaryCaptureImageStorage,
        "SOPInstanceUID": sop_uid,
        "StudyInstanceUID": study_uid,
        "SeriesInstanceUID": series_uid,
        **attributes,
        "PhotometricInterpretation": "MONOCHROME1" if monochrome1 else "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        **_CONSTANT["pixels"],
    }
    stored = 255 - pixels if monochrome1 else pixels
    if jpeg:
        values |= _CONSTANT["jpeg"]
        content = encapsulate([encode_image(stored, "JPEG")])
    else:
        content = np.ascontiguousarray(stored).tobytes()
        content += b"\0" * (len(content) % 2)
    for keyword, value in values.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        data.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE))
    data.add(DataElement("PixelData", "OB", content))
    data["PixelData"].is_undefined_length = jpeg
    buffer = io.BytesIO()
    dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()

"""Writes a phantom in the layout of the SIIM-ACR Pneumothorax Segmentation challenge.

``dicom-images-train/<StudyUID>/<SeriesUID>/<SOPUID>.dcm`` holds the images of the phantom's train and validate
patients and ``dicom-images-test/`` those of its test patients; ``ImageId`` is the SOPInstanceUID. The masks come in
both dialects in use:

- ``train-rle.csv`` (stage 1, the training images): the header is ``ImageId, EncodedPixels`` and each value starts with
  a blank, so that an image without pneumothorax has ``" -1"``;
- ``stage_2_train.csv`` (the same and the former test images): no blanks, ``-1``.

An image with several rows has the union of their masks, which may overlap. Runs are in pixels of the image, whose side
is the phantom's size (1024 in the release). As in the release there are no lateral views, and PatientID is another
random name for each image. ``truth/`` (see :data:`medvlp.phantom.layouts.common.TRUTH_TABLES`) knows the patients; its
``image_id`` is the SOPInstanceUID.

From 100 studies on, each odd case of the released files occurs, if ``spec.findings`` has the pneumothorax: an image
of several rows with overlapping masks, a file without any row.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.phantom import cases, render
from medvlp.phantom.layouts import common
from medvlp.phantom.layouts.common import Rows, lines_of, save_file, save_truth, write_lines
from medvlp.phantom.layouts.dicom import dicom_bytes, random_uuid, released_header, released_uids
from medvlp.phantom.model import PhantomSpec, RenderedView, Study

LAYOUT = "siim"
ENTRIES: tuple[str, ...] = ("dicom-images-train", "dicom-images-test", "train-rle.csv", "stage_2_train.csv", "truth")
"""Everything in the root of a tree, but for the manifest."""

_PURPOSE = 7_401  # of the random streams
_SEVERAL_ROWS = 0.14  # 334 of the release's 2,379 positive training images
_NO_ROW = 0.0035  # 37 of its 10,712 training files
_STAGE_1, _STAGE_2 = ENTRIES[2:4]


@dataclass(frozen=True)
class _Job:
    """A study with everything that its files need to know about the whole tree."""

    study: Study
    split: str
    several_rows: bool = False
    no_row: bool = False


def _has_pneumothorax(study: Study) -> bool:
    return any(finding.name == "Pneumothorax" for finding in study.findings)


def _jobs(spec: PhantomSpec) -> list[_Job]:
    studies = list(cases.sample_studies(spec))
    split = [cases.split_of(spec, study.patient.index) for study in studies]
    several: set[int] = set()
    lone: set[int] = set()
    if len(studies) >= common.SMALLEST_WITH_ALL_CASES:
        train = [study for study, part in zip(studies, split, strict=True) if part != "test"]
        several = {study.index for study in [s for s in train if _has_pneumothorax(s)][:1]}
        lone = {study.index for study in [s for s in train if not _has_pneumothorax(s)][:1]}
    jobs = []
    for study, part in zip(studies, split, strict=True):
        dice = np.random.default_rng([study.seed, _PURPOSE]).random(2).tolist()
        train_part = part != "test"
        # Each of the images that stage 2 added has one row.
        jobs.append(
            _Job(
                study=study,
                split=part,
                several_rows=train_part and (dice[0] < _SEVERAL_ROWS or study.index in several),
                no_row=train_part and study.index not in several and (dice[1] < _NO_ROW or study.index in lone),
            )
        )
    return jobs


def _write_image(root: Path, spec: PhantomSpec, job: _Job) -> Rows:
    """Writes the frontal image of one study."""
    study = job.study
    rng = np.random.default_rng([study.seed, _PURPOSE, 1])
    study_uid, series_uid, sop_uid = released_uids(study.index, rng)
    patient_id = random_uuid(rng)
    # The release is not sorted by anything.
    rows = Rows(key=(rng.random(), study.index))
    view = render.render_view(study, study.views[0], spec.size, spec.difficulty)
    data = dicom_bytes(
        view.image,
        sop_uid=sop_uid,
        series_uid=series_uid,
        study_uid=study_uid,
        attributes=released_header(study, patient_id, spec.size),
    )
    folder = "dicom-images-test" if job.split == "test" else "dicom-images-train"
    save_file(root, f"{folder}/{study_uid}/{series_uid}/{sop_uid}.dcm", data, rows)
    save_truth(root, rows, sop_uid, study, view, split=job.split)
    rows.add("patient", str(study.patient.index))
    if job.no_row:
        rows.add("without_row", sop_uid)
        return rows
    mask = _pneumothorax(study, view)
    masks = _overlapping(mask) if job.several_rows else [mask]
    for value in [encode_runs(part) for part in masks] if mask.any() else ["-1"]:
        if job.split != "test":
            rows.add(_STAGE_1, f"{sop_uid}, {value}")
        rows.add(_STAGE_2, f"{sop_uid},{value}")
    return rows


def _pneumothorax(study: Study, view: RenderedView) -> np.ndarray:
    mask = np.zeros(view.image.shape, dtype=bool)
    for finding, shape in zip(study.findings, view.masks, strict=True):
        if finding.name == "Pneumothorax":
            mask |= shape
    return mask


def _overlapping(mask: np.ndarray) -> list[np.ndarray]:
    """An upper and a lower part that overlap in the middle; the mask alone if it is too low for that.

    So two readers' outlines lie in the release: their union is what counts.
    """
    lines = np.flatnonzero(mask.any(axis=1))
    if lines.size < 3:
        return [mask]
    first, last = int(lines[0]), int(lines[-1]) + 1
    third = max(1, (last - first) // 3)
    upper, lower = mask.copy(), mask.copy()
    upper[last - third :] = False
    lower[: first + third] = False
    return [upper, lower]


def encode_runs(mask: np.ndarray) -> str:
    """A mask in the run lengths of SIIM-ACR.

    Args:
        mask: (H, W) bool.

    Returns:
        Pairs "gap length", joined by blanks. The pixels run down the columns, from left to right; a gap counts those
        from the end of the run before (of the first run: from the first pixel). Empty if the mask is.
    """
    pixels = np.zeros(mask.size + 2, dtype=np.int8)
    pixels[1:-1] = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels))  # start, end, start, end, …
    return " ".join(map(str, np.diff(edges, prepend=0).tolist()))


def _write_tables(root: Path, spec: PhantomSpec, rows: list[Rows]) -> dict[str, Any]:
    write_lines(root, _STAGE_1, "ImageId, EncodedPixels", lines_of(rows, _STAGE_1))
    write_lines(root, _STAGE_2, "ImageId,EncodedPixels", lines_of(rows, _STAGE_2))
    common.write_truth_tables(root, rows)
    return {
        "studies": len(rows),
        "images": len(rows),
        "patients": len(set(lines_of(rows, "patient"))),
        "without_row": len(lines_of(rows, "without_row")),
    }


TREE = common.Layout(LAYOUT, ENTRIES, ENTRIES[:2], _jobs, _write_image, _write_tables)
is_complete, write = TREE.is_complete, TREE.write

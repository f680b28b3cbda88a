"""Writes a phantom in the layout of the RSNA Pneumonia Detection Challenge, stage 2.

``stage_2_train_images/<patientId>.dcm`` holds the images of the phantom's train and validate patients,
``stage_2_test_images/`` those of its test patients, for which there are no labels but in ``truth/``. An image has
Target 1 if it shows one of :data:`OPACITIES`; its boxes enclose what shows of them, in pixels of the image (the
release's images have 1024 × 1024 pixels, these have the phantom's size). It is "Normal" if the study has no finding.
As in the release there are no lateral views, and a ``patientId`` names one image, so that patients cannot be told.
``truth/`` (see :data:`medvlp.phantom.layouts.common.TRUTH_TABLES`) knows the patients; ``image_id`` is the patientId.

From 100 studies on, each odd case of the released files occurs, if ``spec.findings`` has the opacities: images of
three and four boxes, a file in MONOCHROME1, an age of 155 years.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.phantom import cases, render
from medvlp.phantom.fields import parts
from medvlp.phantom.layouts import common
from medvlp.phantom.layouts.common import Rows, lines_of, save_file, save_truth, write_lines
from medvlp.phantom.layouts.dicom import dicom_bytes, random_uuid, released_header, released_uids
from medvlp.phantom.model import PhantomSpec, RenderedView, Study

LAYOUT = "rsna"
OPACITIES: tuple[str, ...] = ("Pneumonia", "Consolidation", "Infiltration")
"""The findings that are boxed: airspace opacities as of pneumonia."""
MOST_BOXES = 4
"""No image of the release has more boxes."""
ENTRIES: tuple[str, ...] = (
    "stage_2_train_images",
    "stage_2_test_images",
    "stage_2_train_labels.csv",
    "stage_2_detailed_class_info.csv",
    "stage_2_sample_submission.csv",
    "truth",
)
"""Everything in the root of a tree, but for the manifest."""

Box = tuple[int, int, int, int]
_PURPOSE = 7_301  # of the random streams
_IN_PIECES = 0.3  # share of the images whose largest opacity is boxed in two pieces, as some readers do
_WRONG_AGE = 155  # the release's largest; a few headers are wrong
_LABELS, _CLASSES, _SUBMISSION = ENTRIES[2:5]


@dataclass(frozen=True)
class _Job:
    """A study with everything that its files need to know about the whole tree."""

    study: Study
    split: str
    least_boxes: int = 1
    monochrome1: bool = False
    wrong_age: bool = False


def _jobs(spec: PhantomSpec) -> list[_Job]:
    studies = list(cases.sample_studies(spec))
    split = [cases.split_of(spec, study.patient.index) for study in studies]
    odd: dict[int, dict[str, Any]] = {}
    if len(studies) >= common.SMALLEST_WITH_ALL_CASES:
        train = [study for study, part in zip(studies, split, strict=True) if part != "test"]
        opaque = [study for study in train if any(finding.name in OPACITIES for finding in study.findings)]
        for study, least in zip(opaque, (4, 3), strict=False):
            odd[study.index] = {"least_boxes": least}
        for study, name in zip(train[4:], ("monochrome1", "wrong_age"), strict=False):
            odd.setdefault(study.index, {})[name] = True
    jobs = []
    for study, part in zip(studies, split, strict=True):
        in_pieces = np.random.default_rng([study.seed, _PURPOSE]).random() < _IN_PIECES
        options = {"least_boxes": 2 if in_pieces else 1} | odd.get(study.index, {})
        jobs.append(_Job(study=study, split=part, **options))
    return jobs


def _write_image(root: Path, spec: PhantomSpec, job: _Job) -> Rows:
    """Writes the frontal image of one study."""
    study = job.study
    rng = np.random.default_rng([study.seed, _PURPOSE, 1])
    patient_id = random_uuid(rng)
    study_uid, series_uid, sop_uid = released_uids(study.index, rng)
    order, other_order = rng.random(2).tolist()
    # The release is not sorted by anything; the seed of a study is as good as a shuffle.
    rows = Rows(key=(order, study.index))
    view = render.render_view(study, study.views[0], spec.size, spec.difficulty)
    age = _WRONG_AGE if job.wrong_age else None
    data = dicom_bytes(
        view.image,
        sop_uid=sop_uid,
        series_uid=series_uid,
        study_uid=study_uid,
        attributes=released_header(study, patient_id, spec.size, age),
        monochrome1=job.monochrome1,
    )
    folder = "stage_2_test_images" if job.split == "test" else "stage_2_train_images"
    save_file(root, f"{folder}/{patient_id}.dcm", data, rows)
    save_truth(root, rows, patient_id, study, view, split=job.split)
    rows.add("patient", str(study.patient.index))
    if job.split == "test":
        rows.add(_SUBMISSION, f"{patient_id},0.5 0 0 100 100")
        return rows
    boxes = opacity_boxes(study, view, job.least_boxes)
    for x0, y0, x1, y1 in boxes:
        rows.add(_LABELS, f"{patient_id},{x0}.0,{y0}.0,{x1 - x0}.0,{y1 - y0}.0,1")
    if not boxes:
        rows.add(_LABELS, f"{patient_id},,,,,0")
    name = "Lung Opacity" if boxes else "No Lung Opacity / Not Normal" if study.findings else "Normal"
    # Led by what orders this table, which lists the images in another order than the labels.
    rows.add(_CLASSES, *[f"{other_order!r}:{patient_id},{name}"] * max(1, len(boxes)))
    return rows


def opacity_boxes(study: Study, view: RenderedView, least: int = 1) -> list[Box]:
    """The boxes of an image's airspace opacities, at most four.

    Args:
        study: whose findings the masks show.
        view: the masks.
        least: the largest opacities are boxed in pieces until there are so many boxes, as far as they can be cut.

    Returns:
        (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, from top to bottom; together they cover the opacities. Empty
        if none shows.
    """
    pairs = zip(study.findings, view.masks, strict=True)
    mask = np.logical_or.reduce(
        [mask for finding, mask in pairs if finding.name in OPACITIES] or [np.zeros((1, 1), bool)]
    )
    mask, whole = parts(mask)
    boxes = list(whole)
    while len(boxes) > MOST_BOXES:
        boxes = _merge_closest(boxes)
    while boxes and len(boxes) < least:
        cut = _cut_largest(mask, boxes)
        if len(cut) == len(boxes):
            break
        boxes = cut
    return sorted(boxes, key=lambda box: (box[1], box[0], box[3], box[2]))


def _merge_closest(boxes: list[Box]) -> list[Box]:
    """Replaces the two boxes whose common box adds the least area by that box."""

    def united(one: Box, other: Box) -> Box:
        return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])

    def added(pair: tuple[int, int]) -> int:
        one, other = boxes[pair[0]], boxes[pair[1]]
        return _area(united(one, other)) - _area(one) - _area(other)

    first, second = min(((i, j) for j in range(len(boxes)) for i in range(j)), key=added)
    rest = [box for i, box in enumerate(boxes) if i not in (first, second)]
    return [*rest, united(boxes[first], boxes[second])]


def _cut_largest(mask: np.ndarray, boxes: list[Box]) -> list[Box]:
    """Replaces the largest box by boxes around the halves of what it holds; the same boxes if it cannot be cut."""
    largest = max(boxes, key=_area)
    x0, y0, x1, y1 = largest
    if y1 - y0 >= x1 - x0:
        middle = (y0 + y1) // 2
        halves = [(x0, y0, x1, middle), (x0, middle, x1, y1)]
    else:
        middle = (x0 + x1) // 2
        halves = [(x0, y0, middle, y1), (middle, y0, x1, y1)]
    tight = [_tight(mask, half) for half in halves]
    if any(box is None for box in tight):
        return boxes
    return [box for box in boxes if box != largest] + [box for box in tight if box is not None]


def _tight(mask: np.ndarray, box: Box) -> Box | None:
    """The smallest box around what a box holds of the mask; None if that is nothing."""
    x0, y0, x1, y1 = box
    inside = mask[y0:y1, x0:x1]
    columns, lines = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    if not columns.size:
        return None
    return x0 + int(columns[0]), y0 + int(lines[0]), x0 + int(columns[-1]) + 1, y0 + int(lines[-1]) + 1


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _write_tables(root: Path, spec: PhantomSpec, rows: list[Rows]) -> dict[str, Any]:
    labels = lines_of(rows, _LABELS)
    keyed = [line.partition(":") for line in lines_of(rows, _CLASSES)]
    classes = [line for _, _, line in sorted(keyed, key=lambda parts: float(parts[0]))]
    write_lines(root, _LABELS, "patientId,x,y,width,height,Target", labels)
    write_lines(root, _CLASSES, "patientId,class", classes)
    write_lines(root, _SUBMISSION, "patientId,PredictionString", lines_of(rows, _SUBMISSION))
    common.write_truth_tables(root, rows)
    return {
        "studies": len(rows),
        "images": len(rows),
        "patients": len(set(lines_of(rows, "patient"))),
        "positive": len({line.partition(",")[0] for line in labels if line.endswith(",1")}),
    }


TREE = common.Layout(LAYOUT, ENTRIES, ENTRIES[:2], _jobs, _write_image, _write_tables)
is_complete, write = TREE.is_complete, TREE.write

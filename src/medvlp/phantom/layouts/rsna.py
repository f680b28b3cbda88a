"""Writes a phantom in the layout of the RSNA Pneumonia Detection Challenge, stage 2 (see docs/datasets/rsna.md).

Odd cases: images of three and four boxes, a file in MONOCHROME1, an age of 155 years.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medvlp.phantom.fields import parts
from medvlp.phantom.layouts.common import ALL_CASES, Job, Layout, Output, frontal, mask_of, random
from medvlp.phantom.layouts.dicom import random_uuid, released_file, released_uids
from medvlp.phantom.model import Box, PhantomSpec, RenderedView, Study

OPACITIES: tuple[str, ...] = ("Pneumonia", "Consolidation", "Infiltration")
"""The findings that are boxed: airspace opacities as of pneumonia."""
MOST_BOXES = 4  # no image of the release has more

_PURPOSE = 7_301  # of the random streams
_IN_PIECES = 0.3  # share of the images whose largest opacity is boxed in two pieces, as some readers do
_WRONG_AGE = 155  # the release's largest; a few headers are wrong
_LABELS, _CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
_SUBMISSION = "stage_2_sample_submission.csv"


@dataclass(frozen=True)
class _Job(Job):
    least_boxes: int
    monochrome1: bool
    wrong_age: bool


class _RSNALayout(Layout[_Job]):
    name = "rsna"

    def jobs(self, spec: PhantomSpec, studies: Sequence[tuple[Study, str]]) -> list[_Job]:
        train = [study for study, split in studies if split != "test"] if len(studies) >= ALL_CASES else []
        opaque = [study.index for study in train if any(finding.name in OPACITIES for finding in study.findings)]
        least = dict(zip(opaque, (4, 3), strict=False))
        inverted, aged = ([study.index for study in train[place : place + 1]] for place in (4, 5))
        jobs = []
        for study, split in studies:
            pieces = 2 if random(1, study.seed, _PURPOSE)[0] < _IN_PIECES else 1
            index = study.index
            jobs.append(_Job(study, split, least.get(index, pieces), index in inverted, index in aged))
        return jobs

    def write_job(self, spec: PhantomSpec, job: _Job, out: Output) -> None:
        study = job.study
        rng = np.random.default_rng([study.seed, _PURPOSE, 1])
        patient_id, uids = random_uuid(rng), released_uids(study.index, rng)
        order, other_order = rng.random(2).tolist()
        # The release is not sorted by anything; the seed of a study is as good as a shuffle.
        out.key, out.patient = (order, study.index), study.patient.index
        view = frontal(spec, study)
        age = _WRONG_AGE if job.wrong_age else study.patient.age
        data = released_file(view.image, study, uids, patient_id, age, monochrome1=job.monochrome1)
        out.save(f"{self.folders[job.split == 'test']}/{patient_id}.dcm", data)
        out.save_truth(patient_id, job, view)
        if job.split == "test":
            out.add(_SUBMISSION, f"{patient_id},0.5 0 0 100 100")
            return
        boxes = opacity_boxes(study, view, job.least_boxes)
        out.add("positive", *[patient_id][: len(boxes)])
        for x0, y0, x1, y1 in boxes:
            out.add(_LABELS, f"{patient_id},{x0}.0,{y0}.0,{x1 - x0}.0,{y1 - y0}.0,1")
        if not boxes:
            out.add(_LABELS, f"{patient_id},,,,,0")
        label = "Lung Opacity" if boxes else "No Lung Opacity / Not Normal" if study.findings else "Normal"
        # This table lists the images in another order.
        out.add(_CLASSES, *[(other_order, f"{patient_id},{label}")] * max(1, len(boxes)))


LAYOUT = _RSNALayout()


def opacity_boxes(study: Study, view: RenderedView, least: int = 1) -> list[Box]:
    """Return the boxes of an image's airspace opacities from top to bottom, at most four; together they cover them.

    The largest opacities are boxed in pieces until there are ``least`` boxes, as far as they can be cut.
    """
    mask, whole = parts(mask_of(study, view, OPACITIES))
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
    """Replace the two boxes whose common box adds the least area by that box."""

    def united(one: Box, other: Box) -> Box:
        return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])

    def added(pair: tuple[int, int]) -> int:
        one, other = boxes[pair[0]], boxes[pair[1]]
        return _area(united(one, other)) - _area(one) - _area(other)

    first, second = min(((i, j) for j in range(len(boxes)) for i in range(j)), key=added)
    rest = [box for i, box in enumerate(boxes) if i not in (first, second)]
    return [*rest, united(boxes[first], boxes[second])]


def _cut_largest(mask: np.ndarray, boxes: list[Box]) -> list[Box]:
    """Replace the largest box by boxes around the halves of what it holds; the same boxes if it cannot be cut."""
    largest = x0, y0, x1, y1 = max(boxes, key=_area)
    if y1 - y0 >= x1 - x0:
        middle = (y0 + y1) // 2
        halves = [(x0, y0, x1, middle), (x0, middle, x1, y1)]
    else:
        middle = (x0 + x1) // 2
        halves = [(x0, y0, middle, y1), (middle, y0, x1, y1)]
    tight = [box for half in halves if (box := _tight(mask, half)) is not None]
    return [box for box in boxes if box != largest] + tight if len(tight) == 2 else boxes


def _tight(mask: np.ndarray, box: Box) -> Box | None:
    x0, y0, x1, y1 = box
    rows, columns = np.nonzero(mask[y0:y1, x0:x1])
    if not rows.size:
        return None
    return x0 + int(columns.min()), y0 + int(rows[0]), x0 + int(columns.max()) + 1, y0 + int(rows[-1]) + 1


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])

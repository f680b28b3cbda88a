"""Writes a phantom in the layout of NIH ChestX-ray14 (see docs/datasets/cxr14.md).

The labels are mined from the reports, as NIH's are: what a report states is a label; what it hedges or leaves out is
not. Boxes are, as released, in the 1024-pixel space of the original images. An image's folder follows from the sorted
file names alone.

Odd cases: an RGBA image, gaps in the numbers of patients and follow-ups, rows out of order, a patient in two image
folders, ages such as ``058Y`` (older table).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medvlp.phantom.layouts.common import ALL_CASES, Job, Layout, Output, encode_image, frontal, random
from medvlp.phantom.model import CATALOGUE, PhantomSpec, Study, read_table
from medvlp.phantom.reports import write_report

LABELS, BOXED = (
    {finding: names[key] for finding, names in CATALOGUE["findings"].items() if key in names}
    for key in ("cxr14", "cxr14_box")
)
"""Finding of the phantom to label, and to its name in the table of boxes, which says ``Infiltrate``."""

_NEW, _OLD, _BOXES = "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "BBox_List_2017.csv"
_TRAIN, _TEST = "train_val_list.txt", "test_list.txt"
_IDS, _IMAGE = 7_401, 7_402  # purposes of the random streams
_BOX_SPACE = 1024  # pixels
_OLDEST = 95  # years, in the 2020 table
# width, height and pixel spacing of the most frequent original images
_DETECTORS = read_table("layouts/layouts.json")["cxr14"]["detectors"]


@dataclass(frozen=True)
class _Job(Job):
    patient: int
    follow_up: int
    folder: str
    order: int  # place among the patient's rows
    rgba: bool
    old_age: bool  # "058Y" in the older table


class _CXR14Layout(Layout[_Job]):
    name = "cxr14"

    def jobs(self, spec: PhantomSpec, studies: Sequence[tuple[Study, str]]) -> list[_Job]:
        numbers = _numbers(spec.seed, [study for study, _ in studies])
        visits = [study.patient.index for study, _ in studies]
        swapped = next((one for one, other in pairwise(visits) if one == other), None)
        jobs = []
        for (study, split), (patient, follow_up), folder in zip(
            studies, numbers, self._folder_of(numbers), strict=True
        ):
            color, age = random(2, study.seed, _IMAGE)
            odd = study.index if len(studies) >= ALL_CASES else -1
            turned = study.patient.index == swapped or random(1, study.patient.seed, _IDS)[0] < 0.1
            order = -follow_up if turned else follow_up
            rgba, old_age = color < 0.005 or odd == 7, age < 0.02 or odd in (3, 20)
            jobs.append(_Job(study, split, patient, follow_up, folder, order, rgba, old_age))
        return jobs

    def _folder_of(self, numbers: list[tuple[int, int]]) -> list[str]:
        """Return the folder of each image: the sorted names cut into 12 runs, of which one parts a patient's images."""
        count, parts = len(numbers), len(self.folders)
        cuts = [round(count * part / parts) for part in range(1, parts)]
        within = [i for i in range(1, count) if numbers[i - 1][0] == numbers[i][0]]
        if within and not set(cuts) & set(within):
            _, part, place = min((abs(cut - place), part, place) for part, cut in enumerate(cuts) for place in within)
            cuts[part] = place
            cuts.sort()
        return [self.folders[part] for part in np.searchsorted(cuts, np.arange(count), side="right").tolist()]

    def write_job(self, spec: PhantomSpec, job: _Job, out: Output) -> None:
        study, patient = job.study, job.patient
        out.key, out.patient = (patient, job.order), patient
        view = frontal(spec, study)
        mentions = write_report(study, spec.difficulty).mentions
        image_id = f"{patient:08d}_{job.follow_up:03d}"
        out.save(f"{job.folder}/{image_id}.png", encode_image(view.image, "PNG", "RGBA" if job.rgba else "L"))
        out.save_truth(image_id, job, view, mentions)

        labels = sorted(label for finding, label in LABELS.items() if mentions.get(finding) == 1.0)
        age = min(study.patient.age + study.number, _OLDEST)
        # A patient mostly returns to the same room.
        detector = _DETECTORS[int(np.random.default_rng([study.patient.seed, _IMAGE]).integers(len(_DETECTORS)))]
        start = f"{image_id}.png,{'|'.join(labels) or 'No Finding'}"
        tail = f"{study.patient.sex},{study.views[0]},{detector}"
        out.add(_NEW, f"{start},{job.follow_up},{patient},{age},{tail}")
        follow_up, old_age = (f"{job.follow_up:03d}", f"{age:03d}Y") if job.old_age else (job.follow_up, age)
        out.add(_OLD, f"{start},{follow_up},{patient},{old_age},{tail},")
        out.add(_TEST if job.split == "test" else _TRAIN, (image_id, f"{image_id}.png"))
        for finding, boxes in zip(study.findings, view.boxes, strict=True):
            if job.split == "test" and finding.name in BOXED and LABELS[finding.name] in labels:
                for left, top, right, bottom in boxes:
                    pixels = (left, top, right - left, bottom - top)
                    box = ",".join(f"{value * _BOX_SPACE / spec.size:.15g}" for value in pixels)
                    # sorted by class
                    out.add(_BOXES, (list(BOXED).index(finding.name), f"{image_id}.png,{BOXED[finding.name]},{box}"))


LAYOUT = _CXR14Layout()


def _numbers(seed: int, studies: list[Study]) -> list[tuple[int, int]]:
    rng = np.random.default_rng([seed, _IDS])
    patient, follow_up, before = 0, 0, -1
    numbers = []
    for study, (gap, skip) in zip(studies, rng.random((len(studies), 2)).tolist(), strict=True):
        if study.patient.index != before:
            patient += 1 + (gap < 0.15)
            follow_up, before = -1, study.patient.index
        follow_up += 1 + (skip < 0.1)
        numbers.append((patient, follow_up))
    return numbers

"""Writes a phantom in the layout of NIH ChestX-ray14.

``images_001/images/00000001_000.png`` … ``images_012/images/`` hold the frontal images: the folder follows from the
sorted file names alone, so that it may change within a patient. ``Data_Entry_2017_v2020.csv`` and the older
``Data_Entry_2017.csv`` are the label tables, ``BBox_List_2017.csv`` the boxes of test images, ``train_val_list.txt``
and ``test_list.txt`` the official split, by patient.

The 14 labels are mined from the phantom's reports, as NIH's are: what a report states is a label; what it hedges or
leaves out is not. ``truth/`` holds what there is to see. The images are ``spec.size`` pixels square, whereas the boxes
are, as released, in the 1024-pixel space of the original images: scale them by ``size / 1024``.

From 100 studies on, each odd case of the release occurs: an RGBA image, gaps in the numbers of patients and follow-
ups, rows out of order, a patient in two image folders, ages such as ``058Y`` (older table).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.phantom import cases, render
from medvlp.phantom.layouts import common
from medvlp.phantom.layouts.common import Rows, lines_of, save_file, save_truth, write_lines
from medvlp.phantom.model import PhantomSpec, RenderedView, Study
from medvlp.phantom.reports import write_report

LAYOUT = "cxr14"
LABELS: dict[str, str] = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Pleural Effusion": "Effusion",
    "Infiltration": "Infiltration",
    "Mass": "Mass",
    "Nodule": "Nodule",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Emphysema": "Emphysema",
    "Fibrosis": "Fibrosis",
    "Pleural Thickening": "Pleural_Thickening",
    "Hernia": "Hernia",
}
"""Finding of the phantom to label, in the order in which NIH's papers list the labels."""

BOXED: dict[str, str] = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Pleural Effusion": "Effusion",
    "Infiltration": "Infiltrate",
    "Mass": "Mass",
    "Nodule": "Nodule",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
}
"""Finding to its name in the table of boxes, which says ``Infiltrate`` for Infiltration."""

_FOLDERS = tuple(f"images_{number:03d}" for number in range(1, 13))
_NEW, _OLD, _BOXES = "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "BBox_List_2017.csv"
_TRAIN, _TEST = "train_val_list.txt", "test_list.txt"
ENTRIES: tuple[str, ...] = (*_FOLDERS, "truth", _NEW, _OLD, _BOXES, _TRAIN, _TEST)
"""Everything in the root of a tree, but for the manifest."""

# The commas within brackets stand unquoted, as in the release.
_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
_BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
_IDS, _IMAGE = 7_401, 7_402  # purposes of the random streams
_BOX_SPACE = 1024  # pixels
_OLDEST = 95  # years, in the 2020 table
_DETECTORS = (  # width, height and pixel spacing of the most frequent original images
    "2500,2048,0.168,0.168",
    "2992,2991,0.14300000000000002,0.14300000000000002",
    "3056,2544,0.139,0.139",
    "2048,2500,0.168,0.168",
    "2500,2048,0.171,0.171",
)


@dataclass(frozen=True)
class _Job:
    study: Study
    split: str
    patient: int
    follow_up: int
    folder: str
    order: int  # place among the patient's rows
    rgba: bool = False
    old_age: bool = False  # "058Y" in the older table

    @property
    def name(self) -> str:
        return _name(self.patient, self.follow_up)


def _name(patient: int, follow_up: int) -> str:
    return f"{patient:08d}_{follow_up:03d}.png"


def _numbers(spec: PhantomSpec, studies: list[Study]) -> list[tuple[int, int]]:
    """Patient and follow-up number of each study, both rising, with gaps."""
    rng = np.random.default_rng([spec.seed, _IDS])
    patient, follow_up, before = 0, 0, -1
    numbers = []
    for study, (gap, skip) in zip(studies, rng.random((len(studies), 2)).tolist(), strict=True):
        if study.patient.index != before:
            patient += 1 + (gap < 0.15)
            follow_up, before = -1, study.patient.index
        follow_up += 1 + (skip < 0.1)
        numbers.append((patient, follow_up))
    return numbers


def _folder_of(numbers: list[tuple[int, int]]) -> list[str]:
    """The folder of each image: the sorted names cut into 12 runs of nearly equal length.

    Where no cut parts a patient's images, the cut next to such a place is moved there.
    """
    count, parts = len(numbers), len(_FOLDERS)
    cuts = [round(count * part / parts) for part in range(1, parts)]
    within = [i for i in range(1, count) if numbers[i - 1][0] == numbers[i][0]]
    if within and not set(cuts) & set(within):
        _, part, place = min((abs(cut - place), part, place) for part, cut in enumerate(cuts) for place in within)
        cuts[part] = place
        cuts.sort()
    return [_FOLDERS[part] for part in np.searchsorted(cuts, np.arange(count), side="right").tolist()]


def _jobs(spec: PhantomSpec) -> list[_Job]:
    """All studies with their names and folders; which ones are odd is decided here, where all are known."""
    studies = list(cases.sample_studies(spec))
    numbers = _numbers(spec, studies)
    every = len(studies) >= common.SMALLEST_WITH_ALL_CASES
    swapped = next((a.patient.index for a, b in pairwise(studies) if a.patient.index == b.patient.index), None)
    jobs = []
    for study, (patient, follow_up), folder in zip(studies, numbers, _folder_of(numbers), strict=True):
        dice = np.random.default_rng([study.seed, _IMAGE]).random(2).tolist()
        turned = study.patient.index == swapped or np.random.default_rng([study.patient.seed, _IDS]).random() < 0.1
        jobs.append(
            _Job(
                study=study,
                split=cases.split_of(spec, study.patient.index),
                patient=patient,
                follow_up=follow_up,
                folder=folder,
                order=-follow_up if turned else follow_up,
                rgba=dice[0] < 0.005 or (every and study.index == 7),
                old_age=dice[1] < 0.02 or (every and study.index in (3, 20)),
            )
        )
    return jobs


def _write_study(root: Path, spec: PhantomSpec, job: _Job) -> Rows:
    """Writes one image and its row of every table."""
    study = job.study
    rows = Rows(key=(job.patient, job.order))
    view = render.render_view(study, study.views[0], spec.size, spec.difficulty)
    mentions = write_report(study, spec.difficulty).mentions
    png = common.encode_png(view.image, "RGBA" if job.rgba else "L")
    save_file(root, f"{job.folder}/images/{job.name}", png, rows)
    save_truth(root, rows, job.name[:-4], study, view, split=job.split, mentions=mentions)

    labels = mined_labels(mentions)
    age = min(study.patient.age + study.number, _OLDEST)
    # A patient mostly returns to the same room.
    detector = _DETECTORS[int(np.random.default_rng([study.patient.seed, _IMAGE]).integers(len(_DETECTORS)))]
    tail = f"{study.patient.sex},{study.views[0]},{detector}"
    joined = "|".join(labels) or "No Finding"
    rows.add(_NEW, f"{job.name},{joined},{job.follow_up},{job.patient},{age},{tail}")
    old = (f"{job.follow_up:03d}", f"{age:03d}Y") if job.old_age else (str(job.follow_up), str(age))
    rows.add(_OLD, f"{job.name},{joined},{old[0]},{job.patient},{old[1]},{tail},")
    rows.add(_TEST if job.split == "test" else _TRAIN, job.name)
    if job.split == "test":
        _add_boxes(rows, job, view, labels)
    return rows


def mined_labels(mentions: Mapping[str, float]) -> tuple[str, ...]:
    """The labels that a report states, in alphabetical order as in the released tables.

    Args:
        mentions: finding to 1.0 (stated), 0.0 (negated) or −1.0 (hedged).

    Returns:
        Names of labels; none of them means "No Finding".
    """
    return tuple(sorted(label for finding, label in LABELS.items() if mentions.get(finding) == 1.0))


def _add_boxes(rows: Rows, job: _Job, view: RenderedView, labels: tuple[str, ...]) -> None:
    """One line for each part of a labelled finding, in the table of its class."""
    height, width = view.image.shape
    for finding, boxes in zip(job.study.findings, view.boxes, strict=True):
        if finding.name not in BOXED or LABELS[finding.name] not in labels:
            continue
        name = BOXED[finding.name]
        for left, top, right, bottom in boxes:
            x, w = (value * _BOX_SPACE / width for value in (int(left), int(right - left)))
            y, h = (value * _BOX_SPACE / height for value in (int(top), int(bottom - top)))
            rows.add(f"boxes {name}", f"{job.name},{name}," + ",".join(f"{value:.15g}" for value in (x, y, w, h)))


def _write_tables(root: Path, spec: PhantomSpec, rows: list[Rows]) -> dict[str, Any]:
    write_lines(root, _NEW, _HEADER, lines_of(rows, _NEW))
    write_lines(root, _OLD, _HEADER + ",", lines_of(rows, _OLD))
    boxes = [line for name in BOXED.values() for line in lines_of(rows, f"boxes {name}")]
    write_lines(root, _BOXES, _BOX_HEADER, boxes)
    for name in (_TRAIN, _TEST):
        write_lines(root, name, None, sorted(lines_of(rows, name)))
    common.write_truth_tables(root, rows)
    return {
        "studies": len(rows),
        "images": len(rows),
        "patients": len({row.key[0] for row in rows}),
        "boxes": len(boxes),
    }


TREE = common.Layout(LAYOUT, ENTRIES, [f"{folder}/images" for folder in _FOLDERS], _jobs, _write_study, _write_tables)
is_complete, write = TREE.is_complete, TREE.write

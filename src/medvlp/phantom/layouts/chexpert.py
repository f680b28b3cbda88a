"""Writes a phantom in the layout of CheXpert-v1.0, with the reports of CheXpert Plus.

The root is the dataset folder: ``train/patient00001/study1/view1_frontal.jpg`` and so on, ``train.csv`` with the labels
that a report labeller reads, ``valid.csv`` and ``groundtruth.csv`` (the later labels of ``test/``, one row per study)
with the exact ones. Train, valid and test are the phantom's train, validate and test patients, numbered in this order.
``train.csv`` has the path prefix of the small release, ``valid.csv`` that of the full one.

``df_chexpert_plus_240401.csv`` has one row for each train and valid image and the report beside it. Its 27 columns, the
form of its paths (no prefix), the values of its categories and the outline of its reports follow several public
descriptions of the release that agree; no file of the release was at hand [unverified].

``truth/`` (see :data:`medvlp.phantom.layouts.common.TRUTH_TABLES`) has for ``image_id`` the path below the root with
``_`` for ``/`` and without suffix, for example ``train_patient00001_study1_view1_frontal``.

From 100 studies on, each odd case of the released files occurs: in ``train.csv`` 1, 0, −1 and blank in every label
(but for findings that the phantom does not have), a frontal image with AP/PA "LL", a patient of Sex "Unknown" and Age
0, a patient's second study listed before the first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.errors import ConfigError
from medvlp.phantom import cases, render
from medvlp.phantom.layouts import common
from medvlp.phantom.layouts.chexpert_plus import PLUS_COLUMNS, choose_structure, plus_row
from medvlp.phantom.layouts.common import Rows, lines_of, save_file, save_truth, write_lines
from medvlp.phantom.layouts.labels import exact_labels, report_labels
from medvlp.phantom.model import PhantomSpec, Study
from medvlp.phantom.reports import write_report

LAYOUT = "chexpert"
LABELS: tuple[str, ...] = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 labels in the column order of the released tables, which is not MIMIC-CXR's."""
PLUS = "df_chexpert_plus_240401.csv"
ENTRIES: tuple[str, ...] = ("train", "valid", "test", "train.csv", "valid.csv", "groundtruth.csv", PLUS, "truth")
"""Everything in the root of a tree, but for the manifest."""

_FULL, _SMALL = "CheXpert-v1.0", "CheXpert-v1.0-small"
_PREFIX = {"train": _SMALL, "valid": _FULL}
_SPLITS = {"train": "train", "validate": "valid", "test": "test"}
_MOST_PATIENTS = 99_999  # five digits
_OLDEST = 90  # the release's greatest age
_PATIENT, _STUDY = 7_201, 7_202  # purposes of the random streams


@dataclass(frozen=True)
class _Job:
    """A study with everything that its files need to know about the whole tree."""

    study: Study
    split: str
    patient: int
    place: int  # among the studies of the patient in the tables
    left_lateral: bool = False
    unknown: bool = False

    @property
    def folder(self) -> str:
        return f"{self.split}/patient{self.patient:05d}/study{self.study.number + 1}"


def _jobs(spec: PhantomSpec) -> list[_Job]:
    studies = list(cases.sample_studies(spec))
    by_patient: dict[int, list[Study]] = {}
    for study in studies:
        by_patient.setdefault(study.patient.index, []).append(study)
    if len(by_patient) > _MOST_PATIENTS:
        raise ConfigError(f"{len(by_patient)} patients do not fit CheXpert's five digits; write fewer studies.")
    split = {index: _SPLITS[cases.split_of(spec, index)] for index in by_patient}
    order = sorted(by_patient, key=lambda index: list(_SPLITS.values()).index(split[index]))
    numbers = {index: number for number, index in enumerate(order, start=1)}
    train = [index for index in by_patient if split[index] == "train"]
    every = len(studies) >= common.SMALLEST_WITH_ALL_CASES
    reversed_patient = next((index for index in train if every and len(by_patient[index]) > 1), None)
    once = [index for index in train if len(by_patient[index]) == 1] if every else []
    jobs = []
    for index, own in by_patient.items():
        places = np.random.default_rng([own[0].patient.seed, _PATIENT]).permutation(len(own)).tolist()
        if index == reversed_patient:
            places = list(range(len(own)))[::-1]
        jobs += [
            _Job(
                study=study,
                split=split[index],
                patient=numbers[index],
                place=place,
                left_lateral=once[2:3] == [index],
                unknown=once[5:6] == [index],
            )
            for study, place in zip(own, places, strict=True)
        ]
    return jobs


def age_at(study: Study) -> int:
    """The patient's age in years at a study, at most 90; later studies are 30 to 400 days apart."""
    gap = int(np.random.default_rng([study.patient.seed, _STUDY]).integers(30, 400))
    return min(_OLDEST, study.patient.age + gap * study.number // 365)


def _write_study(root: Path, spec: PhantomSpec, job: _Job) -> Rows:
    """Writes the images of one study."""
    study = job.study
    rows = Rows(key=(job.patient, job.place))
    report = write_report(study, spec.difficulty, choose_structure(study))
    exact = exact_labels(study.findings)
    said = report_labels(report)
    cells = ",".join("" if said[name] is None else str(said[name]) for name in LABELS)
    exact_cells = ",".join(str(exact[name]) for name in LABELS)
    sex, age = {"M": "Male", "F": "Female"}[study.patient.sex], age_at(study)
    if job.unknown:
        sex, age = "Unknown", 0
    for number, view in enumerate(render.render_study(study, spec), start=1):
        side = "Lateral" if view.view == "LATERAL" else "Frontal"
        projection = "" if side == "Lateral" else "LL" if job.left_lateral else view.view
        path = f"{job.folder}/view{number}_{side.lower()}.jpg"
        save_file(root, path, common.encode_jpeg(view.image), rows)
        image_id = path.removesuffix(".jpg").replace("/", "_")
        save_truth(root, rows, image_id, study, view, split=job.split, mentions=report.mentions)
        rows.add("images", path)
        if job.split != "test":
            rows.add(job.split, f"{_PREFIX[job.split]}/{path},{sex},{age},{side},{projection}")
            rows.add(PLUS, plus_row(study, report, path, side, projection, sex, None if job.unknown else age))
    if job.split == "test":
        flags = ",".join(str(int(exact[name])) for name in LABELS)
        rows.add("groundtruth", f"{_FULL}/{job.folder},{flags}")
    else:
        rows.add("labels", cells if job.split == "train" else exact_cells)
        rows.add("exact", exact_cells)
    return rows


def _write_tables(root: Path, spec: PhantomSpec, rows: list[Rows]) -> dict[str, Any]:
    head = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(LABELS)
    for split in ("train", "valid"):
        own = [row for row in rows if split in row.lines]
        cells = [row.lines["labels"][0] for row in own]
        if split == "train" and spec.studies >= common.SMALLEST_WITH_ALL_CASES:
            cells = _misread(cells, [row.lines["exact"][0] for row in own])
        lines = [f"{line},{text}" for row, text in zip(own, cells, strict=True) for line in row.lines[split]]
        write_lines(root, f"{split}.csv", head, lines)
    write_lines(root, "groundtruth.csv", "Study," + ",".join(LABELS), lines_of(rows, "groundtruth"))
    write_lines(root, PLUS, ",".join(PLUS_COLUMNS), lines_of(rows, PLUS))
    common.write_truth_tables(root, rows)
    return {"studies": len(rows), "images": len(lines_of(rows, "images")), "patients": len({r.key[0] for r in rows})}


def _misread(cells: list[str], exact: list[str]) -> list[str]:
    """Gives each label that there is in any study the values that it lacks, one study for each.

    A labeller misreads a report now and then; in the release every label (but No Finding) has 1, 0, −1 and blank. The
    missing 1 goes to a study that has the finding. A 1 becomes −1, as where a hedge is seen that is none; a blank
    becomes 0, a 0 blank; where there are none of these to spare, another value is misread.

    Args:
        cells: the 14 labels of each study as they are read, joined by commas.
        exact: the same as they are.

    Returns:
        ``cells`` with at most four studies changed for a label.
    """
    table, there = (
        np.array([line.split(",") for line in lines], dtype=object).reshape(-1, len(LABELS)) for lines in (cells, exact)
    )
    donors = {"-1.0": ("1.0", "0.0", ""), "0.0": ("", "-1.0", "1.0"), "": ("0.0", "1.0")}
    for name, column, present in zip(LABELS, table.T, (there == "1.0").T, strict=True):
        if name == "No Finding" or not present.any():
            continue
        if "1.0" not in column:
            column[np.flatnonzero(present)[0]] = "1.0"
        for value, instead_of in donors.items():
            spare = [places for other in instead_of if (places := np.flatnonzero(column == other)).size > 1]
            if value not in column and spare:
                column[spare[0][-1]] = value
    return [",".join(line) for line in table]


TREE = common.Layout(LAYOUT, ENTRIES, ENTRIES[:3], _jobs, _write_study, _write_tables)
is_complete, write = TREE.is_complete, TREE.write

"""Writes a phantom in the layout of MIMIC-CXR: the JPG release 2.1.0 and the reports of MIMIC-CXR 2.0.0 in one tree.

``files/p10/p10000032/s50414267/<dicom_id>.jpg`` holds the images, ``files/p10/p10000032/s50414267.txt`` the report.
Beside the released files, ``truth/`` holds what there really is to see: ``labels.csv`` (one row per study, the 18
findings as 0 and 1), ``findings.jsonl`` (side, zone, severity, size, subtype; what the report says), ``boxes.csv``
(pixels, x1 and y1 exclusive) and ``masks/<dicom_id>.npz`` (:func:`medvlp.phantom.truth.read_truth_masks`).
``phantom.json`` is written last.

From 100 studies on, each odd case of the released files occurs: a blank ViewPosition, an LL lateral, a study without
label row, an all-blank label row, reports that a parser stumbles over.
"""

import datetime
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medvlp.phantom import cases, render
from medvlp.phantom.layouts import common
from medvlp.phantom.layouts.common import Rows, lines_of, save_file, write_lines
from medvlp.phantom.layouts.labels import LABELS, exact_labels, report_labels
from medvlp.phantom.model import FINDINGS, PhantomReport, PhantomSpec, Study
from medvlp.phantom.reports import LAYOUT_QUIRKS, STRUCTURES, format_report, write_report

LAYOUT = "mimic_cxr"
ENTRIES: tuple[str, ...] = (
    "files",
    "truth",
    "mimic-cxr-2.0.0-metadata.csv.gz",
    "mimic-cxr-2.0.0-split.csv.gz",
    "mimic-cxr-2.0.0-chexpert.csv.gz",
    "mimic-cxr-2.0.0-negbio.csv.gz",
    "mimic-cxr-2.1.0-test-set-labeled.csv",
    "cxr-record-list.csv.gz",
    "cxr-study-list.csv.gz",
    "IMAGE_FILENAMES",
    "LICENSE.txt",
    "README",
    "SHA256SUMS.txt",
)
"""Everything in the root of a tree, but for the manifest."""

_METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
_VIEW_CODES = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral", "LL": "left lateral", "": ""}
_IDS, _STUDY, _PATIENT, _IMAGE, _TEXT = 7_101, 7_102, 7_103, 7_104, 7_105  # purposes of the random streams
_ODD_REPORTS: dict[int, tuple[str, str | None]] = {
    **{7 + 4 * i: (structure, None) for i, structure in enumerate(STRUCTURES)},
    **{9 + 4 * i: ("usual", quirk) for i, quirk in enumerate(LAYOUT_QUIRKS)},
}


@dataclass(frozen=True)
class _Job:
    """A study with everything that its files need to know about the whole tree."""

    study: Study
    subject_id: int
    study_id: int
    split: str
    unlabelled: bool = False
    blank_labels: bool = False
    blank_view: bool = False
    ll_view: bool = False
    structure: str | None = None
    quirk: str | None = None


def _jobs(spec: PhantomSpec) -> list[_Job]:
    """All studies with their identifiers; which ones are odd is decided here, where all are known."""
    studies = list(cases.sample_studies(spec))
    rng = np.random.default_rng([spec.seed, _IDS])
    patients = len({study.patient.index for study in studies})
    subjects = (10_000_000 + rng.choice(10_000_000, patients, replace=False)).tolist()
    numbers = (50_000_000 + rng.choice(10_000_000, len(studies), replace=False)).tolist()
    order = {index: i for i, index in enumerate(dict.fromkeys(study.patient.index for study in studies))}
    every = len(studies) >= common.SMALLEST_WITH_ALL_CASES
    first_lateral = next((study.index for study in studies if "LATERAL" in study.views), None)
    jobs = []
    for study, number in zip(studies, numbers, strict=True):
        dice = np.random.default_rng([study.seed, _STUDY]).random(4).tolist()
        structure, quirk = _ODD_REPORTS.get(study.index, (None, None)) if every else (None, None)
        unlabelled = dice[0] < 0.002 or (every and study.index == 5)
        jobs.append(
            _Job(
                study=study,
                subject_id=subjects[order[study.patient.index]],
                study_id=number,
                split=cases.split_of(spec, study.patient.index),
                unlabelled=unlabelled,
                blank_labels=not unlabelled and (dice[1] < 0.008 or (every and study.index == 11)),
                blank_view=dice[2] < 0.02 or (every and study.index == 3),
                ll_view=dice[3] < 0.1 or (every and study.index == first_lateral),
                structure=structure,
                quirk=quirk,
            )
        )
    return jobs


def _folder(job: _Job) -> str:
    return f"files/p{job.subject_id // 1_000_000}/p{job.subject_id}"


def frontal_paths(spec: PhantomSpec) -> list[tuple[Study, str]]:
    """Where the frontal images of a phantom lie, for corpora that point into MIMIC-CXR.

    Args:
        spec: the phantom.

    Returns:
        Each study with the path of its frontal image below the root: ``files/p10/p10000032/s50414267/<dicom_id>.jpg``.
    """
    return [(job.study, f"{_folder(job)}/s{job.study_id}/{_dicom_id(job.study, 0)}.jpg") for job in _jobs(spec)]


def _write_study(root: Path, spec: PhantomSpec, job: _Job) -> Rows:
    """Writes the files of one study."""
    study = job.study
    rows = Rows(key=(job.subject_id, job.study_id))
    report = write_report(study, spec.difficulty, job.structure)
    folder = _folder(job)
    text = format_report(report, np.random.default_rng([study.seed, _TEXT]), job.quirk).encode()
    report_path = f"{folder}/s{job.study_id}.txt"
    save_file(root, report_path, text, rows)

    dicom_ids = []
    date, time = _moment(study)
    for number, view in enumerate(render.render_study(study, spec)):
        dicom_id = _dicom_id(study, number)
        dicom_ids.append(dicom_id)
        path = f"{folder}/s{job.study_id}/{dicom_id}.jpg"
        save_file(root, path, common.encode_jpeg(view.image), rows)
        common.save_masks(root, rows, dicom_id, study, view)

        position: str = "LL" if view.view == "LATERAL" and job.ll_view else view.view
        if job.blank_view and view.view != "LATERAL":
            position = ""
        height, width = view.image.shape
        rows.add(
            "metadata",
            f"{dicom_id},{job.subject_id},{job.study_id},{_procedure(study, job)},{position},{height},{width},"
            f"{date},{time},{_procedure(study, job)},{_VIEW_CODES[position]},{_orientation(study, job)}",
        )
        rows.add("split", f"{dicom_id},{job.study_id},{job.subject_id},{job.split}")
        rows.add("images", path)
        rows.add("record", f"{job.subject_id},{job.study_id},{dicom_id},{path[:-4]}.dcm")

    rows.add("study", f"{job.subject_id},{job.study_id},{report_path}")
    _add_labels(rows, job, report)
    rows.add("truth", f"{job.subject_id},{job.study_id},{job.split},{common.truth_flags(study)}")
    rows.add("findings", _truth_line(job, dicom_ids, report))
    return rows


def _add_labels(rows: Rows, job: _Job, report: PhantomReport) -> None:
    labels = report_labels(report)
    cells = ",".join("" if labels[name] is None else str(labels[name]) for name in LABELS)
    keys = f"{job.subject_id},{job.study_id},"
    if not job.unlabelled:
        rows.add("chexpert", keys + ("," * (len(LABELS) - 1) if job.blank_labels else cells))
        rows.add("negbio", keys + cells)
    if job.split == "test":
        exact = exact_labels(job.study.findings)
        rows.add("test", f"{job.study_id}," + ",".join(str(exact[name]) for name in LABELS))


def _truth_line(job: _Job, dicom_ids: list[str], report: PhantomReport) -> str:
    record = {
        "subject_id": job.subject_id,
        "study_id": job.study_id,
        "split": job.split,
        "dicom_ids": dicom_ids,
        "index": job.study.index,
        "number": job.study.number,
        "views": list(job.study.views),
        "reader": job.study.reader,
        "findings": [common.describe_finding(finding) for finding in job.study.findings],
        "mentions": report.mentions,
    }
    return json.dumps(record)


def _dicom_id(study: Study, number: int) -> str:
    words = np.random.default_rng([study.seed, _IMAGE, number]).integers(0, 2**32, 5).tolist()
    return "-".join(f"{word:08x}" for word in words)


def _moment(study: Study) -> tuple[str, str]:
    """StudyDate, shifted to the future, and StudyTime as the float HHMMSS.fff; later studies are later."""
    rng = np.random.default_rng([study.patient.seed, _PATIENT])
    start, gap = rng.integers(0, 33_000), rng.integers(30, 400)
    second, milli = np.random.default_rng([study.seed, _PATIENT]).integers((0, 0), (86_400, 1000)).tolist()
    date = datetime.date(2110, 1, 1) + datetime.timedelta(days=int(start + gap * study.number))
    clock = second // 3600 * 10_000 + second // 60 % 60 * 100 + second % 60
    return f"{date:%Y%m%d}", str(clock + milli / 1000)


def _procedure(study: Study, job: _Job) -> str:
    if job.blank_view:
        return ""
    if len(study.views) > 1:
        return f"CHEST ({study.views[0]} AND LAT)"
    return "CHEST (PORTABLE AP)" if study.views[0] == "AP" else "CHEST (SINGLE VIEW)"


def _orientation(study: Study, job: _Job) -> str:
    return "" if job.blank_view else "Recumbent" if study.views == ("AP",) else "Erect"


def _write_tables(root: Path, spec: PhantomSpec, rows: list[Rows]) -> dict[str, int | str]:
    """Writes the tables in the order of the identifiers, then the checksums."""
    labels = ",".join(LABELS)
    tables = {
        "mimic-cxr-2.0.0-metadata.csv.gz": ("metadata", _METADATA),
        "mimic-cxr-2.0.0-split.csv.gz": ("split", "dicom_id,study_id,subject_id,split"),
        "mimic-cxr-2.0.0-chexpert.csv.gz": ("chexpert", "subject_id,study_id," + labels),
        "mimic-cxr-2.0.0-negbio.csv.gz": ("negbio", "subject_id,study_id," + labels),
        "mimic-cxr-2.1.0-test-set-labeled.csv": ("test", "study_id," + labels),
        "cxr-record-list.csv.gz": ("record", "subject_id,study_id,dicom_id,path"),
        "cxr-study-list.csv.gz": ("study", "subject_id,study_id,path"),
        "IMAGE_FILENAMES": ("images", None),
        "truth/labels.csv": ("truth", "subject_id,study_id,split," + ",".join(FINDINGS)),
        "truth/boxes.csv": ("truth/boxes.csv", "dicom_id,finding,x0,y0,x1,y1"),
        "truth/findings.jsonl": ("findings", None),
    }
    sums = [pair for row in rows for pair in row.sums]
    truth_sums = [pair for row in rows for pair in row.truth_sums]
    for name, (table, header) in tables.items():
        pair = write_lines(root, name, header, lines_of(rows, table), compress=name.endswith(".gz"))
        (truth_sums if name.startswith("truth/") else sums).append(pair)
    for name, text in (("README", _README), ("LICENSE.txt", _LICENSE)):
        sums.append(write_lines(root, name, None, text.splitlines()))
    index = [f"{digest}  {name}" for name, digest in sorted(sums)]
    write_lines(root, "SHA256SUMS.txt", None, index)
    index += [f"{digest}  {name}" for name, digest in sorted(truth_sums)]
    return {
        "studies": len(rows),
        "images": len(lines_of(rows, "images")),
        "patients": len({row.key[0] for row in rows}),
        "sha256": hashlib.sha256("".join(line + "\n" for line in index).encode()).hexdigest(),
    }


_README = """A phantom in the layout of MIMIC-CXR, drawn and worded by medvlp. No real patient is in it.

files/      images as in MIMIC-CXR-JPG 2.1.0, reports as in MIMIC-CXR 2.0.0
*.csv.gz    the tables of both projects, in the released columns
truth/      what there really is to see: labels.csv, findings.jsonl, boxes.csv, masks/<dicom_id>.npz
            (medvlp.phantom.truth.read_truth_masks reads the masks)
phantom.json  the settings that this tree was made from; written last, so a tree without it is unfinished
"""
_LICENSE = """Synthetic data, generated by medvlp. It shows no real patient and holds no file of the MIMIC-CXR projects,
whose terms of use do not apply to it.
"""


TREE = common.Layout(LAYOUT, ENTRIES, ("files",), _jobs, _write_study, _write_tables)
is_complete, write = TREE.is_complete, TREE.write

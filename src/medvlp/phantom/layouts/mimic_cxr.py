"""Writes a phantom in the layout of MIMIC-CXR: the JPG release 2.1.0 and the reports of MIMIC-CXR 2.0.0 in one tree.

docs/datasets/mimic_cxr.md describes the files, those of ``truth/`` too. Odd cases: a blank ViewPosition, an LL lateral,
a study without label row, an all-blank label row, reports that a parser stumbles over.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medvlp.phantom import render
from medvlp.phantom.layouts.common import ALL_CASES, Job, Layout, Output, encode_image, random, sha256_of, write_lines
from medvlp.phantom.layouts.labels import LABELS, exact_labels, report_labels
from medvlp.phantom.model import PhantomSpec, Study
from medvlp.phantom.reports import LAYOUT_QUIRKS, STRUCTURES, format_report, write_report

_METADATA, _SPLIT = "mimic-cxr-2.0.0-metadata.csv.gz", "mimic-cxr-2.0.0-split.csv.gz"
_CHEXPERT, _NEGBIO = "mimic-cxr-2.0.0-chexpert.csv.gz", "mimic-cxr-2.0.0-negbio.csv.gz"
_TEST = "mimic-cxr-2.1.0-test-set-labeled.csv"
_VIEW_CODES = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral", "LL": "left lateral", "": ""}
_IDS, _STUDY, _PATIENT, _IMAGE, _TEXT = 7_101, 7_102, 7_103, 7_104, 7_105  # purposes of the random streams
_ODD_REPORTS: dict[int, tuple[str, str | None]] = {
    **{7 + 4 * i: (structure, None) for i, structure in enumerate(STRUCTURES)},
    **{9 + 4 * i: ("usual", quirk) for i, quirk in enumerate(LAYOUT_QUIRKS)},
}


@dataclass(frozen=True)
class _Job(Job):
    subject_id: int
    study_id: int
    labels: str  # "none" without a row of the label tables, "blank" with an empty one of CheXpert, else ""
    blank_view: bool
    ll_view: bool
    structure: str | None
    quirk: str | None

    @property
    def folder(self) -> str:
        return f"files/p{self.subject_id // 1_000_000}/p{self.subject_id}/s{self.study_id}"

    def dicom_id(self, number: int) -> str:
        words = np.random.default_rng([self.study.seed, _IMAGE, number]).integers(0, 2**32, 5).tolist()
        return "-".join(f"{word:08x}" for word in words)


class _MIMICCXRLayout(Layout[_Job]):
    name = "mimic_cxr"

    def jobs(self, spec: PhantomSpec, studies: Sequence[tuple[Study, str]]) -> list[_Job]:
        rng = np.random.default_rng([spec.seed, _IDS])
        patients = list(dict.fromkeys(study.patient.index for study, _ in studies))
        subjects = (10_000_000 + rng.choice(10_000_000, len(patients), replace=False)).tolist()
        numbers = (50_000_000 + rng.choice(10_000_000, len(studies), replace=False)).tolist()
        subject_of = dict(zip(patients, subjects, strict=True))
        first_lateral = next((study.index for study, _ in studies if "LATERAL" in study.views), None)
        jobs = []
        for (study, split), number in zip(studies, numbers, strict=True):
            draws = random(4, study.seed, _STUDY)
            odd = study.index if len(studies) >= ALL_CASES else -1
            labels = "none" if draws[0] < 0.002 or odd == 5 else "blank" if draws[1] < 0.008 or odd == 11 else ""
            views = draws[2] < 0.02 or odd == 3, draws[3] < 0.1 or odd == first_lateral
            report = _ODD_REPORTS.get(odd, (None, None))
            jobs.append(_Job(study, split, subject_of[study.patient.index], number, labels, *views, *report))
        return jobs

    def write_job(self, spec: PhantomSpec, job: _Job, out: Output) -> None:
        study, subject, number = job.study, job.subject_id, job.study_id
        out.key, out.patient = (subject, number), subject
        report = write_report(study, spec.difficulty, job.structure)
        text = format_report(report, np.random.default_rng([study.seed, _TEXT]), job.quirk)
        out.save(f"{job.folder}.txt", text.encode())

        date, time = _moment(study)
        if job.blank_view:
            procedure = orientation = ""
        else:
            single = "PORTABLE AP" if study.views[0] == "AP" else "SINGLE VIEW"
            procedure = f"CHEST ({single if len(study.views) == 1 else f'{study.views[0]} AND LAT'})"
            orientation = "Recumbent" if study.views == ("AP",) else "Erect"
        dicom_ids = [job.dicom_id(i) for i in range(len(study.views))]
        for dicom_id, view in zip(dicom_ids, render.render_study(study, spec), strict=True):
            path = f"{job.folder}/{dicom_id}.jpg"
            out.save(path, encode_image(view.image, "JPEG"))
            out.save_masks(dicom_id, study, view)
            position: str = "LL" if view.view == "LATERAL" and job.ll_view else view.view
            if job.blank_view and view.view != "LATERAL":
                position = ""
            identity = (dicom_id, subject, number, procedure, position, *view.image.shape, date, time)
            out.add_row(_METADATA, *identity, procedure, _VIEW_CODES[position], orientation)
            out.add_row(_SPLIT, dicom_id, number, subject, job.split)
            out.add_row("cxr-record-list.csv.gz", subject, number, dicom_id, f"{path[:-4]}.dcm")
            out.add("IMAGE_FILENAMES", path)
        out.add_row("cxr-study-list.csv.gz", subject, number, f"{job.folder}.txt")
        labels = report_labels(report)
        cells = [labels[name] for name in LABELS]
        if job.labels != "none":
            out.add_row(_CHEXPERT, subject, number, *([None] * len(cells) if job.labels == "blank" else cells))
            out.add_row(_NEGBIO, subject, number, *cells)
        if job.split == "test":
            exact = exact_labels(study.findings)
            out.add_row(_TEST, number, *(exact[name] for name in LABELS))
        out.add_row("truth/labels.csv", subject, number, job.split, *study.labels.astype(int))
        record = {"subject_id": subject, "study_id": number, "split": job.split, "dicom_ids": dicom_ids}
        record |= {"index": study.index, "number": study.number, "views": study.views, "reader": study.reader}
        record |= {"findings": [finding.as_dict() for finding in study.findings], "mentions": report.mentions}
        out.add("truth/findings.jsonl", json.dumps(record))

    def __init__(self) -> None:
        super().__init__()
        self.entries |= {"SHA256SUMS.txt"}

    def digest(self, root: Path, index: Sequence[str]) -> str:
        """Write the checksums of all that is not truth; return the SHA-256 over the index of all files."""
        index = sorted(index, key=lambda line: "  truth/" in line)
        write_lines(root, "SHA256SUMS.txt", None, (line for line in index if "  truth/" not in line))
        return sha256_of(index)


LAYOUT = _MIMICCXRLayout()


def _moment(study: Study) -> tuple[str, str]:
    """Return StudyDate, shifted to the future, and StudyTime as the float HHMMSS.fff; later studies are later."""
    rng = np.random.default_rng([study.patient.seed, _PATIENT])
    start, gap = rng.integers(0, 33_000), rng.integers(30, 400)
    second, milli = np.random.default_rng([study.seed, _PATIENT]).integers((0, 0), (86_400, 1000)).tolist()
    date = datetime.date(2110, 1, 1) + datetime.timedelta(days=int(start + gap * study.number))
    clock = second // 3600 * 10_000 + second // 60 % 60 * 100 + second % 60
    return f"{date:%Y%m%d}", str(clock + milli / 1000)

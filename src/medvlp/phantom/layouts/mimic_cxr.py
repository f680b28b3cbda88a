"""Writes a phantom in the layout of MIMIC-CXR: the JPG release 2.1.0 and the reports of MIMIC-CXR 2.0.0 in one tree.

``files/p10/p10000032/s50414267/<dicom_id>.jpg`` holds the images, ``files/p10/p10000032/s50414267.txt`` the report.
Beside the released files, ``truth/`` holds what there really is to see: ``labels.csv`` (one row per study, the 18
findings as 0 and 1), ``findings.jsonl`` (side, zone, severity, size, subtype; what the report says), ``boxes.csv``
(pixels, x1 and y1 exclusive) and ``masks/<dicom_id>.npz`` (:func:`medvlp.phantom.truth.read_truth_masks`).
``phantom.json`` is written last.
"""

import datetime
import gzip
import hashlib
import io
import json
import multiprocessing
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from medvlp.errors import ConfigError
from medvlp.phantom import cases, render
from medvlp.phantom.model import FINDINGS, Finding, PhantomReport, PhantomSpec, Study
from medvlp.phantom.reports import LAYOUT_QUIRKS, STRUCTURES, format_report, write_report
from medvlp.phantom.truth import begin_tree, finish_tree, is_complete_tree, pack_masks

LAYOUT = "mimic_cxr"
LABELS: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""The 14 labels in the column order of the released tables."""

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
_OPACITIES = ("Consolidation", "Pneumonia", "Infiltration", "Atelectasis", "Edema", "COVID-19", "Fibrosis")
_AIRSPACE = ("Consolidation", "Pneumonia", "Infiltration")
_VIEW_CODES = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral", "LL": "left lateral", "": ""}
_NORMAL_MEDIASTINUM = re.compile(
    r"mediastin[^.]*\b(?:normal|unremarkable|preserved|WNL)|\bnormal\b[^.]*mediastinal", re.IGNORECASE
)
_IDS, _STUDY, _PATIENT, _IMAGE, _TEXT = 7_101, 7_102, 7_103, 7_104, 7_105  # purposes of the random streams
_CHUNK = 8  # studies per message to a worker process
_ODD_REPORTS: dict[int, tuple[str, str | None]] = {
    **{7 + 4 * i: (structure, None) for i, structure in enumerate(STRUCTURES)},
    **{9 + 4 * i: ("usual", quirk) for i, quirk in enumerate(LAYOUT_QUIRKS)},
}
_SMALLEST_WITH_ALL_CASES = 100  # from so many studies on, each odd case of the released files occurs at least once


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


@dataclass
class _Rows:
    """What a study adds to the tables, each line without its line end; keys of ``lines`` are table names."""

    key: tuple[int, int]
    lines: dict[str, list[str]] = field(default_factory=dict)
    sums: list[tuple[str, str]] = field(default_factory=list)
    truth_sums: list[tuple[str, str]] = field(default_factory=list)


def is_complete(root: Path, spec: PhantomSpec) -> bool:
    """Whether ``root`` holds a finished tree of ``spec``.

    Args:
        root: folder of the tree; it need not exist.
        spec: what the tree must have been written from.
    """
    return is_complete_tree(Path(root), LAYOUT, spec)


def write(
    spec: PhantomSpec,
    root: Path,
    *,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the tree of a phantom.

    Args:
        spec: what to write. From 100 studies on, each odd case of the released files occurs: a blank ViewPosition, an
            LL lateral, a study without label row, an all-blank label row, reports that a parser stumbles over.
        root: folder of the tree, made if needed.
        workers: number of processes, at least 1; the bytes do not depend on it.
        progress: called with the number of studies finished so far.
        overwrite: whether another phantom in ``root`` is replaced.

    Returns:
        ``root``. A complete tree of the same spec is left as it is.

    Raises:
        ConfigError: a setting is out of its range.
        DataError: ``root`` holds something else.
    """
    root = Path(root)
    if workers < 1:
        raise ConfigError(f"workers is {workers}; give at least 1.")
    if is_complete(root, spec):
        return root
    jobs = _jobs(spec)
    begin_tree(root, LAYOUT, spec, ENTRIES, overwrite=overwrite)
    (root / "files").mkdir()
    (root / "truth" / "masks").mkdir(parents=True)
    rows: list[_Rows] = []
    for done in _run(root, spec, jobs, workers):
        rows += done
        if progress is not None:
            progress(len(rows))
    _write_tables(root, spec, rows)
    return root


def _run(root: Path, spec: PhantomSpec, jobs: list[_Job], workers: int) -> Iterator[list[_Rows]]:
    chunks = [(root, spec, jobs[start : start + _CHUNK]) for start in range(0, len(jobs), _CHUNK)]
    if workers == 1 or len(chunks) < 2:
        yield from map(_write_chunk, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(chunks))) as pool:
        yield from pool.imap(_write_chunk, chunks)


def _jobs(spec: PhantomSpec) -> list[_Job]:
    """All studies with their identifiers; which ones are odd is decided here, where all are known."""
    studies = list(cases.sample_studies(spec))
    rng = np.random.default_rng([spec.seed, _IDS])
    patients = len({study.patient.index for study in studies})
    subjects = (10_000_000 + rng.choice(10_000_000, patients, replace=False)).tolist()
    numbers = (50_000_000 + rng.choice(10_000_000, len(studies), replace=False)).tolist()
    order = {index: i for i, index in enumerate(dict.fromkeys(study.patient.index for study in studies))}
    every = len(studies) >= _SMALLEST_WITH_ALL_CASES
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


def _write_chunk(task: tuple[Path, PhantomSpec, list[_Job]]) -> list[_Rows]:
    root, spec, jobs = task
    return [_write_study(root, spec, job) for job in jobs]


def _write_study(root: Path, spec: PhantomSpec, job: _Job) -> _Rows:
    """Writes the files of one study."""
    study = job.study
    rows = _Rows(key=(job.subject_id, job.study_id))
    report = write_report(study, spec.difficulty, job.structure)
    folder = f"files/p{job.subject_id // 1_000_000}/p{job.subject_id}"
    image_folder = root / folder / f"s{job.study_id}"
    image_folder.mkdir(parents=True, exist_ok=True)

    text = format_report(report, np.random.default_rng([study.seed, _TEXT]), job.quirk).encode()
    report_path = f"{folder}/s{job.study_id}.txt"
    (root / report_path).write_bytes(text)
    rows.sums.append((report_path, hashlib.sha256(text).hexdigest()))

    dicom_ids = []
    lines: dict[str, list[str]] = {name: [] for name in ("metadata", "split", "images", "record", "boxes")}
    date, time = _moment(study)
    names = [finding.name for finding in study.findings]
    for number, view in enumerate(render.render_study(study, spec)):
        dicom_id = _dicom_id(study, number)
        dicom_ids.append(dicom_id)
        jpeg = io.BytesIO()
        Image.fromarray(view.image).save(jpeg, "JPEG", quality=95)
        image_path = f"{folder}/s{job.study_id}/{dicom_id}.jpg"
        (root / image_path).write_bytes(jpeg.getvalue())
        rows.sums.append((image_path, hashlib.sha256(jpeg.getvalue()).hexdigest()))
        masks = pack_masks(names, view)
        masks_path = f"truth/masks/{dicom_id}.npz"
        (root / masks_path).write_bytes(masks)
        rows.truth_sums.append((masks_path, hashlib.sha256(masks).hexdigest()))

        position: str = "LL" if view.view == "LATERAL" and job.ll_view else view.view
        if job.blank_view and view.view != "LATERAL":
            position = ""
        height, width = view.image.shape
        lines["metadata"].append(
            f"{dicom_id},{job.subject_id},{job.study_id},{_procedure(study, job)},{position},{height},{width},"
            f"{date},{time},{_procedure(study, job)},{_VIEW_CODES[position]},{_orientation(study, job)}"
        )
        lines["split"].append(f"{dicom_id},{job.study_id},{job.subject_id},{job.split}")
        lines["images"].append(image_path)
        lines["record"].append(f"{job.subject_id},{job.study_id},{dicom_id},{image_path[:-4]}.dcm")
        lines["boxes"] += [
            f"{dicom_id},{name},{','.join(str(int(edge)) for edge in box)}"
            for name, boxes in zip(names, view.boxes, strict=True)
            for box in boxes
        ]

    lines["study"] = [f"{job.subject_id},{job.study_id},{report_path}"]
    _label_lines(lines, job, report)
    exact = {finding.name for finding in study.findings}
    flags = ",".join("1" if name in exact else "0" for name in FINDINGS)
    lines["truth"] = [f"{job.subject_id},{job.study_id},{job.split},{flags}"]
    lines["findings"] = [_truth_line(job, dicom_ids, report)]
    rows.lines = lines
    return rows


def _label_lines(lines: dict[str, list[str]], job: _Job, report: PhantomReport) -> None:
    labels = mimic_labels(report)
    cells = ",".join("" if labels[name] is None else str(labels[name]) for name in LABELS)
    keys = f"{job.subject_id},{job.study_id},"
    lines["chexpert"] = [] if job.unlabelled else [keys + ("," * (len(LABELS) - 1) if job.blank_labels else cells)]
    lines["negbio"] = [] if job.unlabelled else [keys + cells]
    if job.split == "test":
        exact = exact_labels(job.study.findings)
        lines["test"] = [f"{job.study_id}," + ",".join(str(exact[name]) for name in LABELS)]


def mimic_labels(report: PhantomReport) -> dict[str, float | None]:
    """What a report-labelling program would read from a report.

    Args:
        report: the report with its mentions.

    Returns:
        Each of the 14 labels to 1.0 (present), 0.0 (negated), -1.0 (uncertain) or None (not mentioned).
    """
    said = report.mentions
    labels: dict[str, float | None] = {name: said.get(name) for name in LABELS}
    labels["Lung Lesion"] = _strongest(said, ("Nodule", "Mass"))
    labels["Pleural Other"] = said.get("Pleural Thickening")
    opacity = _strongest(said, _OPACITIES)
    # "No edema" says nothing about opacities in general; "no consolidation" does.
    labels["Lung Opacity"] = opacity if opacity else _strongest(said, _AIRSPACE)
    text = " ".join(report.sections.values())
    if "enlargement of the cardiomediastinal silhouette" in text:
        labels["Enlarged Cardiomediastinum"] = said.get("Cardiomegaly")
    elif _NORMAL_MEDIASTINUM.search(text):
        labels["Enlarged Cardiomediastinum"] = 0.0
    found = any(value != 0.0 for name, value in said.items() if name != "Support Devices")
    labels["No Finding"] = None if found else 1.0
    return labels


def _strongest(said: Mapping[str, float], names: tuple[str, ...]) -> float | None:
    values = {said[name] for name in names if name in said}
    return next((value for value in (1.0, -1.0, 0.0) if value in values), None)


def exact_labels(findings: tuple[Finding, ...]) -> dict[str, float]:
    """The 14 labels as what is there, whatever the report says.

    Args:
        findings: what there is to see.

    Returns:
        Each label to 1.0 or 0.0. An enlarged heart enlarges the cardiomediastinum.
    """
    there = {finding.name for finding in findings}
    labels = {name: float(name in there) for name in LABELS}
    labels["Enlarged Cardiomediastinum"] = float("Cardiomegaly" in there)
    labels["Lung Lesion"] = float(bool(there & {"Nodule", "Mass"}))
    labels["Lung Opacity"] = float(bool(there & set(_OPACITIES)))
    labels["Pleural Other"] = float("Pleural Thickening" in there)
    labels["No Finding"] = float(not there - {"Support Devices"})
    return labels


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
        "findings": [
            {
                "name": f.name,
                "side": f.side,
                "zone": f.zone,
                "severity": f.severity,
                "size_mm": f.size_mm,
                "subtype": f.subtype,
            }
            for f in job.study.findings
        ],
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


def _write_tables(root: Path, spec: PhantomSpec, rows: list[_Rows]) -> None:
    """Writes the tables in the order of the identifiers, then the checksums, last the manifest."""
    rows.sort(key=lambda r: r.key)
    labels = ",".join(LABELS)
    tables = {
        "mimic-cxr-2.0.0-metadata.csv.gz": ("metadata", _METADATA),
        "mimic-cxr-2.0.0-split.csv.gz": ("split", "dicom_id,study_id,subject_id,split"),
        "mimic-cxr-2.0.0-chexpert.csv.gz": ("chexpert", "subject_id,study_id," + labels),
        "mimic-cxr-2.0.0-negbio.csv.gz": ("negbio", "subject_id,study_id," + labels),
        "mimic-cxr-2.1.0-test-set-labeled.csv": ("test", "study_id," + labels),
        "cxr-record-list.csv.gz": ("record", "subject_id,study_id,dicom_id,path"),
        "cxr-study-list.csv.gz": ("study", "subject_id,study_id,path"),
        "IMAGE_FILENAMES": ("images", ""),
        "truth/labels.csv": ("truth", "subject_id,study_id,split," + ",".join(FINDINGS)),
        "truth/boxes.csv": ("boxes", "dicom_id,finding,x0,y0,x1,y1"),
        "truth/findings.jsonl": ("findings", ""),
    }
    sums = [pair for row in rows for pair in row.sums]
    truth_sums = [pair for row in rows for pair in row.truth_sums]
    for name, (table, header) in tables.items():
        lines = ([header] if header else []) + [line for row in rows for line in row.lines.get(table, ())]
        data = ("\n".join(lines) + "\n").encode() if lines else b""
        # A fixed time in the header: the same tables are the same bytes.
        data = gzip.compress(data, mtime=0) if name.endswith(".gz") else data
        (root / name).write_bytes(data)
        (truth_sums if name.startswith("truth/") else sums).append((name, hashlib.sha256(data).hexdigest()))
    for name, text in (("README", _README), ("LICENSE.txt", _LICENSE)):
        (root / name).write_text(text, encoding="utf-8", newline="\n")
        sums.append((name, hashlib.sha256(text.encode()).hexdigest()))
    index = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums))
    (root / "SHA256SUMS.txt").write_text(index, encoding="utf-8", newline="\n")
    index += "".join(f"{digest}  {name}\n" for name, digest in sorted(truth_sums))
    facts = {
        "studies": len(rows),
        "images": sum(len(row.lines["images"]) for row in rows),
        "patients": len({row.key[0] for row in rows}),
        "sha256": hashlib.sha256(index.encode()).hexdigest(),
    }
    finish_tree(root, LAYOUT, spec, facts)


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

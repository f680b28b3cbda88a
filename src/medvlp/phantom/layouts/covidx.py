"""Writes a phantom in the layout of COVIDx: flat folders ``train/`` and ``test/`` and the lists of COVID-Net.

The lists have no header; a line is ``patient file class source``, separated by blanks. They come in the dialects in
use:

- ``train_COVIDx9A.txt``, ``test_COVIDx9A.txt``: normal, pneumonia, COVID-19; always four fields;
- ``train_COVIDx9B.txt``, ``test_COVIDx9B.txt``, and ``train.txt``, ``test.txt`` (the names of the third Kaggle
  upload): positive and negative;
- ``train_COVIDx8A.txt``, ``test_COVIDx8A.txt``, as the older lists: some lines lack the source, and the patients of
  source sirm have a blank in their name, which makes five fields.

A study with the finding COVID-19 is COVID-19; another one with Pneumonia, Consolidation or Infiltration is pneumonia;
one without any finding is normal. Studies with other findings alone have no class and are left out (``left_out`` in
the manifest counts them). As in COVIDx, the source tells the class: every normal image is RSNA's, and sources differ
in file names and types. Patients of the phantom's train and validate splits lie in ``train/``, for a user cuts the
validation part himself. RSNA's and sirm's patient names are, as in COVIDx, one for each image.

From 100 studies on, each odd case of the lists occurs, as far as there are studies of the class: lines of three, four
and five fields, the source ``rnsa`` (a slip of the release for rsna), files of type jpg, jpeg, JPG and png, and
images of mode L, RGB and RGBA.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.phantom import cases, render
from medvlp.phantom.layouts import common
from medvlp.phantom.layouts.common import Rows, lines_of, save_file, save_truth, write_lines
from medvlp.phantom.model import PhantomSpec, Study

LAYOUT = "covidx"
CLASSES: tuple[str, ...] = ("normal", "pneumonia", "COVID-19")
"""The three classes, as the lists write them."""
_LISTS = ("COVIDx9A", "COVIDx9B", "COVIDx8A", "kaggle")
_NAMES = {
    (split, kind): f"{split}.txt" if kind == "kaggle" else f"{split}_{kind}.txt"
    for split in ("train", "test")
    for kind in _LISTS
}
ENTRIES: tuple[str, ...] = ("train", "test", "truth", *_NAMES.values())
"""Everything in the root of a tree, but for the manifest."""

_IMAGE, _ORDER, _SOURCE, _NUMBERS = 7_301, 7_302, 7_303, 7_304  # purposes of the random streams
_PNEUMONIA = frozenset({"Pneumonia", "Consolidation", "Infiltration"})
# Each source occurs before the draws by weight begin; Stony Brook's share is far below its 86 % of the release, so that
# the other dialects occur in small trees.
_COVID_SOURCES = ("sirm", "stonybrook", "cohen", "ricord", "actmed", "fig1", "bimcv")
_COVID_WEIGHTS = (0.15, 0.45, 0.12, 0.15, 0.04, 0.04, 0.05)
_COHEN_TYPES = ("jpeg", "JPG", "jpg")
_COHEN_PATIENTS = 3  # so many pneumonia patients of the training part come from the source cohen, each with a file type


@dataclass(frozen=True)
class _Job:
    study: Study
    split: str
    folder: str
    label: str
    source: str
    listed_source: str
    patient: str
    name: str
    mode: str
    short: bool  # the 8A line has no source


def class_of(study: Study) -> str | None:
    """The class of a study: a member of :data:`CLASSES`, or None where it belongs to none."""
    found = {finding.name for finding in study.findings}
    if "COVID-19" in found:
        return "COVID-19"
    if found & _PNEUMONIA:
        return "pneumonia"
    return None if found else "normal"


def _sources(spec: PhantomSpec, studies: list[tuple[Study, str]]) -> dict[int, str]:
    """The source of each study by its index; a patient's studies of one class have one source."""
    sources: dict[int, str] = {}
    covid: dict[int, str] = {}
    pneumonia: dict[int, str] = {}
    for study, label in studies:
        patient = study.patient.index
        train = cases.split_of(spec, patient) != "test"
        draw = float(np.random.default_rng([study.patient.seed, _SOURCE]).random())
        if label == "COVID-19" and train:
            if patient not in covid:
                at = np.searchsorted(np.cumsum(_COVID_WEIGHTS), draw, side="right")
                first = len(covid) < len(_COVID_SOURCES)
                covid[patient] = _COVID_SOURCES[len(covid) if first else min(int(at), len(_COVID_SOURCES) - 1)]
            sources[study.index] = covid[patient]
        elif label == "COVID-19":
            sources[study.index] = "ricord"
        elif label == "pneumonia" and train:
            if patient not in pneumonia:
                pneumonia[patient] = "cohen" if len(pneumonia) < _COHEN_PATIENTS or draw < 0.04 else "rsna"
            sources[study.index] = pneumonia[patient]
        else:
            sources[study.index] = "rsna"
    return sources


def _jobs(spec: PhantomSpec) -> list[_Job]:
    """The studies that have a class, with their names; which ones are odd is decided here, where all are known."""
    sampled = list(cases.sample_studies(spec))
    studies = [(study, label) for study in sampled if (label := class_of(study)) is not None]
    sources = _sources(spec, studies)
    every = len(sampled) >= common.SMALLEST_WITH_ALL_CASES
    rng = np.random.default_rng([spec.seed, _NUMBERS])
    # Stony Brook's, RICORD's and the like: one number for each patient; sirm's: one for each image.
    numbers = rng.permutation(max(900_000, spec.studies))[: spec.studies].tolist()
    seen: dict[tuple[str, str], int] = {}
    jobs = []
    for position, (study, label) in enumerate(studies):
        split = cases.split_of(spec, study.patient.index)
        folder = "test" if split == "test" else "train"
        source = sources[study.index]
        nth = seen[folder, source] = seen.get((folder, source), -1) + 1
        dice = np.random.default_rng([study.seed, _IMAGE]).random(4).tolist()
        forced = every and source == "rsna"
        kind = _file_type(source, nth, dice[0])
        patient, name = _identity(study, source, numbers[study.patient.index], position + 1, kind)
        typo = folder == "train" and source == "rsna" and (dice[1] < 0.015 or (forced and nth == 1))
        mode = _mode(source, kind, dice[2])
        if forced and folder == "train" and nth in (2, 3):
            mode = "RGBA" if nth == 2 else "RGB"
        short = source != "sirm" and (dice[3] < 0.2 or (forced and nth == 0))
        jobs.append(
            _Job(
                study=study,
                split=split,
                folder=folder,
                label=label,
                source=source,
                listed_source="rnsa" if typo else source,
                patient=patient,
                name=name,
                mode=mode,
                short=short,
            )
        )
    return jobs


def _file_type(source: str, nth: int, draw: float) -> str:
    if source == "cohen":
        return _COHEN_TYPES[nth] if nth < len(_COHEN_TYPES) else ("jpg", "jpeg", "png")[int(draw * 3)]
    if source == "fig1":
        return "jpg" if draw < 0.8 else "png"
    return "jpg" if source == "stonybrook" else "png"


def _mode(source: str, kind: str, draw: float) -> str:
    if kind != "png":
        return "RGB" if draw < 0.3 else "L"
    if source == "actmed":
        return "RGBA" if draw < 0.05 else "RGB"
    return "RGB" if draw < (0.6 if source == "sirm" else 0.03) else "L"


def _identity(study: Study, source: str, number: int, count: int, kind: str) -> tuple[str, str]:
    """The patient's name and the file name, in the manner of a source.

    Args:
        study: whose image it is.
        source: where it comes from.
        number: the patient's, from 0 to 899,999.
        count: the image's; no other image of the tree has it.
        kind: file type.
    """
    words = np.random.default_rng([study.seed, _NUMBERS]).integers(0, 2**32, 4, dtype=np.uint32)
    a, b, c = (int(word) % 90_000 + 10_000 for word in words[:3])
    image = str(uuid.UUID(bytes=words.astype(">u4").tobytes(), version=4))
    view = study.views[0].lower()
    patient, stem = {
        "rsna": (image, "{}"),
        "stonybrook": (f"A{number + 100_000}", f"{{}}-12-31-1900-NA-CHEST_AP_VIEWONLY-{a}-1.000000-AP-{b}-{count}-1"),
        "ricord": (f"419639-{number:06d}", f"MIDRC-RICORD-1C-{{}}-{a}-{count}"),
        "sirm": (f"COVID_{count}", f"COVID({count})"),
        "actmed": (f"ANON{number}", f"CR.1.2.840.{a}.{b}.{c}.{count}"),
        "fig1": (f"COVID-{number:05d}", f"{{}}{'abc'[study.number % 3]}-{count}"),
        "bimcv": (f"sub-S{number:05d}", f"{{}}_ses-E{count:05d}_run-1_bp-chest_vp-{view}_dx"),
        "cohen": (str(number), f"10.{a % 9000 + 1000}-j.phantom.{b}-fig{count}-day{study.number}"),
    }[source]
    return patient, f"{stem.format(patient)}.{kind}"


def _write_study(root: Path, spec: PhantomSpec, job: _Job) -> Rows:
    """Writes one image and its lines of every list."""
    study = job.study
    # The lists are in no order that tells anything.
    order = float(np.random.default_rng([study.seed, _ORDER]).random())
    rows = Rows(key=(order, study.index))
    view = render.render_view(study, study.views[0], spec.size, spec.difficulty)
    if job.name.endswith("png"):
        data = common.encode_png(view.image, job.mode)
    else:
        data = common.encode_jpeg(view.image, rgb=job.mode == "RGB")
    save_file(root, f"{job.folder}/{job.name}", data, rows)
    save_truth(root, rows, job.name.rpartition(".")[0], study, view, split=job.split)

    binary = "positive" if job.label == "COVID-19" else "negative"
    rows.add(_NAMES[job.folder, "COVIDx9A"], f"{job.patient} {job.name} {job.label} {job.listed_source}")
    for kind in ("COVIDx9B", "kaggle"):
        rows.add(_NAMES[job.folder, kind], f"{job.patient} {job.name} {binary} {job.listed_source}")
    old = job.patient.replace("_", " ") if job.source == "sirm" else job.patient
    tail = "" if job.short else f" {job.listed_source}"
    rows.add(_NAMES[job.folder, "COVIDx8A"], f"{old} {job.name} {job.label}{tail}")
    rows.add("class", job.label)
    rows.add("patient", job.patient)
    return rows


def _write_tables(root: Path, spec: PhantomSpec, rows: list[Rows]) -> dict[str, Any]:
    for name in _NAMES.values():
        # a small phantom may have no test study: a blank line tells such a list from a file that was emptied
        write_lines(root, name, None, lines_of(rows, name) or [""])
    common.write_truth_tables(root, rows)
    labels = lines_of(rows, "class")
    return {
        "studies": len(rows),
        "images": len(rows),
        "patients": len(set(lines_of(rows, "patient"))),
        "left_out": spec.studies - len(rows),
        "classes": {name: labels.count(name) for name in CLASSES},
    }


TREE = common.Layout(LAYOUT, ENTRIES, ("train", "test"), _jobs, _write_study, _write_tables)
is_complete, write = TREE.is_complete, TREE.write

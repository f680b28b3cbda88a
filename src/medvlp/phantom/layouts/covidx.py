"""Writes a phantom in the layout of COVIDx: flat folders and the lists of COVID-Net (see docs/datasets/covidx.md).

Studies with findings that make no class are skipped (``left_out`` in the manifest). As in COVIDx, sources differ in
file names and types, and every normal image is RSNA's. Patients of the phantom's train and validate splits lie in
``train/``, for users cut the validation part themselves.

Odd cases: lines of three, four and five fields, the source ``rnsa`` (a slip of the release for rsna), files of type
jpg, jpeg, JPG and png, and images of mode L, RGB and RGBA.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medvlp.phantom.layouts.common import (
    ALL_CASES,
    Job,
    Layout,
    Output,
    choose,
    encode_image,
    frontal,
    lines_of,
    random,
)
from medvlp.phantom.model import PhantomSpec, Study, read_table

CLASSES: tuple[str, ...] = ("normal", "pneumonia", "COVID-19")  # the three classes, as the lists write them

# Three classes; two; three in the older dialect, where some lines lack the source, and the patients of source sirm have
# a blank in their name; two again, in the third Kaggle upload.
_LISTS = ("{}_COVIDx9A.txt", "{}_COVIDx9B.txt", "{}_COVIDx8A.txt", "{}.txt")
_IMAGE, _ORDER, _SOURCE, _NUMBERS = 7_301, 7_302, 7_303, 7_304  # purposes of the random streams
_PNEUMONIA = frozenset({"Pneumonia", "Consolidation", "Infiltration"})
# Each source occurs before the draws by weight begin; Stony Brook's share is far below its 86 % of the release, so that
# the other dialects occur in small trees.
_COVID_SOURCES = ("sirm", "stonybrook", "cohen", "ricord", "actmed", "fig1", "bimcv")
_COVID_WEIGHTS = (0.15, 0.45, 0.12, 0.15, 0.04, 0.04, 0.05)
_FORMS: dict[str, dict[str, Any]] = read_table("layouts/covidx.json")  # of names, and shares of types and modes
_COHEN_TYPES = ("jpeg", "JPG", "jpg")
_COHEN_PATIENTS = 3  # so many pneumonia patients of the training part come from the source cohen, each with a file type


@dataclass(frozen=True)
class _Job(Job):
    folder: str
    label: str
    source: str
    listed_source: str
    patient: str
    file: str
    mode: str
    short: bool  # the 8A line has no source


class _COVIDxLayout(Layout[_Job]):
    name = "covidx"

    def jobs(self, spec: PhantomSpec, studies: Sequence[tuple[Study, str]]) -> list[_Job]:
        classified = [(study, split, label) for study, split in studies if (label := class_of(study)) is not None]
        sources = _sources(classified)
        rng = np.random.default_rng([spec.seed, _NUMBERS])
        # Stony Brook's, RICORD's and the like: one number for each patient; sirm's: one for each image.
        numbers = rng.permutation(max(900_000, spec.studies))[: spec.studies].tolist()
        seen: dict[tuple[str, str], int] = {}
        jobs = []
        for count, ((study, split, label), source) in enumerate(zip(classified, sources, strict=True), start=1):
            folder = "test" if split == "test" else "train"
            nth = seen[folder, source] = seen.get((folder, source), -1) + 1
            draws = random(4, study.seed, _IMAGE)
            # The odd cases that every tree of a certain size has: the first RSNA images of a folder.
            forced = nth if source == "rsna" and len(studies) >= ALL_CASES else -1
            form = _FORMS[source]
            kind = choose(form.get("types", {"png": 1}), draws[0])
            if source == "cohen" and nth < len(_COHEN_TYPES):
                kind = _COHEN_TYPES[nth]
            patient, stem = _identity(study, form, numbers[study.patient.index], count)
            typo = folder == "train" and source == "rsna" and (draws[1] < 0.015 or forced == 1)
            png_modes = form.get("modes", {"RGB": 0.03, "L": 1})
            mode = choose(png_modes if kind == "png" else {"RGB": 0.3, "L": 1}, draws[2])
            if folder == "train" and forced in (2, 3):
                mode = "RGBA" if forced == 2 else "RGB"
            short = source != "sirm" and (draws[3] < 0.2 or forced == 0)
            listed = "rnsa" if typo else source
            jobs.append(_Job(study, split, folder, label, source, listed, patient, f"{stem}.{kind}", mode, short))
        return jobs

    def write_job(self, spec: PhantomSpec, job: _Job, out: Output) -> None:
        # The order of the lists carries no information.
        out.key, out.patient = (*random(1, job.study.seed, _ORDER), job.study.index), job.patient
        view = frontal(spec, job.study)
        kind = "PNG" if job.file.endswith("png") else "JPEG"
        out.save(f"{job.folder}/{job.file}", encode_image(view.image, kind, job.mode))
        out.save_truth(job.file.rpartition(".")[0], job, view)

        start, listed = f"{job.patient} {job.file}", job.listed_source
        old_start = start.replace("_", " ", 1) if job.source == "sirm" else start
        binary = f"{start} {'positive' if job.label == 'COVID-19' else 'negative'} {listed}"
        old = f"{old_start} {job.label}" if job.short else f"{old_start} {job.label} {listed}"
        for name, line in zip(_LISTS, (f"{start} {job.label} {listed}", binary, old, binary), strict=True):
            out.add(name.format(job.folder), line)
        out.add("class", job.label)

    def lines(self, table: str, outputs: Sequence[Output]) -> list[str]:
        # A small phantom may have no test study: a blank line distinguishes its list from a file that was emptied.
        return super().lines(table, outputs) or ([""] if table.endswith(".txt") else [])

    def facts(self, spec: PhantomSpec, outputs: Sequence[Output]) -> dict[str, Any]:
        labels = lines_of(outputs, "class")
        classes = {name: labels.count(name) for name in CLASSES}
        return super().facts(spec, outputs) | {"left_out": spec.studies - len(outputs), "classes": classes}


LAYOUT = _COVIDxLayout()


def class_of(study: Study) -> str | None:
    """Return the class of a study, a member of :data:`CLASSES`, or None if it has none."""
    names = {finding.name for finding in study.findings}
    if "COVID-19" in names:
        return "COVID-19"
    if names & _PNEUMONIA:
        return "pneumonia"
    return None if names else "normal"


def _sources(studies: list[tuple[Study, str, str]]) -> list[str]:
    """Return the source of each image: the same for all images of a patient and class in the training part."""
    covid: dict[int, str] = {}
    pneumonia: dict[int, str] = {}
    sources = []
    for study, split, label in studies:
        patient = study.patient.index
        (draw,) = random(1, study.patient.seed, _SOURCE)
        if split == "test" or label == "normal":
            sources.append("ricord" if label == "COVID-19" else "rsna")
        elif label == "COVID-19":
            at = int(np.searchsorted(np.cumsum(_COVID_WEIGHTS), draw, side="right"))
            place = len(covid) if len(covid) < len(_COVID_SOURCES) else min(at, len(_COVID_SOURCES) - 1)
            sources.append(covid.setdefault(patient, _COVID_SOURCES[place]))
        else:
            source = "cohen" if len(pneumonia) < _COHEN_PATIENTS or draw < 0.04 else "rsna"
            sources.append(pneumonia.setdefault(patient, source))
    return sources


def _identity(study: Study, form: Mapping[str, Any], number: int, count: int) -> tuple[str, str]:
    """Return the patient's name and the file name without suffix, in the form of a source.

    The patient's number is below 900,000; no other image of the tree has the same count.
    """
    words = np.random.default_rng([study.seed, _NUMBERS]).integers(0, 2**32, 4, dtype=np.uint32)
    a, b, c = (int(word) % 90_000 + 10_000 for word in words[:3])
    values: dict[str, Any] = {"a": a, "b": b, "c": c, "count": count, "number": number, "shifted": number + 100_000}
    values |= {"uuid": uuid.UUID(bytes=words.astype(">u4").tobytes(), version=4), "code": a % 9000 + 1000}
    values |= {"letter": "abc"[study.number % 3], "visit": study.number, "view": study.views[0].lower()}
    patient = form["patient"].format(**values)
    return patient, form["file"].format(patient=patient, **values)

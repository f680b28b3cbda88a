"""Writes a phantom in the layout of CheXpert-v1.0, with the reports of CheXpert Plus (see docs/datasets/chexpert.md).

``train.csv`` has the labels that a report labeller reads, ``valid.csv`` and ``groundtruth.csv`` the exact ones. The
patients of train, valid and test are numbered in this order. ``df_chexpert_plus_240401.csv`` follows several public
descriptions of the release that agree; no file of the release was at hand [unverified]. In ``truth/``, ``image_id`` is
the path below the root with ``_`` for ``/`` and without suffix.

Odd cases: in ``train.csv`` 1, 0, −1 and blank in every label (but for findings that the phantom does not have), a
frontal image with AP/PA "LL", a patient of Sex "Unknown" and Age 0, a patient's second study before the first.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medvlp.errors import ConfigError
from medvlp.phantom import render
from medvlp.phantom.layouts.common import ALL_CASES, PLUS_COLUMNS, Job, Layout, Output, choose, encode_image, random
from medvlp.phantom.layouts.labels import CHEXPERT_LABELS as LABELS
from medvlp.phantom.layouts.labels import exact_labels, report_labels
from medvlp.phantom.model import PhantomReport, PhantomSpec, Study, read_table
from medvlp.phantom.reports import BODY, write_report

_PLUS = "df_chexpert_plus_240401.csv"
# the prefix of paths is that of the small release in train.csv, of the full one in valid.csv
_PREFIX = {"train": "CheXpert-v1.0-small", "valid": "CheXpert-v1.0", "test": "CheXpert-v1.0"}
_MOST_PATIENTS = 99_999  # five digits
_OLDEST = 90  # the release's greatest age
_PATIENT, _STUDY, _REPORT, _PERSON = 7_201, 7_202, 7_251, 7_252  # purposes of the random streams
_TABLES = read_table("layouts/chexpert_plus.json")
_SECTIONS: dict[str, str] = _TABLES["sections"]
# Section of a phantom report to that of CheXpert Plus; what is not here (title, body, wet read) is narrative.
_PRINTED = [name.removeprefix("section_") for name in PLUS_COLUMNS if name.startswith("section_")]
_OLDEST_IN_PLUS = 89  # older patients are given this age


@dataclass(frozen=True)
class _Job(Job):
    patient: int
    place: int  # among the studies of the patient in the tables
    left_lateral: bool
    unknown: bool


class _CheXpertLayout(Layout[_Job]):
    name = "chexpert"

    def jobs(self, spec: PhantomSpec, studies: Sequence[tuple[Study, str]]) -> list[_Job]:
        visits: dict[int, list[Study]] = {}
        for study, _ in studies:
            visits.setdefault(study.patient.index, []).append(study)
        if len(visits) > _MOST_PATIENTS:
            raise ConfigError(f"{len(visits)} patients do not fit CheXpert's five digits; write fewer studies.")
        split = {study.patient.index: "valid" if part == "validate" else part for study, part in studies}
        order = sorted(visits, key=lambda patient: self.folders.index(split[patient]))
        numbers = {patient: number for number, patient in enumerate(order, start=1)}
        train = [patient for patient in visits if split[patient] == "train"] if len(studies) >= ALL_CASES else []
        reversed_patient = next((patient for patient in train if len(visits[patient]) > 1), None)
        once = [patient for patient in train if len(visits[patient]) == 1]
        jobs = []
        for patient, own in visits.items():
            places = np.random.default_rng([own[0].patient.seed, _PATIENT]).permutation(len(own)).tolist()
            if patient == reversed_patient:
                places = list(range(len(own)))[::-1]
            odd = patient in once[2:3], patient in once[5:6]
            for study, place in zip(own, places, strict=True):
                jobs.append(_Job(study, split[patient], numbers[patient], place, *odd))
        return jobs

    def write_job(self, spec: PhantomSpec, job: _Job, out: Output) -> None:
        study, split = job.study, job.split
        out.key, out.patient = (job.patient, job.place), job.patient
        folder = f"{split}/patient{job.patient:05d}/study{study.number + 1}"
        report = write_report(study, spec.difficulty, choose_structure(study))
        exact, said = exact_labels(study.findings), report_labels(report)
        days = study.number * int(np.random.default_rng([study.patient.seed, _STUDY]).integers(30, 400))
        sex, age = {"M": "Male", "F": "Female"}[study.patient.sex], min(_OLDEST, study.patient.age + days // 365)
        if job.unknown:
            sex, age = "Unknown", 0
        for number, view in enumerate(render.render_study(study, spec), start=1):
            side = "Lateral" if view.view == "LATERAL" else "Frontal"
            projection = "" if side == "Lateral" else "LL" if job.left_lateral else view.view
            path = f"{folder}/view{number}_{side.lower()}.jpg"
            out.save(path, encode_image(view.image, "JPEG"))
            out.save_truth(path.removesuffix(".jpg").replace("/", "_"), job, view, report.mentions)
            if split != "test":
                out.add(f"{split}.csv", f"{_PREFIX[split]}/{path},{sex},{age},{side},{projection}")
                known_age = None if job.unknown else age
                out.add_row(_PLUS, *plus_cells(study, report, path, side, projection, sex, known_age))
        if split == "test":
            out.add_row("groundtruth.csv", f"{_PREFIX[split]}/{folder}", *(int(exact[name]) for name in LABELS))
        else:
            out.add_row("exact", *(exact[name] for name in LABELS))
            out.add_row("labels", *((said if split == "train" else exact)[name] for name in LABELS))

    def lines(self, table: str, outputs: Sequence[Output]) -> list[str]:
        if table not in {"train.csv", "valid.csv"}:
            return super().lines(table, outputs)
        listed = [out.lines for out in outputs if table in out.lines]
        cells = [lines["labels"][0] for lines in listed]
        if table == "train.csv" and len(outputs) >= ALL_CASES:
            cells = _misread(cells, [lines["exact"][0] for lines in listed])
        return [f"{line},{text}" for lines, text in zip(listed, cells, strict=True) for line in lines[table]]


LAYOUT = _CheXpertLayout()


def _misread(cells: list[str], exact: list[str]) -> list[str]:
    """Give each label that is present in any study the values that it lacks, by changing at most four studies.

    A labeller misreads a report now and then; in the release every label (but No Finding) has 1, 0, −1 and blank. The
    missing 1 goes to a study that has the finding; a 1 becomes −1, a blank 0, a 0 blank, if there are any to spare.
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


def choose_structure(study: Study) -> str | None:
    """Return which sections a report has: mostly an impression without findings; None for the phantom's own choice."""
    (share,) = random(1, study.seed, _REPORT)
    return "impression_only" if share < 0.70 else "usual" if share < 0.97 else None


def plus_cells(
    study: Study, report: PhantomReport, path: str, side: str, projection: str, sex: str, age: int | None
) -> list[str]:
    """Return the cells of one image's row; ``path`` is below the dataset folder, ``age`` None if unknown.

    De-identified spans become invented ages, dates and names, as in CheXpert Plus, which has no gaps; loud readers'
    impressions are in capitals.
    """
    sections = _sections(study, report, study.patient.age if age is None else age)
    rng = np.random.default_rng([study.patient.seed, _PERSON])
    race = list(_TABLES["race"])[int(rng.choice(len(_TABLES["race"]), p=list(_TABLES["race"].values())))]
    ethnicity, interpreter, insured, weighed, dead = rng.random(5).tolist()
    known = 0 if age is None else age
    values = {
        "path_to_image": path,
        "path_to_dcm": path.removesuffix(".jpg") + ".dcm",
        "frontal_lateral": side,
        "ap_pa": projection,
        "deid_patient_id": path.split("/")[1],
        "patient_report_date_order": str(study.number + 1),
        "report": _print_report(sections),
        **{f"section_{name}": text for name, text in sections.items()},
        "age": "" if age is None else str(float(min(age, _OLDEST_IN_PLUS))),
        "sex": sex,
        "race": race,
        "ethnicity": choose(_TABLES["ethnicity"], ethnicity),
        "interpreter_needed": choose(_TABLES["interpreter_needed"], interpreter),
        "insurance_type": "Medicare" if known >= 65 else choose(_TABLES["insurance_type"], insured),
        "recent_bmi": f"{18 + 24 * study.patient.habitus:.1f}" if weighed > 0.26 else "",
        "deceased": "Yes" if dead < known / 200 else "No",
        "split": path.partition("/")[0],
    }
    return [values.get(name, "") for name in PLUS_COLUMNS]


def _sections(study: Study, report: PhantomReport, age: int) -> dict[str, str]:
    # Section of CheXpert Plus, without "section_", to its text; what has no section of its own is in "narrative".
    rng = np.random.default_rng([study.seed, _REPORT, 1])
    texts: dict[str, list[str]] = {}
    for name, text in report.sections.items():
        # A title stands in the section's name; a body has no name.
        whole = text if name in _SECTIONS or name in {BODY, "EXAMINATION"} else f"{name} {text}".strip()
        target = _SECTIONS.get(name, "narrative")
        if whole:
            texts.setdefault(target, []).append(_surrogate(whole, age, rng))
    sections = {name: "\n".join(texts[name]) for name in _PRINTED if name in texts}
    if "technique" in sections and study.reader % 2:
        sections["procedure_comments"] = sections.pop("technique")
    if study.reader % 2 and "impression" in sections:
        sections["impression"] = sections["impression"].upper()
    if rng.random() < 0.65:
        sections.setdefault("end_of_impression", "\n")
    if rng.random() < 0.85:
        grade = 0 if not study.findings else 1 if study.number else 2
        sections["summary"] = _TABLES["summaries"][grade]
    sections["accession_number"] = f"{int(rng.integers(1_000_000, 100_000_000))}"
    return {name: sections[name] for name in _PRINTED if name in sections}


def _print_report(sections: dict[str, str]) -> str:
    lines = []
    for name in _PRINTED:
        if name in sections:
            lines.append(f"{name.replace('_', ' ').upper()}: {sections[name].strip()}\n")
        elif name == "end_of_impression" and "impression" in sections:
            lines.append("END OF IMPRESSION\n")
    return "\n".join(lines)


def _surrogate(text: str, age: int, rng: np.random.Generator) -> str:

    def surname(_: re.Match[str]) -> str:
        return _TABLES["surrogates"][int(rng.integers(len(_TABLES["surrogates"])))]

    text = re.sub(r"___(?=[MF]\b| year old)", str(min(age, _OLDEST_IN_PLUS)), text)
    text = re.sub(r"(?<=Dr\. )___|___(?=, M\.D\.)|(?<=by )___(?= to)", surname, text)
    text = re.sub(r"(?<= at )___", lambda _: "{}:{:02d}".format(*rng.integers((0, 0), (24, 60)).tolist()), text)
    return re.sub("___", lambda _: "{}/{}/{}".format(*rng.integers((1, 1, 2001), (13, 29, 2018)).tolist()), text)

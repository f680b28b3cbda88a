"""The rows of CheXpert Plus: phantom reports in that corpus's sections, and made-up demographics."""

import re

import numpy as np

from medvlp.phantom.layouts.common import random
from medvlp.phantom.model import PhantomReport, Study, read_table
from medvlp.phantom.reports import BODY

_TABLES = read_table("layouts/chexpert_plus.json")
PLUS_HEADER = ",".join(_TABLES["columns"])
"""The columns of ``df_chexpert_plus_240401.csv``."""
_SECTIONS: dict[str, str] = _TABLES["sections"]
# Section of a phantom report to that of CheXpert Plus; what is not here (title, body, wet read) is narrative.
_PRINTED = [name.removeprefix("section_") for name in _TABLES["columns"] if name.startswith("section_")]
_REPORT, _PATIENT = 7_251, 7_252  # purposes of the random streams
_OLDEST = 89  # older patients are given this age


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
    rng = np.random.default_rng([study.patient.seed, _PATIENT])
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
        "age": "" if age is None else str(float(min(age, _OLDEST))),
        "sex": sex,
        "race": race,
        "ethnicity": _choice(ethnicity, "ethnicity"),
        "interpreter_needed": _choice(interpreter, "interpreter_needed"),
        "insurance_type": "Medicare" if known >= 65 else _choice(insured, "insurance_type"),
        "recent_bmi": f"{18 + 24 * study.patient.habitus:.1f}" if weighed > 0.26 else "",
        "deceased": "Yes" if dead < known / 200 else "No",
        "split": path.partition("/")[0],
    }
    return [values.get(name, "") for name in _TABLES["columns"]]


def _choice(draw: float, column: str) -> str:
    return next(name for name, most in _TABLES[column].items() if draw < most)


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
    """Fill the gaps of de-identification with invented ages, names and dates."""

    def surname(_: re.Match[str]) -> str:
        return _TABLES["surrogates"][int(rng.integers(len(_TABLES["surrogates"])))]

    text = re.sub(r"___(?=[MF]\b| year old)", str(min(age, _OLDEST)), text)
    text = re.sub(r"(?<=Dr\. )___|___(?=, M\.D\.)|(?<=by )___(?= to)", surname, text)
    text = re.sub(r"(?<= at )___", lambda _: "{}:{:02d}".format(*rng.integers((0, 0), (24, 60)).tolist()), text)
    return re.sub("___", lambda _: "{}/{}/{}".format(*rng.integers((1, 1, 2001), (13, 29, 2018)).tolist()), text)

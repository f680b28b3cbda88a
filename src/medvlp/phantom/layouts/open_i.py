"""Writes a phantom in the layout of Open-I, the Indiana University collection (NLMCXR).

``ecgen-radiology/<n>.xml`` holds one report each, ``NLMCXR_png/CXR<n>_IM-….png`` the images, flat. A report names its
images (``parentImage``), but not their views, and has all four ``AbstractText`` labels, often without text. What was
removed to hide identities reads ``XXXX``, and now and then so does a harmless word. ``MeSH/major`` and
``MeSH/automatic`` are the findings that the report states or hedges, as an indexer would code them, or ``normal``.

Each study of the phantom is a report of its own; the collection names no patients. ``truth/reports.jsonl`` has one
line for each report, those without an image too. The elements with image features (``globalImageFeatures``) are left
out.

From 100 studies on, each odd case of the collection occurs: a report without findings, without impression, without
both, without an image; ``XXXX``; gaps in the report numbers.
"""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.phantom import cases, render
from medvlp.phantom.layouts import common
from medvlp.phantom.layouts.common import Rows, lines_of, save_file, save_truth, write_lines
from medvlp.phantom.layouts.mesh import automatic_term, major_term
from medvlp.phantom.model import PhantomReport, PhantomSpec, Study
from medvlp.phantom.reports import write_report

LAYOUT = "open_i"
ENTRIES: tuple[str, ...] = ("ecgen-radiology", "NLMCXR_png", "truth")
"""Everything in the root of a tree, but for the manifest."""
SECTIONS: tuple[str, ...] = ("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION")
"""The labels of the four texts, in their order."""

_IDS, _TEXT = 7_701, 7_702  # purposes of the random streams
_SHAPES = (("usual", 0.8645), ("impression_only", 0.991), ("findings_only", 0.993), ("empty", 1.0))  # cumulated shares
_NO_IMAGE, _NO_COMPARISON, _NO_INDICATION, _BLANKED = 0.026, 0.157, 0.023, 0.4
_ODD = {5: "impression_only", 9: "findings_only", 13: "empty"}  # reports of every tree of 100 studies or more
_WITHOUT_IMAGE, _WITH_BLANK = 17, 21
# Nothing hangs on these words: a report that loses one still says the same.
_HARMLESS = re.compile(r"\b(?:the|there|are|is|within|appears?|evidence|seen|noted|limits)\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Job:
    study: Study
    number: int
    shape: str
    imaged: bool
    blanked: bool  # a harmless word of the report reads XXXX


def _jobs(spec: PhantomSpec) -> list[_Job]:
    """All studies with their report numbers; which ones are odd is decided here, where all are known."""
    studies = list(cases.sample_studies(spec))
    every = len(studies) >= common.SMALLEST_WITH_ALL_CASES
    gaps = np.random.default_rng([spec.seed, _IDS]).random(len(studies)) < 0.012
    numbers = (np.arange(len(studies)) + 1 + np.cumsum(gaps)).tolist()
    if every and not gaps.any():
        numbers[-1] += 1
    jobs = []
    for study, number in zip(studies, numbers, strict=True):
        dice = np.random.default_rng([study.seed, _IDS]).random(3).tolist()
        shape = next(name for name, most in _SHAPES if dice[0] < most)
        odd = study.index if every else -1
        jobs.append(
            _Job(
                study=study,
                number=number,
                shape=_ODD.get(odd, shape),
                imaged=dice[1] >= _NO_IMAGE and odd != _WITHOUT_IMAGE,
                blanked=dice[2] < _BLANKED or odd == _WITH_BLANK,
            )
        )
    return jobs


def _write_study(root: Path, spec: PhantomSpec, job: _Job) -> Rows:
    """Writes one report and its images."""
    study = job.study
    rows = Rows(key=(job.number,))
    rng = np.random.default_rng([study.seed, _TEXT])
    report = write_report(study, spec.difficulty, "usual" if job.shape == "empty" else job.shape)
    texts = _texts(report, job, rng)
    mentions = {} if job.shape == "empty" else report.mentions
    image_ids = _image_ids(job, rng) if job.imaged else []
    # Without a view there is nothing to draw.
    for image_id, view in zip(image_ids, render.render_study(study, spec) if image_ids else (), strict=True):
        save_file(root, f"NLMCXR_png/{image_id}.png", common.encode_png(view.image), rows)
        save_truth(root, rows, image_id, study, view, mentions=mentions)
    save_file(root, f"ecgen-radiology/{job.number}.xml", _xml(job, texts, mentions, image_ids), rows)
    record: dict[str, Any] = {"report": job.number, "images": image_ids, "views": list(study.views[: len(image_ids)])}
    record |= {"patient": study.patient.index, "study": study.index, "mentions": mentions}
    record["findings"] = [common.describe_finding(finding) for finding in study.findings]
    rows.add("truth/reports.jsonl", json.dumps(record))
    rows.add("images", *image_ids)
    return rows


def _texts(report: PhantomReport, job: _Job, rng: np.random.Generator) -> dict[str, str]:
    """The four texts of a report, one line each, some of them empty."""
    found = dict.fromkeys(SECTIONS, "")
    for name, text in report.sections.items():
        if name in ("FINDINGS", "IMPRESSION"):
            found[name] = text
        elif name.startswith("COMPARISON"):
            found["COMPARISON"] = text
        elif name == "INDICATION" or "HISTORY" in name or name.startswith("REASON"):
            found["INDICATION"] = text
    no_comparison, no_indication, where, which = rng.random(4).tolist()
    if no_comparison < _NO_COMPARISON:
        found["COMPARISON"] = ""
    if no_indication < _NO_INDICATION:
        found["INDICATION"] = ""
    if job.shape == "empty":
        found["FINDINGS"] = found["IMPRESSION"] = ""
    texts = {name: " ".join(text.replace("___", "XXXX").split()) for name, text in found.items()}
    if job.blanked:
        name = "FINDINGS" if texts["FINDINGS"] and where < 0.8 else "IMPRESSION"
        words = list(_HARMLESS.finditer(texts[name]))
        if words:
            word = words[int(which * len(words))]
            texts[name] = texts[name][: word.start()] + "XXXX" + texts[name][word.end() :]
    return texts


def _image_ids(job: _Job, rng: np.random.Generator) -> list[str]:
    """Names of the report's images; the last number is that of the series, not of the view."""
    second, first = rng.random(2).tolist()
    report = f"CXR{job.number}_{1}" if second < 0.02 else f"CXR{job.number}"
    series = 1001 if first < 0.85 else 3001
    return [f"{report}_IM-{job.number % 2900 + 1:04d}-{series + 1000 * i}" for i in range(len(job.study.views))]


def _caption(job: _Job) -> str:
    first = job.study.views[0]
    return f"Xray Chest {first} and Lateral" if len(job.study.views) > 1 else f"Xray Chest {first}, single view"


def _xml(job: _Job, texts: dict[str, str], mentions: dict[str, float], image_ids: list[str]) -> bytes:
    """A report as the collection stores it."""
    title = "Synthetic chest X-rays in the layout of the Indiana University collection"
    date = ("2013", "08", "01")
    top = ET.Element("eCitation")

    def add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
        element = ET.SubElement(parent, tag, attributes)
        element.text = text or None
        return element

    def add_date(parent: ET.Element, tag: str) -> None:
        element = add(parent, tag)
        for name, value in zip(("Year", "Month", "Day"), date, strict=True):
            add(element, name, value)

    add(top, "meta", type="rr")
    add(top, "uId", id=f"CXR{job.number}")
    add(top, "pmcId", id=str(job.number))
    add(top, "docSource", "CXR")
    add(top, "IUXRId", id=str(job.number))
    for tag, text in (
        ("licenseType", "synthetic"),
        ("licenseURL", ""),
        ("ccLicense", ""),
        ("articleURL", ""),
        ("articleDate", "-".join(date)),
        ("articleType", "XR"),
        ("publisher", "medvlp phantom"),
        ("title", title),
        ("note", "Drawn and worded by medvlp; no real patient is in it."),
        ("specialty", "pulmonary diseases"),
        ("subset", "CXR"),
    ):
        add(top, tag, text)
    citation = add(top, "MedlineCitation", Owner="medvlp phantom", Status="supplied by publisher")
    article = add(citation, "Article", PubModel="Electronic")
    add_date(add(add(article, "Journal"), "JournalIssue"), "PubDate")
    add(article, "ArticleTitle", title)
    abstract = add(article, "Abstract")
    for name in SECTIONS:
        add(abstract, "AbstractText", texts[name], Label=name)
    add(article, "Affiliation", "medvlp phantom")
    author = add(add(article, "AuthorList", CompleteYN="Y"), "Author", ValidYN="Y")
    for tag, text in (("LastName", "Reader"), ("ForeName", str(job.study.reader + 1)), ("Initials", "R")):
        add(author, tag, text)
    add(article, "Language", "eng")
    add(add(article, "PublicationTypeList"), "PublicationType", "Radiology Report")
    add_date(article, "ArticleDate")
    add(citation, "EssieArticleTitle", title)
    add(citation, "IMedAuthor", f"Reader {job.study.reader + 1}")

    mesh = add(top, "MeSH")
    stated = [finding for finding in job.study.findings if mentions.get(finding.name)]
    for term in dict.fromkeys(major_term(finding) for finding in stated) or ("normal",):
        add(mesh, "major", term)
    for term in dict.fromkeys(automatic_term(finding) for finding in stated):
        add(mesh, "automatic", term)
    for number, image_id in enumerate(image_ids, 1):
        image = add(top, "parentImage", id=image_id)
        add(image, "figureId", f"F{number}")
        add(image, "caption", _caption(job))
        panel = add(image, "panel", type="single")
        # As in the collection the path leads nowhere and the file is no JPEG: the id names the image.
        add(panel, "url", f"/radiology/extract/{image_id}.jpg")
        add(panel, "imgModality", "7")
    ET.indent(top, "   ")
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(top, encoding="unicode").encode() + b"\n"


def _write_tables(root: Path, spec: PhantomSpec, rows: list[Rows]) -> dict[str, Any]:
    common.write_truth_tables(root, rows)
    reports = lines_of(rows, "truth/reports.jsonl")
    write_lines(root, "truth/reports.jsonl", None, reports)
    records = [json.loads(line) for line in reports]
    return {
        "studies": len(rows),
        "images": len(lines_of(rows, "images")),
        "patients": len({record["patient"] for record in records}),
        "without_image": sum(not record["images"] for record in records),
    }


TREE = common.Layout(LAYOUT, ENTRIES, ENTRIES[:2], _jobs, _write_study, _write_tables)
is_complete, write = TREE.is_complete, TREE.write

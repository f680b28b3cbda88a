"""Writes a phantom in the layout of Open-I, the Indiana University collection (see docs/datasets/open_i.md).

What was removed to hide identities reads ``XXXX``, and now and then so does a harmless word. The findings that a report
states or hedges are coded as an indexer would (``MeSH``); COVID-19, which the collection predates, is an opacity.
``truth/reports.jsonl`` has one line for each report, those without an image too.

Odd cases: a report without findings, without impression, without both, without an image; ``XXXX``; gaps in the report
numbers.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from medvlp.phantom import render
from medvlp.phantom.layouts.common import ALL_CASES, Job, Layout, Output, choose, encode_image, random
from medvlp.phantom.model import CATALOGUE, Finding, PhantomReport, PhantomSpec, Study
from medvlp.phantom.reports import write_report

SECTIONS: tuple[str, ...] = ("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION")
"""The labels of the four texts, in their order."""

_IDS, _TEXT = 7_701, 7_702  # purposes of the random streams
_SHAPES = {"usual": 0.8645, "impression_only": 0.991, "findings_only": 0.993, "empty": 1.0}  # cumulated shares
_NO_IMAGE, _NO_COMPARISON, _NO_INDICATION, _BLANKED = 0.026, 0.157, 0.023, 0.4
_ODD = {5: "impression_only", 9: "findings_only", 13: "empty"}  # reports of every tree of 100 studies or more
_WITHOUT_IMAGE, _WITH_BLANK = 17, 21
# A report that loses one of these words still says the same.
_HARMLESS = re.compile(r"\b(?:the|there|are|is|within|appears?|evidence|seen|noted|limits)\b", re.IGNORECASE)
_TEMPLATE = resources.files("medvlp.phantom.layouts").joinpath("open_i.xml").read_text("utf-8")

_SIZED = frozenset({"Pleural Effusion", "Pneumothorax", "Hernia", "Nodule", "Mass", "Consolidation"})
_DEGREES = {"small": "mild", "moderate": "moderate", "large": "severe"}
_UNGRADED = frozenset({"Fracture", "Support Devices", "Foreign Object"})


@dataclass(frozen=True)
class _Job(Job):
    number: int
    shape: str
    imaged: bool
    blanked: bool  # a harmless word of the report reads XXXX


class _OpenILayout(Layout[_Job]):
    name = "open_i"

    def jobs(self, spec: PhantomSpec, studies: Sequence[tuple[Study, str]]) -> list[_Job]:
        gaps = np.random.default_rng([spec.seed, _IDS]).random(len(studies)) < 0.012
        numbers = (np.arange(len(studies)) + 1 + np.cumsum(gaps)).tolist()
        if len(studies) >= ALL_CASES and not gaps.any():
            numbers[-1] += 1
        jobs = []
        for (study, _), number in zip(studies, numbers, strict=True):
            draws = random(3, study.seed, _IDS)
            odd = study.index if len(studies) >= ALL_CASES else -1
            imaged = draws[1] >= _NO_IMAGE and odd != _WITHOUT_IMAGE
            blanked = draws[2] < _BLANKED or odd == _WITH_BLANK
            jobs.append(_Job(study, "", number, _ODD.get(odd, choose(_SHAPES, draws[0])), imaged, blanked))
        return jobs

    def write_job(self, spec: PhantomSpec, job: _Job, out: Output) -> None:
        study = job.study
        out.key, out.patient = (job.number,), study.patient.index
        rng = np.random.default_rng([study.seed, _TEXT])
        report = write_report(study, spec.difficulty, "usual" if job.shape == "empty" else job.shape)
        texts = _texts(report, job, rng)
        mentions = {} if job.shape == "empty" else report.mentions
        image_ids = _image_ids(job, rng) if job.imaged else []
        for image_id, view in zip(image_ids, render.render_study(study, spec) if image_ids else (), strict=True):
            out.save(f"NLMCXR_png/{image_id}.png", encode_image(view.image, "PNG"))
            out.save_truth(image_id, job, view, mentions)
        out.save(f"ecgen-radiology/{job.number}.xml", _xml(job, texts, mentions, image_ids))
        record: dict[str, Any] = {"report": job.number, "images": image_ids, "views": study.views[: len(image_ids)]}
        record |= {"patient": study.patient.index, "study": study.index}
        record |= {"mentions": mentions, "findings": [finding.as_dict() for finding in study.findings]}
        out.add("truth/reports.jsonl", json.dumps(record))
        out.add("without_image", *([] if image_ids else [job.number]))


LAYOUT = _OpenILayout()


def _texts(report: PhantomReport, job: _Job, rng: np.random.Generator) -> dict[str, str]:
    sections = dict.fromkeys(SECTIONS, "")
    for name, text in report.sections.items():
        if name in ("FINDINGS", "IMPRESSION"):
            sections[name] = text
        elif name.startswith("COMPARISON"):
            sections["COMPARISON"] = text
        elif name == "INDICATION" or "HISTORY" in name or name.startswith("REASON"):
            sections["INDICATION"] = text
    no_comparison, no_indication, where, which = rng.random(4).tolist()
    if no_comparison < _NO_COMPARISON:
        sections["COMPARISON"] = ""
    if no_indication < _NO_INDICATION:
        sections["INDICATION"] = ""
    if job.shape == "empty":
        sections["FINDINGS"] = sections["IMPRESSION"] = ""
    texts = {name: " ".join(text.replace("___", "XXXX").split()) for name, text in sections.items()}
    if job.blanked:
        name = "FINDINGS" if texts["FINDINGS"] and where < 0.8 else "IMPRESSION"
        words = list(_HARMLESS.finditer(texts[name]))
        if words:
            word = words[int(which * len(words))]
            texts[name] = texts[name][: word.start()] + "XXXX" + texts[name][word.end() :]
    return texts


def _image_ids(job: _Job, rng: np.random.Generator) -> list[str]:
    """Return the names of the report's images; the last number is that of the series, not of the view."""
    second, first = rng.random(2).tolist()
    report = f"CXR{job.number}_1" if second < 0.02 else f"CXR{job.number}"
    series = 1001 if first < 0.85 else 3001
    return [f"{report}_IM-{job.number % 2900 + 1:04d}-{series + 1000 * i}" for i in range(len(job.study.views))]


def _xml(job: _Job, texts: dict[str, str], mentions: dict[str, float], image_ids: list[str]) -> bytes:
    top = ET.fromstring(_TEMPLATE.format(number=job.number, reader=job.study.reader + 1))
    for element in top.iter("AbstractText"):
        element.text = texts[element.attrib["Label"]] or None
    (mesh,) = top.iter("MeSH")
    stated = [finding for finding in job.study.findings if mentions.get(finding.name)]
    for tag, code in (("major", major_term), ("automatic", automatic_term)):
        for term in dict.fromkeys(map(code, stated)) or (["normal"] if tag == "major" else []):
            ET.SubElement(mesh, tag).text = term
    views = job.study.views
    caption = f"Xray Chest {views[0]}" + (" and Lateral" if len(views) > 1 else ", single view")
    for number, image_id in enumerate(image_ids, 1):
        # As in the collection the path leads nowhere and the file is no JPEG: the id names the image.
        url = f"<url>/radiology/extract/{image_id}.jpg</url>"
        image = f'<parentImage id="{image_id}"><figureId>F{number}</figureId><caption>{caption}</caption>'
        image += f'<panel type="single">{url}<imgModality>7</imgModality></panel></parentImage>'
        top.append(ET.fromstring(image))
    ET.indent(top, "   ")
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(top, encoding="unicode").encode() + b"\n"


def major_term(finding: Finding) -> str:
    """Code a finding as an indexer does: "Pleural Effusion/right/small", "Pulmonary Atelectasis/base/left/mild"."""
    parts = [CATALOGUE["heading_of_subtype"].get(finding.subtype, CATALOGUE["findings"][finding.name]["heading"])]
    if finding.name not in _UNGRADED | {"Cardiomegaly", "Hernia", "Edema", "Pleural Effusion"}:
        place = CATALOGUE["zones"][finding.zone].get("mesh")
        if finding.zone == "mid" and finding.side != "bilateral":
            place = "lingula" if finding.side == "left" else "middle lobe"
        parts += [place] if place else []
    if finding.side in ("left", "right", "bilateral") and finding.name != "Edema":
        parts.append(finding.side)
    if finding.name not in _UNGRADED:
        parts.append(finding.severity if finding.name in _SIZED else _DEGREES[finding.severity])
    return "/".join(parts)


def automatic_term(finding: Finding) -> str:
    """Code a finding as the collection's program does, without place and degree."""
    return CATALOGUE["findings"][finding.name]["automatic"]

"""Writes a phantom in the layout of MS-CXR 1.1.0: phrases with boxes on images of MIMIC-CXR (docs/datasets/ms_cxr.md).

Images have the names and bytes that the layout ``mimic_cxr`` gives the same spec. Listed are the frontal images that
show one of the eight findings. The phrase is what a radiologist would say of the finding, whatever the study's report
says; it has one box per connected part. The split is drawn by patient and is not MIMIC-CXR's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.phantom.layouts import mimic_cxr
from medvlp.phantom.layouts.common import Job, Layout, Output, choose, encode_image, frontal, lines_of, random
from medvlp.phantom.model import CATALOGUE, PhantomSpec, Study
from medvlp.phantom.reports import describe

_CATEGORY = {name: names["ms_cxr"] for name, names in CATALOGUE["findings"].items() if "ms_cxr" in names}
CATEGORIES = sorted(set(_CATEGORY.values()))
"""The eight findings of MS-CXR; a category's id in the json is its position here, from 1."""

_CSV, _JSON = "MS_CXR_Local_Alignment_v1.1.0.csv", "MS_CXR_Local_Alignment_v1.1.0.json"
_WORDS, _SPLIT = 7_601, 7_602  # purposes of the random streams
_SHARES = {"train": 0.6, "val": 0.8, "test": 1.0}  # cumulated


@dataclass(frozen=True)
class _Job(Job):
    path: str


class _MSCXRLayout(Layout[_Job]):
    name = "ms_cxr"

    def jobs(self, spec: PhantomSpec, studies: Sequence[tuple[Study, str]]) -> list[_Job]:
        jobs = []
        for source in mimic_cxr.LAYOUT.jobs(spec, studies):
            study = source.study
            if any(finding.name in _CATEGORY for finding in study.findings):
                (draw,) = random(1, study.patient.seed, _SPLIT)
                jobs.append(_Job(study, choose(_SHARES, draw), f"{source.folder}/{source.dicom_id(0)}.jpg"))
        return jobs

    def write_job(self, spec: PhantomSpec, job: _Job, out: Output) -> None:
        """Write the frontal image of a study and the rows of its phrases; nothing if no finding shows."""
        study, path = job.study, job.path
        out.key = (path,)
        view = frontal(spec, study)
        rng = np.random.default_rng([study.seed, _WORDS])
        height, width = view.image.shape
        dicom_id = Path(path).stem
        for finding, boxes in zip(study.findings, view.boxes, strict=True):
            if finding.name not in _CATEGORY:
                continue
            category = _CATEGORY[finding.name]
            text = describe(finding, lambda items: items[int(rng.random() * len(items))]).text
            for left, top, right, bottom in boxes:
                box = [left, top, right - left, bottom - top]
                out.add_row(_CSV, dicom_id, category, text, path, *box, width, height, job.split)
                record = {"path": path, "category_id": CATEGORIES.index(category) + 1, "label_text": text, "bbox": box}
                record |= {"area": box[2] * box[3], "iscrowd": 0, "width": width, "height": height}
                out.add("annotations", record)
        if _CSV in out.lines:
            out.patient = path.split("/")[2]
            out.save(path, encode_image(view.image, "JPEG"))
            out.save_truth(dicom_id, job, view)
            out.add("images", {"file_name": Path(path).name, "path": path, "width": width, "height": height})
            out.add("phrases", *dict.fromkeys(line.rpartition(path)[0] for line in out.lines[_CSV]))

    def lines(self, table: str, outputs: Sequence[Output]) -> list[str]:
        if table != _JSON:
            return super().lines(table, outputs)
        images = lines_of(outputs, "images")
        numbers = {image["path"]: number for number, image in enumerate(images, 1)}
        content = {
            "info": {"description": "Synthetic data in the layout of MS-CXR, drawn and worded by medvlp."},
            "licenses": [],
            "categories": [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, 1)],
            "images": [{"id": number} | image for number, image in enumerate(images, 1)],
            "annotations": [
                {"id": number, "image_id": numbers[annotation.pop("path")]} | annotation
                for number, annotation in enumerate(lines_of(outputs, "annotations"), 1)
            ],
        }
        return [json.dumps(content)]

    def facts(self, spec: PhantomSpec, outputs: Sequence[Output]) -> dict[str, Any]:
        facts = super().facts(spec, outputs)
        return facts | {"studies": facts["images"]}


LAYOUT = _MSCXRLayout()

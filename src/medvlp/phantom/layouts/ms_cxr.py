"""Writes a phantom in the layout of MS-CXR 1.1.0: phrases with boxes on images of MIMIC-CXR.

``MS_CXR_Local_Alignment_v1.1.0.csv`` has one row for each box; ``MS_CXR_Local_Alignment_v1.1.0.json`` holds the same
as COCO annotations. Images lie below ``files/`` under the names that the layout ``mimic_cxr`` gives the same spec,
byte for byte the same: a MIMIC-CXR phantom of the same spec can serve as the source of the images.

Listed, and written, are the frontal images that show one of the eight findings. The phrase is what a radiologist would
say of the finding, whatever the study's report says, and its boxes are the finding's exact boxes, one per connected
part. Lung Opacity stands for the phantom's Infiltration and COVID-19. The column ``split`` is drawn by patient and is
not MIMIC-CXR's.

Phrases with several boxes and images with several phrases occur as the findings have it.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.phantom import render
from medvlp.phantom.layouts import common, mimic_cxr
from medvlp.phantom.layouts.common import Rows, lines_of, save_file, save_truth, write_lines
from medvlp.phantom.model import PhantomSpec, Study
from medvlp.phantom.wording import describe

LAYOUT = "ms_cxr"
CATEGORIES: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)
"""The eight findings of MS-CXR; a category's id in the json is its position here, from 1."""

COLUMNS: tuple[str, ...] = (
    "dicom_id",
    "category_name",
    "label_text",
    "path",
    "x",
    "y",
    "w",
    "h",
    "image_width",
    "image_height",
    "split",
)
"""Columns of the table; x, y, w and h in pixels of the image."""

_CSV, _JSON = "MS_CXR_Local_Alignment_v1.1.0.csv", "MS_CXR_Local_Alignment_v1.1.0.json"
ENTRIES: tuple[str, ...] = ("files", "truth", _CSV, _JSON)
"""Everything in the root of a tree, but for the manifest."""

_CATEGORY = {name: name for name in CATEGORIES} | {"Infiltration": "Lung Opacity", "COVID-19": "Lung Opacity"}
_WORDS, _SPLIT = 7_601, 7_602  # purposes of the random streams
_SHARES = (("train", 0.6), ("val", 0.8), ("test", 1.0))  # cumulated


@dataclass(frozen=True)
class _Job:
    study: Study
    path: str
    split: str


def _jobs(spec: PhantomSpec) -> list[_Job]:
    """The studies with one of the findings, under the identifiers of the layout ``mimic_cxr``."""
    jobs = []
    for study, path in mimic_cxr.frontal_paths(spec):
        if any(finding.name in _CATEGORY for finding in study.findings):
            draw = float(np.random.default_rng([study.patient.seed, _SPLIT]).random())
            jobs.append(_Job(study, path, next(name for name, most in _SHARES if draw < most)))
    return jobs


def _write_study(root: Path, spec: PhantomSpec, job: _Job) -> Rows:
    """Writes the frontal image of a study and the rows of its phrases; nothing where no finding shows."""
    study, path = job.study, job.path
    rows = Rows(key=(path,))
    view = render.render_view(study, study.views[0], spec.size, spec.difficulty)
    rng = np.random.default_rng([study.seed, _WORDS])
    height, width = view.image.shape
    dicom_id = Path(path).stem
    for finding, boxes in zip(study.findings, view.boxes, strict=True):
        if finding.name not in _CATEGORY:
            continue
        category = _CATEGORY[finding.name]
        text = describe(finding, lambda items: items[int(rng.random() * len(items))]).text
        for left, top, right, bottom in boxes:
            x, y, w, h = int(left), int(top), int(right - left), int(bottom - top)
            rows.add("rows", _line((dicom_id, category, text, path, x, y, w, h, width, height, job.split)))
            record = {"category": category, "label_text": text, "bbox": [x, y, w, h], "width": width, "height": height}
            rows.add("annotations", json.dumps(record | {"path": path}))
    if "rows" in rows.lines:
        save_file(root, path, common.encode_jpeg(view.image), rows)
        save_truth(root, rows, dicom_id, study, view, split=job.split)
        rows.add("images", json.dumps({"path": path, "width": width, "height": height}))
        rows.add("phrases", *dict.fromkeys(line.rpartition(path)[0] for line in rows.lines["rows"]))
        rows.add("patients", path.split("/")[2])
    return rows


def _line(cells: Sequence[object]) -> str:
    """Cells as a line of comma-separated values, quoted where need be."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().removesuffix("\n")


def _write_tables(root: Path, spec: PhantomSpec, rows: list[Rows]) -> dict[str, Any]:
    write_lines(root, _CSV, ",".join(COLUMNS), lines_of(rows, "rows"))
    images = [json.loads(line) for line in lines_of(rows, "images")]
    numbers = {image["path"]: number for number, image in enumerate(images, 1)}
    annotations = [json.loads(line) for line in lines_of(rows, "annotations")]
    content = {
        "info": {"description": "Synthetic data in the layout of MS-CXR, drawn and worded by medvlp."},
        "licenses": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, 1)],
        "images": [{"id": numbers[i["path"]], "file_name": i["path"].rpartition("/")[2]} | i for i in images],
        "annotations": [
            {
                "id": number,
                "image_id": numbers[a["path"]],
                "category_id": CATEGORIES.index(a["category"]) + 1,
                "label_text": a["label_text"],
                "bbox": a["bbox"],
                "area": a["bbox"][2] * a["bbox"][3],
                "iscrowd": 0,
                "width": a["width"],
                "height": a["height"],
            }
            for number, a in enumerate(annotations, 1)
        ],
    }
    write_lines(root, _JSON, None, [json.dumps(content)])
    common.write_truth_tables(root, rows)
    return {
        "studies": len(images),
        "images": len(images),
        "patients": len(set(lines_of(rows, "patients"))),
        "phrases": len(lines_of(rows, "phrases")),
        "boxes": len(annotations),
    }


TREE = common.Layout(LAYOUT, ENTRIES, ("files",), _jobs, _write_study, _write_tables)
is_complete, write = TREE.is_complete, TREE.write

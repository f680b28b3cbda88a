import csv
import hashlib
import json
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.phantom.cases import sample_studies
from medvlp.phantom.truth import MANIFEST, is_complete_tree, read_truth_masks

SPEC = PhantomSpec(studies=100, seed=11, size=96, laterals=0.4)
SMALL = PhantomSpec(studies=30, seed=2, size=48)
CSV, JSON = "MS_CXR_Local_Alignment_v1.1.0.csv", "MS_CXR_Local_Alignment_v1.1.0.json"
CATEGORIES = [
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
]
FINDINGS = {name: {name} for name in CATEGORIES} | {"Lung Opacity": {"Infiltration", "COVID-19"}}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_phantom("ms_cxr", tmp_path_factory.mktemp("ms_cxr"), SPEC)


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    return write_phantom("mimic_cxr", tmp_path_factory.mktemp("mimic"), SPEC)


@pytest.fixture(scope="module")
def rows(tree):
    return pd.read_csv(tree / CSV)


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_tree_and_columns(tree, rows):
    assert {path.name for path in tree.iterdir()} == {"files", "truth", CSV, JSON, MANIFEST}
    assert (tree / CSV).read_text().split("\n")[0] == (
        "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split"
    )
    assert set(rows["category_name"]) == set(CATEGORIES)
    assert set(rows["split"]) == {"train", "val", "test"}
    for column in ("x", "y", "w", "h", "image_width", "image_height"):
        assert rows[column].dtype == np.int64
    assert (rows[["image_width", "image_height"]] == SPEC.size).all(axis=None)
    assert (rows[["x", "y"]] >= 0).all(axis=None)
    assert (rows[["w", "h"]] > 0).all(axis=None)
    assert (rows["x"] + rows["w"] <= SPEC.size).all()
    assert (rows["y"] + rows["h"] <= SPEC.size).all()
    assert (rows["path"].str.rpartition("/")[2] == rows["dicom_id"] + ".jpg").all()
    assert sorted(set(rows["path"])) == sorted(str(path.relative_to(tree)) for path in (tree / "files").rglob("*.jpg"))


def test_images_are_those_of_mimic_cxr(tree, mimic, rows):
    metadata = pd.read_csv(mimic / "mimic-cxr-2.0.0-metadata.csv.gz").set_index("dicom_id")
    for path in set(rows["path"]):
        assert (tree / path).read_bytes() == (mimic / path).read_bytes()
        row = metadata.loc[path.rpartition("/")[2][:-4]]
        assert path.startswith(f"files/p{str(row.subject_id)[:2]}/p{row.subject_id}/s{row.study_id}/")
        assert row.ViewPosition not in ("LATERAL", "LL")
    split = pd.read_csv(mimic / "mimic-cxr-2.0.0-split.csv.gz").set_index("dicom_id")["split"]
    pairs = {(split[row.dicom_id], row.split) for row in rows.itertuples()}
    assert {("train", "test"), ("train", "val")} <= pairs  # not MIMIC-CXR's split
    subjects = rows["path"].str.split("/").str[2]
    assert (rows.groupby(subjects)["split"].nunique() == 1).all()


def test_every_image_with_a_finding_is_listed_with_its_exact_boxes(tree, rows):
    with open(tree / "truth/labels.csv", newline="") as file:
        studies = {int(row["study"]): row["image_id"] for row in csv.DictReader(file)}
    boxes = defaultdict(set)
    with open(tree / "truth/boxes.csv", newline="") as file:
        for row in csv.DictReader(file):
            boxes[row["image_id"], row["finding"]].add(tuple(int(row[key]) for key in ("x0", "y0", "x1", "y1")))
    wanted = set().union(*FINDINGS.values())
    for study in sample_studies(SPEC):
        names = {finding.name for finding in study.findings}
        assert (study.index in studies) == bool(names & wanted)
        if study.index not in studies:
            continue
        listed = rows[rows["dicom_id"] == studies[study.index]]
        for category, findings in FINDINGS.items():
            exact = set().union(*(boxes[studies[study.index], name] for name in findings & names))
            some = listed[listed["category_name"] == category]
            assert {(r.x, r.y, r.x + r.w, r.y + r.h) for r in some.itertuples()} == exact


def test_phrases(tree, rows):
    phrases = rows.groupby(["dicom_id", "category_name", "label_text"]).size()
    assert (phrases > 1).any()  # a phrase with several boxes repeats
    assert rows["label_text"].str.len().min() > 3
    assert not rows["label_text"].str.contains("\n").any()
    assert rows["label_text"].nunique() > 0.5 * len(phrases)
    assert rows.loc[rows["category_name"] == "Pneumothorax", "label_text"].str.contains("pneumothora").all()
    facts = json.loads((tree / MANIFEST).read_text())
    assert facts["phrases"] == len(phrases)
    assert facts["boxes"] == len(rows)
    assert facts["images"] == rows["dicom_id"].nunique()


def test_boxes_of_a_phrase_cover_the_mask(tree, rows):
    for (dicom_id, category), group in list(rows.groupby(["dicom_id", "category_name"]))[:40]:
        masks = read_truth_masks(tree / f"truth/masks/{dicom_id}.npz")
        mask = np.logical_or.reduce([masks[name] for name in FINDINGS[category] if name in masks])
        covered = np.zeros_like(mask)
        for row in group.itertuples():
            covered[row.y : row.y + row.h, row.x : row.x + row.w] = True
        assert not (mask & ~covered).any()


def test_the_json_is_coco_and_says_the_same(tree, rows):
    coco = json.loads((tree / JSON).read_text())
    assert [category["name"] for category in coco["categories"]] == CATEGORIES
    names = {category["id"]: category["name"] for category in coco["categories"]}
    images = {image["id"]: image for image in coco["images"]}
    assert len(images) == len(coco["images"]) == rows["dicom_id"].nunique()
    listed = []
    for annotation in coco["annotations"]:
        image = images[annotation["image_id"]]
        assert image["file_name"] == image["path"].rpartition("/")[2]
        assert Image.open(tree / image["path"]).size == (annotation["width"], annotation["height"])
        category, text = names[annotation["category_id"]], annotation["label_text"]
        listed.append((image["file_name"][:-4], category, text, image["path"], *annotation["bbox"]))
    assert listed == [tuple(row) for row in rows[list(rows)[:8]].itertuples(index=False)]
    assert len({annotation["id"] for annotation in coco["annotations"]}) == len(rows)


def test_nothing_to_list(tmp_path):
    tree = write_phantom("ms_cxr", tmp_path / "tree", PhantomSpec(studies=8, seed=1, size=32, findings=("Hernia",)))
    assert len(pd.read_csv(tree / CSV)) == 0
    assert json.loads((tree / JSON).read_text())["images"] == []
    assert not list((tree / "files").iterdir())


def test_same_bytes_again_and_with_two_processes(tmp_path):
    one = digests(write_phantom("ms_cxr", tmp_path / "one", SMALL))
    two = digests(write_phantom("ms_cxr", tmp_path / "two", SMALL, workers=2))
    assert one == two
    assert is_complete_tree(tmp_path / "one", "ms_cxr", SMALL)

import csv
import hashlib
import json
import os
import re
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlp.phantom import Difficulty, PhantomSpec, write_phantom
from medvlp.phantom.cases import sample_studies
from medvlp.phantom.layouts.open_i import automatic_term, major_term
from medvlp.phantom.model import FINDINGS, Finding
from medvlp.phantom.render import render_study
from medvlp.phantom.truth import MANIFEST, is_complete_tree

SHARED = Path(os.environ.get("MEDVLP_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
SPEC = PhantomSpec(studies=140, seed=11, size=48, laterals=0.6)
SMALL = PhantomSpec(studies=30, seed=2, size=48)
LABELS = ["COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_phantom("open_i", tmp_path_factory.mktemp("open_i"), SPEC)


@pytest.fixture(scope="module")
def reports(tree):
    return {int(path.stem): ET.parse(path).getroot() for path in (tree / "ecgen-radiology").iterdir()}


@pytest.fixture(scope="module")
def truth(tree):
    lines = (tree / "truth/reports.jsonl").read_text().splitlines()
    return {record["report"]: record for record in map(json.loads, lines)}


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def texts(report):
    return {element.get("Label"): element.text or "" for element in report.iter("AbstractText")}


def test_tree(tree, reports):
    assert {path.name for path in tree.iterdir()} == {"ecgen-radiology", "NLMCXR_png", "truth", MANIFEST}
    assert len(reports) == SPEC.studies
    assert max(reports) > SPEC.studies  # gaps in the numbers
    named = [image.get("id") + ".png" for report in reports.values() for image in report.iter("parentImage")]
    assert len(named) == len(set(named))
    assert sorted(named) == sorted(path.name for path in (tree / "NLMCXR_png").iterdir())
    for number, report in reports.items():
        assert report.tag == "eCitation"
        assert report.find("uId").get("id") == f"CXR{number}"
        assert report.find("pmcId").get("id") == report.find("IUXRId").get("id") == str(number)
        for image in report.iter("parentImage"):
            assert re.fullmatch(rf"CXR{number}(_1)?_IM-\d{{4}}-\d{{4}}", image.get("id"))
            assert image.find("panel/url").text.endswith(image.get("id") + ".jpg")
            assert image.find("caption").text
    raw = (tree / "ecgen-radiology/1.xml").read_bytes()
    assert raw.startswith(b'<?xml version="1.0" encoding="utf-8"?>\n<eCitation>\n')


def test_all_four_texts_are_always_there_and_often_empty(reports):
    shapes = set()
    for report in reports.values():
        assert [element.get("Label") for element in report.iter("AbstractText")] == LABELS
        found = texts(report)
        assert all(text == " ".join(text.split()) and "___" not in text for text in found.values())
        shapes.add((bool(found["FINDINGS"]), bool(found["IMPRESSION"])))
    assert shapes == {(True, True), (True, False), (False, True), (False, False)}
    for label in LABELS:
        empty = sum(not texts(report)[label] for report in reports.values())
        assert 0 < empty < len(reports) / 2
    assert any("XXXX" in texts(report)["FINDINGS"] for report in reports.values())
    assert any("XXXX" in texts(report)["INDICATION"] for report in reports.values())


def test_images(tree, reports, truth):
    counts = [len(list(report.iter("parentImage"))) for report in reports.values()]
    assert set(counts) == {0, 1, 2}
    studies = list(sample_studies(SPEC))
    for number, record in list(truth.items())[:25]:
        study = studies[record["study"]]
        ids = [image.get("id") for image in reports[number].iter("parentImage")]
        assert ids == record["images"]
        assert len(ids) in (0, len(study.views))
        if not ids:
            continue
        for name, view in zip(ids, render_study(study, SPEC), strict=True):
            with Image.open(tree / f"NLMCXR_png/{name}.png") as image:
                assert image.mode == "L"
                np.testing.assert_array_equal(np.asarray(image), view.image)
    facts = json.loads((tree / MANIFEST).read_text())
    assert facts["without_image"] == counts.count(0)
    assert facts["images"] == sum(counts)


def test_terms_follow_what_the_report_states(reports, truth):
    for number, report in reports.items():
        record = truth[number]
        majors = [element.text for element in report.find("MeSH").iter("major")]
        automatic = [element.text for element in report.find("MeSH").iter("automatic")]
        stated = [f for f in record["findings"] if record["mentions"].get(f["name"]) in (1.0, -1.0)]
        assert (majors == ["normal"]) == (not stated)
        assert bool(automatic) == bool(stated)
        if stated:
            assert "normal" not in majors
            assert len(majors) == len(stated)
    assert sum(not record["mentions"] for record in truth.values()) >= 1
    everything = " ".join(e.text for report in reports.values() for e in report.iter("major"))
    assert re.search(r"Cardiomegaly/(?:mild|moderate|severe)", everything)
    assert re.search(r"Pleural Effusion/(?:left|right|bilateral)/(?:small|moderate|large)", everything)


def test_terms_of_every_finding():
    effusion = Finding("Pleural Effusion", side="right", zone="basal", severity="small")
    assert major_term(effusion) == "Pleural Effusion/right/small"
    collapse = Finding("Atelectasis", side="left", zone="basal", severity="small", subtype="plate-like")
    assert major_term(collapse) == "Pulmonary Atelectasis/base/left/mild"
    assert major_term(Finding("Nodule", side="left", zone="mid")) == "Nodule/lung/lingula/left/moderate"
    assert major_term(Finding("Hernia", side="midline", zone="retrocardiac")) == "Hernia, Hiatal/moderate"
    assert major_term(Finding("Fracture", side="right", subtype="rib")) == "Fractures, Bone/ribs/right"
    for name in FINDINGS:
        assert major_term(Finding(name))
        assert automatic_term(Finding(name))


def test_truth(tree, truth):
    studies = {study.index: study for study in sample_studies(SPEC)}
    assert {record["study"] for record in truth.values()} == set(studies)
    for record in truth.values():
        study = studies[record["study"]]
        assert record["patient"] == study.patient.index
        assert [finding["name"] for finding in record["findings"]] == [finding.name for finding in study.findings]
    with open(tree / "truth/labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["image_id"] for row in rows) == sorted(n for record in truth.values() for n in record["images"])
    for row in rows:
        present = {finding.name for finding in studies[int(row["study"])].findings}
        assert {name for name in FINDINGS if row[name] == "1"} == present


def test_a_lost_word_is_never_a_finding(tmp_path):
    spec = PhantomSpec(studies=60, seed=4, size=32, laterals=0, difficulty=Difficulty(omission=0, uncertainty=0))
    tree = write_phantom("open_i", tmp_path / "tree", spec)
    checked = 0
    for record in map(json.loads, (tree / "truth/reports.jsonl").read_text().splitlines()):
        found = texts(ET.parse(tree / f"ecgen-radiology/{record['report']}.xml").getroot())
        said = found["FINDINGS"] + found["IMPRESSION"]
        if not said:
            continue
        for name, word in (("Cardiomegaly", "cardi|heart"), ("Pneumothorax", "pneumothora"), ("Hernia", "hernia")):
            if record["mentions"].get(name) == 1.0:
                assert re.search(word, said, re.IGNORECASE)
                checked += 1
    assert checked > 10


@pytest.mark.parametrize("seed", [0, 1])
def test_odd_cases_occur_from_100_studies_on(tmp_path, seed):
    tree = write_phantom("open_i", tmp_path / "tree", PhantomSpec(studies=100, seed=seed, size=32))
    found = [ET.parse(path).getroot() for path in (tree / "ecgen-radiology").iterdir()]
    assert any(report.find("parentImage") is None for report in found)
    assert any(not texts(report)["FINDINGS"] and not texts(report)["IMPRESSION"] for report in found)
    assert any(texts(report)["FINDINGS"] and not texts(report)["IMPRESSION"] for report in found)
    assert any("XXXX" in texts(report)["FINDINGS"] for report in found)


def test_the_elements_are_those_of_the_real_reports(tree, reports):
    archive = SHARED / "openi_NLMCXR_reports.tgz"
    if not archive.exists():
        pytest.skip("shared/data/openi_NLMCXR_reports.tgz is not here")

    def paths(element, above=""):
        here = f"{above}/{element.tag}"
        return {(here, tuple(sorted(element.attrib)))}.union(*(paths(child, here) for child in element))

    real, some = set(), 0
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(".xml"):
                real |= paths(ET.fromstring(tar.extractfile(member).read()))
                some += 1
                if some == 40:
                    break
    ours = set().union(*(paths(report) for report in reports.values()))
    assert ours <= real
    assert all("/region" in path for path, _ in real - ours)  # image features are left out


def test_same_bytes_again_and_with_two_processes(tmp_path):
    one = digests(write_phantom("open_i", tmp_path / "one", SMALL))
    two = digests(write_phantom("open_i", tmp_path / "two", SMALL, workers=2))
    assert one == two
    assert is_complete_tree(tmp_path / "one", "open_i", SMALL)

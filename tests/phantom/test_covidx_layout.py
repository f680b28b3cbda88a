import csv
import hashlib
import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.phantom.cases import sample_studies, split_of
from medvlp.phantom.layouts import covidx
from medvlp.phantom.render import render_view
from medvlp.phantom.truth import MANIFEST, is_complete_tree, read_truth_masks

SPEC = PhantomSpec(studies=150, seed=11, size=64)
SMALL = PhantomSpec(studies=30, seed=2, size=48)
LISTS = {
    f"{split}{tail}"
    for split in ("train", "test")
    for tail in (".txt", "_COVIDx9A.txt", "_COVIDx9B.txt", "_COVIDx8A.txt")
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_phantom("covidx", tmp_path_factory.mktemp("covidx"), SPEC)


@pytest.fixture(scope="module")
def truth(tree):
    with open(tree / "truth/labels.csv", newline="") as file:
        return {row["image_id"]: row for row in csv.DictReader(file)}


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def read_list(path):
    """(patient, file, class, source or None) of each line; the file is the token that ends in an image extension."""
    rows = []
    for line in path.read_text().splitlines():
        tokens = line.split(" ")
        (at,) = [i for i, token in enumerate(tokens) if re.search(r"\.(?:png|jpe?g)$", token, re.IGNORECASE)]
        assert len(tokens) - at in (2, 3)
        source = tokens[at + 2] if len(tokens) - at == 3 else None
        rows.append((" ".join(tokens[:at]), tokens[at], tokens[at + 1], source))
    return rows


def test_the_tree_holds_what_the_lists_name(tree):
    assert {path.name for path in tree.iterdir()} == {"train", "test", "truth", *LISTS, MANIFEST}
    for split in ("train", "test"):
        files = sorted(path.name for path in (tree / split).iterdir())
        for name in LISTS:
            if name.startswith(split):
                assert sorted(row[1] for row in read_list(tree / name)) == files
    assert set(covidx.LAYOUT.entries) == {"train", "test", "truth", *LISTS}


def test_the_three_class_list_has_four_fields(tree):
    for split in ("train", "test"):
        text = (tree / f"{split}_COVIDx9A.txt").read_text()
        assert text.endswith("\n")
        assert all(len(line.split(" ")) == 4 for line in text.splitlines())
        assert {row[2] for row in read_list(tree / f"{split}_COVIDx9A.txt")} <= {"normal", "pneumonia", "COVID-19"}
    assert Counter(row[2] for row in read_list(tree / "train_COVIDx9A.txt")).keys() == {
        "normal",
        "pneumonia",
        "COVID-19",
    }


def test_binary_lists_agree_with_the_three_classes(tree):
    for split in ("train", "test"):
        three = read_list(tree / f"{split}_COVIDx9A.txt")
        binary = read_list(tree / f"{split}_COVIDx9B.txt")
        assert read_list(tree / f"{split}.txt") == binary
        for (patient, name, label, source), row in zip(three, binary, strict=True):
            assert row == (patient, name, "positive" if label == "COVID-19" else "negative", source)


def test_odd_lines_of_the_older_lists(tree):
    lines = (tree / "train_COVIDx8A.txt").read_text().splitlines()
    assert {len(line.split(" ")) for line in lines} == {3, 4, 5}
    assert 3 in {len(line.split(" ")) for line in (tree / "test_COVIDx8A.txt").read_text().splitlines()}
    for line in lines:
        if len(line.split(" ")) == 5:
            assert re.fullmatch(r"COVID (\d+) COVID\(\1\)\.png COVID-19 sirm", line)
    new = {row[1]: row for row in read_list(tree / "train_COVIDx9A.txt")}
    for patient, name, label, source in read_list(tree / "train_COVIDx8A.txt"):
        assert (patient.replace(" ", "_"), name, label) == new[name][:3]
        assert source in (None, new[name][3])


def test_sources(tree):
    train, test = (read_list(tree / f"{split}_COVIDx9A.txt") for split in ("train", "test"))
    sources = {row[3] for row in train}
    assert {"rsna", "rnsa", "sirm", "stonybrook", "cohen"} <= sources
    assert sources <= {"rsna", "rnsa", "sirm", "stonybrook", "cohen", "ricord", "actmed", "fig1", "bimcv"}
    assert {row[3] for row in train + test if row[2] == "normal"} <= {"rsna", "rnsa"}
    assert {row[3] for row in train if row[2] == "COVID-19"}.isdisjoint({"rsna", "rnsa"})
    assert {row[3] for row in test} <= {"rsna", "ricord"}
    assert not {row[0] for row in train} & {row[0] for row in test}
    for patient, name, _, source in train + test:
        if source in ("rsna", "rnsa"):
            assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", patient)
            assert name == patient + ".png"


def test_files_are_what_their_names_say(tree):
    modes, types = set(), set()
    for path in [*(tree / "train").iterdir(), *(tree / "test").iterdir()]:
        with Image.open(path) as image:
            assert image.size == (64, 64)
            assert image.format == ("PNG" if path.suffix == ".png" else "JPEG")
            modes.add(image.mode)
            types.add(path.suffix)
            if image.mode == "RGBA":
                assert np.asarray(image)[..., 3].min() == 255
    assert modes == {"L", "RGB", "RGBA"}
    assert types == {".jpg", ".jpeg", ".JPG", ".png"}


def test_classes_follow_from_what_is_there(tree, truth):
    classes = {}
    for split in ("train", "test"):
        for _, name, label, _ in read_list(tree / f"{split}_COVIDx9A.txt"):
            row = truth[name.rpartition(".")[0]]
            classes[int(row["study"])] = (label, split, row)
    left_out = 0
    for study in sample_studies(SPEC):
        found = {finding.name for finding in study.findings}
        if "COVID-19" in found:
            expected = "COVID-19"
        elif found & {"Pneumonia", "Consolidation", "Infiltration"}:
            expected = "pneumonia"
        elif found:
            left_out += 1
            assert study.index not in classes
            continue
        else:
            expected = "normal"
        label, split, row = classes[study.index]
        assert label == expected
        assert int(row["patient"]) == study.patient.index
        assert {name for name in found if row[name] == "1"} == found
        assert row["split"] == split_of(SPEC, study.patient.index)
        assert (row["split"] == "test") == (split == "test")
    manifest = json.loads((tree / MANIFEST).read_text())
    assert manifest["left_out"] == left_out > 0
    assert manifest["images"] == len(classes) == SPEC.studies - left_out
    assert sum(manifest["classes"].values()) == len(classes)


def test_pixels_and_masks_are_the_rendered_ones(tree, truth):
    studies = {study.index: study for study in sample_studies(SPEC)}
    for path in sorted((tree / "train").glob("*.png"))[:8]:
        study = studies[int(truth[path.stem]["study"])]
        view = render_view(study, study.views[0], SPEC.size, SPEC.difficulty)
        np.testing.assert_array_equal(np.asarray(Image.open(path).convert("L")), view.image)
        masks = read_truth_masks(tree / f"truth/masks/{path.stem}.npz")
        for finding, mask in zip(study.findings, view.masks, strict=True):
            np.testing.assert_array_equal(masks[finding.name], mask)


@pytest.mark.parametrize("seed", [0, 1])
def test_odd_cases_occur_from_100_studies_on(tmp_path, seed):
    tree = write_phantom("covidx", tmp_path / "tree", PhantomSpec(studies=100, seed=seed, size=32))
    lines = (tree / "train_COVIDx8A.txt").read_text().splitlines()
    assert {len(line.split(" ")) for line in lines} == {3, 4, 5}
    assert any(line.endswith(" rnsa") for line in (tree / "train_COVIDx9A.txt").read_text().splitlines())
    assert {path.suffix for path in (tree / "train").iterdir()} == {".jpg", ".jpeg", ".JPG", ".png"}
    assert {Image.open(path).mode for path in (tree / "train").iterdir()} == {"L", "RGB", "RGBA"}


def test_same_bytes_again_and_with_two_processes(tmp_path):
    one = digests(write_phantom("covidx", tmp_path / "one", SMALL))
    two = digests(write_phantom("covidx", tmp_path / "two", SMALL, workers=2))
    assert one == two
    assert is_complete_tree(tmp_path / "one", "covidx", SMALL)
    assert not is_complete_tree(tmp_path / "one", "covidx", SPEC)

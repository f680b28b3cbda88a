import csv
import hashlib
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.phantom.cases import sample_studies, split_of
from medvlp.phantom.reports import write_report
from medvlp.phantom.truth import MANIFEST, is_complete_tree, read_truth_masks

SPEC = PhantomSpec(studies=200, seed=11, size=96)
SMALL = PhantomSpec(studies=30, seed=2, size=48)
FOLDERS = [f"images_{number:03d}" for number in range(1, 13)]
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
NIH = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Effusion": "Pleural Effusion",
    "Infiltration": "Infiltration",
    "Mass": "Mass",
    "Nodule": "Nodule",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Emphysema": "Emphysema",
    "Fibrosis": "Fibrosis",
    "Pleural_Thickening": "Pleural Thickening",
    "Hernia": "Hernia",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_phantom("cxr14", tmp_path_factory.mktemp("cxr14"), SPEC)


@pytest.fixture(scope="module")
def entries(tree):
    return pd.read_csv(tree / "Data_Entry_2017_v2020.csv").set_index("Image Index")


@pytest.fixture(scope="module")
def truth(tree):
    return pd.read_csv(tree / "truth/labels.csv", keep_default_na=False).set_index("image_id")


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def names_in(path):
    return path.read_text().split("\n")[:-1]


def test_tree(tree, entries):
    tables = {"Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "BBox_List_2017.csv"}
    lists = {"train_val_list.txt", "test_list.txt"}
    assert {path.name for path in tree.iterdir()} == {*FOLDERS, *tables, *lists, "truth", MANIFEST}
    images = sorted(tree.glob("images_*/images/*.png"))
    assert {path.parts[-3] for path in images} == set(FOLDERS)
    # The folder follows from the sorted name, and cuts through a patient.
    assert [path.name for path in images] == sorted(entries.index)
    sizes = [len(list((tree / folder / "images").iterdir())) for folder in FOLDERS]
    assert max(sizes) - min(sizes) <= 3
    assert any(a.name[:8] == b.name[:8] and a.parent != b.parent for a, b in itertools.pairwise(images))


def test_headers_and_trailing_commas(tree):
    new, old = (names_in(tree / f"Data_Entry_2017{tail}.csv") for tail in ("_v2020", ""))
    assert new[0] == HEADER
    assert old[0] == HEADER + ","
    assert all(line.count(",") == 10 for line in new)
    assert all(line.count(",") == 11 and line.endswith(",") for line in old)
    columns = list(pd.read_csv(tree / "Data_Entry_2017_v2020.csv"))
    assert columns[7:] == ["OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"]
    assert list(pd.read_csv(tree / "Data_Entry_2017.csv"))[-1] == "Unnamed: 11"


def test_rows(entries):
    assert entries.index.is_unique
    assert entries.index.str.fullmatch(r"\d{8}_\d{3}\.png").all()
    numbers = entries.index.str.extract(r"(\d{8})_(\d{3})").astype(int)
    assert (numbers[0].to_numpy() == entries["Patient ID"].to_numpy()).all()
    assert (numbers[1].to_numpy() == entries["Follow-up #"].to_numpy()).all()
    assert list(entries.index) != sorted(entries.index)
    assert entries["Patient Age"].between(0, 95).all()
    assert set(entries["View Position"]) == {"PA", "AP"}
    assert set(entries["Patient Gender"]) == {"M", "F"}
    patients = sorted(set(entries["Patient ID"]))
    assert patients != list(range(1, len(patients) + 1))
    assert entries["Patient ID"].is_monotonic_increasing
    sizes = entries[["OriginalImage[Width", "Height]"]]
    assert sizes.min().min() > 1000
    spacing = entries[["OriginalImagePixelSpacing[x", "y]"]].to_numpy()
    assert ((spacing > 0.1) & (spacing < 0.2)).all()


def test_the_older_table_says_the_same_in_its_own_dialect(tree, entries):
    old = pd.read_csv(tree / "Data_Entry_2017.csv", dtype=str).set_index("Image Index")
    odd = old["Patient Age"].str.fullmatch(r"\d{3}Y")
    assert 0 < odd.sum() < len(old) / 4
    assert old.loc[odd, "Follow-up #"].str.fullmatch(r"\d{3}").all()
    assert old.loc[~odd, "Patient Age"].str.fullmatch(r"[1-9]\d").all()
    assert (old["Patient Age"].str.rstrip("Y").astype(int) == entries["Patient Age"]).all()
    assert (old["Finding Labels"] == entries["Finding Labels"]).all()
    assert (old["Follow-up #"].astype(int) == entries["Follow-up #"]).all()


def test_labels_are_mined_from_the_reports(entries, truth):
    studies = {study.index: study for study in sample_studies(SPEC)}
    wrong = 0
    for name, joined in entries["Finding Labels"].items():
        labels = joined.split("|")
        assert labels == sorted(labels)
        study = studies[truth.loc[name[:-4], "study"]]
        mentions = write_report(study, SPEC.difficulty).mentions
        stated = {label for label, finding in NIH.items() if mentions.get(finding) == 1.0}
        assert set(labels) == (stated or {"No Finding"})
        there = {label for label, finding in NIH.items() if truth.loc[name[:-4], finding] == 1}
        assert stated <= there
        wrong += stated != there
    assert 0 < wrong < len(entries) / 2  # reports leave out and hedge


def test_lists_split_by_patient(tree, entries, truth):
    train, test = names_in(tree / "train_val_list.txt"), names_in(tree / "test_list.txt")
    assert sorted(train + test) == sorted(entries.index)
    assert not {name[:8] for name in train} & {name[:8] for name in test}
    for study in sample_studies(SPEC):
        row = truth[truth["study"] == study.index]
        assert len(row) == 1
        assert row["patient"].item() == study.patient.index
        assert row["split"].item() == split_of(SPEC, study.patient.index)
        assert (row["split"].item() == "test") == (row.index[0] + ".png" in test)


def test_boxes(tree, entries, truth):
    lines = names_in(tree / "BBox_List_2017.csv")
    assert lines[0] == "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    test = set(names_in(tree / "test_list.txt"))
    names = {"Infiltrate" if label == "Infiltration" else label for label in list(NIH)[:8]}
    found = {}
    for name, label, *numbers in csv.reader(lines[1:]):
        assert name in test
        assert label in names
        assert len(numbers) == 4
        found.setdefault((name, label), []).append([float(number) for number in numbers])
    assert "Infiltrate" in {label for _, label in found}
    for (name, listed), boxes in found.items():
        label = "Infiltration" if listed == "Infiltrate" else listed
        assert label in entries.loc[name, "Finding Labels"].split("|")
        mask = read_truth_masks(tree / f"truth/masks/{name[:-4]}.npz")[NIH[label]]
        covered = np.zeros_like(mask)
        for x, y, w, h in boxes:
            left, top, right, bottom = (round(value * SPEC.size / 1024) for value in (x, y, x + w, y + h))
            covered[top:bottom, left:right] = True
            assert mask[top:bottom, left:right].any(axis=1).all()
        assert not (mask & ~covered).any()
    labelled = {
        (name, "Infiltrate" if label == "Infiltration" else label)
        for name in test
        for label in entries.loc[name, "Finding Labels"].split("|")
        if label in list(NIH)[:8]
    }
    assert set(found) == labelled
    # One class after the other, as released.
    order = [line.split(",")[1] for line in lines[1:]]
    assert len([key for key, _ in itertools.groupby(order)]) == len(set(order))


def test_images(tree):
    modes = []
    for path in tree.glob("images_*/images/*.png"):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.size == (96, 96)
            modes.append(image.mode)
    assert set(modes) == {"L", "RGBA"}
    assert modes.count("RGBA") < 10


def test_a_small_tree_still_parts_a_patient(tmp_path):
    tree = write_phantom("cxr14", tmp_path / "tree", PhantomSpec(studies=6, seed=1, size=32))
    patients = {study.patient.index for study in sample_studies(PhantomSpec(studies=6, seed=1, size=32))}
    assert len(patients) < 6
    folders = {}
    for path in tree.glob("images_*/images/*.png"):
        folders.setdefault(path.name[:8], set()).add(path.parts[-3])
    assert max(map(len, folders.values())) > 1
    assert [folder for folder in FOLDERS if (tree / folder / "images").is_dir()] == FOLDERS


def test_patients_and_pixels_are_the_same_in_every_layout(tmp_path):
    images, flags = {}, {}
    for layout in ("cxr14", "covidx", "open_i", "object_cxr"):
        tree = write_phantom(layout, tmp_path / layout, SMALL)
        files = {path.stem: path for path in tree.rglob("*.png")}
        with open(tree / "truth/labels.csv", newline="") as file:
            for row in csv.DictReader(file):
                image_id = row.pop("image_id")
                row.pop("split")
                if re.search(r"-[24]001$", image_id):
                    continue  # Open-I's lateral views
                flags.setdefault(row["study"], []).append(row)
                if image_id in files:
                    images.setdefault(row["study"], []).append(np.asarray(Image.open(files[image_id]).convert("L")))
    assert len(flags) == SMALL.studies
    for rows in flags.values():
        assert len(rows) >= 2
        assert all(row == rows[0] for row in rows)
    assert sum(len(same) > 2 for same in images.values()) > 5
    for same in images.values():
        assert all(np.array_equal(image, same[0]) for image in same)


def test_same_bytes_again_and_with_two_processes(tmp_path):
    one = digests(write_phantom("cxr14", tmp_path / "one", SMALL))
    two = digests(write_phantom("cxr14", tmp_path / "two", SMALL, workers=2))
    assert one == two
    assert is_complete_tree(tmp_path / "one", "cxr14", SMALL)
    assert json.loads((tmp_path / "one" / MANIFEST).read_text())["images"] == SMALL.studies

import dataclasses
import hashlib
import re
from io import BytesIO

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from medvlp.phantom import FINDINGS, PhantomSpec, write_phantom
from medvlp.phantom.cases import sample_finding, sample_studies, split_of
from medvlp.phantom.layouts import rsna
from medvlp.phantom.render import render_view
from medvlp.phantom.truth import MANIFEST, is_complete_tree, read_truth_masks

SPEC = PhantomSpec(studies=120, seed=11, size=96, laterals=0.3)
SMALL = PhantomSpec(studies=20, seed=2, size=64)
UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
OPACITIES = ["Pneumonia", "Consolidation", "Infiltration"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_phantom("rsna", tmp_path_factory.mktemp("rsna"), SPEC)


@pytest.fixture(scope="module")
def labels(tree):
    return pd.read_csv(tree / "stage_2_train_labels.csv")


@pytest.fixture(scope="module")
def truth(tree):
    return pd.read_csv(tree / "truth/labels.csv").set_index("image_id")


@pytest.fixture(scope="module")
def files(tree):
    return {path.stem: pydicom.dcmread(path) for path in tree.rglob("*.dcm")}


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def opacity(tree, image_id):
    masks = read_truth_masks(tree / f"truth/masks/{image_id}.npz")
    return np.logical_or.reduce([masks[name] for name in OPACITIES if name in masks] or [np.zeros_like(masks["heart"])])


def test_tables_have_the_released_form(tree, labels):
    assert list(labels) == ["patientId", "x", "y", "width", "height", "Target"]
    assert set(labels["Target"]) == {0, 1}
    assert labels["patientId"].str.fullmatch(UUID4).all()
    text = (tree / "stage_2_train_labels.csv").read_bytes().decode()
    assert "\r" not in text
    lines = text.splitlines()
    assert all(re.fullmatch(UUID4 + r",(,,,,0|(\d+\.0,){4}1)", line) for line in lines[1:])
    classes = pd.read_csv(tree / "stage_2_detailed_class_info.csv")
    assert list(classes) == ["patientId", "class"]
    assert set(classes["class"]) == {"Lung Opacity", "No Lung Opacity / Not Normal", "Normal"}
    # One row for each box here too, so that joining the tables as they are multiplies rows.
    assert classes["patientId"].value_counts().to_dict() == labels["patientId"].value_counts().to_dict()
    assert list(classes["patientId"]) != list(labels["patientId"])
    submission = pd.read_csv(tree / "stage_2_sample_submission.csv")
    assert list(submission) == ["patientId", "PredictionString"]
    assert set(submission["PredictionString"]) == {"0.5 0 0 100 100"}


def test_every_image_is_in_its_folder_and_table(tree, labels, truth):
    train = {path.name for path in (tree / "stage_2_train_images").iterdir()}
    test = {path.name for path in (tree / "stage_2_test_images").iterdir()}
    assert train == {f"{name}.dcm" for name in labels["patientId"]}
    assert test == {f"{name}.dcm" for name in pd.read_csv(tree / "stage_2_sample_submission.csv")["patientId"]}
    assert len(train) + len(test) == SPEC.studies
    assert test == {f"{name}.dcm" for name in truth.index[truth["split"] == "test"]}
    assert test
    assert {path.name for path in tree.iterdir()} == {*rsna.LAYOUT.entries, MANIFEST}


def test_odd_cases_occur(labels, files):
    boxes = labels.groupby("patientId")["x"].count()
    assert {0, 1, 2, 3, 4} == set(boxes)
    first = labels["patientId"].drop_duplicates().tolist()
    assert first != sorted(first)
    photometric = [data.PhotometricInterpretation for data in files.values()]
    assert photometric.count("MONOCHROME1") == 1
    assert photometric.count("MONOCHROME2") == SPEC.studies - 1
    assert [data.PatientAge for data in files.values()].count("155") == 1


def test_headers(files, truth):
    studies = {study.index: study for study in sample_studies(SPEC)}
    for name, data in files.items():
        study = studies[truth.loc[name, "study"]]
        assert data.file_meta.TransferSyntaxUID.name == "JPEG Baseline (Process 1)"
        assert data.SOPClassUID.name == "Secondary Capture Image Storage"
        assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
        assert data.PatientID == name == str(data.PatientName)
        assert (data.Modality, data.ConversionType, data.BodyPartExamined) == ("CR", "WSD", "CHEST")
        assert (data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit) == (1, 8, 8, 7)
        assert data.PixelRepresentation == 0
        assert (data.Rows, data.Columns) == (SPEC.size, SPEC.size)
        assert data.ViewPosition == study.views[0]
        assert data.PatientSex == study.patient.sex
        assert data.PatientAge in {str(study.patient.age), "155"}
        assert data.StudyDate == "19010101"
        assert "WindowCenter" not in data
        assert len(data.PixelSpacing) == 2
    for attribute in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert len({data[attribute].value for data in files.values()}) == SPEC.studies
    assert {data.ViewPosition for data in files.values()} == {"PA", "AP"}


def test_pixels_are_the_drawn_image(files, truth):
    studies = {study.index: study for study in sample_studies(SPEC)}
    odd = [name for name, data in files.items() if data.PhotometricInterpretation == "MONOCHROME1"]
    for name in odd + list(files)[:5]:
        data = files[name]
        frame = next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1))
        with Image.open(BytesIO(frame)) as jpeg:
            assert (jpeg.format, jpeg.mode) == ("JPEG", "L")
            decoded = np.asarray(jpeg).astype(int)
        np.testing.assert_array_equal(decoded, data.pixel_array)
        shown = 255 - decoded if name in odd else decoded
        study = studies[truth.loc[name, "study"]]
        drawn = render_view(study, study.views[0], SPEC.size, SPEC.difficulty).image.astype(int)
        assert np.abs(shown - drawn).mean() < 3


def test_targets_classes_and_boxes_follow_the_truth(tree, labels, truth):
    classes = pd.read_csv(tree / "stage_2_detailed_class_info.csv").drop_duplicates()
    assert classes["patientId"].is_unique
    name_of = classes.set_index("patientId")["class"]
    for image_id, rows in labels.groupby("patientId"):
        mask = opacity(tree, image_id)
        target = rows["Target"].iloc[0]
        assert (rows["Target"] == target).all()
        assert target == mask.any()
        if target:
            assert name_of[image_id] == "Lung Opacity"
        else:
            sick = truth.loc[image_id, list(FINDINGS)].any()
            assert name_of[image_id] == ("No Lung Opacity / Not Normal" if sick else "Normal")
        covered = np.zeros_like(mask)
        for x, y, width, height in rows[["x", "y", "width", "height"]].dropna().astype(int).to_numpy():
            assert 0 <= x < x + width <= SPEC.size
            assert 0 <= y < y + height <= SPEC.size
            part = mask[y : y + height, x : x + width]
            # No box is larger than what it encloses.
            assert part[0].any()
            assert part[-1].any()
            assert part[:, 0].any()
            assert part[:, -1].any()
            covered[y : y + height, x : x + width] = True
        # Crumbs of up to 3 % of the largest part have no box.
        assert covered[mask].mean() > 0.95 if mask.any() else not covered.any()


def test_truth_is_the_phantoms(truth):
    studies = {study.index: study for study in sample_studies(SPEC)}
    assert sorted(truth["study"]) == sorted(studies)
    for row in truth.reset_index().to_dict("records"):
        study = studies[row["study"]]
        assert row["patient"] == study.patient.index
        assert row["split"] == split_of(SPEC, study.patient.index)
        assert [row[name] for name in FINDINGS] == study.labels.tolist()


def test_many_parts_are_merged_to_four_boxes():
    mask = np.zeros((64, 64), dtype=bool)
    for x, y in ((2, 2), (2, 12), (40, 2), (40, 40), (2, 50), (20, 30)):
        mask[y : y + 5, x : x + 5] = True
    finding = sample_finding("Pneumonia", np.random.default_rng(0))
    study = dataclasses.replace(next(sample_studies(SPEC)), findings=(finding,))
    view = render_view(study, study.views[0], 64, SPEC.difficulty)
    boxes = rsna.opacity_boxes(study, dataclasses.replace(view, masks=(mask,)))
    assert len(boxes) == 4
    covered = np.zeros_like(mask)
    for x0, y0, x1, y1 in boxes:
        covered[y0:y1, x0:x1] = True
    assert covered[mask].all()
    assert (2, 2, 7, 17) in boxes  # the closest two


def test_without_opacities_there_are_only_negatives(tmp_path):
    spec = PhantomSpec(studies=100, seed=1, size=48, findings=("Cardiomegaly",))
    root = write_phantom("rsna", tmp_path, spec)
    labels = pd.read_csv(root / "stage_2_train_labels.csv")
    assert not labels["Target"].any()
    assert labels["patientId"].is_unique


def test_same_bytes_again_and_with_two_processes(tmp_path):
    one = digests(write_phantom("rsna", tmp_path / "one", SMALL))
    two = digests(write_phantom("rsna", tmp_path / "two", SMALL, workers=2))
    assert one == two
    assert is_complete_tree(tmp_path / "one", "rsna", SMALL)

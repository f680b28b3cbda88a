import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from medvlp.phantom import FINDINGS, PhantomSpec, write_phantom
from medvlp.phantom.cases import sample_studies, split_of
from medvlp.phantom.layouts import siim
from medvlp.phantom.truth import MANIFEST, is_complete_tree, read_truth_masks

SPEC = PhantomSpec(studies=140, seed=11, size=96, laterals=0.3)
SHARED = Path(os.environ.get("MEDVLP_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
SMALL = PhantomSpec(studies=20, seed=2, size=64)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_phantom("siim", tmp_path_factory.mktemp("siim"), SPEC)


@pytest.fixture(scope="module")
def stage_1(tree):
    return pd.read_csv(tree / "train-rle.csv", dtype=str)


@pytest.fixture(scope="module")
def stage_2(tree):
    return pd.read_csv(tree / "stage_2_train.csv", dtype=str)


@pytest.fixture(scope="module")
def truth(tree):
    return pd.read_csv(tree / "truth/labels.csv").set_index("image_id")


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def decode(text, height, width):
    """Pixel by pixel as the grammar is written down: gaps from the end of the last run, down the columns."""
    mask = [[False] * width for _ in range(height)]
    numbers = [int(number) for number in text.split()]
    assert len(numbers) % 2 == 0
    at = 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        at += gap
        for _ in range(length):
            mask[at % height][at // height] = True
            at += 1
    return np.array(mask)


def pneumothorax(tree, image_id):
    return read_truth_masks(tree / f"truth/masks/{image_id}.npz").get("Pneumothorax")


def test_both_dialects(tree, stage_1, stage_2):
    assert list(stage_1) == ["ImageId", " EncodedPixels"]
    assert list(stage_2) == ["ImageId", "EncodedPixels"]
    assert " -1" in set(stage_1[" EncodedPixels"])
    assert "-1" not in set(stage_1[" EncodedPixels"])
    assert "-1" in set(stage_2["EncodedPixels"])
    assert " -1" not in set(stage_2["EncodedPixels"])
    runs = stage_2["EncodedPixels"][stage_2["EncodedPixels"] != "-1"]
    assert runs.str.fullmatch(r"\d+ \d+( \d+ \d+)*").all()
    assert not any(b"\r" in (tree / name).read_bytes() for name in ("train-rle.csv", "stage_2_train.csv"))
    # Stage 2 is stage 1 and more.
    same = stage_2[stage_2["ImageId"].isin(stage_1["ImageId"])]
    assert list(same["ImageId"]) == list(stage_1["ImageId"])
    assert list(same["EncodedPixels"]) == list(stage_1[" EncodedPixels"].str.strip())


def test_nested_folders_and_headers(tree, truth):
    paths = list(tree.rglob("*.dcm"))
    assert len(paths) == SPEC.studies
    uid = r"1\.2\.276\.0\.7230010\.3\.1\.{}\.8323329\.\d+\.\d+\.\d+"
    studies = {study.index: study for study in sample_studies(SPEC)}
    patients = set()
    for path in paths:
        folder, study_uid, series_uid, name = path.relative_to(tree).parts
        data = pydicom.dcmread(path)
        assert (data.StudyInstanceUID, data.SeriesInstanceUID) == (study_uid, series_uid)
        assert data.SOPInstanceUID == path.stem == name.removesuffix(".dcm")
        assert re.fullmatch(uid.format(2), study_uid)
        assert re.fullmatch(uid.format(3), series_uid)
        assert re.fullmatch(uid.format(4), path.stem)
        assert folder == ("dicom-images-test" if truth.loc[path.stem, "split"] == "test" else "dicom-images-train")
        assert data.file_meta.TransferSyntaxUID.name == "JPEG Baseline (Process 1)"
        assert data.PhotometricInterpretation == "MONOCHROME2"
        assert data.pixel_array.shape == (SPEC.size, SPEC.size)
        assert data.SeriesDescription == f"view: {data.ViewPosition}"
        assert data.PatientAge == str(studies[truth.loc[path.stem, "study"]].patient.age)
        assert (data.LossyImageCompression, data.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
        assert data.PatientID == str(data.PatientName)
        patients.add(data.PatientID)
    assert len(patients) == SPEC.studies  # no patient can be told
    assert {path.name for path in tree.iterdir()} == {*siim.LAYOUT.entries, MANIFEST}


def test_a_header_has_the_attributes_of_a_released_one(tree):
    sample = SHARED / "samples/1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm"
    if not sample.is_file():
        pytest.skip("shared/data/samples is not here")
    released = pydicom.dcmread(sample)
    ours = pydicom.dcmread(next(tree.rglob("*.dcm")))
    assert [(element.tag, element.VR) for element in ours] == [(element.tag, element.VR) for element in released]
    assert {element.tag for element in ours.file_meta} == {element.tag for element in released.file_meta}


def test_which_images_the_tables_list(tree, stage_1, stage_2, truth):
    train = {path.stem for path in (tree / "dicom-images-train").rglob("*.dcm")}
    test = {path.stem for path in (tree / "dicom-images-test").rglob("*.dcm")}
    assert test
    assert set(stage_1["ImageId"]) < train  # a file without a row
    assert len(train) - stage_1["ImageId"].nunique() <= 4
    assert set(stage_2["ImageId"]) == set(stage_1["ImageId"]) | test
    added = stage_2[stage_2["ImageId"].isin(test)]
    assert added["ImageId"].is_unique
    first = stage_2["ImageId"].drop_duplicates().tolist()
    assert first != sorted(first)
    negative = stage_2[stage_2["EncodedPixels"] == "-1"]
    assert negative["ImageId"].is_unique
    assert not set(negative["ImageId"]) & set(stage_2.loc[stage_2["EncodedPixels"] != "-1", "ImageId"])


def test_runs_give_the_truth(tree, stage_2):
    overlapping = 0
    positive = stage_2[stage_2["EncodedPixels"] != "-1"]
    assert len(positive)
    for image_id, rows in positive.groupby("ImageId"):
        masks = [decode(text, SPEC.size, SPEC.size) for text in rows["EncodedPixels"]]
        np.testing.assert_array_equal(np.logical_or.reduce(masks), pneumothorax(tree, image_id))
        overlapping += np.sum(masks, axis=0).max() > 1
    assert overlapping
    for image_id in set(stage_2["ImageId"]) - set(positive["ImageId"]):
        mask = pneumothorax(tree, image_id)
        assert mask is None or not mask.any()


def test_encoder_counts_from_the_last_run_down_the_columns():
    mask = np.zeros((4, 3), dtype=bool)
    mask[1:3, 0] = mask[0, 1] = mask[3, 2] = True
    assert siim.encode_runs(mask) == "1 2 1 1 6 1"
    assert siim.encode_runs(np.ones((4, 3), dtype=bool)) == "0 12"
    assert siim.encode_runs(np.zeros((4, 3), dtype=bool)) == ""
    rng = np.random.default_rng(0)
    for height, width in ((7, 5), (5, 7), (1, 9)):
        mask = rng.random((height, width)) < 0.5
        np.testing.assert_array_equal(decode(siim.encode_runs(mask), height, width), mask)


def test_truth_is_the_phantoms(truth):
    studies = {study.index: study for study in sample_studies(SPEC)}
    assert sorted(truth["study"]) == sorted(studies)
    for row in truth.reset_index().to_dict("records"):
        study = studies[row["study"]]
        assert row["patient"] == study.patient.index
        assert row["split"] == split_of(SPEC, study.patient.index)
        assert [row[name] for name in FINDINGS] == study.labels.tolist()


def test_without_pneumothorax_there_are_only_negatives(tmp_path):
    spec = PhantomSpec(studies=100, seed=1, size=48, findings=("Cardiomegaly",))
    root = write_phantom("siim", tmp_path, spec)
    assert set(pd.read_csv(root / "stage_2_train.csv", dtype=str)["EncodedPixels"]) == {"-1"}


def test_same_bytes_again_and_with_two_processes(tmp_path):
    one = digests(write_phantom("siim", tmp_path / "one", SMALL))
    two = digests(write_phantom("siim", tmp_path / "two", SMALL, workers=2))
    assert one == two
    assert is_complete_tree(tmp_path / "one", "siim", SMALL)

import dataclasses
import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvlp.errors import ConfigError, DataError
from medvlp.phantom import FINDINGS, Difficulty, PhantomSpec, write_phantom
from medvlp.phantom.cases import sample_studies
from medvlp.phantom.layouts import mimic_cxr
from medvlp.phantom.layouts.labels import report_labels
from medvlp.phantom.model import PhantomReport
from medvlp.phantom.truth import MANIFEST, is_complete_tree, read_truth_masks

SPEC = PhantomSpec(studies=120, seed=11, size=128, laterals=0.3)
SMALL = PhantomSpec(studies=20, seed=2, size=96)
LABELS = [
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    seen = []
    root = write_phantom("mimic_cxr", tmp_path_factory.mktemp("mimic"), SPEC, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == SPEC.studies
    return root


@pytest.fixture(scope="module")
def metadata(tree):
    return pd.read_csv(tree / "mimic-cxr-2.0.0-metadata.csv.gz")


@pytest.fixture(scope="module")
def truth(tree):
    return [json.loads(line) for line in (tree / "truth/findings.jsonl").read_text().splitlines()]


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_tables_have_the_released_columns(tree, metadata):
    assert list(metadata) == [
        "dicom_id",
        "subject_id",
        "study_id",
        "PerformedProcedureStepDescription",
        "ViewPosition",
        "Rows",
        "Columns",
        "StudyDate",
        "StudyTime",
        "ProcedureCodeSequence_CodeMeaning",
        "ViewCodeSequence_CodeMeaning",
        "PatientOrientationCodeSequence_CodeMeaning",
    ]
    for column in ("subject_id", "study_id", "Rows", "Columns", "StudyDate"):
        assert metadata[column].dtype == np.int64
    assert metadata["StudyTime"].dtype == np.float64
    assert metadata["StudyTime"].between(0, 240_000).all()
    assert metadata["StudyDate"].between(21_000_000, 23_000_000).all()
    assert pd.to_datetime(metadata["StudyDate"].astype(str), format="%Y%m%d").notna().all()
    split = pd.read_csv(tree / "mimic-cxr-2.0.0-split.csv.gz")
    assert list(split) == ["dicom_id", "study_id", "subject_id", "split"]
    assert set(split["split"]) == {"train", "validate", "test"}
    for name in ("chexpert", "negbio"):
        table = pd.read_csv(tree / f"mimic-cxr-2.0.0-{name}.csv.gz")
        assert list(table) == ["subject_id", "study_id", *LABELS]
        assert (table[LABELS].dtypes == np.float64).all()
        values = table[LABELS].to_numpy().ravel()
        assert set(values[~np.isnan(values)]) == {1.0, 0.0, -1.0}
        assert table["study_id"].is_unique
    test = pd.read_csv(tree / "mimic-cxr-2.1.0-test-set-labeled.csv")
    assert list(test) == ["study_id", *LABELS]
    assert (test[LABELS].dtypes == np.float64).all()
    assert set(test["study_id"]) == set(split.loc[split["split"] == "test", "study_id"])
    assert list(pd.read_csv(tree / "cxr-record-list.csv.gz")) == ["subject_id", "study_id", "dicom_id", "path"]
    assert list(pd.read_csv(tree / "cxr-study-list.csv.gz")) == ["subject_id", "study_id", "path"]


def test_raw_cells_are_written_as_released(tree):
    text = pd.read_csv(tree / "mimic-cxr-2.0.0-chexpert.csv.gz", dtype=str, keep_default_na=False)
    assert set(text[LABELS].to_numpy().ravel()) == {"1.0", "0.0", "-1.0", ""}


def test_identifiers(metadata):
    assert metadata["dicom_id"].is_unique
    assert metadata["dicom_id"].str.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}").all()
    assert metadata["subject_id"].astype(str).str.fullmatch(r"1\d{7}").all()
    assert metadata["study_id"].astype(str).str.fullmatch(r"5\d{7}").all()
    assert metadata["study_id"].nunique() == SPEC.studies
    assert (metadata.groupby("study_id")["subject_id"].nunique() == 1).all()
    # The number of a study tells nothing about its date.
    studies = metadata.drop_duplicates("study_id")
    assert abs(studies["study_id"].corr(studies["StudyDate"])) < 0.4


def test_every_path_exists_and_nothing_else_lies_there(tree, metadata):
    images = (tree / "IMAGE_FILENAMES").read_text().splitlines()
    rows = [
        f"files/p{str(r.subject_id)[:2]}/p{r.subject_id}/s{r.study_id}/{r.dicom_id}.jpg"
        for r in metadata.itertuples(index=False)
    ]
    assert images == rows
    assert sorted(images) == sorted(str(p.relative_to(tree)) for p in tree.rglob("*.jpg"))
    studies = pd.read_csv(tree / "cxr-study-list.csv.gz")
    assert sorted(studies["path"]) == sorted(str(p.relative_to(tree)) for p in (tree / "files").rglob("*.txt"))
    records = pd.read_csv(tree / "cxr-record-list.csv.gz")
    assert [p.replace(".dcm", ".jpg") for p in records["path"]] == images
    assert {p.name for p in tree.iterdir()} == {*mimic_cxr.LAYOUT.entries, MANIFEST}


def test_checksums(tree):
    listed = dict(reversed(line.split("  ")) for line in (tree / "SHA256SUMS.txt").read_text().splitlines())
    found = digests(tree)
    assert set(listed) == {n for n in found if not n.startswith("truth/")} - {"SHA256SUMS.txt", MANIFEST}
    assert all(found[name] == digest for name, digest in listed.items())


def test_images_are_grey_jpegs_of_the_stated_size(tree, metadata):
    for row in metadata.itertuples(index=False):
        path = tree / f"files/p{str(row.subject_id)[:2]}/p{row.subject_id}/s{row.study_id}/{row.dicom_id}.jpg"
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert image.mode == "L"
            assert image.size == (row.Columns, row.Rows) == (SPEC.size, SPEC.size)


def test_the_odd_cases_occur(tree, metadata):
    assert (metadata.groupby("subject_id")["study_id"].nunique() > 1).any()
    views = metadata.fillna({"ViewPosition": ""}).groupby("study_id")["ViewPosition"].apply(frozenset)
    assert any("LATERAL" in v and len(v) == 2 for v in views)
    assert {"AP", "PA", "LATERAL", "LL", ""} == set().union(*views)
    chexpert = pd.read_csv(tree / "mimic-cxr-2.0.0-chexpert.csv.gz").set_index("study_id")[LABELS]
    negbio = pd.read_csv(tree / "mimic-cxr-2.0.0-negbio.csv.gz").set_index("study_id")[LABELS]
    assert 1 <= SPEC.studies - len(chexpert) <= 4
    assert 1 <= chexpert.isna().all(axis=1).sum() <= 5
    assert not negbio.isna().all(axis=1).any()
    reports = [p.read_bytes() for p in (tree / "files").rglob("*.txt")]
    assert any(b"\r\n" in r for r in reports)
    assert any(b"\n Impression:" in r for r in reports)
    assert any(b"\nIMPRESSION:" in r for r in reports)
    assert any(r.count(b"\n IMPRESSION:") == 2 for r in reports)
    assert any(b"CHEST, 1/1:" in r for r in reports)
    assert any(r.startswith(b" WET READ: ") for r in reports)
    assert any(b"\n FINDINGS AND IMPRESSION:" in r for r in reports)
    assert any(b"\n FINDINGS: \n \n IMPRESSION:" in r for r in reports)
    assert any(b"IEW OF THE CHEST:  " in r for r in reports)
    assert any(b": \n \n HISTORY: " in r for r in reports)  # a title line
    assert any(re.match(rb" +FINAL REPORT\n [^:]*\n \n [^:]*$", r) for r in reports)
    assert any(re.search(rb"\n COMPARISONS?:  [^\n]*\n \n [^:]*$", r) for r in reports)
    for section in (b"RECOMMENDATION(S)", b"NOTIFICATION", b"ADDENDUM"):
        assert any(b"\n " + section + b":  " in r for r in reports)


def test_patients_do_not_cross_splits(tree, truth):
    split = pd.read_csv(tree / "mimic-cxr-2.0.0-split.csv.gz")
    assert (split.groupby("subject_id")["split"].nunique() == 1).all()
    shares = split.drop_duplicates("subject_id")["split"].value_counts(normalize=True)
    assert 0.7 < shares["train"] < 0.9
    by_study = split.drop_duplicates("study_id").set_index("study_id")["split"]
    assert all(by_study[record["study_id"]] == record["split"] for record in truth)


def test_truth_tables(tree, truth, metadata):
    labels = pd.read_csv(tree / "truth/labels.csv")
    assert list(labels) == ["subject_id", "study_id", "split", *FINDINGS]
    assert (labels[list(FINDINGS)].isin([0, 1])).all().all()
    exact = {s.index: s for s in sample_studies(SPEC)}
    table = labels.set_index("study_id")
    order = metadata.groupby("study_id", sort=False)["dicom_id"].apply(list)
    for record in truth:
        study = exact[record["index"]]
        assert {f["name"] for f in record["findings"]} == {f.name for f in study.findings}
        row = table.loc[record["study_id"], list(FINDINGS)].to_numpy(dtype=np.float32)
        np.testing.assert_array_equal(row, study.labels)
        assert sorted(record["dicom_ids"]) == sorted(order[record["study_id"]])
        for finding in record["findings"]:
            assert set(finding) == {"name", "side", "zone", "severity", "size_mm", "subtype"}


def test_truth_masks_and_boxes(tree, truth):
    boxes = pd.read_csv(tree / "truth/boxes.csv")
    assert list(boxes) == ["dicom_id", "finding", "x0", "y0", "x1", "y1"]
    assert (boxes["x0"] < boxes["x1"]).all()
    assert (boxes["y0"] < boxes["y1"]).all()
    assert boxes[["x0", "y0"]].min().min() >= 0
    assert boxes[["x1", "y1"]].max().max() <= SPEC.size
    grouped = {key: rows for key, rows in boxes.groupby(["dicom_id", "finding"])}
    seen = 0
    for record in truth:
        for number, dicom_id in enumerate(record["dicom_ids"]):
            masks = read_truth_masks(tree / f"truth/masks/{dicom_id}.npz")
            assert set(masks) == {"lungs", "heart", *(f["name"] for f in record["findings"])}
            for name, mask in masks.items():
                assert mask.shape == (SPEC.size, SPEC.size)
                assert mask.dtype == bool
                if name in FINDINGS:
                    assert mask.any() == ((dicom_id, name) in grouped)
                if name in FINDINGS and mask.any():
                    seen += 1
                    covered = np.zeros_like(mask)
                    for box in grouped[dicom_id, name].itertuples(index=False):
                        covered[box.y0 : box.y1, box.x0 : box.x1] = True
                    assert covered[mask].mean() > 0.9
            if number == 0:
                assert masks["lungs"].any()
                assert masks["heart"].any()
    assert seen > SPEC.studies // 2
    with np.load(tree / f"truth/masks/{truth[0]['dicom_ids'][0]}.npz", allow_pickle=False) as archive:
        height, width = archive["shape"]
        plain = np.unpackbits(archive["lungs"], count=height * width).reshape(height, width)
        assert plain.any()


def test_unreadable_masks_are_a_data_error(tmp_path):
    with pytest.raises(DataError, match="truth masks"):
        read_truth_masks(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK broken")
    with pytest.raises(DataError, match="truth masks"):
        read_truth_masks(tmp_path / "bad.npz")


def test_labels_follow_the_report(tree, truth):
    chexpert = pd.read_csv(tree / "mimic-cxr-2.0.0-chexpert.csv.gz").set_index("study_id")
    direct = [name for name in LABELS if name in FINDINGS]
    checked = 0
    for record in truth:
        if record["study_id"] not in chexpert.index or chexpert.loc[record["study_id"], LABELS].isna().all():
            continue
        row = chexpert.loc[record["study_id"]]
        for name in direct:
            said = record["mentions"].get(name)
            assert (said is None and np.isnan(row[name])) or row[name] == said
            checked += 1
    assert checked > 500


@pytest.mark.parametrize(
    ("mentions", "text", "label", "value"),
    [
        ({"Nodule": -1.0, "Mass": 1.0}, "", "Lung Lesion", 1.0),
        ({"Nodule": 0.0, "Mass": 0.0}, "", "Lung Lesion", 0.0),
        ({"Infiltration": -1.0, "Consolidation": 0.0}, "", "Lung Opacity", -1.0),
        ({"COVID-19": 1.0}, "", "Lung Opacity", 1.0),
        ({"Edema": 0.0}, "", "Lung Opacity", None),
        ({"Consolidation": 0.0}, "", "Lung Opacity", 0.0),
        ({"Pleural Thickening": 1.0}, "", "Pleural Other", 1.0),
        ({"Support Devices": 1.0, "Pneumothorax": 0.0}, "", "No Finding", 1.0),
        ({"Hernia": -1.0}, "", "No Finding", None),
        ({}, "", "No Finding", 1.0),
        (
            {"Cardiomegaly": 1.0},
            "Mild enlargement of the cardiomediastinal silhouette.",
            "Enlarged Cardiomediastinum",
            1.0,
        ),
        ({}, "The mediastinal contours are normal.", "Enlarged Cardiomediastinum", 0.0),
        ({}, "The lungs are clear.", "Enlarged Cardiomediastinum", None),
    ],
)
def test_label_rules(mentions, text, label, value):
    assert report_labels(PhantomReport({"FINDINGS": text}, mentions))[label] == value


def test_same_bytes_again_and_with_two_processes(tmp_path):
    one = digests(write_phantom("mimic_cxr", tmp_path / "one", SMALL))
    again = digests(write_phantom("mimic_cxr", tmp_path / "again", SMALL))
    two = digests(write_phantom("mimic_cxr", tmp_path / "two", SMALL, workers=2))
    other = digests(write_phantom("mimic_cxr", tmp_path / "other", dataclasses.replace(SMALL, seed=3)))
    assert one == again == two
    assert set(one) != set(other)


def test_complete_half_written_and_foreign_trees(tmp_path):
    spec = dataclasses.replace(SMALL, studies=4)
    root = tmp_path / "tree"
    assert not is_complete_tree(root, "mimic_cxr", spec)
    write_phantom("mimic_cxr", root, spec)
    before = digests(root)
    assert is_complete_tree(root, "mimic_cxr", spec)
    changed = dataclasses.replace(spec, difficulty=Difficulty(contrast=0.5))
    assert not is_complete_tree(root, "mimic_cxr", changed)

    touched = (root / "README").stat().st_mtime_ns
    write_phantom("mimic_cxr", root, spec)
    assert (root / "README").stat().st_mtime_ns == touched

    with pytest.raises(DataError, match=f"{re.escape(str(root))}.*overwrite=True"):
        write_phantom("mimic_cxr", root, changed)
    assert digests(root) == before
    (root / "mine.txt").write_text("keep")
    write_phantom("mimic_cxr", root, changed, overwrite=True)
    assert is_complete_tree(root, "mimic_cxr", changed)
    assert (root / "mine.txt").read_text() == "keep"
    assert len(list((root / "files").rglob("*.txt"))) == 4


def test_an_interrupted_tree_is_recognised(tmp_path):
    spec = dataclasses.replace(SMALL, studies=12)

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom("mimic_cxr", tmp_path, spec, progress=stop)
    assert list(tmp_path.rglob("*.jpg"))
    assert not is_complete_tree(tmp_path, "mimic_cxr", spec)
    with pytest.raises(DataError, match="half-written"):
        write_phantom("mimic_cxr", tmp_path, spec)
    write_phantom("mimic_cxr", tmp_path, spec, overwrite=True)
    assert is_complete_tree(tmp_path, "mimic_cxr", spec)


def test_a_folder_that_is_no_phantom_is_never_emptied(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "precious.txt").write_text("real")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="not a phantom"):
            write_phantom("mimic_cxr", tmp_path, SMALL, overwrite=overwrite)
    assert (tmp_path / "files" / "precious.txt").read_text() == "real"
    with pytest.raises(DataError, match="is a file"):
        write_phantom("mimic_cxr", tmp_path / "files" / "precious.txt", SMALL)


def test_wrong_settings(tmp_path):
    with pytest.raises(ConfigError, match="mimic_cxr"):
        write_phantom("mimic", tmp_path, SMALL)
    with pytest.raises(ConfigError, match="workers"):
        write_phantom("mimic_cxr", tmp_path, SMALL, workers=0)
    with pytest.raises(ConfigError):
        write_phantom("mimic_cxr", tmp_path, dataclasses.replace(SMALL, split=(0.5, 0.1, 0.1)))
    assert not list(tmp_path.iterdir())


def test_import_needs_no_torch():
    code = "import sys, medvlp.phantom.layouts.mimic_cxr; assert not {'torch', 'scipy', 'cv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900)

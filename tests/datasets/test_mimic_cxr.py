import gzip
import shutil
import warnings
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medvlp.datasets.base import RadiographDataset
from medvlp.datasets.mimic_cxr import MIMICCXR
from medvlp.errors import ConfigError, DataError, UnreadableItemError

LONG = " IMPRESSION:  Small left pleural effusion.\n"
# subject, study, split, report, [(dicom, view)]
STUDIES = [
    (10000001, 50000001, "train", f" FINDINGS:  Clear lungs.\n \n{LONG}", [("a1", "PA"), ("a2", "LATERAL")]),
    (10000001, 50000002, "train", LONG, [("a3", "AP"), ("a4", "")]),
    (11000002, 50000003, "train", " EXAMINATION:  CHEST\n", [("b1", "PA")]),  # neither section
    (11000002, 50000004, "train", " IMPRESSION:  Normal.\n", [("b2", "AP")]),  # too short
    (12000003, 50000005, "validate", LONG.replace("\n", "\r\n"), [("c1", "PA")]),
    (
        13000004,
        50000006,
        "test",
        " FINDINGS: \n IMPRESSION: \n No acute process today.\n",
        [("d1", "AP"), ("d2", "LL")],
    ),
]
BANNER = "                                 FINAL REPORT\n"


def read_mimic_cxr(root, *, split, **options):
    """One official split, of images with a report."""
    corpus = MIMICCXR(root, **options)
    records = corpus.records("pairs", pools=(split,))
    return RadiographDataset(records.table, dropped=records.dropped, on_error=corpus.on_error)


def _csv(path, header, rows, zipped=True):
    text = "\n".join([header, *rows]) + "\n"
    if zipped:
        with gzip.open(f"{path}.gz", "wt") as file:
            file.write(text)
    else:
        path.write_text(text)


@pytest.fixture(params=["csv.gz", "csv"])
def root(tmp_path, request):
    zipped = request.param == "csv.gz"
    root = tmp_path / "mimic"
    root.mkdir()
    images = [(d, p, s, split, view) for p, s, split, _, views in STUDIES for d, view in views]
    _csv(
        root / "mimic-cxr-2.0.0-split.csv",
        "dicom_id,study_id,subject_id,split",
        [f"{d},{s},{p},{split}" for d, p, s, split, _ in images],
        zipped,
    )
    _csv(
        root / "mimic-cxr-2.0.0-metadata.csv",
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns",
        [f'{d},{p},{s},"CHEST (PA, LAT)",{view},64,64' for d, p, s, _, view in images],
        zipped,
    )
    _csv(
        root / "mimic-cxr-2.0.0-chexpert.csv",
        "subject_id,study_id,Edema,Pleural Effusion",
        # study 50000002 is absent, 50000005 is all blank
        ["10000001,50000001,-1.0,1.0", "12000003,50000005,,", "13000004,50000006,0.0,"],
        zipped,
    )
    for i, (d, p, s, _, _) in enumerate(images):
        folder = root / f"files/p{str(p)[:2]}/p{p}/s{s}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 48), i * 9, np.uint8)).save(folder / f"{d}.jpg")
    for p, s, _, report, _ in STUDIES:
        (root / f"files/p{str(p)[:2]}/p{p}/s{s}.txt").write_bytes((BANNER + report).encode())
    return root


def test_train_split(root):
    data = read_mimic_cxr(root, split="train")
    assert data.ids == ["a1", "a3"]
    assert data.texts == ["Small left pleural effusion. Clear lungs.", "Small left pleural effusion."]
    assert data.groups == ["10000001", "10000001"]
    assert data.table["study"].to_pylist() == ["50000001", "50000002"]
    assert data.table["view"].to_pylist() == ["PA", "AP"]
    assert data.label_names == ("Edema", "Pleural Effusion")
    assert data.labels[0].tolist() == [-1, 1]
    assert data.labels[1].isnan().all()
    assert data[1]["image"].shape == (3, 64, 48)
    reasons = dict(zip(data.dropped["id"], data.dropped["reason"], strict=True))
    assert reasons == {
        "a2": "view LATERAL",
        "a4": "blank view",
        "b1": "no impression or findings",
        "b2": "fewer than 3 tokens",
    }
    assert data.dropped.attrs["counts"]["blank view"] == 1
    assert dict(zip(data.dropped["id"], data.dropped["row"], strict=True))["b1"] == 4


def test_other_splits_and_alias(root):
    assert read_mimic_cxr(root, split="validate").ids == ["c1"]
    assert read_mimic_cxr(root, split="test").texts == ["No acute process today."]


@pytest.mark.parametrize("blank", ["", "unknown"])
def test_views_by_name(root, blank):
    assert read_mimic_cxr(root, split="train", views=("lateral", blank)).ids == ["a2", "a4"]


def test_policies_and_cleaning(root):
    data = read_mimic_cxr(root, split="train", report_policy="findings", min_tokens=1)
    assert data.texts == ["Clear lungs."]
    assert set(data.dropped["reason"]) >= {"no findings text"}
    assert read_mimic_cxr(root, split="train", cleaning="mgca").texts[0] == "small left pleural effusion clear lungs"
    assert read_mimic_cxr(root, split="train", report_policy="all").ids == ["a1", "a3", "b1", "b2"]


def test_reports_in_another_root(root, tmp_path):
    other = tmp_path / "reports"
    for path in root.glob("files/**/*.txt"):
        target = other / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
    assert read_mimic_cxr(root, split="train", reports_root=other).ids == ["a1", "a3"]
    with pytest.raises(DataError, match=r"mimic-cxr-reports\.zip"):
        read_mimic_cxr(root, split="train")
    with pytest.raises(DataError, match="does not exist"):
        read_mimic_cxr(root, split="train", reports_root=tmp_path / "none")


@pytest.mark.parametrize("beside", [True, False])
def test_reports_in_a_zip(root, tmp_path, beside):
    other = root if beside else tmp_path
    with zipfile.ZipFile(other / "mimic-cxr-reports.zip", "w") as archive:
        for path in root.glob("files/**/*.txt"):
            archive.write(path, path.relative_to(root))
            path.unlink()
    data = read_mimic_cxr(root, split="train", reports_root=None if beside else tmp_path)
    assert data.texts == ["Small left pleural effusion. Clear lungs.", "Small left pleural effusion."]


def test_flat_images(root):
    for path in list(root.glob("files/**/*.jpg")):
        shutil.move(path, root / "files" / path.name)
    assert read_mimic_cxr(root, split="train")[0]["image"].shape == (3, 64, 48)


@pytest.mark.parametrize("problem", ["missing", "empty", "undecodable"])
def test_broken_report(root, problem):
    path = root / "files/p10/p10000001/s50000002.txt"
    if problem == "missing":
        path.unlink()
    else:
        path.write_bytes(b" \n" if problem == "empty" else b"\xff\xfe SECRET")
    with pytest.raises(
        UnreadableItemError,
        match=f"report of study s50000002 under .*row 2, item a3: {problem} report file.*on_error: skip",
    ) as caught:
        read_mimic_cxr(root, split="train")
    assert "SECRET" not in str(caught.value)
    data = read_mimic_cxr(root, split="train", on_error="skip")
    assert data.ids == ["a1"]
    assert data.dropped.attrs["counts"][f"{problem} report file"] == 1


def test_cache(root, tmp_path):
    cache = tmp_path / "cache"
    first = read_mimic_cxr(root, split="train", cache_dir=cache)
    files = list(cache.iterdir())
    assert len(files) == 1
    second = read_mimic_cxr(root, split="train", cache_dir=cache)
    assert second.table.drop(["Edema", "Pleural Effusion"]).equals(first.table.drop(["Edema", "Pleural Effusion"]))
    assert second.dropped.equals(first.dropped)
    assert list(cache.iterdir()) == files
    (root / "files/p10/p10000001/s50000002.txt").write_text(BANNER + " IMPRESSION:  Now a large effusion.\n")
    assert read_mimic_cxr(root, split="train", cache_dir=cache).texts[1] == "Now a large effusion."
    assert {f.stat().st_mode & 0o777 for f in cache.iterdir()} == {0o600}  # they hold report text


def test_a_damaged_cache_is_made_again(root, tmp_path):
    def read():
        return read_mimic_cxr(root, split="train", cache_dir=tmp_path / "cache")

    first = read()
    (file,) = (tmp_path / "cache").iterdir()
    sound = pq.read_table(file)
    for damage in (
        lambda: file.write_bytes(b"broken"),
        lambda: file.write_bytes(file.read_bytes()[:-20]),
        lambda: pq.write_table(sound.slice(1), file),
        lambda: pq.write_table(sound.drop_columns(["names"]), file),
        lambda: pq.write_table(sound.set_column(2, "report", [[1] * len(sound)]), file),
    ):
        damage()
        with pytest.warns(UserWarning, match="is damaged .*; the reports are parsed again"):
            assert read().texts == first.texts
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read().texts == first.texts


@pytest.mark.parametrize("packed", [True, False])
def test_a_report_is_not_read_beyond_its_limit(root, packed):
    report = root / "files/p10/p10000001/s50000002.txt"
    if packed:
        report.unlink()
        with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"files/p10/p10000001/{report.name}", b" " * (9 << 20))
    else:
        report.write_bytes(b" " * (9 << 20))
    data = read_mimic_cxr(root, split="train", on_error="skip")
    assert "a3" not in data.ids
    assert data.dropped.attrs["counts"]["report larger than 1 MiB"] == 1


def test_truth_labels(root):
    (root / "truth").mkdir()
    (root / "truth/labels.csv").write_text("subject_id,study_id,split,Mass\n10000001,50000002,train,1\n")
    data = read_mimic_cxr(root, split="train", labels="truth")
    assert data.label_names == ("Mass",)
    assert data.labels[1].tolist() == [1]
    assert read_mimic_cxr(root, split="train", labels=None).labels.shape == (2, 0)


def test_missing_pieces_are_named(root, tmp_path):
    with pytest.raises(
        DataError, match="nowhere does not exist; get it from PhysioNet's MIMIC-CXR-JPG, or write a phantom"
    ):
        read_mimic_cxr(tmp_path / "nowhere", split="train")
    with pytest.raises(DataError, match=r"mimic-cxr-2\.0\.0-negbio\.csv \(for labels: negbio\) is missing"):
        read_mimic_cxr(root, split="train", labels="negbio")
    with pytest.raises(DataError, match="for phantoms only"):
        read_mimic_cxr(root, split="train", labels="truth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"mimic-cxr-2\.0\.0-split\.csv is missing; get it from .*medvlp phantom"):
        read_mimic_cxr(tmp_path / "empty", split="train")
    for path in root.glob("mimic-cxr-2.0.0-metadata*"):
        path.unlink()
    _csv(root / "mimic-cxr-2.0.0-metadata.csv", "dicom_id,View", ["a1,PA"])
    with pytest.raises(
        DataError, match=r"metadata\.csv(\.gz)? lacks the column\(s\) ViewPosition; it has dicom_id, View"
    ):
        read_mimic_cxr(root, split="train")


def test_bad_arguments(root):
    for wrong in ({"report_policy": "x"}, {"cleaning": "x"}, {"labels": "x"}):
        with pytest.raises(ConfigError, match="unknown"):
            read_mimic_cxr(root, **{"split": "train", **wrong})


def test_labels_that_are_no_numbers(root):
    for path in root.glob("mimic-cxr-2.0.0-chexpert*"):
        path.unlink()
    _csv(root / "mimic-cxr-2.0.0-chexpert.csv", "subject_id,study_id,Edema", ["10000001,50000001,yes"])
    with pytest.raises(DataError, match=r"column Edema of .*chexpert.*other than numbers"):
        read_mimic_cxr(root, split="train")

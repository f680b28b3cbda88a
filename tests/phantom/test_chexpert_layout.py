import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvlp.errors import ConfigError
from medvlp.phantom import FINDINGS, PhantomSpec, write_phantom
from medvlp.phantom.cases import sample_studies, split_of
from medvlp.phantom.layouts import chexpert
from medvlp.phantom.layouts.chexpert import choose_structure
from medvlp.phantom.layouts.labels import exact_labels, report_labels
from medvlp.phantom.reports import write_report
from medvlp.phantom.truth import MANIFEST, is_complete_tree, read_truth_masks

SPEC = PhantomSpec(studies=120, seed=11, size=96, laterals=0.3)
SMALL = PhantomSpec(studies=20, seed=2, size=64)
LABELS = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]
COLUMNS = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS]
SPLITS = {"train": "train", "valid": "validate", "test": "test"}
PLUS = [
    "path_to_image",
    "path_to_dcm",
    "frontal_lateral",
    "ap_pa",
    "deid_patient_id",
    "patient_report_date_order",
    "report",
    "section_narrative",
    "section_clinical_history",
    "section_history",
    "section_comparison",
    "section_technique",
    "section_procedure_comments",
    "section_findings",
    "section_impression",
    "section_end_of_impression",
    "section_summary",
    "section_accession_number",
    "age",
    "sex",
    "race",
    "ethnicity",
    "interpreter_needed",
    "insurance_type",
    "recent_bmi",
    "deceased",
    "split",
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_phantom("chexpert", tmp_path_factory.mktemp("chexpert"), SPEC)


@pytest.fixture(scope="module")
def train(tree):
    return pd.read_csv(tree / "train.csv")


@pytest.fixture(scope="module")
def valid(tree):
    return pd.read_csv(tree / "valid.csv")


@pytest.fixture(scope="module")
def plus(tree):
    return pd.read_csv(tree / "df_chexpert_plus_240401.csv")


@pytest.fixture(scope="module")
def truth(tree):
    return pd.read_csv(tree / "truth/labels.csv").set_index("image_id")


@pytest.fixture(scope="module")
def studies():
    return {study.index: study for study in sample_studies(SPEC)}


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def image_id(path):
    return path.removesuffix(".jpg").replace("/", "_")


def below(path):
    """A Path cell without the name of the dataset folder."""
    return path.partition("/")[2]


def test_tables_have_the_released_form(tree, train, valid):
    for table in (train, valid):
        assert list(table) == COLUMNS
        assert table["Age"].dtype == np.int64
        assert (table[LABELS].dtypes == np.float64).all()
        assert table["Path"].is_unique
        assert (table["Path"].str.split("/").str[2].str.len() == 12).all()
    assert train["Path"].str.match(r"CheXpert-v1\.0-small/train/patient\d{5}/study\d+/view[12]_(frontal|lateral)").all()
    assert valid["Path"].str.match(r"CheXpert-v1\.0/valid/patient\d{5}/study\d+/view[12]_(frontal|lateral)").all()
    raw = pd.read_csv(tree / "train.csv", dtype=str, keep_default_na=False)
    assert set(raw[LABELS].to_numpy().ravel()) == {"1.0", "0.0", "-1.0", ""}
    assert set(pd.read_csv(tree / "valid.csv", dtype=str)[LABELS].to_numpy().ravel()) == {"0.0", "1.0"}
    assert not any(b"\r" in (tree / f"{name}.csv").read_bytes() for name in ("train", "valid", "groundtruth"))
    test = pd.read_csv(tree / "groundtruth.csv")
    assert list(test) == ["Study", *LABELS]
    assert (test[LABELS].dtypes == np.int64).all()
    assert test["Study"].is_unique
    assert test["Study"].str.fullmatch(r"CheXpert-v1\.0/test/patient\d{5}/study\d+").all()


def test_every_path_exists_and_nothing_else_lies_there(tree, train, valid):
    for name, table in (("train", train), ("valid", valid)):
        listed = sorted(below(path) for path in table["Path"])
        assert listed == sorted(p.relative_to(tree).as_posix() for p in (tree / name).rglob("*.jpg"))
    found = {p.parent.relative_to(tree).as_posix() for p in (tree / "test").rglob("*.jpg")}
    assert found == {below(path) for path in pd.read_csv(tree / "groundtruth.csv")["Study"]}
    assert {p.name for p in tree.iterdir()} == {*chexpert.LAYOUT.entries, MANIFEST}
    for path in tree.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "L", (SPEC.size, SPEC.size))


def test_views(train, valid):
    for table in (train, valid):
        lateral = table["Frontal/Lateral"] == "Lateral"
        assert table["Path"].str.endswith("_lateral.jpg").equals(lateral)
        assert table["AP/PA"].isna().equals(lateral)
        assert lateral.any()
        assert not lateral.all()
    frontal = train[train["Frontal/Lateral"] == "Frontal"]
    assert set(frontal["AP/PA"]) == {"AP", "PA", "LL"}
    assert (frontal["AP/PA"] == "LL").sum() == 1


def test_odd_cases_occur(train):
    for name in LABELS:
        values = set(train[name].dropna())
        assert train[name].isna().any()
        assert values == ({1.0} if name == "No Finding" else {1.0, 0.0, -1.0}), name
    assert train.loc[train["Sex"] == "Unknown", "Age"].tolist() in ([0], [0, 0])
    assert set(train["Sex"]) == {"Male", "Female", "Unknown"}
    assert train["Age"].max() <= 90
    place = {path: i for i, path in enumerate(train["Path"])}
    second = [path for path in place if "/study2/view1" in path]
    assert any(place[path] < place[path.replace("/study2/", "/study1/")] for path in second)


def test_studies_of_a_patient_stand_together_and_share_labels(train):
    patients = train["Path"].str.extract(r"(patient\d+)")[0]
    assert patients.is_monotonic_increasing
    study = train["Path"].str.rpartition("/")[0]
    assert (train[LABELS].fillna(-9).groupby(study).nunique() == 1).all().all()


def test_train_labels_are_the_reports_but_for_a_few_misreadings(train, truth, studies):
    differ = dict.fromkeys(LABELS, 0)
    for row in train.to_dict("records"):
        study = studies[truth.loc[image_id(below(row["Path"])), "study"]]
        said = report_labels(write_report(study, SPEC.difficulty, choose_structure(study)))
        for name in LABELS:
            wanted = said[name]
            differ[name] += not (np.isnan(row[name]) if wanted is None else row[name] == wanted)
    assert max(differ.values()) <= 8  # four studies of two views
    assert differ["No Finding"] == 0


def test_valid_and_test_labels_are_exact(tree, valid, truth, studies):
    for row in valid.to_dict("records"):
        exact = exact_labels(studies[truth.loc[image_id(below(row["Path"])), "study"]].findings)
        assert {name: row[name] for name in LABELS} == {name: exact[name] for name in LABELS}
    for row in pd.read_csv(tree / "groundtruth.csv").to_dict("records"):
        name = image_id(f"{below(row['Study'])}/view1_frontal.jpg")
        exact = exact_labels(studies[truth.loc[name, "study"]].findings)
        assert {key: row[key] for key in LABELS} == {key: exact[key] for key in LABELS}


def test_truth_is_the_phantoms(tree, truth, studies):
    assert set(truth["study"]) == set(studies)
    for row in truth.reset_index().to_dict("records"):
        study = studies[row["study"]]
        folder = row["image_id"].partition("_")[0]
        assert row["patient"] == study.patient.index
        assert SPLITS[folder] == split_of(SPEC, study.patient.index)
        assert row["split"] == folder
        assert f"_study{study.number + 1}_" in row["image_id"]
        assert [row[name] for name in FINDINGS] == study.labels.tolist()
        masks = read_truth_masks(tree / f"truth/masks/{row['image_id']}.npz")
        assert set(masks) == {"lungs", "heart", *(finding.name for finding in study.findings)}
    numbers = truth.index.str.extract(r"(patient\d+)")[0]
    assert truth.groupby(numbers.to_numpy())["patient"].nunique().eq(1).all()
    records = [json.loads(line) for line in (tree / "truth/findings.jsonl").read_text().splitlines()]
    assert [record["image_id"] for record in records] == list(truth.index)
    boxes = pd.read_csv(tree / "truth/boxes.csv")
    assert set(boxes["image_id"]) <= set(truth.index)


def test_plus_rows_follow_the_tables(plus, train, valid):
    assert list(plus) == PLUS
    both = pd.concat([train, valid])
    assert sorted(plus["path_to_image"]) == sorted(below(path) for path in both["Path"])
    table = both.set_index(both["Path"].map(below)).loc[plus["path_to_image"]].reset_index(drop=True)
    assert (plus["frontal_lateral"] == table["Frontal/Lateral"]).all()
    assert plus["ap_pa"].fillna("").equals(table["AP/PA"].fillna(""))
    assert (plus["sex"] == table["Sex"]).all()
    assert plus["age"].isna().equals(table["Age"] == 0)
    assert (plus["age"].dropna() == table["Age"].clip(upper=89)[plus["age"].notna()]).all()
    parts = plus["path_to_image"].str.split("/")
    assert (plus["split"] == parts.str[0]).all()
    assert (plus["deid_patient_id"] == parts.str[1]).all()
    assert set(plus["split"]) == {"train", "valid"}
    assert plus["path_to_dcm"].str.endswith(".dcm").all()
    assert plus["patient_report_date_order"].min() == 1
    assert (plus.groupby(parts.str[:3].str.join("/"))["report"].nunique() == 1).all()


def test_plus_reports(plus):
    # Most reports have an impression, few have findings.
    assert plus["section_impression"].notna().mean() > 0.9
    assert 0.1 < plus["section_findings"].notna().mean() < 0.6
    assert not plus["report"].str.contains("___").any()
    assert plus["report"].str.contains("\n").all()
    for name in ("findings", "impression", "clinical_history", "comparison", "narrative"):
        rows = plus[plus[f"section_{name}"].notna()]
        header = name.upper().replace("_", " ") + ": "
        assert all(
            header + text.strip() in report
            for text, report in zip(rows[f"section_{name}"], rows["report"], strict=True)
        )
    assert any(text.isupper() for text in plus["section_impression"].dropna())
    assert (plus["section_end_of_impression"].dropna() == "\n").any()


def test_too_many_patients_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(chexpert, "_MOST_PATIENTS", 5)
    with pytest.raises(ConfigError, match="five digits"):
        write_phantom("chexpert", tmp_path / "tree", SMALL)
    assert not (tmp_path / "tree").exists()


def test_few_findings_and_empty_splits(tmp_path):
    spec = PhantomSpec(studies=100, seed=1, size=48, findings=("Cardiomegaly",), split=(1.0, 0.0, 0.0))
    root = write_phantom("chexpert", tmp_path, spec)
    train = pd.read_csv(root / "train.csv")
    assert {1.0, 0.0, -1.0} == set(train["Cardiomegaly"].dropna())
    assert not (train["Fracture"] == 1).any()
    assert pd.read_csv(root / "valid.csv").empty
    assert list(pd.read_csv(root / "groundtruth.csv")) == ["Study", *LABELS]


def test_same_bytes_again_and_with_two_processes(tmp_path):
    one = digests(write_phantom("chexpert", tmp_path / "one", SMALL))
    two = digests(write_phantom("chexpert", tmp_path / "two", SMALL, workers=2))
    assert one == two
    assert is_complete_tree(tmp_path / "one", "chexpert", SMALL)

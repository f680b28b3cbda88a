import csv
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvlp.datamodules.chexpert import CheXpertDataModule
from medvlp.datasets.chexpert import CheXpert
from medvlp.datasets.labels import CHEXPERT_5, CHEXPERT_14
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.splits import make_split

HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(CHEXPERT_14)
MARKER = "zweihaender"


def _labels(**cells: str) -> str:
    return ",".join(cells.get(name.replace(" ", "_"), "") for name in CHEXPERT_14)


# study2 before study1, a lateral without AP/PA, an LL that counts as frontal, 1, 0, −1 and blank
TRAIN = [
    ("patient00001/study1/view1_frontal.jpg", "Female,68,Frontal,AP", _labels(No_Finding="1.0", Support_Devices="1.0")),
    ("patient00002/study2/view1_frontal.jpg", "Female,87,Frontal,AP", _labels(Lung_Opacity="1.0", Edema="-1.0")),
    ("patient00002/study1/view1_frontal.jpg", "Female,83,Frontal,PA", _labels(Cardiomegaly="-1.0", Edema="0.0")),
    ("patient00002/study1/view2_lateral.jpg", "Female,83,Lateral,", _labels(Cardiomegaly="-1.0", Edema="0.0")),
    ("patient00003/study1/view1_frontal.jpg", "Unknown,0,Frontal,LL", _labels(Lung_Lesion="1.0", Atelectasis="-1.0")),
]
VALID = [("patient64541/study1/view1_frontal.jpg", "Male,73,Frontal,AP", _labels(**dict.fromkeys(["Edema"], "1.0")))]
TEST = ["patient64741/study1", "patient64742/study1"]
TEST_VIEWS = [
    "patient64741/study1/view1_frontal.jpg",
    "patient64741/study1/view2_lateral.jpg",
    "patient64742/study1/view1_lateral.jpg",
]
REPORTS = [
    ("train/patient00001/study1/view1_frontal.jpg", "", f"No acute\n{MARKER} disease."),
    ("train/patient00002/study2/view1_frontal.jpg", f'{MARKER} lungs, as "quoted".', "Pulmonary edema, mild."),
    ("train/patient00002/study1/view1_frontal.jpg", "", "Normal."),
    ("valid/patient64541/study1/view1_frontal.jpg", "Clear lungs all over.", ""),
]


def _table(path: Path, prefix: str, rows: list[tuple[str, str, str]]) -> None:
    path.write_text("\n".join([HEADER, *(f"{prefix}/{p},{a},{b}" for p, a, b in rows)]) + "\n")


def _truth(path: Path, studies: list[str], cells: str = ",".join("01" * 7)) -> None:
    rows = [f"CheXpert-v1.0/test/{s},{cells}" for s in studies]
    path.write_text("\n".join(["Study," + ",".join(CHEXPERT_14), *rows]) + "\n")


def _images(folder: Path, paths: list[str]) -> None:
    for i, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 32), i * 9, np.uint8)).save(folder / path)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "CheXpert-v1.0-small"
    for part, paths in (("train", [t[0] for t in TRAIN]), ("valid", [v[0] for v in VALID]), ("test", TEST_VIEWS)):
        _images(root / part, paths)
    _table(root / "train.csv", "CheXpert-v1.0-small/train", TRAIN)
    _table(root / "valid.csv", "CheXpert-v1.0/valid", VALID)
    _truth(root / "groundtruth.csv", TEST)
    with (root / "df_chexpert_plus_240401.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path_to_image", "age", "report", "section_findings", "section_impression", "split"])
        for path, findings, impression in REPORTS:
            report = f"NARRATIVE: x\n{findings}\n{impression}"
            writer.writerow([path, "61.0", report, findings, impression, path.partition("/")[0]])
    return root


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom("chexpert", tmp_path_factory.mktemp("chexpert") / "p", PhantomSpec(studies=100, size=64))


def test_all_views_with_raw_labels_in_the_order_of_the_files(root):
    records = CheXpert(root).records("classification")
    assert records.column("id").tolist() == [
        *(f"train/{t[0]}" for t in TRAIN),
        *(f"valid/{v[0]}" for v in VALID),
        *(f"test/{p}" for p in TEST_VIEWS),
    ]
    assert records.column("pool").tolist() == ["train"] * 5 + ["valid"] + ["test"] * 3
    assert records.column("patient").tolist()[:3] == ["patient00001", "patient00002", "patient00002"]
    assert records.column("study").tolist()[:3] == [
        "patient00001/study1",
        "patient00002/study2",
        "patient00002/study1",
    ]
    assert records.column("view").tolist() == [
        *("AP", "AP", "PA", "LATERAL", "LL"),
        *("AP", "FRONTAL", "LATERAL", "LATERAL"),
    ]
    assert records.label_names == CHEXPERT_14  # by name, in the order of the csv
    raw = records.table.to_pandas()
    assert raw["Edema"].tolist()[1:4] == [-1, 0, 0]
    assert np.isnan(raw["Edema"][0])
    assert raw["Lung Lesion"][4] == 1
    assert np.isnan(raw["Lung Opacity"][4])
    assert raw["Enlarged Cardiomediastinum"].tolist()[-3:] == [1, 1, 1]
    assert all(Path(p).is_file() for p in records.column("image"))
    assert not len(records.dropped)
    assert "text" not in records.table.column_names


def test_columns_in_another_order_are_found_by_name(root):
    frame = pd.read_csv(root / "train.csv", dtype=str, keep_default_na=False)
    frame[frame.columns[::-1]].to_csv(root / "train.csv", index=False)
    raw = CheXpert(root).records("classification").table.to_pandas()
    assert raw["Lung Lesion"][4] == 1
    assert raw["Lung Opacity"][1] == 1


def test_split_input_counts_ll_as_frontal(root):
    corpus = CheXpert(root)
    inputs = corpus.split_input(corpus.records("classification"))
    assert inputs.frontal.tolist() == [True, True, True, False, True, True, True, False, False]


def test_views_are_chosen_after_the_split(root):
    def kept(**options):
        corpus = CheXpert(root, **options)
        return corpus.after_split(corpus.records("classification").table)["view"].to_pylist()

    # the first view of a test study stays, whatever it shows
    assert kept() == ["AP", "AP", "PA", "LL", "AP", "FRONTAL", "LATERAL"]
    assert kept(views="all") == ["AP", "AP", "PA", "LATERAL", "LL", "AP", "FRONTAL", "LATERAL"]
    assert kept(views=["pa"], test_images="all") == ["PA"]
    assert kept(test_images="all") == ["AP", "AP", "PA", "LL", "AP", "FRONTAL"]
    assert kept(views="all", test_images="all")[-3:] == ["FRONTAL", "LATERAL", "LATERAL"]


def test_policies_are_applied_after_the_split(root):
    def labels(name, **options):
        corpus = CheXpert(root, views="all", **options)
        return corpus.after_split(corpus.records("classification", pools=("train",)).table)[name].to_pylist()

    corpus = CheXpert(root)
    table = corpus.after_split(corpus.records("classification").table)
    assert tuple(table.column_names[-5:]) == CHEXPERT_5
    assert labels("Edema") == [0, 1, 0, 0, 0]
    assert labels("Cardiomegaly") == [0, 0, 0, 0, 0]
    assert labels("Atelectasis") == [0, 0, 0, 0, 1]
    assert labels("Edema", label_policy="u_zeros") == [0, 0, 0, 0, 0]
    assert labels("Cardiomegaly", label_policy="u_ones") == [0, 0, 1, 1, 0]
    ignored = labels("Edema", label_policy="u_ignore")
    assert np.isnan(ignored[1])
    assert ignored[0] == 0
    kept = labels("Edema", label_policy="keep", classes=("Edema",))
    assert kept[1:4] == [-1, 0, 0]
    assert np.isnan(kept[0])
    assert labels("Edema", label_policy="keep", blanks="negative")[0] == 0
    corpus = CheXpert(root, classes=("Lung Opacity", "Edema"))
    table = corpus.after_split(corpus.records("classification").table)
    assert table.column_names[-2:] == ["Lung Opacity", "Edema"]
    corpus = CheXpert(root, classes=None)
    assert tuple(corpus.after_split(corpus.records("classification").table).column_names[-14:]) == CHEXPERT_14


def test_a_study_without_a_first_view(root):
    (root / "test" / TEST_VIEWS[0]).unlink()
    with pytest.raises(UnreadableItemError, match=r"row 0, item .*patient64741/study1: no image called view1"):
        CheXpert(root).records("classification", pools=("test",))
    records = CheXpert(root, test_images="all").records("classification", pools=("test",))
    assert records.column("id").tolist() == [f"test/{p}" for p in TEST_VIEWS[1:]]


def test_test_images_of_no_listed_study(root):
    _truth(root / "groundtruth.csv", TEST[1:])
    records = CheXpert(root).records("classification", pools=("test",))
    assert records.column("id").tolist() == [f"test/{TEST_VIEWS[2]}"]
    assert records.dropped["reason"].tolist() == ["no row in groundtruth.csv"] * 2


def test_reports_of_chexpert_plus(root):
    records = CheXpert(root).records("pairs")
    assert len(records) == 9  # recipes see all images
    texts = dict(zip(records.column("id"), records.column("text"), strict=True))
    assert texts["train/patient00001/study1/view1_frontal.jpg"] == f"No acute {MARKER} disease."
    assert texts["train/patient00002/study2/view1_frontal.jpg"] == (
        f'Pulmonary edema, mild. {MARKER} lungs, as "quoted".'  # impression, then findings
    )
    assert texts["train/patient00002/study1/view1_frontal.jpg"] == ""  # too short
    assert texts["train/patient00003/study1/view1_frontal.jpg"] == ""  # no row
    corpus = CheXpert(root)
    assert corpus.after_split(records.table)["id"].to_pylist() == [
        "train/patient00001/study1/view1_frontal.jpg",
        "train/patient00002/study2/view1_frontal.jpg",
        "valid/patient64541/study1/view1_frontal.jpg",
    ]


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("findings", f'{MARKER} lungs, as "quoted".'),
        ("impression", "Pulmonary edema, mild."),
        ("longest", f'{MARKER} lungs, as "quoted".'),
        ("all", f'NARRATIVE: x {MARKER} lungs, as "quoted". Pulmonary edema, mild.'),
    ],
)
def test_report_policies(root, policy, text):
    records = CheXpert(root, report_policy=policy, min_tokens=1).records("pairs")
    assert records.column("text")[1] == text


def test_reports_elsewhere_and_missing(root, tmp_path):
    (tmp_path / "plus").mkdir()
    shutil.move(root / "df_chexpert_plus_240401.csv", tmp_path / "plus")
    assert (CheXpert(root, reports_root=tmp_path / "plus").records("pairs").column("text") != "").sum() == 3
    assert "text" not in CheXpert(root).records().table.column_names
    with pytest.raises(DataError, match=r"df_chexpert_plus_240401.csv \(for task: pairs\) is missing; get it from"):
        CheXpert(root).records("pairs")
    with pytest.raises(DataError, match=r"reports folder .*none does not exist; get CheXpert Plus"):
        CheXpert(root, reports_root=tmp_path / "none").records("pairs")


@pytest.mark.parametrize("path", ["train/patient00001/study1", "train/patient00002/study2/view1_frontal.png"])
def test_broken_reports_never_show_their_text(root, path):
    """A path in another form, and an image listed twice (a copy with another suffix)."""
    with (root / "df_chexpert_plus_240401.csv").open("a") as file:
        file.write(f"{path},61.0,{MARKER} a,{MARKER} b,{MARKER} c,train\n")
    with pytest.raises(UnreadableItemError, match=r"df_chexpert_plus_240401.csv, row 4, item train/patient") as caught:
        CheXpert(root).records("pairs")
    assert MARKER not in str(caught.value)
    records = CheXpert(root, on_error="skip").records("pairs")
    assert MARKER not in records.dropped.to_csv()
    assert records.dropped["broken"].sum() == 1


def test_a_part_alone_is_enough(root):
    for name in ("train.csv", "valid.csv", "df_chexpert_plus_240401.csv"):
        (root / name).unlink()
    assert len(CheXpert(root).records("classification")) == 3
    with pytest.raises(DataError, match=r"train.csv is missing; get it from Stanford AIMI"):
        CheXpert(root).records("classification", pools=("train",))
    (root / "groundtruth.csv").unlink()
    with pytest.raises(DataError, match=r"holds none of train.csv, valid.csv and groundtruth.csv; get them from"):
        CheXpert(root).records("classification")
    assert len(CheXpert(root).records("classification", pools=())) == 0


def test_labels_of_images_that_are_not_there(root):
    shutil.rmtree(root / "test")
    records = CheXpert(root).records("classification")
    assert len(records) == 6
    assert records.dropped.attrs["counts"] == {"no folder test": 2}
    assert not records.dropped["broken"].any()
    with pytest.raises(DataError, match="no folder of a patient lies in"):
        CheXpert(root).records("classification", pools=("test",))


def test_the_download_in_batches(root, tmp_path):
    top = tmp_path / "download"
    one, two, three = (top / f"CheXpert-v1.0 batch {n}" for n in ("1 (validate & csv)", "2 (train 1)", "3 (train 2)"))
    for folder in (one, two, three):
        folder.mkdir(parents=True)
    for name in ("train.csv", "valid.csv", "valid"):
        shutil.move(root / name, one / name)
    for patient, folder in (("patient00001", two), ("patient00002", two), ("patient00003", three)):
        shutil.move(root / "train" / patient, folder / patient)
    records = CheXpert(top).records("classification")
    assert records.column("id").tolist() == [*(f"train/{t[0]}" for t in TRAIN), *(f"valid/{v[0]}" for v in VALID)]
    assert records.column("image")[4] == str(three / "patient00003/study1/view1_frontal.jpg")
    assert all(Path(p).is_file() for p in records.column("image"))
    # the folder above a release works as well, but not above two
    assert len(CheXpert(root.parent).records("classification", pools=("test",))) == 3
    _images(root / "train", [TRAIN[0][0]])
    shutil.copytree(root, tmp_path / "two/CheXpert-v1.0")
    shutil.copytree(root, tmp_path / "two/CheXpert-v1.0-small")
    _table(tmp_path / "two/train.csv", "CheXpert-v1.0/train", TRAIN[:1])
    with pytest.raises(DataError, match=r"patient00001 lies in .*-v1.0/train and in .*; set root to one release"):
        CheXpert(tmp_path / "two").records("classification")


BROKEN = {
    "missing image file": ("CheXpert-v1.0/train/patient00001/study9/view1_frontal.jpg", "Frontal", "1.0"),
    "blank Path": ("", "Frontal", "1.0"),
    "Path is not of the form": ("CheXpert-v1.0/train/patient00001/../view1_frontal.jpg", "Frontal", "1.0"),
    "Frontal/Lateral is neither": ("CheXpert-v1.0/train/patient00003/study1/view1_frontal.jpg", "Oblique", "1.0"),
    "a label other than 1, 0, −1": ("CheXpert-v1.0/train/patient00003/study1/view1_frontal.jpg", "Frontal", "2.0"),
    "an image listed twice": ("CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg", "Frontal", "1.0"),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_rows(root, reason):
    path, side, label = BROKEN[reason]
    _table(root / "train.csv", "CheXpert-v1.0-small/train", TRAIN[:4])
    with (root / "train.csv").open("a") as file:
        file.write(f"{path},Male,50,{side},AP,{_labels(Edema=label)}\n")
    with pytest.raises(UnreadableItemError) as caught:
        CheXpert(root).records("classification")
    assert caught.value.reason.startswith(reason)
    assert f"train.csv, row 4, item {path}: {reason}" in str(caught.value)
    assert "get the file again from Stanford AIMI" in str(caught.value)
    records = CheXpert(root, on_error="skip").records("classification", pools=("train",))
    assert len(records) == 4
    assert records.dropped[["id", "row", "broken"]].values.tolist() == [[path, 4, True]]


@pytest.mark.parametrize(
    ("studies", "cells", "reason"),
    [
        ([*TEST, "patient64743/study1"], None, "missing image file"),
        ([*TEST, "patient64741"], None, "Study is not of the form"),
        (TEST[:1], ",".join(["-1"] * 14), "a label other than 1 and 0"),
        (TEST[:1], "," * 13, "a label other than 1 and 0"),
        ([""], None, "Study is not of the form"),
    ],
)
def test_broken_studies(root, studies, cells, reason):
    _truth(root / "groundtruth.csv", studies, *([] if cells is None else [cells]))
    with pytest.raises(UnreadableItemError, match=rf"groundtruth.csv, row {len(studies) - 1}, item .*: {reason}"):
        CheXpert(root).records("classification")
    records = CheXpert(root, on_error="skip").records("classification", pools=("test",))
    assert records.table["study"].to_pylist() == [
        s for s in ("patient64741/study1",) * 2 + ("patient64742/study1",) if s in studies[:-1]
    ]


def test_windows_paths_and_repeated_rows(root):
    lines = (root / "train.csv").read_text().splitlines()
    lines = [
        lines[0],
        *(line.replace("/", "\\", 5).replace("Frontal\\Lateral", "Frontal/Lateral") for line in lines[1:]),
    ]
    (root / "train.csv").write_text("\n".join([*lines, lines[1]]) + "\n")
    records = CheXpert(root).records("classification", pools=("train",))
    assert len(records) == 5
    assert records.dropped[["row", "reason"]].values.tolist() == [[5, "repeats an earlier row of train.csv"]]


def test_no_numbers_and_two_truths_of_a_row(root):
    _table(root / "train.csv", "CheXpert-v1.0/train", [(TRAIN[0][0], TRAIN[0][1], _labels(Edema="high"))])
    with pytest.raises(DataError, match=r"column Edema of .*train.csv holds something other than numbers"):
        CheXpert(root).records("classification")
    _table(root / "train.csv", "CheXpert-v1.0/train", [TRAIN[0], (TRAIN[0][0], TRAIN[0][1], _labels(Edema="1.0"))])
    with pytest.raises(DataError, match=r"train.csv: row 1 contradicts an earlier row of the same Path"):
        CheXpert(root).records("classification")


def test_missing_folders(root, tmp_path):
    with pytest.raises(DataError, match=r"folder .*none does not exist; get it from .*medvlp phantom chexpert"):
        CheXpert(tmp_path / "none").records()
    shutil.rmtree(root / "train")
    with pytest.raises(DataError, match=r"no folder of a patient lies in .*small/train; get the images from Stanford"):
        CheXpert(root).records("classification")


@pytest.mark.parametrize(
    "options",
    [
        {"classes": ["Effusion"]},
        {"classes": []},
        {"views": "lateral"},
        {"views": []},
        {"label_policy": "ones"},
        {"blanks": "zero"},
        {"test_images": "last"},
        {"report_policy": "summary"},
        {"cleaning": "nltk"},
    ],
)
def test_unknown_options(root, options):
    with pytest.raises(ConfigError):
        CheXpert(root, **options)


def test_paths_of_images_are_absolute(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    records = CheXpert(root.name).records("classification")
    assert all(Path(p).is_absolute() and Path(p).is_file() for p in records.column("image"))


def test_phantom_agrees_with_its_truth(phantom):
    corpus = CheXpert(phantom, test_images="all")
    records = corpus.records()
    truth = pd.read_csv(phantom / "truth/labels.csv").set_index("image_id")
    ids = [i.removesuffix(".jpg").replace("/", "_") for i in records.column("id")]
    assert sorted(ids) == sorted(truth.index)
    assert not records.dropped["broken"].any()
    raw = records.table.to_pandas().set_index(pd.Index(ids))
    exact = raw[raw["pool"] != "train"]
    for label, finding in (("Pneumothorax", "Pneumothorax"), ("Cardiomegaly", "Cardiomegaly"), ("Edema", "Edema")):
        assert (exact[label] == truth.loc[exact.index, finding]).all()
    train = raw[raw["pool"] == "train"]
    for name in set(CHEXPERT_14) - {"No Finding"}:
        values = set(train[name].fillna(9))
        assert values == {9} or values == {1, 0, -1, 9}
    assert {"AP", "PA", "LATERAL", "LL"} <= set(train["view"])
    assert (raw["patient"].map(truth.groupby(raw["patient"].to_numpy())["patient"].nunique()) == 1).all()
    assert (train["text"] != "").mean() > 0.9
    assert (raw["text"][raw["pool"] == "test"] == "").all()


@pytest.mark.parametrize("split", ["g2d", "mgca", "official", "kad", "clean"])
def test_splits_over_a_phantom(phantom, split):
    corpus = CheXpert(phantom)
    records = corpus.records("classification")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make_split("chexpert", split, corpus.split_input(records), strict=False)
    for part in made.parts.values():
        table = corpus.after_split(records.take(part))
        assert "LATERAL" not in table["view"].to_pylist()
        assert np.isin(np.array([table[c].to_pylist() for c in CHEXPERT_5]), (0, 1)).all()


@pytest.mark.parametrize("task", ["classification", "pairs"])
def test_datamodule_over_a_phantom(phantom, task):
    module = CheXpertDataModule(str(phantom), task=task, split="clean", image_size=32, batch_size=2)
    module.setup()
    assert module.train_set is not None
    sample = module.train_set[0]
    assert sample["image"].shape == (3, 32, 32)
    assert module.label_names == CHEXPERT_5
    assert bool(sample.get("text")) == (task == "pairs")
    assert set(module.train_set.table["view"].to_pylist()) <= {"AP", "PA", "LL"}
    if task == "classification":
        batch = next(iter(module.train_dataloader()))
        assert batch["label"].shape == (2, 5)
    with pytest.raises(ConfigError, match="text_sampling: sentence needs sentence ends"):
        CheXpertDataModule(str(phantom), task="pairs", cleaning="mgca", text_sampling="sentence")

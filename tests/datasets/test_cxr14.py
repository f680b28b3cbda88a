import csv
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvlp.datamodules.cxr14 import ChestXray14DataModule
from medvlp.datasets.base import RadiographDataset
from medvlp.datasets.cxr14 import BOX_CLASSES, NIH_14, ChestXray14
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.phantom import write_phantom
from medvlp.phantom.model import PhantomSpec
from medvlp.splits import make_split

SHARED = Path(os.environ.get("MEDVLP_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
TAIL = "2682,2749,0.143,0.143"
ROWS = [  # not sorted, as released
    f"00000003_001.png,Hernia|Infiltration,1,3,75,F,PA,{TAIL}",
    f"00000003_000.png,Hernia,0,3,74,F,PA,{TAIL}",
    f"00000001_000.png,No Finding,0,1,58,M,AP,{TAIL}",
    f"00000013_008.png,Atelectasis|Pleural_Thickening,8,13,60,M,PA,{TAIL}",
]
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
BOXES = [
    "00000013_008.png,Atelectasis,225.5,512,256,64",
    "00000013_008.png,Infiltrate,0,0,1024,1024",
    "00000003_001.png,Infiltrate,512,256,128.25,64",
    "00000013_008.png,Atelectasis,10,20,30,40",
]
PLACES = ["images_001/images", "images_002/images"]  # 00000003 spans two folders


def _write(root, rows=ROWS, header=HEADER, name="Data_Entry_2017_v2020.csv", boxes=BOXES, flat=None):
    root.mkdir(exist_ok=True)
    (root / name).write_text("\n".join([header, *rows]) + "\n")
    for i, row in enumerate(rows):
        folder = root / (flat if flat is not None else PLACES[i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        image = row.partition(",")[0]
        Image.new("RGBA" if i == 1 else "L", (512, 256)).save(folder / image)
    (root / "BBox_List_2017.csv").write_text("\n".join([BOX_HEADER, *boxes]) + "\n")
    (root / "train_val_list.txt").write_text("00000001_000.png")
    (root / "test_list.txt").write_text("00000003_000.png\n00000003_001.png\n00000013_008.png\n")
    return root


def test_labels_in_the_order_of_the_table(tmp_path):
    records = ChestXray14(_write(tmp_path)).records("classification")
    assert records.label_names == (*NIH_14, "No Finding")
    assert records.column("id").tolist() == [row.partition(",")[0] for row in ROWS]
    assert records.column("patient").tolist() == ["00000003", "00000003", "00000001", "00000013"]
    assert records.column("pool").tolist() == ["test", "test", "train_val", "test"]
    assert records.column("view").tolist() == ["PA", "PA", "AP", "PA"]
    frame = records.table.to_pandas()
    found = [sorted(c for c in records.label_names if row[c] == 1) for row in frame.to_dict("records")]
    assert found == [["Hernia", "Infiltration"], ["Hernia"], ["No Finding"], ["Atelectasis", "Pleural_Thickening"]]
    assert records.column("image")[1] == str((tmp_path / PLACES[1] / "00000003_000.png").resolve())
    assert len(records.dropped) == 0


@pytest.mark.parametrize("flat", ["images", ".", "images_001"])
def test_other_places_of_the_images(tmp_path, flat):
    assert len(ChestXray14(_write(tmp_path, flat=flat)).records("classification")) == 4


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        (HEADER + ",", [row + "," for row in ROWS]),
        (HEADER.replace("Gender", "Sex"), ROWS),
        (HEADER, [row.replace(",75,", ",075Y,").replace("Hernia|Infil", "Hernia | Infil") for row in ROWS]),
    ],
    ids=["trailing comma", "sex", "ages with a Y"],
)
def test_dialects_of_the_older_table(tmp_path, header, rows):
    _write(tmp_path, rows, header, name="Data_Entry_2017.csv")
    old = ChestXray14(tmp_path).records("classification")
    assert old.table.drop_columns(["image"]).num_rows == 4
    assert old.table["Infiltration"].to_pylist() == [1, 0, 0, 0]


def test_the_newer_label_table_wins_unless_told_otherwise(tmp_path):
    _write(tmp_path, [r.replace("No Finding", "Mass") for r in ROWS], name="Data_Entry_2017.csv")
    with pytest.raises(DataError, match=r"Data_Entry_2017_v2020\.csv is missing"):
        ChestXray14(tmp_path, labels_version="v2020").records()
    _write(tmp_path)
    assert sum(ChestXray14(tmp_path).records().table["Mass"].to_pylist()) == 0
    assert sum(ChestXray14(tmp_path, labels_version="2017").records().table["Mass"].to_pylist()) == 1
    with pytest.raises(ConfigError, match="unknown labels_version"):
        ChestXray14(tmp_path, labels_version="2021")


def test_boxes_are_scaled_to_the_file(tmp_path):
    records = ChestXray14(_write(tmp_path)).records("detection")
    assert records.box_names == BOX_CLASSES
    assert records.column("id").tolist() == ["00000003_001.png", "00000013_008.png"]
    # 1024 pixels became 512 x 256
    assert records.table["boxes"].to_pylist() == [
        [256, 64, 320.125, 80],
        [112.75, 128, 240.75, 144, 0, 0, 512, 256, 5, 5, 20, 15],
    ]
    assert records.table["box_labels"].to_pylist() == [[3], [0, 3, 0]]
    everything = ChestXray14(tmp_path).records()
    assert [len(b) for b in everything.table["boxes"].to_pylist()] == [4, 0, 0, 12]


def test_grounding_has_one_record_per_image_and_class(tmp_path):
    records = ChestXray14(_write(tmp_path)).records("grounding")
    assert records.column("text").tolist() == ["Infiltration", "Atelectasis", "Infiltration"]
    assert records.column("id").tolist()[1] == "00000013_008.png_Atelectasis"
    assert records.table["boxes"].to_pylist()[1] == [112.75, 128, 240.75, 144, 5, 5, 20, 15]
    sample = RadiographDataset(records.table, targets=("mask",))[1]
    assert sample["mask"].sum() == 128 * 16 + 15 * 10
    assert sample["mask"][0, 128, 113] == 1


def test_views_and_classes_after_the_split(tmp_path):
    corpus = ChestXray14(_write(tmp_path), views=("AP",), classes=("Mass", "No Finding"))
    records = corpus.records("classification")
    assert len(records) == 4
    table = corpus.after_split(records.table)
    assert table["id"].to_pylist() == ["00000001_000.png"]
    assert table.column_names[-2:] == ["Mass", "No Finding"]
    assert ChestXray14(tmp_path).after_split(records.table).column_names[-14:] == list(NIH_14)
    with pytest.raises(ConfigError, match="unknown label of ChestX-ray14 'Pleural Effusion'"):
        ChestXray14(tmp_path, classes=["Pleural Effusion"])


BROKEN_ROWS = [
    (f"00000004_000.png,Mass|Tumour,0,4,1,M,PA,{TAIL}", "unknown label"),
    (f"00000004_000.png,Mass|No Finding,0,4,1,M,PA,{TAIL}", "No Finding beside a finding"),
    (f"00000004_000.png,,0,4,1,M,PA,{TAIL}", "blank label"),
    (f"00000004_000.png,Mass,0,5,1,M,PA,{TAIL}", "Patient ID is not that of the file name"),
    (f"00000004_000.png,Mass,0,x,1,M,PA,{TAIL}", "Patient ID is no number"),
    (f",Mass,0,4,1,M,PA,{TAIL}", "blank id"),
    (f"00000004_000.png,Mass,0,4,1,M,PA,{TAIL}", "missing image file"),
]


@pytest.mark.parametrize(("row", "reason"), BROKEN_ROWS)
def test_broken_rows(tmp_path, row, reason):
    _write(tmp_path)
    path = tmp_path / "Data_Entry_2017_v2020.csv"
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(UnreadableItemError, match=rf"Data_Entry_2017_v2020\.csv.*row 4.*{reason}.*on_error: skip"):
        ChestXray14(tmp_path).records("classification")
    records = ChestXray14(tmp_path, on_error="skip").records("classification")
    assert len(records) == 4
    assert records.dropped.attrs["counts"] == {reason: 1}
    # a split must not shift because a file is missing or a row is broken
    listing = ChestXray14(tmp_path).listing()
    assert len(listing) == 4 + (reason != "blank id")
    assert listing.labels.iloc[4:].isna().any(axis=None) == ("label" in reason or "beside" in reason)


BROKEN_BOXES = [
    ("00000013_008.png,Mass,ten,20,30,40", "box with a value that is no number"),
    ("00000013_008.png,Mass,10,20,0,40", "empty box"),
    ("00000013_008.png,Mass,1000,20,30,40", "box outside the image"),
    ("00000013_008.png,Mass,-1,20,30,40", "box outside the image"),
    ("00000013_008.png,Hernia,10,20,30,40", "unknown class"),
    ("00000099_008.png,Mass,10,20,30,40", r"not in Data_Entry_2017_v2020\.csv"),
]


@pytest.mark.parametrize(("box", "reason"), BROKEN_BOXES)
def test_broken_boxes_take_their_image_along(tmp_path, box, reason):
    _write(tmp_path, boxes=[*BOXES, box])
    with pytest.raises(UnreadableItemError, match=rf"BBox_List_2017\.csv, row 4.*{reason}"):
        ChestXray14(tmp_path).records("detection")
    records = ChestXray14(tmp_path, on_error="skip").records("detection")
    assert len(records) == (2 if box.startswith("00000099") else 1)
    assert len(ChestXray14(tmp_path).records("classification")) == 4  # which needs no boxes


def test_repeats_contradictions_and_lists(tmp_path):
    _write(tmp_path, [*ROWS, ROWS[0]], boxes=[*BOXES, BOXES[0]])
    records = ChestXray14(tmp_path).records("detection")
    assert records.dropped.attrs["counts"] == {"repeats an earlier row": 2}
    _write(tmp_path, [*ROWS, ROWS[0].replace("Hernia", "Mass")])
    with pytest.raises(DataError, match="row 4 contradicts an earlier row"):
        ChestXray14(tmp_path).records("classification")
    _write(tmp_path)
    (tmp_path / "test_list.txt").write_text("00000001_000.png\n")
    with pytest.raises(DataError, match="in both official lists"):
        ChestXray14(tmp_path).records("classification")
    (tmp_path / "test_list.txt").write_text("00000077_000.png\n")
    with pytest.raises(UnreadableItemError, match=r"test_list\.txt, row 0.*not in Data_Entry"):
        ChestXray14(tmp_path).records("classification")
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"test_list\.txt \(for the official split\) is missing"):
        ChestXray14(tmp_path).records("classification")
    (tmp_path / "train_val_list.txt").unlink()
    assert set(ChestXray14(tmp_path).records("classification").column("pool")) == {""}
    with pytest.raises(DataError, match="official split"):
        ChestXray14(tmp_path).records("classification", pools=("test",))


def test_what_is_not_there(tmp_path):
    _write(tmp_path)
    (tmp_path / "BBox_List_2017.csv").unlink()
    assert "boxes" not in ChestXray14(tmp_path).records().table.column_names
    with pytest.raises(DataError, match=r"BBox_List_2017\.csv \(for detection and grounding\) is missing"):
        ChestXray14(tmp_path).records("detection")
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"holds no image, neither in images_\*/images"):
        ChestXray14(tmp_path).records()


def test_an_image_whose_size_cannot_be_read(tmp_path):
    _write(tmp_path)
    (tmp_path / PLACES[1] / "00000013_008.png").write_bytes(b"no image")
    with pytest.raises(UnreadableItemError, match="00000013_008"):
        ChestXray14(tmp_path).records("detection")
    assert len(ChestXray14(tmp_path, on_error="skip").records("detection")) == 1


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("cxr14") / "tree"
    return write_phantom("cxr14", root, PhantomSpec(studies=120, size=48, seed=3))


def test_phantom_agrees_with_its_truth(phantom):
    new, old = (ChestXray14(phantom, labels_version=v).records() for v in ("v2020", "2017"))
    assert new.table.equals(old.table)
    assert len(new) == 120
    assert len(new.dropped) == 0
    truth = {}
    with (phantom / "truth/boxes.csv").open() as file:
        for row in csv.DictReader(file):
            truth.setdefault(row["image_id"] + ".png", set()).add(
                tuple(float(row[k]) for k in ("x0", "y0", "x1", "y1"))
            )
    boxed = ChestXray14(phantom).records("detection")
    assert len(boxed)
    for image, flat in zip(boxed.column("id"), boxed.table["boxes"].to_pylist(), strict=True):
        assert {tuple(np.round(flat[i : i + 4], 3)) for i in range(0, len(flat), 4)} <= truth[image]
    with (phantom / "truth/labels.csv").open() as file:
        flags = {row["image_id"] + ".png": row for row in csv.DictReader(file)}
    frame = new.table.to_pandas().set_index("id")
    # what a report states is there
    assert all(float(flags[i]["Cardiomegaly"]) for i in frame.index[frame["Cardiomegaly"] == 1])


def test_data_modules_on_a_phantom(phantom):
    data = ChestXray14DataModule(str(phantom), batch_size=4, image_size=32, split="kad")
    data.setup("fit")
    assert data.label_names == NIH_14
    boxed = ChestXray14DataModule(str(phantom), task="grounding", batch_size=4, image_size=32)
    boxed.setup("test")
    assert set(boxed.test_set[0]) >= {"mask", "boxes", "text"}
    # the split is that of all images, whatever the task
    full = ChestXray14DataModule(str(phantom), batch_size=4, image_size=32)
    assert boxed.split_result.sha256 == full.split_result.sha256
    with pytest.raises(DataError, match="training split is empty"):
        boxed.setup("fit")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The real tables beside empty files; only the images with boxes are images."""
    if not (SHARED / "nih_Data_Entry_2017_v2020.csv.gz").is_file():
        pytest.skip("shared/data/nih_Data_Entry_2017_v2020.csv.gz is not here")
    root = tmp_path_factory.mktemp("nih")
    for ours, theirs in (
        ("nih_Data_Entry_2017_v2020.csv.gz", "Data_Entry_2017_v2020.csv.gz"),
        ("nih_BBox_List_2017.csv.gz", "BBox_List_2017.csv.gz"),
        ("nih_train_val_list_derived.txt.gz", "train_val_list.txt.gz"),
        ("nih_test_list_derived.txt.gz", "test_list.txt.gz"),
    ):
        (root / theirs).symlink_to(SHARED / ours)
    names = pd.read_csv(root / "Data_Entry_2017_v2020.csv.gz", usecols=["Image Index"])["Image Index"]
    boxed = set(pd.read_csv(root / "BBox_List_2017.csv.gz", usecols=[0], index_col=False)["Image Index"])
    folder = root / "images"
    folder.mkdir()
    Image.new("L", (1024, 1024)).save(root / "black.bin", format="png")
    for name in names:
        if name in boxed:
            os.link(root / "black.bin", folder / name)
        else:
            os.close(os.open(folder / name, os.O_CREAT))
    return root


@pytest.mark.slow
def test_released_tables(released):
    corpus = ChestXray14(released)
    records = corpus.records("classification")
    assert len(records) == 112_120
    assert len(records.dropped) == 0
    assert len(set(records.column("patient"))) == 30_805
    frame = records.table.to_pandas()
    pools = frame.groupby("pool")
    assert pools.size().to_dict() == {"train_val": 86_524, "test": 25_596}
    assert not set(frame["patient"][frame["pool"] == "test"]) & set(frame["patient"][frame["pool"] == "train_val"])
    counts = pools[[*NIH_14, "No Finding"]].sum().astype(int)
    # fmt: off
    assert counts.loc["train_val"].tolist() == [
        8280, 1707, 8659, 13782, 4034, 4708, 876, 2637, 2852, 1378, 1423, 1251, 2242, 141, 50500]
    assert counts.loc["test"].tolist() == [
        3279, 1069, 4658, 6112, 1748, 1623, 555, 2665, 1815, 925, 1093, 435, 1143, 86, 9861]
    # fmt: on
    assert frame["view"].value_counts().to_dict() == {"PA": 67_310, "AP": 44_810}
    split = make_split("cxr14", "official", corpus.split_input(records))  # listing() is the same without the files
    assert split.verified
    assert split.counts == {"train": 86_524, "test": 25_596}


@pytest.mark.slow
def test_released_boxes(released):
    corpus = ChestXray14(released)
    records = corpus.records("detection")
    assert len(records) == 880
    assert sum(map(len, records.table["box_labels"].to_pylist())) == 984
    assert set(records.column("pool")) == {"test"}
    assert len(set(records.column("patient"))) == 726
    assert len(records.dropped) == 0
    classes = np.bincount(np.concatenate(records.table["box_labels"].to_pylist()).astype(int))
    assert dict(zip(BOX_CLASSES, classes.tolist(), strict=True))["Infiltration"] == 123

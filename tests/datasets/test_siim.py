import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medvlp.datamodules.siim import SIIMDataModule
from medvlp.datasets.base import RadiographDataset
from medvlp.datasets.siim import SIIMPneumothorax
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.io.shapes import draw
from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.phantom.layouts.dicom import dicom_bytes
from medvlp.phantom.truth import read_truth_masks
from medvlp.splits import Part, make_split

PREFIX = "1.2.276.0.7230010.3.1"
SIZE = 16
# columns of 16 pixels: rows 2…4 of column 1; then rows 3…6 of the same column, so that they overlap
UPPER, LOWER = "18 3", "19 4"
TWO_RUNS = "0 2 14 2"  # rows 0 and 1 of columns 0 and 1


def _id(number: int) -> str:
    return f"{PREFIX}.4.8323329.{number}.1517875201.850819"


def _path(root: Path, number: int, part: str = "train") -> Path:
    study, series = f"{PREFIX}.2.8323329.{number}", f"{PREFIX}.3.8323329.{number}"
    return root / f"dicom-images-{part}" / study / series / f"{_id(number)}.dcm"


def _dicom(path: Path, height: int = SIZE, width: int = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width), np.uint8)
    path.write_bytes(dicom_bytes(pixels, sop_uid="1.2.3", series_uid="1.2.4", study_uid="1.2.5", attributes={}))


def _write(path: Path, rows: list[tuple[int, str]], *, stage: int = 2) -> None:
    header, blank = ("ImageId, EncodedPixels", " ") if stage == 1 else ("ImageId,EncodedPixels", "")
    path.write_text("\n".join([header, *(f"{_id(n)},{blank}{value}" for n, value in rows)]) + "\n")


ROWS = [(3, "-1"), (1, UPPER), (2, TWO_RUNS), (1, LOWER), (4, "-1")]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "siim"
    for number in (1, 2, 3):
        _dicom(_path(root, number))
    _dicom(_path(root, 4, "test"))
    _write(root / "train-rle.csv", ROWS[:4], stage=1)
    _write(root / "stage_2_train.csv", ROWS)
    return root


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    spec = PhantomSpec(studies=100, size=64, laterals=0, findings=("Pneumothorax", "Cardiomegaly"))
    return write_phantom("siim", tmp_path_factory.mktemp("siim") / "p", spec)


def test_both_dialects(root):
    """Names and values with leading blanks (stage 1), and without (stage 2)."""
    one, two = (SIIMPneumothorax(root, stage=s).records() for s in (1, 2))
    assert one.column("id").tolist() == [_id(3), _id(1), _id(2)]  # order of first appearance
    assert two.column("id").tolist() == [_id(3), _id(1), _id(2), _id(4)]
    assert two.table["Pneumothorax"].to_pylist() == [0, 1, 1, 0]
    assert one.table["shapes"].to_pylist() == two.table["shapes"].to_pylist()[:3]
    assert two.table["shapes"].to_pylist() == [[], [f"rle {UPPER}", f"rle {LOWER}"], [f"rle {TWO_RUNS}"], []]
    assert two.column("pool").tolist() == ["train"] * 3 + ["test"]
    assert two.column("patient").tolist() == two.column("id").tolist()
    assert one.dropped[["id", "row", "reason", "broken"]].values.tolist() == [
        [_id(4), -1, "no row in the table", False]
    ]
    assert not len(two.dropped)


def test_stage_auto_and_a_table_elsewhere(root, tmp_path):
    assert len(SIIMPneumothorax(root).records()) == 4
    shutil.move(root / "stage_2_train.csv", tmp_path / "labels.csv")
    assert len(SIIMPneumothorax(root).records()) == 3
    assert len(SIIMPneumothorax(root, table=tmp_path / "labels.csv").records()) == 4
    with pytest.raises(DataError, match=r"stage_2_train.csv \(for stage 2\) is missing; get it from Kaggle"):
        SIIMPneumothorax(root, stage=2).records()
    (root / "train-rle.csv").unlink()
    with pytest.raises(DataError, match=r"holds neither stage_2_train.csv nor train-rle.csv; get one .* with table"):
        SIIMPneumothorax(root).records()
    with pytest.raises(ConfigError, match="unknown stage 3; expected one of: 1, 2, auto"):
        SIIMPneumothorax(root, stage=3)


def test_the_mask_is_the_union_of_the_rows(root):
    data = RadiographDataset(SIIMPneumothorax(root).records("segmentation").table, targets=("mask",))
    mask = data[1]["mask"][0].numpy()
    expected = np.zeros((SIZE, SIZE))
    expected[2:7, 1] = 1  # runs go down the columns; overlapping pixels count once
    assert (mask == expected).all()
    two = data[2]["mask"][0].numpy()
    assert np.argwhere(two).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert not data[0]["mask"].any()


def test_rows_can_be_torn_apart(root):
    """The split by mask row gives each part the rows that it drew, and no others."""
    records = SIIMPneumothorax(root).records("segmentation")
    assert records.rows.tolist() == [0, 1, 2, 1, 3]
    assert records.row_shapes == ("", f"rle {UPPER}", f"rle {TWO_RUNS}", f"rle {LOWER}", "")
    taken = records.take(Part(np.array([1, 0]), np.array([3, 0])))
    assert taken["shapes"].to_pylist() == [[f"rle {LOWER}"], []]


def test_columns_of_each_task(root):
    corpus = SIIMPneumothorax(root)
    columns = {t: set(corpus.records(t).table.column_names) for t in corpus.tasks}
    common = {"id", "image", "patient", "pool", "Pneumothorax"}
    assert columns["classification"] == common
    assert columns["segmentation"] == common | {"shapes"}
    assert columns["grounding"] == common | {"shapes", "boxes", "box_labels", "text"}


def test_grounding_keeps_positives_after_the_split(root):
    corpus = SIIMPneumothorax(root)
    table = corpus.after_split(corpus.records("grounding").table)
    assert table["id"].to_pylist() == [_id(1), _id(2)]
    assert table["boxes"].to_pylist() == [[1, 2, 2, 5, 1, 3, 2, 7], [0, 0, 2, 2]]
    assert table["text"].to_pylist() == ["Pneumothorax"] * 2
    table = corpus.records("segmentation").table
    assert corpus.after_split(table).equals(table)


def test_pools(root):
    corpus = SIIMPneumothorax(root)
    test = corpus.records("segmentation", pools=("test",))
    assert test.column("id").tolist() == [_id(4)]
    assert test.rows.tolist() == [-1, -1, -1, -1, 0]  # rows stay those of the table
    assert len(corpus.records("segmentation", pools=())) == 0


def test_any_depth_of_folders(root):
    """Mirrors lay the files out otherwise, so they are searched."""
    flat = root / "images"
    flat.mkdir()
    for path in sorted(root.rglob("*.dcm")):
        shutil.move(path, flat / path.name)
    assert SIIMPneumothorax(root).records().column("image").tolist()[0] == str(flat / f"{_id(3)}.dcm")


BROKEN = {
    "RLE runs past the image: ends at 257 of 256 pixels": "250 7",
    "RLE has an odd number of values (3)": "5 6 7",
    "RLE has a run of length 0 (value 2 of 2)": "5 0",
    "RLE has a value that is no whole number (value 2 of 2)": "5 six",
    "RLE has a negative length (value 2 of 2)": "5 -6",
    "blank EncodedPixels": "",
    "both -1 and a mask": "-1",
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_rows(root, reason):
    _write(root / "stage_2_train.csv", [*ROWS[:3], (1, BROKEN[reason]), ROWS[4]])
    row = 1 if reason.startswith("both") else 3
    with pytest.raises(UnreadableItemError) as caught:
        SIIMPneumothorax(root).records("segmentation")
    assert caught.value.reason == reason
    assert f"stage_2_train.csv, row {row}, item {_id(1)}: {reason}; get the file again from" in str(caught.value)
    records = SIIMPneumothorax(root, on_error="skip").records("segmentation")
    assert records.column("id").tolist() == [_id(3), _id(2), _id(4)]  # part of a mask is a wrong mask
    assert records.rows.tolist() == [0, -1, 1, -1, 2]  # the rows of the table, −1 for those of no record
    assert records.dropped[["id", "row", "reason", "broken"]].values.tolist() == [[_id(1), row, reason, True]]


def test_missing_image_and_blank_id(root):
    _path(root, 2).unlink()
    with (root / "stage_2_train.csv").open("a") as file:
        file.write(",-1\n")
    with pytest.raises(UnreadableItemError, match=rf"stage_2_train.csv, row 2, item {_id(2)}: missing image file; get"):
        SIIMPneumothorax(root).records()
    records = SIIMPneumothorax(root, on_error="skip").records()
    assert records.dropped.attrs["counts"] == {"missing image file": 1, "blank ImageId": 1}
    assert len(records) == 3


def test_repeated_rows_are_dropped_and_counted(root):
    _write(root / "stage_2_train.csv", [*ROWS, ROWS[1], ROWS[0]])
    records = SIIMPneumothorax(root).records()
    assert records.dropped["row"].tolist() == [5, 6]
    assert set(records.dropped["reason"]) == {"repeats an earlier row of stage_2_train.csv"}
    assert len(records.rows) == 5


def test_copies_of_a_file(root):
    copy = root / "again" / _path(root, 1).name
    copy.parent.mkdir()
    shutil.copy(_path(root, 1), copy)
    records = SIIMPneumothorax(root).records()
    assert len(records) == 4
    assert records.dropped["reason"].tolist() == ["another copy of the file"]
    copy.write_bytes(b"other")
    with pytest.raises(UnreadableItemError, match=f"row 1, item {_id(1)}: two image files that differ"):
        SIIMPneumothorax(root).records()


def test_links_to_folders(root, tmp_path):
    """A corpus may lie on another disk; a link back up does not go round for ever."""
    shutil.move(root / "dicom-images-train", tmp_path / "disk")
    (root / "dicom-images-train").symlink_to(tmp_path / "disk")
    (root / "dicom-images-test/up").symlink_to(root)
    assert len(SIIMPneumothorax(root).records()) == 4


def test_no_images(root):
    for path in root.rglob("*.dcm"):
        path.unlink()
    with pytest.raises(DataError, match=r"no \*.dcm file lies below .*siim; get the images from Kaggle"):
        SIIMPneumothorax(root).records()


def test_paths_of_images_are_absolute(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    records = SIIMPneumothorax(root.name).records("classification")
    assert all(Path(p).is_absolute() and Path(p).is_file() for p in records.column("image"))


def test_phantom_agrees_with_its_truth(phantom):
    records = SIIMPneumothorax(phantom).records()
    truth = pd.read_csv(phantom / "truth/labels.csv").set_index("image_id")
    without_row = records.dropped["id"].tolist()
    assert without_row
    assert set(records.column("id")) == set(truth.index) - set(without_row)
    several = 0
    for row in records.table.to_pylist():
        masks = read_truth_masks(phantom / f"truth/masks/{row['id']}.npz")
        mask = masks.get("Pneumothorax", np.zeros((64, 64), bool))
        assert (draw(row["shapes"], 64, 64) == mask).all()
        assert row["Pneumothorax"] == mask.any()
        assert row["pool"] == ("test" if truth["split"][row["id"]] == "test" else "train")
        several += len(row["shapes"]) > 1
    assert several
    one = SIIMPneumothorax(phantom, stage=1).records()
    assert set(one.column("id")) == {r["id"] for r in records.table.to_pylist() if r["pool"] == "train"}


def test_split_by_rows_over_a_phantom(phantom):
    """Every row is in one part, and the parts' masks together are the masks."""
    corpus = SIIMPneumothorax(phantom)
    records = corpus.records("segmentation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make_split("siim", "mgca", corpus.split_input(records), strict=False)
    rows = np.concatenate([p.rows for p in made.parts.values()])
    assert sorted(rows) == list(range(len(records.rows)))
    shapes: dict[str, list[str]] = {}
    for part in made.parts.values():
        for row in records.take(part).to_pylist():
            shapes.setdefault(row["id"], []).extend(row["shapes"])
    whole = {row["id"]: row["shapes"] for row in records.table.to_pylist()}
    assert {i: sorted(s) for i, s in shapes.items()} == {i: sorted(s) for i, s in whole.items()}


@pytest.mark.parametrize("task", ["segmentation", "classification", "grounding"])
def test_datamodule_over_a_phantom(phantom, task):
    module = SIIMDataModule(str(phantom), task=task, image_size=32, batch_size=2)
    module.setup()
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (2, 3, 32, 32)
    assert module.label_names == ("Pneumothorax",)
    assert ("mask" in batch) == (task != "classification")
    assert module.train_set is not None
    assert module.test_set is not None
    assert not set(module.train_set.ids) & set(module.test_set.ids)
    if task == "grounding":
        assert batch["mask"].flatten(1).any(1).all()
        assert [len(b) > 0 for b in batch["boxes"]] == [True, True]

import os
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medvlp.datamodules.rsna import RSNADataModule
from medvlp.datasets.base import RadiographDataset
from medvlp.datasets.rsna import DETAILED_CLASSES, RSNAPneumonia
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.io.shapes import draw
from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.phantom.layouts.dicom import dicom_bytes
from medvlp.phantom.truth import read_truth_masks
from medvlp.splits import draw_fraction, make_split

SHARED = Path(os.environ.get("MEDVLP_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
REAL = SHARED / "rsna_stage_2_train_labels.csv.zip"
HEADER = "patientId,x,y,width,height,Target"
# not sorted, one row per box
ROWS = [
    "b0000000,,,,,0",
    "d0000000,20.0,10.0,13.0,30.0,1",
    "d0000000,56.0,10.0,8.0,54.0,1",
    "a0000000,,,,,0",
    "c0000000,2.0,3.0,4.0,5.0,1",
]
CLASSES = [
    "d0000000,Lung Opacity",
    "d0000000,Lung Opacity",
    "a0000000,No Lung Opacity / Not Normal",
    "c0000000,Lung Opacity",
    "b0000000,Normal",
]


def _write(path: Path, header: str, rows: list[str]) -> None:
    path.write_text("\n".join([header, *rows]) + "\n")


def _dicom(path: Path, height: int = 64, width: int = 64) -> None:
    pixels = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    path.write_bytes(dicom_bytes(pixels, sop_uid="1.2.3", series_uid="1.2.4", study_uid="1.2.5", attributes={}))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "rsna"
    for folder, ids in (("train", "abcd"), ("test", "yx")):
        (root / f"stage_2_{folder}_images").mkdir(parents=True)
        for i in ids:
            _dicom(root / f"stage_2_{folder}_images/{i}0000000.dcm")
    _write(root / "stage_2_train_labels.csv", HEADER, ROWS)
    _write(root / "stage_2_detailed_class_info.csv", "patientId,class", CLASSES)
    _write(root / "stage_2_sample_submission.csv", "patientId,PredictionString", ["y0000000,0.5 0 0 9 9", "x0000000,"])
    return root


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom("rsna", tmp_path_factory.mktemp("rsna") / "p", PhantomSpec(studies=100, size=64, laterals=0))


def test_boxes_are_gathered_by_image(root):
    records = RSNAPneumonia(root).records()
    table = records.table.to_pylist()
    assert [r["id"] for r in table] == [f"{i}0000000" for i in "abcdxy"]
    assert [r["pool"] for r in table] == ["train"] * 4 + ["test"] * 2
    assert [r["patient"] for r in table] == [r["id"] for r in table]
    assert [r["Pneumonia"] for r in table[:4]] == [0, 0, 1, 1]
    assert np.isnan([r["Pneumonia"] for r in table[4:]]).all()
    assert table[3]["boxes"] == [20, 10, 33, 40, 56, 10, 64, 64]
    assert table[3]["box_labels"] == [0, 0]
    assert table[3]["shapes"] == ["rectangle 20 10 33 40", "rectangle 56 10 64 64"]
    assert table[0]["boxes"] == []
    assert records.box_names == ("Pneumonia",)
    assert table[0]["image"] == str(root / "stage_2_train_images/a0000000.dcm")
    # one row per image, however many boxes it has
    assert [[r[c] for c in DETAILED_CLASSES] for r in table[:4]] == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert not len(records.dropped)


def test_columns_of_each_task(root):
    corpus = RSNAPneumonia(root)
    columns = {t: set(corpus.records(t).table.column_names) for t in corpus.tasks}
    common = {"id", "image", "patient", "pool", "Pneumonia"}
    assert columns["classification"] == common
    assert columns["segmentation"] == common | {"shapes"}
    assert columns["detection"] == common | {"boxes", "box_labels"}
    assert columns["grounding"] == common | {"boxes", "box_labels", "shapes", "text"}
    with pytest.raises(ConfigError, match="no labels for pairs"):
        corpus.records("pairs")


def test_a_sample_has_the_mask_of_its_boxes(root):
    corpus = RSNAPneumonia(root)
    data = RadiographDataset(corpus.records("segmentation").table, targets=("mask",))
    mask = data[3]["mask"][0].bool().numpy()
    expected = np.zeros((64, 64), bool)
    expected[10:40, 20:33] = expected[10:64, 56:64] = True
    assert (mask == expected).all()
    assert not data[0]["mask"].any()


def test_tasks_with_boxes_leave_out_images_of_unknown_boxes(root):
    records = RSNAPneumonia(root).records("detection")
    assert len(records) == 4
    assert records.dropped["reason"].tolist() == ["test image without boxes released"] * 2
    assert not records.dropped["broken"].any()


def test_pools(root):
    corpus = RSNAPneumonia(root)
    assert corpus.records("classification", pools=("test",)).column("id").tolist() == ["x0000000", "y0000000"]
    assert len(corpus.records("classification", pools=("train",))) == 4
    assert len(corpus.records("classification", pools=())) == 0


def test_without_test_images(root):
    shutil.rmtree(root / "stage_2_test_images")
    records = RSNAPneumonia(root).records("classification")
    assert len(records) == 4
    assert records.dropped.attrs["counts"] == {"no folder stage_2_test_images": 2}
    with pytest.raises(DataError, match=r"stage_2_test_images is missing; get it from Kaggle"):
        RSNAPneumonia(root).records("classification", pools=("test",))


def test_a_task_needs_only_its_own_tables(root):
    (root / "stage_2_detailed_class_info.csv").unlink()
    (root / "stage_2_sample_submission.csv").unlink()
    assert RSNAPneumonia(root).records("classification").label_names == ("Pneumonia",)
    assert RSNAPneumonia(root).records().column("id").tolist()[4:] == ["x0000000", "y0000000"]
    with pytest.raises(DataError, match=r"stage_2_detailed_class_info.csv \(for classes: Normal.*missing"):
        RSNAPneumonia(root, classes=("Normal",)).records("classification")
    assert len(RSNAPneumonia(root, classes=("Normal",)).records("detection")) == 4


def test_detailed_classes_in_the_order_asked_for(root):
    corpus = RSNAPneumonia(root, classes=("Lung Opacity", "Normal"))
    table = corpus.after_split(corpus.records("classification").table)
    assert table.column_names[-2:] == ["Lung Opacity", "Normal"]
    assert table["Normal"].to_pylist()[:4] == [0, 1, 0, 0]
    assert "Pneumonia" not in table.column_names
    for wrong in (("Pneumothorax",), ()):
        with pytest.raises(ConfigError, match=r"expected one of: Pneumonia|name some of Pneumonia"):
            RSNAPneumonia(root, classes=wrong)


def test_grounding_keeps_positives_after_the_split(root):
    corpus = RSNAPneumonia(root)
    records = corpus.records("grounding")
    assert len(records) == 4
    table = corpus.after_split(records.table)
    assert table["id"].to_pylist() == ["c0000000", "d0000000"]
    assert table["text"].to_pylist() == ["Pneumonia", "Pneumonia"]


def test_labels_of_the_test_images(root, tmp_path):
    csv = tmp_path / "test.csv"
    _write(csv, HEADER, ["y0000000,1.0,2.0,3.0,4.0,1", "x0000000,,,,,0", "z0000000,,,,,0"])
    records = RSNAPneumonia(root, test_labels=csv).records("detection")
    assert records.table["boxes"].to_pylist()[4:] == [[], [1, 2, 4, 6]]
    assert records.table["Pneumonia"].to_pylist()[4:] == [0, 1]
    assert records.dropped.attrs["counts"] == {"a label, but no such test image": 1}
    listed = tmp_path / "test.txt"
    listed.write_text("stage_2_test_images/x0000000.dcm 1\nstage_2_test_images/y0000000.dcm 0\n")
    corpus = RSNAPneumonia(root, test_labels=listed)
    assert corpus.records("classification").table["Pneumonia"].to_pylist()[4:] == [1, 0]
    assert len(corpus.records("detection")) == 4  # the list has no boxes
    listed.write_text("stage_2_test_images/x0000000.dcm\n")
    with pytest.raises(DataError, match=r"row 0 of .*test.txt is not a path and a label"):
        corpus.records("classification")
    with pytest.raises(DataError, match=r"none.csv \(test_labels\) is missing"):
        RSNAPneumonia(root, test_labels=tmp_path / "none.csv").records("classification")


BROKEN = {
    "the box is not four numbers": "c0000000,2.0,three,4.0,5.0,1",
    "a box, but Target 0": "c0000000,2.0,3.0,4.0,5.0,0",
    "empty box": "c0000000,2.0,3.0,0.0,5.0,1",
    "box outside the image": "c0000000,2.0,3.0,63.0,5.0,1",
    "Target is neither 0 nor 1": "c0000000,2.0,3.0,4.0,5.0,2",
    "both Target 0 and Target 1": "d0000000,,,,,0",
    "missing image file": "e0000000,,,,,0",
    "blank patientId": ",,,,,0",
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_rows(root, reason):
    _write(root / "stage_2_train_labels.csv", HEADER, [*ROWS[:4], BROKEN[reason], "a0000000,,,,,0"])
    item = BROKEN[reason].partition(",")[0]
    row = 1 if item.startswith("d") else 4
    with pytest.raises(UnreadableItemError) as caught:
        RSNAPneumonia(root).records("detection")
    assert caught.value.reason == reason
    assert f"stage_2_train_labels.csv, row {row}, item {item}: {reason}; get the file again from" in str(caught.value)
    records = RSNAPneumonia(root, on_error="skip").records("detection")
    expected = [i for i in ("a0000000", "b0000000", "d0000000") if i != item]
    assert records.column("id").tolist() == expected  # an image with one broken row goes whole
    broken = records.dropped[records.dropped["broken"]]
    assert broken[["id", "row", "reason"]].values.tolist() == [[item, row, reason]]
    assert records.dropped.attrs["counts"]["repeats an earlier row of stage_2_train_labels.csv"] == 1


def test_two_blank_ids_are_two_items(root):
    _write(root / "stage_2_train_labels.csv", HEADER, [*ROWS, ",,,,,0", ",1,1,1,1,1"])
    dropped = RSNAPneumonia(root, on_error="skip").records("classification").dropped
    assert dropped["row"].tolist() == [5, 6]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("c0000000,Opacity", "unknown class name"),
        ("c0000000,Normal", "class and Target disagree"),
        ("d0000000,Normal", "two detailed classes"),
    ],
)
def test_broken_classes(root, line, reason):
    rows = [r for r in CLASSES if not (r[0] == "c" == line[0])] + [line]
    _write(root / "stage_2_detailed_class_info.csv", "patientId,class", rows)
    with pytest.raises(UnreadableItemError, match=rf"stage_2_detailed_class_info.csv, row \d, item .*{reason}"):
        RSNAPneumonia(root).records()
    records = RSNAPneumonia(root, on_error="skip").records()
    assert records.dropped["reason"].tolist() == [reason]
    assert line[:8] not in records.column("id")


def test_an_image_without_a_class_is_no_image_of_no_class(root):
    rows = [r for r in CLASSES if not r.startswith("b")]
    _write(root / "stage_2_detailed_class_info.csv", "patientId,class", rows)
    with pytest.raises(UnreadableItemError, match="item b0000000: no detailed class"):
        RSNAPneumonia(root).records()
    records = RSNAPneumonia(root, on_error="skip").records()
    assert records.dropped[["id", "reason"]].values.tolist() == [["b0000000", "no detailed class"]]
    assert "b0000000" not in records.column("id")
    assert "b0000000" in RSNAPneumonia(root).records("detection").column("id"), "boxes need no class"


def test_listed_test_image_without_a_file(root):
    (root / "stage_2_test_images/x0000000.dcm").unlink()
    _dicom(root / "stage_2_test_images/w0000000.dcm")
    with pytest.raises(UnreadableItemError, match=r"sample_submission.csv, row 1, item x0000000: missing image file"):
        RSNAPneumonia(root).records("classification")
    records = RSNAPneumonia(root, on_error="skip").records("classification")
    reasons = dict(zip(records.dropped["id"], records.dropped["reason"], strict=True))
    assert reasons == {"x0000000": "missing image file", "w0000000": "no row in stage_2_sample_submission.csv"}


def test_size_is_that_of_the_files(root):
    """Boxes are held against the real size; a first file that cannot be read does not decide."""
    for i in "bcd":
        _dicom(root / f"stage_2_train_images/{i}0000000.dcm", height=40)
    (root / "stage_2_train_images/a0000000.dcm").write_bytes(b"")
    with pytest.raises(UnreadableItemError, match="item d0000000: box outside the image"):
        RSNAPneumonia(root).records("detection")


def test_ids_never_leave_the_root(root):
    _write(root / "stage_2_train_labels.csv", HEADER, ["../../secret,,,,,0"])
    with pytest.raises(UnreadableItemError, match="missing image file"):
        RSNAPneumonia(root).records("classification")


def test_missing_folders_and_columns(root, tmp_path):
    with pytest.raises(DataError, match=r"folder .*none does not exist; get it from .*medvlp phantom rsna"):
        RSNAPneumonia(tmp_path / "none").records()
    _write(root / "stage_2_train_labels.csv", "patientId,x,y,width,Target", ["a,,,,0"])
    with pytest.raises(DataError, match=r"lacks the column\(s\) height"):
        RSNAPneumonia(root).records()
    _write(root / "stage_2_train_labels.csv", HEADER, ROWS)
    shutil.rmtree(root / "stage_2_train_images")
    with pytest.raises(DataError, match=r"image folder .*stage_2_train_images is missing"):
        RSNAPneumonia(root).records()


def test_zipped_table_as_downloaded(root):
    table = root / "stage_2_train_labels.csv"
    with zipfile.ZipFile(f"{table}.zip", "w") as archive:
        archive.write(table, table.name)
    table.unlink()
    assert len(RSNAPneumonia(root).records("detection")) == 4


def test_paths_of_images_are_absolute(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    records = RSNAPneumonia(root.name).records("classification")
    assert all(Path(p).is_absolute() and Path(p).is_file() for p in records.column("image"))


def test_phantom_agrees_with_its_truth(phantom):
    corpus = RSNAPneumonia(phantom)
    records = corpus.records()
    truth = pd.read_csv(phantom / "truth/labels.csv").set_index("image_id")
    assert set(records.column("id")) == set(truth.index)
    opacities = truth[["Pneumonia", "Consolidation", "Infiltration"]].any(axis=1)
    normal = truth.drop(columns=["patient", "study", "split"]).sum(axis=1) == 0
    for row in records.table.to_pylist():
        if row["pool"] == "test":
            assert truth["split"][row["id"]] == "test"
            continue
        masks = read_truth_masks(phantom / f"truth/masks/{row['id']}.npz")
        shown = [masks[n] for n in ("Pneumonia", "Consolidation", "Infiltration") if n in masks]
        mask = np.logical_or.reduce([*shown, np.zeros((64, 64), bool)])
        drawn = draw(row["shapes"], 64, 64)
        assert row["Pneumonia"] == mask.any()
        assert (drawn | mask).sum() == drawn.sum()
        assert bool(row["Normal"]) == bool(normal[row["id"]])
        assert not row["Pneumonia"] or opacities[row["id"]]
    counts = {len(b) // 4 for b in records.table["boxes"].to_pylist()}
    assert counts >= {0, 1, 2, 4}


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection", "grounding"])
def test_datamodule_over_a_phantom(phantom, task):
    module = RSNADataModule(str(phantom), task=task, image_size=32, batch_size=2)
    module.setup()
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (2, 3, 32, 32)
    assert module.label_names == ("Pneumonia",)
    assert ("mask" in batch) == (task in ("segmentation", "grounding"))
    assert ("boxes" in batch) == (task in ("detection", "grounding"))
    train, validate, test = module.train_set, module.val_set, module.test_set
    assert train is not None
    assert validate is not None
    assert test is not None
    assert not set(train.ids) & set(test.ids)
    assert not set(validate.ids) & set(test.ids)
    if task != "grounding":
        assert [len(train), len(validate), len(test)] == pytest.approx([54, 18, 18], abs=4)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not REAL.is_file():
        pytest.skip("shared/data/rsna_stage_2_train_labels.csv.zip is not here")
    root = tmp_path_factory.mktemp("real")
    images = root / "stage_2_train_images"
    images.mkdir()
    with zipfile.ZipFile(REAL) as archive:
        # the mirror named its member otherwise; content untouched
        (root / "stage_2_train_labels.csv").write_bytes(archive.read(archive.namelist()[0]))
    ids = sorted(set(pd.read_csv(root / "stage_2_train_labels.csv", usecols=["patientId"])["patientId"]))
    _dicom(images / f"{ids[0]}.dcm", 1024, 1024)
    for i in ids[1:]:
        os.close(os.open(images / f"{i}.dcm", os.O_CREAT))
    yield root
    shutil.rmtree(root)


def test_real_labels(real):
    records = RSNAPneumonia(real).records("detection")
    boxes = pd.Series(records.table["boxes"].to_pylist()).map(len) // 4
    assert len(records) == 26_684
    assert boxes.value_counts().to_dict() == {0: 20_672, 1: 2_614, 2: 3_266, 3: 119, 4: 13}
    assert sum(records.table["Pneumonia"].to_pylist()) == 6_012
    assert not len(records.dropped)


@pytest.mark.parametrize(
    ("split", "task", "sizes"),
    [
        ("g2d", "detection", {"train": (16_010, 3_579), "validate": (5_337, 1_182), "test": (5_337, 1_251)}),
        ("mgca", "classification", {"train": (18_678, 4_162), "validate": (4_003, 928), "test": (4_003, 922)}),
        ("benchx", "classification", {"train": (18_678, 4_208), "validate": (4_003, 902), "test": (4_003, 902)}),
    ],
)
def test_real_splits(real, split, task, sizes):
    corpus = RSNAPneumonia(real)
    records = corpus.records(task)
    inputs = corpus.split_input(records)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make_split("rsna", split, inputs)
    found = {}
    for name, part in made.parts.items():
        table = corpus.after_split(records.take(part))
        found[name] = (len(table), int(sum(table["Pneumonia"].to_pylist())))
    assert found == sizes
    assert made.verified
    if split == "mgca":
        drawn = [draw_fraction("mgca", f, inputs, made.parts["train"]).sum() for f in (0.01, 0.1)]
        assert drawn == [187, 1_868]

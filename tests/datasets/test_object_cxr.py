import csv

import numpy as np
import pytest
from PIL import Image

from medvlp.datamodules.object_cxr import ObjectCXRDataModule
from medvlp.datasets.base import RadiographDataset
from medvlp.datasets.object_cxr import ObjectCXR
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.phantom import write_phantom
from medvlp.phantom.model import Difficulty, PhantomSpec
from medvlp.phantom.truth import read_truth_masks
from medvlp.splits import make_split

TRAIN = ["00002.jpg,0 10 20 18 26", "00001.jpg,", "00003.jpg,1 5 6 9 11;2 1 1 4 1 3 6 5 5"]
DEV = ["08001.jpg,", "08002.jpg,0 0 0 40 30"]
TEST = ["test/09001.jpg,1 2 2 10 10", "test\\09002.jpg,"]
SIZE = (40, 30)


def _write(root, train=TRAIN, dev=DEV, test=TEST):
    for pool, rows in (("train", train), ("dev", dev), ("test", test)):
        column = "image_path" if pool == "test" else "image_name"
        (root / pool).mkdir(exist_ok=True, parents=True)
        (root / f"{pool}.csv").write_text("\n".join([f"{column},annotation", *rows]) + "\n")
        for i, row in enumerate(rows):
            name = row.partition(",")[0].replace("\\", "/").rpartition("/")[2]
            Image.new("RGB" if i else "L", SIZE).save(root / pool / name)
    return root


def test_records_in_the_order_of_the_tables(tmp_path):
    records = ObjectCXR(_write(tmp_path)).records()
    assert records.column("id").tolist() == ["00002", "00001", "00003", "08001", "08002", "09001", "09002"]
    assert records.column("pool").tolist() == ["train"] * 3 + ["dev"] * 2 + ["test"] * 2
    assert records.label_names == ("Foreign Object",)
    assert records.table["Foreign Object"].to_pylist() == [1, 0, 1, 0, 1, 1, 0]
    assert records.table["shapes"].to_pylist()[2] == ["ellipse 5 6 9 11", "polygon 1 1 4 1 3 6 5 5"]
    assert records.table["boxes"].to_pylist()[:3] == [[10, 20, 18, 26], [], [5, 6, 9, 11, 1, 1, 5, 6]]
    assert records.table["box_labels"].to_pylist()[2] == [0, 0]
    assert records.box_names == ("Foreign Object",)
    assert records.column("image")[5] == str(tmp_path.resolve() / "test/09001.jpg")
    assert len(records.dropped) == 0


def test_pools_and_a_release_without_a_test_part(tmp_path):
    root = _write(tmp_path)
    assert ObjectCXR(root).records(pools=("dev",)).column("id").tolist() == ["08001", "08002"]
    (root / "test.csv").unlink()
    assert len(ObjectCXR(root).records("detection")) == 5
    with pytest.raises(DataError, match=r"test\.csv \(for the images of test\) is missing; get it from"):
        ObjectCXR(root).records(pools=("test",))
    (root / "dev.csv").unlink()
    with pytest.raises(DataError, match=r"dev\.csv"):
        ObjectCXR(root).records("detection")
    with pytest.raises(DataError, match="has the parts train, dev, test"):
        ObjectCXR(root).records(pools=("validate",))


def test_masks_are_drawn(tmp_path):
    table = ObjectCXR(_write(tmp_path)).records("segmentation").table
    data = RadiographDataset(table, targets=("mask", "boxes"))
    assert data[0]["mask"].sum() == 8 * 6
    assert data[1]["mask"].sum() == 0
    assert data[1]["boxes"].shape == (0, 4)
    assert 0 < data[2]["mask"].sum() < 4 * 5 + 4 * 5


BROKEN = [
    ("00009.jpg,3 1 1 2 2", "annotation: object 1 of 1"),
    ("00009.jpg,0 1 1 2", "annotation"),
    ("00009.jpg,0 1 1 2 2;", "annotation: object 2 of 2 is empty"),
    ("00009.jpg,2 1 1 2 2 3", "annotation"),
    ("00009.jpg,0 a 1 2 2", "annotation"),
    ("00009.jpg,0 1 1 1 2", "object 1: empty box"),
    ("00009.jpg,0 1 1 2 2;0 9 9 2 2", "object 2: malformed shape"),
    ("00009.jpg,1 1 1 41 20", "object 1: box outside the image"),
    ("00009.jpg,2 -1 1 4 1 3 6", "object 1: box outside the image"),
    ("00009.jpg,0 1 1 2 2", "missing image file"),
    (",0 1 1 2 2", "blank image name"),
    ("../00009.jpg,", "no image file name inside the corpus"),
    ("00001.jpg,0 1 1 2 2", "contradicts an earlier row"),
]


@pytest.mark.parametrize(("row", "reason"), BROKEN)
def test_broken_rows(tmp_path, row, reason):
    root = _write(tmp_path)
    if "missing" not in reason:
        Image.new("L", SIZE).save(root / "train/00009.jpg")
    path = root / "train.csv"
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(UnreadableItemError, match=rf"train\.csv.*row 3.*{reason}.*set on_error: skip"):
        ObjectCXR(root).records("detection")
    records = ObjectCXR(root, on_error="skip").records("detection")
    assert len(records) == 7
    assert records.dropped["reason"][0].startswith(reason)
    assert records.dropped["row"].tolist() == [3]


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection"])
def test_a_broken_annotation_is_broken_for_every_task(tmp_path, task):
    root = _write(tmp_path, [*TRAIN, "00004.jpg,0 1 1 99 99"])
    (root / "train/00003.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableItemError, match="00003"):
        ObjectCXR(root).records(task)
    assert len(ObjectCXR(root, on_error="skip").records(task)) == 6


def test_repeats_and_images_of_two_parts(tmp_path):
    records = ObjectCXR(_write(tmp_path, [*TRAIN, TRAIN[0]])).records()
    assert records.dropped.attrs["counts"] == {"repeats an earlier row": 1}
    with pytest.raises(UnreadableItemError, match=r"dev\.csv, row 2.*also listed in train\.csv"):
        ObjectCXR(_write(tmp_path, dev=[*DEV, "00001.jpg,"])).records()


def test_what_is_not_there(tmp_path):
    root = _write(tmp_path)
    for path in (root / "dev").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="dev is missing or holds no image"):
        ObjectCXR(root).records()
    (root / "train.csv").write_text("image_name\n00001.jpg\n")
    with pytest.raises(DataError, match=r"train\.csv lacks the column\(s\) annotation"):
        ObjectCXR(root).records()
    with pytest.raises(ConfigError, match="polygon_boxes"):
        ObjectCXR(root, polygon_boxes="mgca")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("object") / "tree"
    spec = PhantomSpec(studies=120, size=64, seed=3, difficulty=Difficulty(prevalence=4.0))
    return write_phantom("object_cxr", root, spec)


def test_phantom_agrees_with_its_truth(phantom):
    records = ObjectCXR(phantom).records()
    assert len(records) == 120
    assert len(records.dropped) == 0
    kinds = {s.split()[0] for shapes in records.table["shapes"].to_pylist() for s in shapes}
    assert kinds == {"rectangle", "ellipse", "polygon"}
    with (phantom / "truth/labels.csv").open() as file:
        truth = {row["image_id"]: float(row["Foreign Object"]) for row in csv.DictReader(file)}
    assert dict(zip(records.column("id"), records.table["Foreign Object"].to_pylist(), strict=True)) == truth
    data = RadiographDataset(records.table, targets=("mask",))
    for i in np.flatnonzero(data.labels[:, 0].numpy())[:15]:
        sample = data[int(i)]
        exact = read_truth_masks(phantom / f"truth/masks/{sample['id']}.npz")["Foreign Object"]
        assert sample["mask"][0].numpy()[exact].all()  # readers draw around an object
        assert sample["mask"].sum() < 4 * exact.sum() + 200
    split = make_split("object_cxr", "official", ObjectCXR(phantom).listing(), strict=False)
    assert sum(split.counts.values()) == 120


def test_data_module_on_a_phantom(phantom):
    data = ObjectCXRDataModule(str(phantom), batch_size=4, image_size=32)
    data.setup("fit")
    assert set(data.train_set[0]) >= {"boxes", "box_labels"}
    masks = ObjectCXRDataModule(str(phantom), task="segmentation", split="mgca", batch_size=4, image_size=32)
    masks.setup("fit")
    assert masks.train_set[0]["mask"].shape == (1, 32, 32)


def test_splits_are_drawn_from_all_listed_images(tmp_path):
    corpus = ObjectCXR(_write(tmp_path), on_error="skip")
    (tmp_path / "train/00002.jpg").unlink()
    assert corpus.listing().ids.tolist()[:3] == ["00002", "00001", "00003"]
    assert corpus.listing().labels["Foreign Object"].tolist() == [1, 0, 1, 0, 1, 1, 0]
    assert len(corpus.records()) == 6

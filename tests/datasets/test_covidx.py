import csv

import pytest
from PIL import Image

from medvlp.datamodules.covidx import COVIDxDataModule
from medvlp.datasets.covidx import COVIDx
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.phantom import write_phantom
from medvlp.phantom.model import PhantomSpec
from medvlp.splits import make_split

TRAIN = [
    "3 SARS-g04mr34g0-Fig8a-day0.jpeg pneumonia cohen",
    "003d8fa0-6bf1 003d8fa0-6bf1.png normal rsna",
    "COVID 17 COVID(17).png COVID-19 sirm",  # a patient's name with a blank: five fields
    "7 seven.JPG pneumonia",  # three fields, and an ending in capitals
    "A223587 A223587-12-31-1900-NA-CHEST_AP_VIEWONLY-1.000000-AP-1.jpg COVID-19 rnsa",
]
TEST = ["419639-000238 MIDRC-RICORD-1C-419639-1.png COVID-19 ricord"]


def _file(line):
    return next(w for w in line.split() if w.lower().endswith((".png", ".jpg", ".jpeg")))


def _write(root, train=TRAIN, test=TEST, version="COVIDx8A"):
    for pool, lines in (("train", train), ("test", test)):
        (root / pool).mkdir(parents=True, exist_ok=True)
        name = f"{pool}.txt" if version == "kaggle" else f"{pool}_{version}.txt"
        (root / name).write_text("\n".join(lines) + "\n")
        for line in lines:
            Image.new("L", (8, 8)).save(root / pool / _file(line))
    return root


def test_lines_of_three_four_and_five_fields(tmp_path):
    records = COVIDx(_write(tmp_path), version="COVIDx8A").records("classification")
    assert records.column("id").tolist() == [_file(line) for line in TRAIN + TEST]
    assert records.column("patient").tolist() == ["3", "003d8fa0-6bf1", "COVID 17", "7", "A223587", "419639-000238"]
    assert records.column("pool").tolist() == ["train"] * 5 + ["test"]
    assert records.label_names == ("Normal", "Pneumonia", "COVID-19")
    labels = records.table.select(records.label_names).to_pandas().to_numpy().tolist()
    assert labels == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert records.column("image")[0] == str(tmp_path.resolve() / "train" / _file(TRAIN[0]))
    assert len(records.dropped) == 0


def test_binary_of_three_classes(tmp_path):
    records = COVIDx(_write(tmp_path), version="COVIDx8A", classes="binary").records()
    assert records.label_names == ("COVID-19",)
    assert records.table["COVID-19"].to_pylist() == [0, 0, 1, 0, 1, 1]


def test_a_binary_list_cannot_give_three_classes(tmp_path):
    lines = ["1 a.png negative rsna", "2 b.png positive ricord"]
    _write(tmp_path, lines, lines[:1], version="COVIDx9B")
    (tmp_path / "test_COVIDx9B.txt").write_text("3 c.png positive ricord\n")
    Image.new("L", (8, 8)).save(tmp_path / "test/c.png")
    with pytest.raises(ConfigError, match=r"train_COVIDx9B\.txt has only positive and negative.*classes: binary"):
        COVIDx(tmp_path, version="COVIDx9B").records()
    records = COVIDx(tmp_path, version="COVIDx9B", classes="binary").records()
    assert records.table["COVID-19"].to_pylist() == [0, 1, 1]


def test_lists_of_two_vocabularies_are_refused(tmp_path):
    _write(tmp_path, ["1 a.png negative rsna"], ["2 b.png COVID-19 ricord"])
    with pytest.raises(DataError, match="mix negative/positive"):
        COVIDx(tmp_path, version="COVIDx8A", classes="binary").records()


def test_the_version_decides_which_lists(tmp_path):
    _write(tmp_path)
    _write(tmp_path, TRAIN[:2], TEST, version="COVIDx9A")
    (tmp_path / "labels").mkdir()
    for pool in ("train", "test"):
        (tmp_path / f"{pool}_COVIDx8A.txt").rename(tmp_path / "labels" / f"{pool}_COVIDx8A.txt")
    assert len(COVIDx(tmp_path, version="COVIDx9A").records()) == 3
    assert len(COVIDx(tmp_path, version="COVIDx8A").records()) == 6
    with pytest.raises(DataError, match=r"no train list of version COVIDx7A.*test_COVIDx9A\.txt.*set version"):
        COVIDx(tmp_path, version="COVIDx7A").records()
    with pytest.raises(ConfigError, match="unknown version"):
        COVIDx(tmp_path, version="../x")
    with pytest.raises(TypeError, match="version"):
        COVIDx(tmp_path)


def test_kaggle_names_and_validation_list(tmp_path):
    _write(tmp_path, ["1 a.png negative x"], ["2 b.png positive y"], version="kaggle")
    corpus = COVIDx(tmp_path, version="kaggle", classes="binary")
    assert len(corpus.records()) == 2
    (tmp_path / "val").mkdir()
    (tmp_path / "val.txt").write_text("3 c.png positive z\n")
    Image.new("L", (8, 8)).save(tmp_path / "val/c.png")
    records = corpus.records()
    assert records.column("pool").tolist() == ["train", "validate", "test"]
    assert corpus.records(pools=("validate",)).column("id").tolist() == ["c.png"]
    assert make_split("covidx", "official", corpus.split_input(records), strict=False).counts == {
        "train": 1,
        "validate": 1,
        "test": 1,
    }


BROKEN = [
    ("nothing here normal rsna", "malformed line"),
    ("9 x.png y.png normal rsna", "malformed line"),
    ("x9.png normal rsna", "malformed line"),  # no patient
    ("9 x9.png", "malformed line"),
    ("9 x9.png normal rsna more", "malformed line"),
    ("9 x9.png tuberculosis rsna", "unknown class"),
    ("9 gone.png normal rsna", "missing image file"),
    ("9 003d8fa0-6bf1.png pneumonia rsna", "contradicts an earlier line"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_broken_lines(tmp_path, line, reason):
    root = _write(tmp_path)
    (root / "train_COVIDx8A.txt").write_text("\n".join([*TRAIN, "", line]) + "\n")
    with pytest.raises(UnreadableItemError, match=rf"train_COVIDx8A\.txt.*row 6.*{reason}.*set on_error: skip"):
        COVIDx(root, version="COVIDx8A").records()
    records = COVIDx(root, version="COVIDx8A", on_error="skip").records()
    assert len(records) == 6
    assert records.dropped["row"].tolist() == [6]
    assert records.dropped["broken"].all()
    # a split must not shift because a file is missing or a line is broken
    listing = COVIDx(root, version="COVIDx8A").listing()
    assert len(listing) == 6 + (not line.startswith("nothing") and "contradicts" not in reason)
    assert listing.labels.isna().any(axis=None) == (len(listing) == 7 and "missing" not in reason)
    assert records.dropped["reason"][0].startswith(reason)


def test_repeated_lines_are_counted_and_files_of_two_lists_are_broken(tmp_path):
    root = _write(tmp_path, [*TRAIN, TRAIN[1]])
    records = COVIDx(root, version="COVIDx8A").records()
    assert len(records) == 6
    assert records.dropped.attrs["counts"] == {"repeats an earlier line": 1}
    _write(tmp_path, TRAIN, [*TEST, TRAIN[0]])
    with pytest.raises(UnreadableItemError, match=r"test_COVIDx8A\.txt, row 1.*also listed in train_COVIDx8A\.txt"):
        COVIDx(root, version="COVIDx8A").records()


def test_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"does not exist; get it from .*medvlp phantom covidx"):
        COVIDx(tmp_path / "none", version="COVIDx9A").records()
    root = _write(tmp_path)
    for path in (root / "test").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="test is missing or holds no image"):
        COVIDx(root, version="COVIDx8A").records()
    (root / "train_COVIDx8A.txt").write_text("")
    with pytest.raises(DataError, match="empty file"):
        COVIDx(root, version="COVIDx8A").records()
    with pytest.raises(ConfigError, match="no labels for segmentation"):
        COVIDx(root, version="COVIDx8A").records("segmentation")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("covidx") / "tree"
    return write_phantom("covidx", root, PhantomSpec(studies=120, size=48, seed=3))


@pytest.mark.parametrize("version", ["COVIDx9A", "COVIDx8A", "COVIDx9B", "kaggle"])
def test_phantom_agrees_with_its_truth(phantom, version):
    three = version in ("COVIDx9A", "COVIDx8A")
    corpus = COVIDx(phantom, version=version, classes="three" if three else "binary")
    records = corpus.records()
    assert len(records.dropped) == 0
    with (phantom / "truth/labels.csv").open() as file:
        truth = {row["image_id"]: row for row in csv.DictReader(file)}
    frame = records.table.to_pandas()
    assert len(frame) == len(truth)
    for row in frame.to_dict("records"):
        known = truth[row["id"].rpartition(".")[0]]
        assert row["COVID-19"] == float(known["COVID-19"])
        assert (known["split"] == "test") == (row["pool"] == "test")
        if three:
            lung = any(float(known[n]) for n in ("Pneumonia", "Consolidation", "Infiltration"))
            assert row["Pneumonia"] == float(lung and not row["COVID-19"])


def test_data_module_on_a_phantom(phantom):
    data = COVIDxDataModule(str(phantom), version="COVIDx9A", split="mgca", batch_size=4, image_size=32)
    data.setup("fit")
    assert data.label_names == ("Normal", "Pneumonia", "COVID-19")
    assert data.train_set[0]["image"].shape == (3, 32, 32)
    assert data.split_result.digest

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvlp.datasets.pairs import read_pairs
from medvlp.errors import ConfigError, DataError, UnreadableItemError

ROOT = Path(os.environ.get("MEDVLP_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
FRAME = pd.DataFrame(
    {
        "file": ["x/a.png", "x/b", "c.jpg", "x/b.png"],
        "note": ["Clear lungs.", 'Says "so",\nin two lines.', "Edema", "Same image again"],
        "who": ["p1", "p2", "p1", "p3"],
        "part": ["train", "VAL", "Training", "test"],
        "Edema": [0, 1, None, 1],
    }
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("x/a.png", "x/b.png", "c.jpg"):
        Image.fromarray(np.zeros((20, 16), np.uint8)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "csv.gz"])
def test_every_kind(folder, kind):
    path = folder / f"t.{kind}"
    if kind == "parquet":
        FRAME.to_parquet(path)
    else:
        FRAME.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    data = read_pairs(path, image_column="file", text_column="note", label_columns=["Edema"], id_column="file")
    assert data.ids == FRAME["file"].tolist()
    assert data.texts[1] == 'Says "so", in two lines.'
    assert data.label_names == ("Edema",)
    assert data.labels[:, 0].nan_to_num(-9).tolist() == [0, 1, -9, 1]
    assert data[1]["image"].shape == (3, 20, 16)  # found without its extension


@pytest.fixture
def table(folder):
    FRAME.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def test_split_column(table):
    options = {"image_column": "file", "text_column": "note", "split_column": "part"}
    assert read_pairs(table, split="train", **options).ids == ["x/a.png", "c.jpg"]
    assert read_pairs(table, split="validate", **options).ids == ["x/b"]
    assert read_pairs(table, split="test", **options).ids == ["x/b.png"]


def test_division_by_hash_keeps_groups(folder):
    n = 400
    frame = pd.DataFrame({"i": ["c.jpg"] * n, "t": "a text", "id": range(n), "g": [k // 4 for k in range(n)]})
    frame.to_csv(folder / "n.csv", index=False)
    options = {"image_column": "i", "text_column": "t", "id_column": "id", "group_column": "g", "val_fraction": 0.25}
    parts = {s: read_pairs(folder / "n.csv", split=s, **options) for s in ("train", "val", "test")}
    assert len(parts["train"]) + len(parts["val"]) == n
    assert len(parts["test"]) == 0
    assert 60 < len(parts["val"]) < 140
    assert not set(parts["train"].groups) & set(parts["val"].groups)
    shuffled = frame.sample(frac=1, random_state=0)
    shuffled.to_csv(folder / "n.csv", index=False)
    assert set(read_pairs(folder / "n.csv", split="val", **options).ids) == set(parts["val"].ids)


def test_image_root(table, folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("tables") / "t.csv"
    elsewhere.write_bytes(table.read_bytes())
    assert len(read_pairs(elsewhere, image_column="file", text_column="who", image_root=folder)[0]["image"]) == 3
    with pytest.raises(DataError, match="image folder"):
        read_pairs(table, image_column="file", text_column="who", image_root=folder / "none")


def test_missing_column_lists_what_there_is(table):
    with pytest.raises(DataError, match=r'no column "image"; it has file, note, who, part, Edema; set image_column'):
        read_pairs(table, image_column="image", text_column="note")
    with pytest.raises(DataError, match="set label_columns"):
        read_pairs(table, image_column="file", text_column="note", label_columns=["Mass"])
    with pytest.raises(DataError, match="does not exist"):
        read_pairs(table.parent / "none.csv", image_column="file", text_column="note")
    with pytest.raises(ConfigError):
        read_pairs(table, image_column="file", text_column="note", split="half")


def test_undecodable_byte_is_located(folder):
    data = 'file,note\nc.jpg,"two\nlines"\nx/a.png,fine\nc.jpg,38.5\xb0C\n'.encode("latin-1")
    (folder / "t.csv").write_bytes(data)
    options = {"image_column": "file", "text_column": "note"}
    with pytest.raises(DataError, match=r"row 2 of .*t\.csv is not utf-8: byte 0xb0 at offset 51; .*encoding: latin-1"):
        read_pairs(folder / "t.csv", **options)
    assert read_pairs(folder / "t.csv", encoding="latin-1", **options).texts[2] == "38.5°C"
    with pytest.raises(ConfigError, match="no encoding"):
        read_pairs(folder / "t.csv", encoding="latin-99", **options)


@pytest.mark.parametrize(("row", "reason"), [("c.jpg, ", "empty text"), ("x/none,Some words", "missing image file")])
def test_bad_rows(folder, row, reason):
    (folder / "t.csv").write_text(f"file,note\nx/a.png,SECRET words\n{row}\n")
    options = {"image_column": "file", "text_column": "note"}
    with pytest.raises(UnreadableItemError, match=f"{reason} in row 1 .*on_error: skip") as caught:
        read_pairs(folder / "t.csv", **options)
    assert "words" not in str(caught.value)
    data = read_pairs(folder / "t.csv", on_error="skip", **options)
    assert len(data) == 1
    assert data.dropped.attrs["counts"] == {reason: 1}
    assert data.dropped["row"].tolist() == [1]


def test_short_texts_and_unknown_splits(table):
    data = read_pairs(table, image_column="file", text_column="note", min_tokens=2)
    assert data.dropped["reason"].tolist() == ["fewer than 2 tokens"]
    frame = FRAME.assign(part=["train", "train", "fold7", "train"])
    frame.to_csv(table, index=False)
    data = read_pairs(table, image_column="file", text_column="note", split_column="part", split="train")
    assert data.dropped["reason"].tolist() == ["unknown split name"]


def test_labels_that_are_no_numbers(folder):
    (folder / "t.csv").write_text("file,note,Edema\nx/a.png,words,yes\n")
    with pytest.raises(DataError, match=r"column Edema of .*t\.csv.*other than numbers"):
        read_pairs(folder / "t.csv", image_column="file", text_column="note", label_columns=["Edema"])


def test_broken_table(folder):
    (folder / "t.csv").write_text('file,note\n"a\n')
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(folder / "t.csv", image_column="file", text_column="note")
    (folder / "t.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(folder / "t.parquet", image_column="file", text_column="note")


def test_real_table():
    """Ids without extension, a byte that is not UTF-8, and notes that are missing: all in one real file."""
    folder = ROOT / "figure1"
    if not folder.is_dir():
        pytest.skip("shared/data/figure1 is not here")
    options = {"image_column": "patientid", "text_column": "notes", "image_root": folder / "images"}
    with pytest.raises(DataError, match=r"row 7 of .*metadata\.csv is not utf-8.*encoding: latin-1"):
        read_pairs(folder / "metadata.csv", **options)
    with pytest.raises(UnreadableItemError, match="in row"):
        read_pairs(folder / "metadata.csv", encoding="latin-1", **options)
    data = read_pairs(folder / "metadata.csv", encoding="latin-1", on_error="skip", **options)
    assert (len(data), data.dropped.attrs["counts"]) == (49, {"empty text": 6})
    assert data[0]["image"].shape[0] == 3

import bz2
import gzip
import lzma
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
    with pytest.raises(ConfigError, match="label_columns names 'Edema' twice"):
        read_pairs(table, image_column="file", text_column="note", label_columns=["Edema", "Edema"])


def test_undecodable_byte_is_located(folder):
    data = 'file,note\nc.jpg,"two\nlines"\nx/a.png,fine\nc.jpg,38.5\xb0C\n'.encode("latin-1")
    (folder / "t.csv").write_bytes(data)
    options = {"image_column": "file", "text_column": "note"}
    with pytest.raises(DataError, match=r"row 2 of .*t\.csv is not utf-8: byte 0xb0 at offset 51; .*encoding: latin-1"):
        read_pairs(folder / "t.csv", **options)
    assert read_pairs(folder / "t.csv", encoding="latin-1", **options).texts[2] == "38.5°C"
    with pytest.raises(ConfigError, match="unknown encoding"):
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
    with pytest.raises(DataError, match=r"row 0 of .*t\.csv has a quote that is not closed"):
        read_pairs(folder / "t.csv", image_column="file", text_column="note")
    (folder / "t.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(folder / "t.parquet", image_column="file", text_column="note")


PAIRS = {"image_column": "file", "text_column": "note"}
ROWS = pd.DataFrame(
    {
        "file": ["c.jpg"] * 8,
        "note": [f"Made-up text {k}." for k in range(8)],
        "part": ["train", "test"] * 4,
        "who": [f"p{k // 2}" for k in range(8)],
        "id": [f"{k:03d}" for k in range(8)],
    }
)


@pytest.mark.parametrize(
    "frame",
    [
        ROWS.sample(frac=1, random_state=3),
        ROWS[ROWS.index % 3 != 0],
        pd.concat([ROWS.iloc[:3], ROWS.iloc[3:].reset_index(drop=True)]),
        ROWS.set_index("who"),
        ROWS.set_index(["who", "id"]),
        ROWS.astype({"part": "category", "who": "category", "note": "category"}),
    ],
    ids=["shuffled", "filtered", "joined", "named index", "two indexes", "categories"],
)
def test_rows_of_parquet_count_by_position(folder, frame):
    frame.to_parquet(folder / "t.parquet")
    plain = frame.reset_index() if frame.index.names != [None] else frame.reset_index(drop=True)
    for split in ("train", "test"):
        data = read_pairs(folder / "t.parquet", id_column="id", split_column="part", split=split, **PAIRS)
        assert data.ids == plain["id"][plain["part"] == split].tolist()
        assert data.texts == plain["note"][plain["part"] == split].tolist()
    options = {"id_column": "id", "group_column": "who", "val_fraction": 0.4, **PAIRS}
    train, validate = (set(read_pairs(folder / "t.parquet", split=s, **options).groups) for s in ("train", "val"))
    assert train | validate == {"p0", "p1", "p2", "p3"}
    assert not train & validate


def test_ids_of_parquet_are_written_as_they_were_meant(folder):
    frame = ROWS.iloc[:3].assign(id=[10000032, 7, 8], who=[10000032.0, None, 5.0], score=[True, None, False])
    frame.assign(note=["NA", None, "None"]).to_parquet(folder / "t.parquet")
    options = {"id_column": "id", "group_column": "who", "label_columns": ["score"], **PAIRS}
    data = read_pairs(folder / "t.parquet", on_error="skip", **options)
    assert (data.ids, data.groups, data.texts) == (["10000032", "8"], ["10000032", "5"], ["NA", "None"])
    assert data.labels[:, 0].tolist() == [1, 0]
    frame.assign(id=[2.0**53, 1.0, 2.0]).to_parquet(folder / "t.parquet")
    with pytest.raises(DataError, match=r'"id" .* too large to be exact'):
        read_pairs(folder / "t.parquet", **options)
    frame.assign(note=[["a"], ["b"], ["c"]]).to_parquet(folder / "t.parquet")
    with pytest.raises(DataError, match=r'"note" .* must hold text or numbers'):
        read_pairs(folder / "t.parquet", **options)


def test_a_blank_group_is_nobody_elses(folder):
    ROWS.assign(who="").to_csv(folder / "t.csv", index=False)
    data = read_pairs(folder / "t.csv", id_column="id", group_column="who", **PAIRS)
    assert data.groups == ROWS["id"].tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('file,note\nc.jpg,"Clear.\nx/a.png,Fine.\nc.jpg,"Edema."\n', "row 0 .* quote that is not closed"),
        ('file,note\nc.jpg,Clear.\nx/a.png,"Says \\"so\\" twice"\n', "row 1 .* text after a closing"),
        (
            "file,note\nc.jpg,Clear.\nc.jpg,Heart, lungs.\n",
            r"row 1 .* too long: .*3, not 2.*put cells .* in quotes",
        ),
        ("file,note\nc.jpg,Clear.,\nc.jpg,Fine.\n", r"row 0 .* too long"),
        ("file,note\nc.jpg,Clear.,\n", r"row 0 .* too long"),
        ("file,note\nc.jpg,Clear.\nc.jpg\n", r"row 1 .* cut short"),
        ("file;note\nc.jpg;Heart, lungs.\n", 'separated by a semicolon and not by a comma; set sep: ";"'),
        ("file\tnote\nc.jpg\tClear.\n", r'separated by a tab and not by a comma; set sep: "\\t"'),
        ("file,note,note\nc.jpg,Clear.,Edema.\n", 'has the column "note" 2 times'),
        ("file,note, note \nc.jpg,Clear.,Edema.\n", 'has the column "note" 2 times'),
        ("file,note\nc.jpg,Cl\0ear.\n", "row 0 .* NUL character"),
        ("file,note\n", "a header and no rows"),
        ("\n\n", "no header"),
        ("", "empty file"),
    ],
)
def test_what_would_shift_or_merge_cells_is_an_error(folder, content, message):
    (folder / "t.csv").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_pairs(folder / "t.csv", **PAIRS)
    assert "\n" not in str(caught.value)
    assert "lungs" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("file,note\nc.jpg,Clear.,\nx/a.png,Fine.,\n", {}),
        ('\ufefffile,note\r\n"c.jpg", "Clear."\r\nx/a.png,Fine.\r\n', {}),
        (",file,note\n0,c.jpg,Clear.\n1,x/a.png,Fine.\n", {}),
        ("file;note;Edema\nc.jpg;Clear.;1\nx/a.png;Fine.;\n", {"sep": ";"}),
        ("file,note\nc.jpg,Clear.\nx\\a.png,Fine.\n", {"id_column": None}),
        ("file,note\nc.jpg,Clear.\nx\\a,Fine.\n", {}),
    ],
)
def test_what_changes_no_cell_is_read(folder, content, options):
    (folder / "t.csv").write_text(content)
    data = read_pairs(folder / "t.csv", **PAIRS, **options)
    assert data.texts == ["Clear.", "Fine."]
    assert [Path(p).name for p in data.table.column("image").to_pylist()] == ["c.jpg", "a.png"]
    assert data[1]["image"].shape == (3, 20, 16)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_compression_is_told_by_the_content(folder, pack):
    (folder / "t.csv").write_bytes(pack(b"file,note\nc.jpg,Clear.\n"))
    assert read_pairs(folder / "t.csv", **PAIRS).texts == ["Clear."]
    (folder / "u.csv.gz").write_bytes(b"file,note\nc.jpg,Clear.\n")  # unpacked by a browser
    assert read_pairs(folder / "u.csv.gz", **PAIRS).texts == ["Clear."]
    (folder / "t.csv").write_bytes(pack(b"file,note\nc.jpg,Clear.\n" * 99)[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(folder / "t.csv", **PAIRS)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_a_bomb_is_refused(folder, pack):
    (folder / "t.csv.gz").write_bytes(pack(b"file,note\n" + bytes(80 << 20)))
    with pytest.raises(DataError, match=r"unpacks to more than 64 MiB.*; if the content is sound, unpack"):
        read_pairs(folder / "t.csv.gz", **PAIRS)


def test_encodings(folder):
    text = "file,note\nc.jpg,38 °C\n"
    (folder / "t.csv").write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match="is utf-16 by its byte order mark and not utf-8; set encoding: utf-16"):
        read_pairs(folder / "t.csv", **PAIRS)
    assert read_pairs(folder / "t.csv", encoding="utf-16", **PAIRS).texts == ["38 °C"]
    (folder / "t.csv").write_bytes(text.encode("utf-8-sig"))
    with pytest.raises(DataError, match="is utf-8 by its byte order mark and not latin-1"):
        read_pairs(folder / "t.csv", encoding="latin-1", **PAIRS)
    (folder / "t.csv").write_bytes(text.replace("°", "").encode("utf-16-le"))
    with pytest.raises(DataError, match=r"NUL character; .*encoding: utf-16"):
        read_pairs(folder / "t.csv", **PAIRS)


def test_labels_are_finite_numbers_with_a_point(folder):
    for cell in ("inf", "1e999", '"0,5"'):
        (folder / "t.csv").write_text(f"file,note,Edema\nc.jpg,,1\nc.jpg,words,{cell}\n")
        with pytest.raises(DataError, match=r"Edema .* other than numbers \(row 1\); .* decimal point"):
            read_pairs(folder / "t.csv", label_columns=["Edema"], on_error="skip", **PAIRS)


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

"""Rows that are cut short: pandas takes the fields that they lack for blank ones."""

import gzip
import zipfile
from pathlib import Path

import pytest

from medvlp.datasets.tables import TableSpec, read_table
from medvlp.errors import DataError

SPEC = TableSpec("t.csv", ("a", "b", "c"))


def write(folder: Path, text: str, form: str) -> None:
    if form == "gz":
        (folder / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    elif form == "zip":
        with zipfile.ZipFile(folder / "t.csv.zip", "w") as archive:
            archive.writestr("t.csv", text)
    else:
        (folder / "t.csv").write_text(text)


@pytest.mark.parametrize("form", ["csv", "gz", "zip"])
@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("a,b,c\n1,2,3\n4,5\n", 1),
        ("a,b,c\n1,2\n4,5,6\n7\n", 0),
        ("\ufeffa,b,c\r\n1,2,3\r\n4", 1),
        ('a,b,c\n1,"secret\nwords, and more",3\n\n4,5,6\n7,secret', 2),
    ],
)
def test_a_row_that_is_cut_short_is_an_error(tmp_path, text, row, form):
    write(tmp_path, text, form)
    with pytest.raises(DataError, match=rf"row {row} of .*t\.csv.* is cut short") as caught:
        read_table(tmp_path, SPEC)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("form", ["csv", "gz", "zip"])
def test_blank_cells_are_no_cut(tmp_path, form):
    write(tmp_path, 'a,b,c\n1,,\n,"x\ny",\n', form)
    assert read_table(tmp_path, SPEC).frame.values.tolist() == [["1", "", ""], ["", "x\ny", ""]]


@pytest.mark.parametrize("text", ["a,b,c", "a,b,c\n"])
def test_a_header_alone_is_an_empty_table(tmp_path, text):
    write(tmp_path, text, "csv")
    assert len(read_table(tmp_path, SPEC).frame) == 0


def test_open_rows_may_be_short(tmp_path):
    write(tmp_path, "a,b,c,,\n1,2,3\n", "csv")
    spec = TableSpec("t.csv", ("a", "b", "c"), open_rows=True)
    assert read_table(tmp_path, spec).frame.values.tolist() == [["1", "2", "3"]]

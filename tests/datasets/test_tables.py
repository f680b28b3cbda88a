"""Released tables: cut rows, what mirrors do to such files, and bytes of any kind."""

import contextlib
import csv
import gzip
import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("a,b,c\n1,,2,3\n4,5,6\n", 0),
        ("a,b,c\n,1,2,\n4,5,6\n", 0),  # the last cell is blank, and the others are shifted all the same
        ("a,b,c\n1,2,3\n4,5,6,\n", 1),
        ("a,b,c\n1,2,3,secret\n4,5,6,\n", 0),
    ],
)
def test_a_row_that_is_too_long_is_an_error(tmp_path, text, row, form):
    write(tmp_path, text, form)
    with pytest.raises(DataError, match=rf"row {row} of .*t\.csv.* is too long: .*get it again") as caught:
        read_table(tmp_path, SPEC)
    assert "secret" not in str(caught.value)


def test_a_separator_at_the_end_of_every_row_is_put_up_with(tmp_path):
    write(tmp_path, "a,b,c\n1,2,3,\n4,,, \n", "csv")
    table = read_table(tmp_path, SPEC)
    assert table.frame.values.tolist() == [["1", "2", "3"], ["4", "", ""]]
    assert table.notes == ["a separator at the end of every row"]


def test_an_index_that_pandas_wrote_is_not_read(tmp_path):
    for name in ("", "Unnamed: 0"):
        write(tmp_path, f"{name},a,b,c\n0,1,2,3\n1,4,5,6\n", "csv")
        table = read_table(tmp_path, TableSpec("t.csv", ("a",), others=True))
        assert table.frame.columns.tolist() == ["a", "b", "c"]
        assert table.notes == ["an index as first column, which is not read"]
    write(tmp_path, ",a,b,c\nx,1,2,3\n", "csv")
    with pytest.raises(DataError, match="a filled column without a name"):
        read_table(tmp_path, SPEC)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a;b;c\n1;2;3\n", "separated by a semicolon and not by a comma; get it again"),
        ("a,b,c,b\n1,2,3,4\n", r"column\(s\) b twice"),
        ('a,b,c\n1,"2,3\n4,5,6\n', "row 0 .* quote that is not closed"),
    ],
)
def test_tables_that_were_saved_otherwise(tmp_path, text, message):
    write(tmp_path, text, "csv")
    with pytest.raises(DataError, match=message):
        read_table(tmp_path, SPEC)


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


# What any csv reader agrees on: no control characters, and no white space at the ends, which is taken off.
CELL = st.text(st.characters(blacklist_categories=("C", "Z"), blacklist_characters="\x85"), max_size=6)
CELLS = st.builds(lambda words: " ".join(w for w in words if w), st.lists(CELL, max_size=3))
TABLES = st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8)
per_folder = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _text(header, rows, newline):
    # quoted throughout, since a line of nothing but commas and blanks is a row as well
    stream = io.StringIO()
    csv.writer(stream, lineterminator=newline, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    return stream.getvalue()


@per_folder
@given(
    rows=TABLES,
    order=st.permutations([0, 1, 2]),
    newline=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    pad=st.booleans(),
    extra=st.booleans(),
    form=st.sampled_from(["csv", "gz", "zip"]),
)
def test_what_mirrors_do_changes_no_cell(tmp_path, rows, order, newline, bom, pad, extra, form):
    """Another order, spaces around names, a byte order mark, an empty last column, line ends, compression."""
    for path in tmp_path.iterdir():
        path.unlink()
    header = [f" {'abc'[i]} " if pad else "abc"[i] for i in order] + [""] * extra
    lines = [[row[i] for i in order] + [""] * extra for row in rows]
    write(tmp_path, "\ufeff" * bom + _text(header, lines, newline), form)
    table = read_table(tmp_path, SPEC)
    assert table.frame[["a", "b", "c"]].values.tolist() == [list(row) for row in rows]
    assert ("columns in another order than released" in table.notes) == (order != [0, 1, 2])
    assert ("column names with spaces around them" in table.notes) == pad


@per_folder
@given(rows=TABLES, cut=st.integers(0, 7), fields=st.integers(1, 2))
def test_a_cut_row_never_passes(tmp_path, rows, cut, fields):
    lines = [list(row) for row in rows]
    at = cut % len(lines)
    lines[at] = lines[at][:fields]
    write(tmp_path, _text("abc", lines, "\n"), "csv")
    with pytest.raises(DataError, match=rf"row {at} of"):
        read_table(tmp_path, SPEC)


@per_folder
@given(data=st.binary(max_size=200), head=st.booleans(), suffix=st.sampled_from(["", ".gz", ".zip"]))
def test_bytes_of_any_kind_give_a_table_or_a_deliberate_error(tmp_path, data, head, suffix):
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / f"t.csv{suffix}").write_bytes(b"a,b,c\n" * head + data)
    with contextlib.suppress(DataError):
        assert list(read_table(tmp_path, SPEC).frame.columns) == ["a", "b", "c"]

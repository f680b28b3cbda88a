"""The tables of a corpus as released: what they must hold, and reading them without guessing.

Every cell stays a string, since ids are names and a blank is not zero. What mirrors do to such files (compression, a
byte order mark, columns in another order, spaces around names, one empty column at the end) is put up with and noted;
what could make a wrong sample (a missing column, a row cut short, two rows that contradict each other) is an error.
"""

import gzip
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from medvlp.errors import DataError

_SUFFIXES = ("", ".gz", ".zip")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class TableSpec:
    """What a released table must hold.

    Args:
        name: file name below the root; ``name.gz`` and ``name.zip`` are taken as well.
        columns: columns that must be there, under their usual names.
        aliases: usual name to the other names that releases or mirrors give the column.
        optional: columns that are read where present.
        others: read all further columns too.
        key: columns that together identify a row; empty if rows may repeat.
        required: whether the corpus cannot be read without the table.
        needed_for: what the table serves, for messages ("labels", "the official split").
        rows: number of rows of each release that is known, to the name of the release.
        open_rows: rows may have fewer fields than the header (NIH's boxes).
        encoding: of the text.
    """

    name: str
    columns: tuple[str, ...]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    others: bool = False
    key: tuple[str, ...] = ()
    required: bool = True
    needed_for: str = ""
    rows: Mapping[int, str] = field(default_factory=dict)
    open_rows: bool = False
    encoding: str = "utf-8"

    def find(self, root: Path) -> Path | None:
        """The file under ``root``, compressed or not, or None."""
        return next((p for s in _SUFFIXES if (p := root / f"{self.name}{s}").is_file()), None)


@dataclass
class Table:
    """A table that was read.

    Args:
        spec: what it had to hold.
        path: the file.
        frame: strings, "" where blank, columns under their usual names; the index is the 0-based row in the file.
        notes: oddities that were put up with, one line each.
        repeated: rows that repeat an earlier one in every cell; they are not in ``frame``.
    """

    spec: TableSpec
    path: Path
    frame: pd.DataFrame
    notes: list[str]
    repeated: list[int]


def read_table(root: Path, spec: TableSpec, *, source: str = "its source") -> Table:
    """Read a table.

    Args:
        root: folder of the corpus.
        spec: what the table must hold.
        source: where to get it, for the remedy in errors.

    Raises:
        DataError: the file is missing, unreadable, lacks a column, has a row that is cut short, or two rows of one key
            that differ. The message names file, row and remedy, and never shows a cell.
    """
    path = spec.find(root)
    purpose = f" (for {spec.needed_for})" if spec.needed_for else ""
    if path is None:
        raise DataError(f"{root / spec.name}{purpose} is missing; get it from {source}")
    again = f"get it again from {source}"
    notes: list[str] = []
    if path.stat().st_size == 0:
        raise DataError(f"{path} is an empty file; {again}")
    try:
        # utf-8-sig drops a byte order mark; object cells: ids are names, and blank is not a number
        encoding = "utf-8-sig" if spec.encoding == "utf-8" else spec.encoding
        frame = pd.read_csv(path, dtype=object, keep_default_na=False, na_values=[], encoding=encoding, index_col=False)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path} has no header; {again}") from error
    except Exception as error:  # zip, gzip, decoding and parser errors have no common class
        line = (str(error).splitlines() or [type(error).__name__])[0]
        # a parser error counts fields, it does not quote them
        reason = line if isinstance(error, pd.errors.ParserError) else type(error).__name__
        raise DataError(f"{path} cannot be read ({reason}); {again}") from error
    if path.suffix not in (".gz", ".zip") and path.open("rb").read(3) == _BOM:
        notes.append("starts with a byte order mark")
    frame = _named(frame, spec, path, notes, again)
    if not spec.open_rows and (row := _short_row(path, spec)) is not None:
        raise DataError(f"row {row} of {path} is cut short: it has fewer fields than the header; {again}")
    frame = frame.fillna("").apply(lambda column: column.astype(str).str.strip())
    frame, repeated = _unique(frame, spec, path, again)
    if repeated:
        notes.append(f"{len(repeated)} row(s) repeat an earlier row")
    return Table(spec, path, frame, notes, repeated)


def _named(frame: pd.DataFrame, spec: TableSpec, path: Path, notes: list[str], again: str) -> pd.DataFrame:
    found = [str(c) for c in frame.columns]
    names = [c.strip() for c in found]
    if any(a != b for a, b in zip(found, names, strict=True)):
        notes.append("column names with spaces around them")
    usual = {alias: name for name, aliases in spec.aliases.items() for alias in aliases}
    names = [usual.get(n, n) for n in names]
    frame.columns = pd.Index(names)
    empty = [n for n in names if n == "" or n.startswith("Unnamed: ")]
    if empty and not spec.open_rows:
        if any((frame[n].fillna("") != "").any() for n in empty):
            raise DataError(f"{path} has a filled column without a name; {again}")
        notes.append("an empty column without a name")
    frame = frame[[n for n in dict.fromkeys(names) if n not in empty]] if empty else frame
    names = [n for n in names if n not in empty]
    # pandas renames a second column of a name to "name.1"
    twice = [n for n in spec.columns if names.count(n) > 1 or f"{n}.1" in names]
    if twice:
        raise DataError(f"{path} has the column(s) {', '.join(twice)} twice; {again}")
    missing = [c for c in spec.columns if c not in names]
    if missing:
        raise DataError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(names)}; {again}")
    order = [n for n in names if n in spec.columns]
    if order != list(spec.columns):
        notes.append("columns in another order than released")
    wanted = names if spec.others else [n for n in names if n in spec.columns or n in spec.optional]
    return frame[wanted]


def _short_row(path: Path, spec: TableSpec) -> int | None:
    """The first row with fewer fields than the header; pandas takes those that it lacks for blank ones."""
    short: list[int] = []

    def handle(row: csv.InvalidRow) -> str:
        if row.actual_columns < row.expected_columns:
            short.append(row.number - 2)  # counted from 1, with the header
        return "skip"

    encoding = "utf8" if spec.encoding == "utf-8" else spec.encoding
    with ExitStack() as stack:
        if path.suffix == ".zip":
            archive = stack.enter_context(zipfile.ZipFile(path))
            stream: IO[bytes] = stack.enter_context(archive.open(archive.namelist()[0]))
        elif path.suffix == ".gz":
            stream = stack.enter_context(gzip.GzipFile(path))  # type: ignore[arg-type]
        else:
            stream = stack.enter_context(path.open("rb"))
        # Arrow refuses a header without a line end, in which there is no row to be short
        stack.enter_context(suppress(pa.ArrowInvalid))
        csv.read_csv(
            stream,
            # rows are counted in one thread only
            read_options=csv.ReadOptions(use_threads=False, encoding=encoding, autogenerate_column_names=True),
            parse_options=csv.ParseOptions(newlines_in_values=True, invalid_row_handler=handle),
            convert_options=csv.ConvertOptions(include_columns=["f0"], column_types={"f0": pa.string()}),
        )
    return short[0] if short else None


def _unique(frame: pd.DataFrame, spec: TableSpec, path: Path, again: str) -> tuple[pd.DataFrame, list[int]]:
    if not spec.key:
        return frame, []
    keys = list(spec.key)
    same_key = frame.duplicated(keys)
    if not same_key.any():
        return frame, []
    same_row = frame.duplicated()
    conflict = same_key & ~same_row
    if conflict.any():
        row = int(np.flatnonzero(conflict.to_numpy())[0])
        item = "/".join(str(frame.iloc[row][k]) for k in keys)
        raise DataError(f"{path}: row {row} contradicts an earlier row of the same {', '.join(keys)} {item}; {again}")
    return frame[~same_row], np.flatnonzero(same_row.to_numpy()).tolist()


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples with ``Index``; what a cell holds is known to the reader of the table alone."""
    return iter(frame.itertuples())


def relative_path(cell: str) -> str:
    """A path cell as a POSIX path below the root; backslashes of Windows tools become slashes.

    Returns:
        The path, or "" if the cell is blank or leads out of the root.
    """
    text = cell.strip().replace("\\", "/")
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts or (len(text) > 1 and text[1] == ":"):
        return ""
    return str(path)

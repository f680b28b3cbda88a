"""Tables of users as text: CSV in all dialects that can be recognised, and Parquet.

Nothing is guessed. Every cell stays text, since ids are names and a blank is not zero; a row whose fields do not fit
the header is an error. Rows are numbered from 0, below the header and without blank lines, whatever index was stored.
"""

import codecs
import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from medvlp.errors import ConfigError, DataError
from medvlp.io.packed import READ_ERRORS, read_unpacked, size_limit, too_large

_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_OTHER_ENCODING = "the table's encoding, for example encoding: latin-1"
_BLOCK = 1 << 26  # bytes; a row must fit in
_FIELD = 1 << 30  # characters of a cell; csv's own limit is below that of some annotations
_EXACT = 2**53  # from here on, float64 no longer holds every whole number


@dataclass(frozen=True)
class Cells:
    """The cells of a table.

    Args:
        path: the file.
        names: of the columns, without outer spaces; some may be "" or repeated.
        notes: deviations that were tolerated, one line each.
    """

    path: Path
    names: list[str]
    notes: list[str]
    _columns: list[pa.ChunkedArray] = field(repr=False)

    def require(self, columns: Mapping[str, str], hint: str = "") -> None:
        """Raise unless some columns (name to remedy) are there, each once; ``hint`` ends the error."""
        for name, remedy in columns.items():
            if (count := self.names.count(name)) > 1:
                raise DataError(f'{self.path} has the column "{name}" {count} times; keep one of them')
            if not count:
                present = ", ".join(n for n in self.names if n)
                raise DataError(f'{self.path} has no column "{name}"; it has {present}; {remedy}{hint}')

    def frame(self, columns: Mapping[str, int]) -> pd.DataFrame:
        """Return columns (new name to position) as text without outer white space, "" where blank; index: row number.

        Raises:
            DataError: a column holds something that is no text and no number.
        """
        trimmed = [pc.utf8_trim_whitespace(self._text(at)) for at in columns.values()]
        frame: pd.DataFrame = pa.table(trimmed, names=list(columns)).to_pandas()
        return frame

    def _text(self, at: int) -> pa.ChunkedArray:
        """A column of any type as text; whole numbers are written without a point."""
        column, name = self._columns[at], self.names[at]
        kind = column.type
        try:
            if pa.types.is_dictionary(kind):
                column = column.cast(kind.value_type)
            if pa.types.is_boolean(column.type):
                column = column.cast(pa.int8())
            if pa.types.is_floating(column.type):
                column = pc.if_else(pc.is_nan(column), None, column)
                whole = pc.all(pc.equal(column, pc.trunc(column))).as_py() is not False
                # a pandas column of ids with a gap is one of floats
                if whole and pc.all(pc.less(pc.abs(column), _EXACT)).as_py() is not False:
                    column = column.cast(pa.int64())
                elif whole:
                    raise DataError(
                        f'column "{name}" of {self.path} holds whole numbers as floats that are too large to be exact;'
                        " store them as integers or as text"
                    )
            return pc.fill_null(column.cast(pa.large_string()), "")
        except pa.ArrowException as error:
            raise DataError(f'column "{name}" of {self.path} holds {kind}; it must hold text or numbers') from error


def read_cells(
    path: str | Path,
    *,
    sep: str = ",",
    encoding: str = "utf-8",
    open_rows: bool = False,
    again: str = "fix the table",
    settable: bool = True,
) -> Cells:
    """Read a CSV or Parquet file; CSV may be compressed with gzip, bzip2, xz or zip.

    Args:
        path: the file. Parquet is recognised by its first bytes or its name.
        sep: separator of CSV, one character.
        encoding: of CSV. A byte order mark of UTF-8 is skipped.
        open_rows: allow rows with fewer fields than the header; the others are blank.
        again: remedy for a file that is damaged.
        settable: whether the user can set ``sep`` and ``encoding``, for the remedy.

    Raises:
        DataError: the file is missing, empty, damaged or not in this encoding; a quote is not closed; or a row has
            more or fewer fields than the header, except for a separator at the end of every row.
        ConfigError: ``sep`` is no single character, or the encoding is unknown.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise DataError(f"the table {path} does not exist; check the path")
        with path.open("rb") as file:
            head = file.read(4)
        if not head:
            raise DataError(f"{path} is an empty file; {again}")
        if head == b"PAR1" or path.suffix.lower() in (".parquet", ".pq"):
            stored = pq.ParquetFile(path, page_checksum_verification=True)
            groups = range(stored.metadata.num_row_groups)
            if sum(stored.metadata.row_group(i).total_byte_size for i in groups) > size_limit(path):
                raise too_large(path, size_limit(path))
            table = stored.read()
            return Cells(path, [n.strip() for n in table.column_names], [], table.columns)
        return _Reader(path, sep, encoding, open_rows, again, settable).read()
    except (*READ_ERRORS, pa.ArrowException, UnicodeError, MemoryError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, OSError) and str(error) else type(error).__name__
        raise DataError(f"the table {path} cannot be read ({reason}); {again}") from error


class _Reader:
    def __init__(self, path: Path, sep: str, encoding: str, open_rows: bool, again: str, settable: bool) -> None:
        if len(sep) != 1 or sep in '"\r\n':
            raise ConfigError(f"sep must be one character, such as a comma, a semicolon or a tab, not {sep!r}")
        try:
            self.codec = codecs.lookup(encoding).name
        except LookupError as error:
            raise ConfigError(f"unknown encoding {encoding!r}; see Python's list of standard encodings") from error
        self.path, self.sep, self.encoding, self.again = path, sep, encoding, again
        self.open_rows, self.settable = open_rows, settable
        self.notes: list[str] = []

    def read(self) -> Cells:
        csv.field_size_limit(_FIELD)
        data = read_unpacked(self.path)
        if (mark := self._mark(data)) and self.codec == "utf-8":
            data = data[len(mark) :]
        if self.codec != "utf-8":
            try:
                data = data.decode(self.codec).encode()
            except UnicodeDecodeError as error:
                raise self._undecodable(data, error.start) from error
        if (at := data.find(0)) >= 0:
            remedy = f"{self.again}, or set encoding: utf-16" if self.settable else self.again
            raise DataError(f"{self._row_of(data[:at].decode(errors='replace'))} holds a NUL character; {remedy}")
        try:
            lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="")
            header = next(filter(None, csv.reader(lines, delimiter=self.sep, skipinitialspace=True)), None)
        except (UnicodeDecodeError, csv.Error):
            header = []  # read again below, where the error is raised
        if header is None:
            raise DataError(f"{self.path} has no header; {self.again}")
        columns = self._quickly(data, len(header))
        if columns is None:
            header, columns = self._thoroughly(data)
        self._check_header(header)
        names = [name.strip() for name in header]
        if names != header:
            self.notes.append("column names with spaces around them")
        return Cells(self.path, names, self.notes, columns)

    def _quickly(self, data: bytes, width: int) -> list[pa.ChunkedArray] | None:
        """The columns, if nothing about the file needs a second look."""
        if not self.sep.isascii() or not _plainly_quoted(data, ord(self.sep)):
            return None
        names = [f"f{i}" for i in range(width)]
        try:
            table = arrow_csv.read_csv(
                pa.py_buffer(data),
                arrow_csv.ReadOptions(use_threads=False, block_size=_BLOCK, autogenerate_column_names=True),
                arrow_csv.ParseOptions(delimiter=self.sep, newlines_in_values=True),
                arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
            )
        except pa.ArrowInvalid:  # a row of another length, or a byte that is not UTF-8
            return None
        return table.slice(1).columns if table.column_names == names else None

    def _thoroughly(self, data: bytes) -> tuple[list[str], list[pa.ChunkedArray]]:
        rows: list[list[str]] = []
        try:
            lines = io.StringIO(data.decode(), newline="")
            # spaces around cells go anyway, and so a quote may follow one
            rows.extend(filter(None, csv.reader(lines, delimiter=self.sep, strict=True, skipinitialspace=True)))
        except UnicodeDecodeError as error:
            raise self._undecodable(data, error.start) from error
        except csv.Error as error:
            where = f"row {len(rows) - 1}" if rows else "the header"
            raise DataError(
                f"{where} of {self.path} has a quote that is not closed, or text after a closing one; write a quote"
                f" inside a quoted cell twice, or {self.again}"
            ) from error
        header, *rows = rows
        self._check_header(header)
        width = len(header)
        self._check_lengths(rows, width)
        padded = [row[:width] + [""] * (width - len(row)) for row in rows]
        listed = zip(*padded, strict=True) if padded else [()] * width
        return header, [pa.chunked_array([pa.array(cells, pa.large_string())]) for cells in listed]

    def _check_lengths(self, rows: list[list[str]], width: int) -> None:
        """Raise unless rows are as long as the header, or all end in a separator too many.

        A blank cell too many in only some rows, or in a single row, may be any of them.
        """
        filled = any(cell.strip() for row in rows for cell in row[width:])
        if len(rows) > 1 and len({*map(len, rows)}) == 1 and len(rows[0]) > width and not filled:
            self.notes.append("a separator at the end of every row")
            return
        for number, row in enumerate(rows):
            if len(row) > width or (len(row) < width and not self.open_rows):
                what = "is cut short: it has fewer" if len(row) < width else "is too long: it has more"
                separator = _SEPARATORS.get(self.sep, "the separator")
                quote = "" if len(row) < width else f"put cells that hold {separator} in quotes, or "
                raise DataError(
                    f"row {number} of {self.path} {what} fields than the header ({len(row)}, not {width});"
                    f" {quote}{self.again}"
                )

    def _remedy(self, setting: str) -> str:
        return f"set {setting}" if self.settable else self.again

    def _mark(self, data: bytes) -> bytes:
        """The byte order mark; one of another encoding is an error."""
        for mark, name in _MARKS.items():
            if data.startswith(mark):
                if not self.codec.startswith(name):
                    remedy = self._remedy(f"encoding: {name}")
                    raise DataError(f"{self.path} is {name} by its byte order mark and not {self.encoding}; {remedy}")
                self.notes.append("starts with a byte order mark")
                return mark
        return b""

    def _check_header(self, header: list[str]) -> None:
        other = next((s for s in _SEPARATORS if s != self.sep and s in header[0]), None)
        if len(header) == 1 and other is not None:
            actual, expected = (_SEPARATORS.get(s, f'"{s}"') for s in (other, self.sep))
            remedy = self._remedy(f"sep: {json.dumps(other)} (a file named .tsv always has tabs)")
            raise DataError(f"the header of {self.path} is separated by {actual} and not by {expected}; {remedy}")

    def _row_of(self, before: str) -> str:
        """The row after the text ``before``; records are counted and not lines, since cells hold line ends."""
        records = csv.reader(io.StringIO(before + "x", newline=""), delimiter=self.sep)
        row = sum(1 for _ in filter(None, records)) - 2
        return f"{f'row {row}' if row >= 0 else 'the header'} of {self.path}"

    def _undecodable(self, data: bytes, at: int) -> DataError:
        return DataError(
            f"{self._row_of(data[:at].decode(self.codec, errors='replace'))} is not {self.encoding}: byte"
            f" 0x{data[at]:02x} at offset {at}; {self._remedy(_OTHER_ENCODING)}"
        )


def _plainly_quoted(data: bytes, sep: int) -> bool:
    """Whether every quote opens a cell, closes one, or is doubled; if not, a strict parser has to judge."""
    values = np.frombuffer(data, dtype=np.uint8)
    quotes = np.flatnonzero(values == ord('"'))
    if len(quotes) % 2:
        return False
    ends = np.array([sep, ord("\n"), ord("\r")], dtype=np.uint8)
    opening, closing = quotes[::2], quotes[1::2]
    doubled = np.zeros(len(opening) + 1, dtype=bool)
    doubled[1:-1] = opening[1:] == closing[:-1] + 1
    starts = (opening == 0) | np.isin(values[opening - 1], ends) | doubled[:-1]
    stops = (closing == len(values) - 1) | np.isin(values[np.minimum(closing + 1, len(values) - 1)], ends) | doubled[1:]
    return bool(starts.all() and stops.all())

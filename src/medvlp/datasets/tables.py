"""The tables of a corpus as released.

Every cell stays a string, since ids are names and a blank is not zero. What mirrors do to such files (compression, a
byte order mark, columns in another order, spaces around names, one empty column at the end) is accepted and noted; what
could make a wrong sample (a missing column, a row cut short or too long, two contradicting rows) is an error.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from medvlp.errors import DataError
from medvlp.io.packed import READ_ERRORS, read_unpacked
from medvlp.io.tables import Cells, read_cells

RELEASED: dict[str, Any] = json.loads(resources.files(__package__).joinpath("released.json").read_text("utf-8"))
"""Orders of labels, and the tables of each corpus: the arguments of :class:`TableSpec`, where "labels" are columns."""

_SUFFIXES = ("", ".gz", ".zip")


@dataclass(frozen=True)
class TableSpec:
    """What a released table must hold.

    Args:
        name: file name below the root; ``name.gz`` and ``name.zip`` are accepted as well.
        columns: required columns, under their usual names.
        aliases: usual name to the other names that releases or mirrors give the column.
        optional: columns that are read where present.
        others: read all further columns too.
        key: columns that together identify a row; empty if rows may repeat.
        required: whether the corpus cannot be read without the table.
        needed_for: what the table serves, for messages ("labels", "the official split").
        rows: number of rows of each known release, to the name of the release.
        open_rows: rows may have fewer fields than the header (NIH's boxes).
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

    def find(self, root: Path) -> Path | None:
        """The file under ``root``, compressed or not, or None."""
        return next((p for s in _SUFFIXES if (p := root / f"{self.name}{s}").is_file()), None)


def released_tables(corpus: str) -> tuple[TableSpec, ...]:
    """Return what the tables of a corpus must hold."""
    specs = []
    for fields in RELEASED["tables"].get(corpus, ()):
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        settings["columns"] += tuple(RELEASED["labels"].get(settings.pop("labels", ""), ()))
        settings["rows"] = {int(count): release for count, release in fields.get("rows", {}).items()}
        specs.append(TableSpec(**settings))
    return tuple(specs)


@dataclass
class Table:
    """A table that was read.

    ``frame`` holds strings, "" where blank, indexed by the 0-based row in the file; ``notes`` the oddities that were
    accepted, one line each; ``repeated`` the rows that repeat an earlier one in every cell and are not in ``frame``.
    """

    spec: TableSpec
    path: Path
    frame: pd.DataFrame
    notes: list[str]
    repeated: list[int]


def read_table(root: Path, spec: TableSpec, *, source: str = "its source") -> Table:
    """Read a table below ``root``; ``source`` is where to get it.

    Raises:
        DataError: the file is missing, unreadable, lacks a column, has a row that is cut short or too long, or two rows
            of one key that differ. The message names file, row and remedy, and never shows a cell.
    """
    path = spec.find(root)
    purpose = f" (for {spec.needed_for})" if spec.needed_for else ""
    if path is None:
        raise DataError(f"{root / spec.name}{purpose} is missing; get it from {source}")
    again = f"get it again from {source}"
    cells = read_cells(path, open_rows=spec.open_rows, again=again, settable=False)
    notes = list(cells.notes)
    frame = cells.frame(_chosen(cells, spec, notes, again))
    frame, repeated = _unique(frame, spec, path, again)
    if repeated:
        notes.append(f"{len(repeated)} row(s) repeat an earlier row")
    return Table(spec, path, frame, notes, repeated)


def _chosen(cells: Cells, spec: TableSpec, notes: list[str], again: str) -> dict[str, int]:
    """Usual name to position of the columns that are read."""
    usual = {alias: name for name, aliases in spec.aliases.items() for alias in aliases}
    names = [usual.get(n, n) for n in cells.names]
    for at in (i for i, n in enumerate(names) if not n or n.startswith("Unnamed: ")):
        column = cells.frame({"cell": at})["cell"]
        if not (column != "").any():
            # NIH's boxes have some
            notes += [] if spec.open_rows else ["an empty column without a name"]
        elif at == 0 and column.str.isdigit().all() and column.is_unique:
            notes.append("an index as first column, which is not read")
        else:
            raise DataError(f"{cells.path} has a filled column without a name; {again}")
        names[at] = ""
    present = [n for n in names if n]
    if missing := [c for c in spec.columns if c not in present]:
        raise DataError(f"{cells.path} lacks the column(s) {', '.join(missing)}; it has {', '.join(present)}; {again}")
    chosen = [n for n in present if spec.others or n in spec.columns or n in spec.optional]
    if twice := [n for n in dict.fromkeys(chosen) if chosen.count(n) > 1]:
        raise DataError(f"{cells.path} has the column(s) {', '.join(twice)} twice; {again}")
    if [n for n in chosen if n in spec.columns] != list(spec.columns):
        notes.append("columns in another order than released")
    return {n: names.index(n) for n in chosen}


def _unique(frame: pd.DataFrame, spec: TableSpec, path: Path, again: str) -> tuple[pd.DataFrame, list[int]]:
    keys = list(spec.key)
    if not keys or not (same_key := frame.duplicated(keys)).any():
        return frame, []
    same_row = frame.duplicated()
    if (conflict := same_key & ~same_row).any():
        row = int(np.flatnonzero(conflict.to_numpy())[0])
        item = "/".join(str(frame.iloc[row][k]) for k in keys)
        raise DataError(f"{path}: row {row} contradicts an earlier row of the same {', '.join(keys)} {item}; {again}")
    return frame[~same_row], np.flatnonzero(same_row.to_numpy()).tolist()


def to_numbers(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Turn label columns of the table ``source`` into float32, blank cells into NaN.

    Raises:
        DataError: a cell is no finite number. The cell itself is not shown, since it may be report text.
    """
    numbers = {}
    for name in frame.columns:
        column = frame[name].astype(object).where(frame[name].notna(), "")
        values = pd.to_numeric(column.replace("", np.nan), errors="coerce").astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(values) & (column != ""))
        if len(wrong):
            row = frame.index[wrong[0]] if frame.index.inferred_type == "integer" else wrong[0]
            raise DataError(
                f"column {name} of {source} holds something other than numbers (row {row}); write them with a decimal"
                " point, and leave unknown ones blank"
            )
        numbers[name] = values.astype(np.float32)
    return pd.DataFrame(numbers, index=frame.index)


def first_reason(reasons: Mapping[str, pd.Series | np.ndarray], index: pd.Index) -> pd.Series:
    """For each row the first reason that applies to it, "" for none; ``reasons`` maps each to a mask."""
    result = pd.Series("", index=index, dtype=object)
    for reason, mask in reasons.items():
        result[np.asarray(mask, dtype=bool) & (result == "")] = reason
    return result


def read_lines(path: Path, again: str) -> list[str]:
    """Return the stripped lines of a text file, which may be packed with gzip."""
    try:
        text = read_unpacked(path).decode("utf-8-sig")
    except (*READ_ERRORS, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({type(error).__name__}); {again}") from error
    return [line.strip() for line in text.split("\n")]


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples with ``Index``, without a type."""
    return iter(frame.itertuples())


def relative_path(cell: str) -> str:
    """Return a path cell with slashes for backslashes, or "" if it is blank or leads out of the root."""
    text = cell.strip().replace("\\", "/")
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts or (len(text) > 1 and text[1] == ":"):
        return ""
    return str(path)

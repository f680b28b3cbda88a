"""Any table of image paths and texts: CSV, TSV or Parquet."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medvlp.datasets.base import Dropped, OnError, RadiographDataset, make_table, to_numbers
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.splits import hash_split

SPLIT_NAMES: dict[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validate", "validation", "valid", "val", "dev"), "validate"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Split names as tables spell them (in any case), and what they stand for here."""

EXTENSIONS: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".dcm", ".JPG", ".JPEG", ".PNG", ".DCM")
"""Endings tried, in this order, for paths without one."""


def _read_table(path: Path, encoding: str, sep: str) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"the table {path} does not exist; give a CSV, TSV or Parquet file with image paths and texts")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(path)
        if path.suffix.lower() == ".tsv" or path.name.lower().endswith(".tsv.gz"):
            sep = "\t"
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding=encoding, sep=sep)
    except UnicodeDecodeError as error:
        raise DataError(_where_undecodable(path, encoding, sep)) from error
    except LookupError as error:
        raise ConfigError(f'there is no encoding "{encoding}"') from error
    except (ValueError, OSError, EOFError) as error:  # pandas' parser errors are ValueErrors
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"the table {path} cannot be read: {line}; check sep and encoding") from error
    frame.columns = [str(c).strip() for c in frame.columns]
    return frame


def _where_undecodable(path: Path, encoding: str, sep: str) -> str:
    """Name the row and the byte. pandas only knows an offset into one of its chunks."""
    data = path.read_bytes() if not path.name.endswith(".gz") else b""
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, errors="replace")
        # records and not lines: quoted texts hold line breaks. The open last record counts, the header does not
        row = max(len(list(csv.reader(before.splitlines(keepends=True), delimiter=sep))) - 2, 0)
        return (
            f"row {row} of {path} is not {encoding}: byte 0x{data[error.start]:02x} at offset {error.start};"
            " name the table's encoding, for example encoding: latin-1"
        )
    return f"{path} is not {encoding}; name the table's encoding, for example encoding: latin-1"


def _columns(frame: pd.DataFrame, path: Path, wanted: dict[str, str | None]) -> None:
    for argument, column in wanted.items():
        if column is not None and column not in frame.columns:
            raise DataError(
                f'{path} has no column "{column}"; it has {", ".join(map(str, frame.columns))}; set {argument}'
            )


class _Resolver:
    """Finds files whose names lack the extension, listing each folder once."""

    def __init__(self, extensions: Sequence[str]) -> None:
        self.extensions = tuple(extensions)
        self._folders: dict[str, set[str]] = {}

    def __call__(self, path: str) -> str | None:
        if path.endswith(self.extensions):
            return path  # whether it exists shows when it is loaded; a check of each would cost a disk access here
        folder, name = os.path.split(path)
        if folder not in self._folders:
            try:
                self._folders[folder] = set(os.listdir(folder))
            except OSError:
                self._folders[folder] = set()
        present = self._folders[folder]
        for extension in ("", *self.extensions):
            if name + extension in present:
                return path + extension
        return None


def read_pairs(
    table: str | Path,
    *,
    image_column: str,
    text_column: str,
    image_root: str | Path | None = None,
    id_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    label_columns: Sequence[str] = (),
    encoding: str = "utf-8",
    sep: str = ",",
    extensions: Sequence[str] = EXTENSIONS,
    split: str | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    min_tokens: int = 1,
    on_error: OnError = "raise",
) -> RadiographDataset:
    """Index the pairs of a table.

    Without ``split_column`` the pairs are divided by a hash of their group, or of their id where there is no
    ``group_column``: the division does not depend on the order of the rows, and adding rows moves none of the old
    ones. **Without a group column it knows nothing of patients**, so images of one patient may lie on both sides.

    Args:
        table: .csv, .tsv or .parquet file (CSV and TSV also .gz).
        image_column: column of image paths, relative to ``image_root``, or absolute.
        text_column: column of texts.
        image_root: folder of the images; None takes the folder of the table.
        id_column: column of ids; None takes the image path as it stands in the table.
        split_column: column with train / validate / test (or val, valid, dev, …).
        group_column: column whose equal values stay together (patients); also what ``fraction`` draws by.
        label_columns: columns of numbers; blank is unknown (NaN).
        encoding: of CSV and TSV files.
        sep: column separator of CSV files; .tsv files always have tabs.
        extensions: endings that are tried for paths without one.
        split: "train", "validate" ("val") or "test"; None takes all rows.
        val_fraction: share of the validation split if there is no ``split_column``.
        test_fraction: share of the test split if there is no ``split_column``.
        seed: seed of that division.
        min_tokens: texts with fewer white-space-separated words are dropped and counted.
        on_error: "raise" on an empty text or an image that is not there, or "skip" (drop and count) them.

    Returns:
        A dataset without a transform, in the order of the table.

    Raises:
        DataError: the table or a column is missing, a byte cannot be decoded, or a label is no number.
        UnreadableItemError: an empty text or a missing image, with ``on_error="raise"``.
        ConfigError: an unknown split or encoding.
    """
    table = Path(table)
    if split is not None and split.lower() not in SPLIT_NAMES:
        raise ConfigError(f'split "{split}" is unknown; there are train, validate and test')
    frame = _read_table(table, encoding, sep)
    wanted: dict[str, str | None] = {
        "image_column": image_column,
        "text_column": text_column,
        "id_column": id_column,
        "split_column": split_column,
        "group_column": group_column,
    }
    wanted.update({f"label_columns ({c})": c for c in label_columns})
    _columns(frame, table, wanted)
    for column in {c for c in wanted.values() if c is not None}:
        frame[column] = frame[column].astype(object).where(frame[column].notna(), "").astype(str).str.strip()
    ids = frame[id_column or image_column]
    groups = frame[group_column] if group_column else ids
    rows = pd.Series(range(len(frame)))
    keep = pd.Series(True, index=frame.index)
    dropped = Dropped()
    if split is not None:
        target = SPLIT_NAMES[split.lower()]
        if split_column is not None:
            assigned = frame[split_column].str.lower().map(SPLIT_NAMES)
            unknown = assigned.isna()
            dropped.extend(ids[unknown], rows[unknown], "unknown split name", broken=True)
        else:
            shares = {"validate": val_fraction, "test": test_fraction}
            assigned = pd.Series(hash_split(list(groups), shares, seed), index=frame.index)
        keep &= assigned == target
    root = Path(image_root) if image_root is not None else table.parent
    if not root.is_dir():
        raise DataError(f"the image folder {root} does not exist; set image_root")
    resolve = _Resolver(extensions)
    kept: list[int] = []
    paths: list[str] = []
    texts: list[str] = []
    for row in rows[keep]:
        text = " ".join(frame[text_column].iloc[row].split())
        path = resolve(os.path.join(root, frame[image_column].iloc[row]))
        reason = ""
        if not text:
            reason = "empty text"
        elif path is None:
            reason = "missing image file"
        if reason:
            if on_error == "raise":
                raise UnreadableItemError(
                    f"{reason} in row {row} of {table} (id {ids.iloc[row]}); mend the table, or set on_error: skip",
                    item_id=ids.iloc[row],
                    reason=reason,
                )
            dropped.add(ids.iloc[row], row, reason, broken=True)
        elif len(text.split()) < min_tokens:
            dropped.add(ids.iloc[row], row, f"fewer than {min_tokens} tokens")
        else:
            assert path is not None
            kept.append(row)
            paths.append(path)
            texts.append(text)
    columns = {"id": ids.iloc[kept], "image": paths, "text": texts}
    if group_column:
        columns["patient"] = groups.iloc[kept]
    return RadiographDataset(
        make_table(columns, _labels(frame, kept, label_columns, table)), on_error=on_error, dropped=dropped.frame()
    )


def _labels(frame: pd.DataFrame, kept: list[int], names: Sequence[str], table: Path) -> pd.DataFrame | None:
    if not names:
        return None
    part = frame.iloc[kept][list(names)]
    return to_numbers(part, str(table))

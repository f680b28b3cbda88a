"""Any table of image paths and texts: CSV, TSV or Parquet."""

import functools
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medvlp.datasets.base import Dropped, OnError, RadiographDataset, make_table
from medvlp.datasets.folders import IMAGE_SUFFIXES
from medvlp.datasets.tables import to_numbers
from medvlp.errors import ConfigError, DataError, UnreadableItemError, check_range
from medvlp.io.tables import read_cells
from medvlp.splits import hash_split

SPLIT_NAMES: dict[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validate", "validation", "valid", "val", "dev"), "validate"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Split names as tables spell them, in any case, to ours."""

_LOWER = sorted(IMAGE_SUFFIXES, key=lambda suffix: not suffix.startswith(".j"))  # JPEG first
_EXTENSIONS = (*_LOWER, *(suffix.upper() for suffix in _LOWER))


@functools.cache
def _names_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _resolve(path: str) -> str | None:
    """Find a file whose name may lack the extension."""
    if "\\" in path and os.sep == "/" and not os.path.exists(path):
        path = path.replace("\\", "/")  # of a table written under Windows
    if path.endswith(_EXTENSIONS):
        return path  # whether it exists shows when it is loaded; a check of each would cost a disk access here
    folder, name = os.path.split(path)
    return next((path + e for e in ("", *_EXTENSIONS) if name + e in _names_in(folder)), None)


@dataclass(frozen=True)
class PairTable:
    """A table of images and texts, and which of its columns mean what.

    Without ``split_column`` the pairs are divided by a hash of their group, or of their id where there is no
    ``group_column``: the division does not depend on the order of the rows, and adding rows moves none of the old
    ones. **Without a group column it knows nothing of patients**, so images of one patient may lie on both sides.

    Args:
        table: CSV, TSV or Parquet file; CSV and TSV may be compressed with gzip, bzip2, xz or zip. Rows count by their
            position; an index that pandas stored is ignored.
        image_root: folder of the images; None takes the folder of the table.
        image_column: column of image paths, relative to image_root or absolute; an extension may be missing.
        text_column: column of texts.
        id_column: column of ids; None takes the image path as it stands in the table.
        split_column: column with train / validate / test (or val, valid, dev, …); None divides by a hash.
        group_column: column whose equal values stay together (patients), also in fractions. A row with a blank group
            stands for itself.
        label_columns: columns of numbers; blank is unknown.
        val_fraction: share of the validation split if there is no split_column.
        test_fraction: share of the test split if there is no split_column.
        encoding: of CSV and TSV files.
        sep: column separator of CSV files; .tsv files always have tabs.
        min_tokens: texts with fewer words are dropped.
    """

    table: str | Path
    _: KW_ONLY
    image_root: str | Path | None = None
    image_column: str = "image"
    text_column: str = "text"
    id_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    label_columns: Sequence[str] = ()
    val_fraction: float = 0.1
    test_fraction: float = 0.0
    encoding: str = "utf-8"
    sep: str = ","
    min_tokens: int = 1

    def __post_init__(self) -> None:
        val, test, names = self.val_fraction, self.test_fraction, list(self.label_columns)
        check_range("[0, 1]", val_fraction=val, test_fraction=test, both=val + test)
        check_range("[0, inf)", min_tokens=self.min_tokens)
        if repeated := [name for n, name in enumerate(names) if name in names[:n]]:
            raise ConfigError(f"label_columns names {repeated[0]!r} twice")

    def read(self, split: str | None = None, *, seed: int = 0, on_error: OnError = "raise") -> RadiographDataset:
        """Index the pairs, in the order of the table, as a dataset without a transform.

        Args:
            split: "train", "validate" ("val") or "test"; None takes all rows.
            seed: of the division where there is no ``split_column``.
            on_error: "raise" on an empty text or a missing image, or "skip" (drop and count) them.

        Raises:
            DataError: the table is missing or malformed, or lacks a column.
            UnreadableItemError: an empty text or a missing image, with ``on_error="raise"``.
        """
        if split is not None and split.lower() not in SPLIT_NAMES:
            raise ConfigError(f"unknown split {split!r}; expected one of: train, validate, test")
        frame = self._frame()
        ids = frame[self.id_column or self.image_column]
        groups = ids
        if self.group_column:
            # rows with a blank group do not belong together
            groups = frame[self.group_column].where(frame[self.group_column] != "", ids)
        dropped = Dropped()
        selected = frame[self._in_split(frame, ids, groups, split, seed, dropped)]
        usable = self._usable(selected, ids, on_error, dropped)
        columns = {"id": ids[usable.index], "image": usable["image"], "text": usable["text"]}
        if self.group_column:
            columns["patient"] = groups[usable.index]
        labels = None
        if self.label_columns:
            labels = to_numbers(frame.loc[usable.index, list(self.label_columns)], str(self.table))
        return RadiographDataset(make_table(columns, labels), on_error=on_error, dropped=dropped.frame())

    def _frame(self) -> pd.DataFrame:
        """The columns that are needed, as text."""
        table = Path(self.table)
        sep = "\t" if table.name.lower().endswith((".tsv", ".tsv.gz")) else self.sep
        cells = read_cells(table, sep=sep, encoding=self.encoding)
        needed: dict[str, str] = {}
        for argument in ("image_column", "text_column", "id_column", "split_column", "group_column"):
            if (column := getattr(self, argument)) is not None:
                needed.setdefault(column, f"set {argument}")
        for column in self.label_columns:
            needed.setdefault(column, f"set label_columns ({column})")
        cells.require(needed)
        frame = cells.frame({name: cells.names.index(name) for name in needed})
        if not len(frame):
            raise DataError(f"{table} has a header and no rows; give a table with images and texts")
        return frame

    def _in_split(
        self, frame: pd.DataFrame, ids: pd.Series, groups: pd.Series, split: str | None, seed: int, dropped: Dropped
    ) -> pd.Series:
        if split is None:
            return pd.Series(True, index=frame.index)
        if self.split_column is None:
            shares = {"validate": self.val_fraction, "test": self.test_fraction}
            assigned = pd.Series(hash_split(list(groups), shares, seed), index=frame.index)
        else:
            assigned = frame[self.split_column].str.lower().map(SPLIT_NAMES)
            unknown = assigned.isna()
            dropped.extend(ids[unknown], frame.index[unknown], "unknown split name", broken=True)
        return assigned == SPLIT_NAMES[split.lower()]

    def _usable(self, frame: pd.DataFrame, ids: pd.Series, on_error: OnError, dropped: Dropped) -> pd.DataFrame:
        """The rows with an image and a text: columns image (path) and text."""
        root = Path(self.image_root) if self.image_root is not None else Path(self.table).parent
        if not root.is_dir():
            raise DataError(f"the image folder {root} does not exist; set image_root")
        _names_in.cache_clear()
        rows, usable = [], []
        cells = zip(frame.index, ids[frame.index], frame[self.image_column], frame[self.text_column], strict=True)
        for row, item, image, cell in cells:
            text = " ".join(cell.split())
            path = _resolve(os.path.join(root, image)) if image else None
            reason = "empty text" if not text else "missing image file" if path is None else ""
            if reason and on_error == "raise":
                raise UnreadableItemError(
                    f"{reason} in row {row} of {self.table} (id {item}); fix the table, or set on_error: skip",
                    item_id=item,
                    reason=reason,
                )
            if reason:
                dropped.add(item, row, reason, broken=True)
            elif len(text.split()) < self.min_tokens:
                dropped.add(item, row, f"fewer than {self.min_tokens} tokens")
            else:
                rows.append(row)
                usable.append((path, text))
        return pd.DataFrame(usable, columns=["image", "text"], index=rows)


def read_pairs(
    table: str | Path, *, split: str | None = None, seed: int = 0, on_error: OnError = "raise", **columns: Any
) -> RadiographDataset:
    """Index the pairs of a table in one call; see :class:`PairTable` (``columns``) and :meth:`PairTable.read`."""
    return PairTable(table, **columns).read(split, seed=seed, on_error=on_error)

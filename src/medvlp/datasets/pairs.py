"""Any table of image paths and texts: CSV, TSV or Parquet."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medvlp.datasets.base import Dropped, OnError, RadiographDataset, make_table, to_numbers
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.io.tables import read_cells
from medvlp.splits import hash_split

SPLIT_NAMES: dict[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validate", "validation", "valid", "val", "dev"), "validate"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Split names as tables spell them (in any case), and what they stand for here."""

EXTENSIONS: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".dcm", ".JPG", ".JPEG", ".PNG", ".DCM")
"""Endings tried, in this order, for paths without one."""


class _Resolver:
    """Finds files whose names lack the extension, listing each folder once."""

    def __init__(self, extensions: Sequence[str]) -> None:
        self.extensions = tuple(extensions)
        self._folders: dict[str, set[str]] = {}

    def __call__(self, path: str) -> str | None:
        if "\\" in path and os.sep == "/" and not os.path.exists(path):
            path = path.replace("\\", "/")  # of a table written under Windows
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
        table: CSV, TSV or Parquet file; CSV and TSV may be compressed with gzip, bzip2, xz or zip. Rows count by their
            position; an index that pandas stored is not looked at.
        image_column: column of image paths, relative to ``image_root``, or absolute; backslashes of Windows will do.
        text_column: column of texts.
        image_root: folder of the images; None takes the folder of the table.
        id_column: column of ids; None takes the image path as it stands in the table.
        split_column: column with train / validate / test (or val, valid, dev, …).
        group_column: column whose equal values stay together (patients); also what ``fraction`` draws by. A row with a
            blank group stands for itself.
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
        DataError: the table or a column is missing or twice there, a row has more or fewer fields than the header, a
            quote is not closed, a byte cannot be decoded, or a label is no number.
        UnreadableItemError: an empty text or a missing image, with ``on_error="raise"``.
        ConfigError: an unknown split or encoding, or a label column that is named twice.
    """
    table = Path(table)
    if twice := [name for n, name in enumerate(label_columns) if name in label_columns[:n]]:
        raise ConfigError(f"label_columns names {twice[0]!r} twice")
    if split is not None and split.lower() not in SPLIT_NAMES:
        raise ConfigError(f'split "{split}" is unknown; there are train, validate and test')
    if table.name.lower().endswith((".tsv", ".tsv.gz")):
        sep = "\t"
    cells = read_cells(table, sep=sep, encoding=encoding)
    wanted = {name: f"set label_columns ({name})" for name in label_columns}
    for argument, column in (
        ("group_column", group_column),
        ("split_column", split_column),
        ("id_column", id_column),
        ("text_column", text_column),
        ("image_column", image_column),
    ):
        if column is not None:
            wanted[column] = f"set {argument}"
    cells.require(dict(reversed(wanted.items())))
    frame = cells.frame({name: cells.names.index(name) for name in wanted})
    if not len(frame):
        raise DataError(f"{table} has a header and no rows; give a table with images and texts")
    ids = frame[id_column or image_column]
    # a blank group is nobody's, and not that of all blank ones
    groups = frame[group_column].where(frame[group_column] != "", ids) if group_column else ids
    rows = frame.index
    keep = pd.Series(True, index=rows)
    dropped = Dropped()
    if split is not None:
        target = SPLIT_NAMES[split.lower()]
        if split_column is not None:
            assigned = frame[split_column].str.lower().map(SPLIT_NAMES)
            unknown = assigned.isna()
            dropped.extend(ids[unknown], rows[unknown], "unknown split name", broken=True)
        else:
            shares = {"validate": val_fraction, "test": test_fraction}
            assigned = pd.Series(hash_split(list(groups), shares, seed), index=rows)
        keep &= assigned == target
    root = Path(image_root) if image_root is not None else table.parent
    if not root.is_dir():
        raise DataError(f"the image folder {root} does not exist; set image_root")
    resolve = _Resolver(extensions)
    kept: list[int] = []
    paths: list[str] = []
    texts: list[str] = []
    for row, item, image, cell in zip(
        rows[keep], ids[keep], frame[image_column][keep], frame[text_column][keep], strict=True
    ):
        text = " ".join(cell.split())
        path = resolve(os.path.join(root, image)) if image else None
        reason = ""
        if not text:
            reason = "empty text"
        elif path is None:
            reason = "missing image file"
        if reason:
            if on_error == "raise":
                raise UnreadableItemError(
                    f"{reason} in row {row} of {table} (id {item}); fix the table, or set on_error: skip",
                    item_id=item,
                    reason=reason,
                )
            dropped.add(item, row, reason, broken=True)
        elif len(text.split()) < min_tokens:
            dropped.add(item, row, f"fewer than {min_tokens} tokens")
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

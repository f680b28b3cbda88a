"""Image–text pairs as a map-style dataset over an Arrow table, and the draws that all corpora share.

A record is a row of a :class:`pyarrow.Table` and not a Python object: loader workers are forked from the main
process, and touching a Python object changes its reference count, which copies its memory page in every worker.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.io.images import read_image
from medvlp.io.reports import split_sentences
from medvlp.seeding import derive_seed

TextSampling = Literal["whole", "sentence"]
OnError = Literal["raise", "skip"]
Sample = dict[str, Any]
"""What :class:`ImageTextDataset` yields; its docstring lists the keys."""

BASE_COLUMNS: tuple[str, ...] = ("id", "image", "text", "patient", "study", "view")
"""Columns of a record table that are no labels. The first three are required."""

ERROR_REASONS: tuple[str, ...] = (
    "missing report file",
    "empty report file",
    "undecodable report file",
    "missing image file",
    "empty text",
)
"""Reasons that stand for broken files, as opposed to records that a policy leaves out on purpose."""


class Dropped:
    """Collects what is left out while a corpus is indexed."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, int, str]] = []

    def add(self, item_id: str, row: int, reason: str) -> None:
        """Note one item: its id, its 0-based row in the table it was listed in, and why it is left out."""
        self._rows.append((str(item_id), int(row), reason))

    def extend(self, ids: Iterable[Any], rows: Iterable[int], reason: str) -> None:
        """Note several items that are left out for the same reason."""
        self._rows.extend((str(i), int(r), reason) for i, r in zip(ids, rows, strict=True))

    def frame(self) -> pd.DataFrame:
        """A table with the columns id, row and reason; ``frame.attrs["counts"]`` holds the counts by reason."""
        frame = pd.DataFrame(self._rows, columns=["id", "row", "reason"]).astype({"row": "int64"})
        frame.attrs["counts"] = {str(k): int(v) for k, v in frame["reason"].value_counts().items()}
        return frame


def make_table(columns: dict[str, Any], labels: pd.DataFrame | None = None) -> pa.Table:
    """Put columns into the form that :class:`ImageTextDataset` expects.

    Args:
        columns: some of :data:`BASE_COLUMNS`, each a sequence of N values turned into strings (missing: "").
        labels: N rows, one column per label, 1 present, 0 absent, −1 uncertain, NaN unknown.

    Returns:
        A table with large-string columns, then the labels as float32 with NaN.
    """
    arrays: dict[str, pa.Array] = {}
    for name in BASE_COLUMNS:
        if name in columns:
            values = ["" if v is None or v != v else str(v) for v in columns[name]]  # noqa: PLR0124 - NaN test
            arrays[name] = pa.array(values, type=pa.large_string())
    if labels is not None:
        for name in labels.columns:
            numbers = np.array(pd.to_numeric(labels[name]), dtype=np.float32)
            arrays[str(name)] = pa.array(numbers, type=pa.float32())
    return pa.table(arrays)


def to_numbers(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Turn label columns into float32, blank cells into NaN.

    Args:
        frame: label columns as read from a table.
        source: the table, for the error.

    Raises:
        DataError: a cell is no number. The cell itself is not shown, since it may be report text.
    """
    numbers = {}
    for name in frame.columns:
        column = frame[name].astype(object).where(frame[name].notna(), "")
        values = pd.to_numeric(column.replace("", np.nan), errors="coerce")
        wrong = values.isna() & (column != "")
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(f"column {name} of {source} holds something other than numbers (label row {row})")
        numbers[name] = values.astype(np.float32)
    return pd.DataFrame(numbers, index=frame.index)


class ImageTextDataset(Dataset[Sample]):
    """Pairs of a radiograph and its text.

    ``dataset[key]`` takes an index or an (index, epoch) tuple, as :class:`~medvlp.datamodules.sampler.
    ResumableSampler` yields them. Everything random in a sample depends on (seed, epoch, index) alone, so it is
    the same for any number of workers and after a resumed run. A plain index counts as epoch 0.

    A sample is a dictionary:

    * ``image``: float32 (3, S, S) from the transform, or (3, H, W) in [0, 1] without one;
    * ``text``: str; ``id``: str; ``index``: int, row in the table;
    * ``label``: float32 (K,), NaN where unknown, K may be 0;
    * ``skipped``: list of (id, reason) of unreadable items that this sample stands in for, mostly empty.

    Args:
        table: columns ``id``, ``image`` (path), ``text`` and optionally ``patient``, ``study``, ``view``;
            every other column is a label (float32, NaN unknown).
        transform: uint8 (1, H, W) to float32 (3, S, S), see :mod:`medvlp.transforms`.
        seed: run seed.
        text_sampling: "whole" text, or one random "sentence" of it (ConVIRT).
        on_error: "raise" an :class:`UnreadableItemError`, or "skip": take the next readable item instead, and
            report that item's own index, so that an evaluator can drop the duplicate.
        dropped: what was left out when the table was made, with columns id, row, reason.
        min_side: if positive, JPEG files are decoded at the smallest DCT scale whose sides are at least this
            many pixels. Faster, and up to one grey level off a full decode on average; 0 decodes in full.

    Raises:
        DataError: the table lacks a required column.
    """

    def __init__(
        self,
        table: pa.Table,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        text_sampling: TextSampling = "whole",
        on_error: OnError = "raise",
        dropped: pd.DataFrame | None = None,
        min_side: int = 0,
    ) -> None:
        missing = [c for c in ("id", "image", "text") if c not in table.column_names]
        if missing:
            raise DataError(f"the record table lacks the column(s) {missing}; it has {table.column_names}")
        if text_sampling not in ("whole", "sentence"):
            raise ConfigError(f'text_sampling is "whole" or "sentence", not "{text_sampling}"')
        if on_error not in ("raise", "skip"):
            raise ConfigError(f'on_error is "raise" or "skip", not "{on_error}"')
        self.table = table.combine_chunks()
        self.transform = transform
        self.seed = seed
        self.text_sampling = text_sampling
        self.on_error = on_error
        self.min_side = min_side
        self._dropped = Dropped().frame() if dropped is None else dropped
        self._label_names = tuple(c for c in table.column_names if c not in BASE_COLUMNS)
        columns = [table.column(c).to_numpy() for c in self._label_names]
        stacked = np.stack(columns, axis=1) if columns else np.zeros((len(table), 0))
        self._labels = torch.from_numpy(np.ascontiguousarray(stacked, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> list[str]:
        """Identifiers of all records, in order."""
        return self.table.column("id").to_pylist()

    @property
    def texts(self) -> list[str]:
        """Texts of all records, in order, whole."""
        return self.table.column("text").to_pylist()

    @property
    def labels(self) -> Tensor:
        """Labels of all records: float32 (N, K), NaN where unknown."""
        return self._labels

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the K labels."""
        return self._label_names

    @property
    def groups(self) -> list[str]:
        """What must stay together in a split: the patient where known, else the record itself."""
        return self.table.column("patient" if "patient" in self.table.column_names else "id").to_pylist()

    @property
    def dropped(self) -> pd.DataFrame:
        """What was left out at index time: columns id, row, reason; ``.attrs["counts"]`` counts by reason."""
        return self._dropped

    def subset(self, mask: np.ndarray) -> "ImageTextDataset":
        """The records where ``mask`` (bool, (N,)) is true, with the same settings."""
        return self._with(self.table.filter(pa.array(np.asarray(mask, dtype=bool))))

    def prepared(
        self,
        transform: Callable[[Tensor], Tensor] | None,
        *,
        seed: int = 0,
        text_sampling: TextSampling = "whole",
        on_error: OnError = "raise",
    ) -> "ImageTextDataset":
        """The same records with another transform, seed, text sampling and error rule."""
        return ImageTextDataset(
            self.table,
            transform=transform,
            seed=seed,
            text_sampling=text_sampling,
            on_error=on_error,
            dropped=self._dropped,
            min_side=self.min_side,
        )

    def _with(self, table: pa.Table) -> "ImageTextDataset":
        new = copy.copy(self)
        ImageTextDataset.__init__(
            new,
            table,
            transform=self.transform,
            seed=self.seed,
            text_sampling=self.text_sampling,
            on_error=self.on_error,
            dropped=self._dropped,
            min_side=self.min_side,
        )
        return new

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        index, epoch = key if isinstance(key, tuple) else (int(key), 0)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a dataset of {len(self)} records")
        index %= len(self)
        skipped: list[tuple[str, str]] = []
        for offset in range(len(self)):
            row = (index + offset) % len(self)
            try:
                sample = self._load(row, epoch)
            except UnreadableItemError as error:
                if self.on_error == "raise":
                    raise
                skipped.append((error.item_id, error.reason))
                continue
            sample["skipped"] = skipped
            return sample
        raise DataError(f"none of the {len(self)} items can be read; the first reason: {skipped[0][1]}")

    def _load(self, row: int, epoch: int) -> Sample:
        item_id = self.table.column("id")[row].as_py()
        path = self.table.column("image")[row].as_py()
        try:
            pixels = read_image(Path(path), min_side=self.min_side)
        except UnreadableItemError as error:
            message = f"{error}; item {item_id}, row {row}; set on_error: skip to leave such items out"
            raise UnreadableItemError(message, item_id=item_id, reason=error.reason) from error
        image = torch.from_numpy(pixels).unsqueeze(0)
        if self.transform is None:
            image = (image.float() / 255).expand(3, -1, -1)
        else:
            # fork_rng keeps the surrounding random stream untouched; only the CPU generator is reseeded, because
            # torch.manual_seed would also reset the accelerator's stream when items load in the main process
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(derive_seed(self.seed, epoch, row))
                image = self.transform(image)
        return {
            "image": image,
            "text": self._text(row, epoch),
            "id": item_id,
            "index": row,
            "label": self._labels[row].clone(),
        }

    def _text(self, row: int, epoch: int) -> str:
        text = self.table.column("text")[row].as_py()
        if self.text_sampling == "sentence":
            sentences = split_sentences(text)
            if sentences:
                return sentences[derive_seed(self.seed, epoch, row, 1) % len(sentences)]
        return text


def _hash(group: Any, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest(), "big")


def nested_fraction(groups: Sequence[Any], fraction: float, seed: int = 0) -> np.ndarray:
    """Draw a share of the groups so that smaller shares lie inside larger ones (1 % ⊂ 10 % ⊂ 100 %).

    Groups (patients) are ordered by a hash of (seed, group); the first ceil(fraction × groups) are kept whole. The
    draw does not depend on the order of the rows. Published code draws its 1 % and 10 % independently of each
    other and mostly by image; this one is comparable across shares and does not cut patients.

    Args:
        groups: N group names, one per record.
        fraction: share of the groups to keep, in (0, 1].
        seed: another seed gives another order.

    Returns:
        Bool (N,), true for the records that are kept.

    Raises:
        ConfigError: fraction is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction must lie in (0, 1], not {fraction}")
    codes, unique = pd.factorize(np.asarray([str(g) for g in groups], dtype=object))
    if fraction == 1 or len(unique) == 0:
        return np.ones(len(codes), dtype=bool)
    order = sorted(range(len(unique)), key=lambda i: (_hash(unique[i], seed), unique[i]))
    keep = np.zeros(len(unique), dtype=bool)
    # a hair is taken off before rounding up: 0.1 × 30 is 3.0000000000000004 in binary
    keep[order[: math.ceil(fraction * len(unique) - 1e-9)]] = True
    return keep[codes]


def hash_split(groups: Sequence[Any], shares: dict[str, float], seed: int = 0) -> np.ndarray:
    """Assign each group to a split by its hash, so that adding records later moves none of the old ones.

    Args:
        groups: N group names, one per record.
        shares: split name to share; the shares sum to at most 1, the rest goes to "train".
        seed: another seed gives another assignment.

    Returns:
        Object array (N,) of split names.

    Raises:
        ConfigError: a share is negative or they sum to more than 1.
    """
    if any(s < 0 for s in shares.values()) or sum(shares.values()) > 1:
        raise ConfigError(f"split shares must be non-negative and sum to at most 1, not {shares}")

    def name_of(group: str) -> str:
        position = _hash(group, derive_seed(seed, 1)) / 2**64
        edge = 0.0
        for name, share in shares.items():
            edge += share
            if position < edge:
                return name
        return "train"

    codes, unique = pd.factorize(np.asarray([str(g) for g in groups], dtype=object))
    return np.array([name_of(g) for g in unique], dtype=object)[codes]

"""Records of radiographs as a map-style dataset over an Arrow table.

A record is a row of a :class:`pyarrow.Table` and not a Python object: loader workers are forked from the main
process, and touching a Python object changes its reference count, which copies its memory page in every worker.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medvlp.errors import ConfigError, DataError, UnreadableItemError, check_choice
from medvlp.io.cache import PixelCache
from medvlp.io.images import Damaged, check_reading, read_image, reading_name
from medvlp.io.reports import gloria_sentences, split_sentences
from medvlp.io.shapes import draw
from medvlp.resizing import Geometry
from medvlp.seeding import derive_seed
from medvlp.transforms import ImageTransform

TextSampling = Literal["whole", "sentence", "gloria", "sentences", "pieces"]
"""How a sample's text is made of its report, see :func:`sample_text`."""
OnError = Literal["raise", "skip"]
Target = Literal["mask", "boxes"]
Sample = dict[str, Any]
"""What :class:`RadiographDataset` yields; its docstring lists the keys."""

TEXT_COLUMNS: tuple[str, ...] = ("id", "image", "text", "patient", "study", "view", "pool")
"""Columns of strings. The first two are required; ``pool`` is the released part that a record comes from."""

SHAPE_COLUMNS: tuple[str, ...] = ("boxes", "box_labels", "shapes")
"""Annotations in pixels of the image as stored: ``boxes`` holds 4 n numbers x0, y0, x1, y1 (x1 and y1 exclusive),
``box_labels`` n class numbers, ``shapes`` strings of :mod:`medvlp.io.shapes` whose union is the mask."""

_TARGET_COLUMNS = {"mask": "shapes", "boxes": "boxes"}

RESERVED_COLUMNS: tuple[str, ...] = (*TEXT_COLUMNS, *SHAPE_COLUMNS)
"""Columns of a record table that are no labels."""


def dropped_by_reason(dropped: pd.DataFrame) -> str:
    """Return "nothing was dropped", or counts by reason: "dropped: 3 x missing file"."""
    if dropped.empty:
        return "nothing was dropped"
    counts = dropped["reason"].value_counts()
    return "dropped: " + ", ".join(f"{number} x {reason}" for reason, number in counts.items())


class Dropped:
    """Collects what is dropped while a corpus is indexed; with ``listing`` nothing is noted."""

    def __init__(self, listing: bool = False) -> None:
        self.listing = listing
        self._rows: list[tuple[str, int, str, bool]] = []

    def add(self, item_id: str, row: int, reason: str, *, broken: bool = False) -> None:
        """Note one item, with its 0-based row in its table; see :meth:`extend`."""
        self.extend([item_id], [row], reason, broken=broken)

    def extend(self, ids: Iterable[Any], rows: Iterable[int], reason: str, *, broken: bool = False) -> None:
        """Note items; ``broken`` if they are damaged or missing, as opposed to dropped by a policy on purpose."""
        if not self.listing:
            self._rows.extend((str(i), int(r), reason, broken) for i, r in zip(ids, rows, strict=True))

    def repeated(self, rows: Sequence[int], source: str = "", item: str = "") -> None:
        """Note rows that repeat an earlier one (of the table ``source``)."""
        self.extend([item] * len(rows), rows, f"repeats an earlier row{f' of {source}' if source else ''}")

    def frame(self) -> pd.DataFrame:
        """Return columns id, row, reason and broken; ``frame.attrs["counts"]`` holds the counts by reason."""
        frame = pd.DataFrame(self._rows, columns=["id", "row", "reason", "broken"])
        frame = frame.astype({"row": "int64", "broken": "bool"})
        frame.attrs["counts"] = {str(k): int(v) for k, v in frame["reason"].value_counts().items()}
        return frame


def grouped(values: Iterable[Any], records: Iterable[int], count: int) -> list[list[Any]]:
    """Return the values of each of ``count`` records; a value of record −1 belongs to none."""
    lists: list[list[Any]] = [[] for _ in range(count)]
    for value, record in zip(values, records, strict=True):
        if record >= 0:
            lists[record].append(value)
    return lists


def rectangles(boxes: Iterable[Iterable[Sequence[float]]]) -> list[list[str]]:
    """Return the boxes (x0, y0, x1, y1) of each record as shapes."""
    return [["rectangle " + " ".join(f"{v:.10g}" for v in box) for box in record] for record in boxes]


def text_column(table: pa.Table, name: str, default: str = "") -> np.ndarray:
    """Return a column of a record table as an object array, ``default`` throughout if it has none."""
    if name not in table.column_names:
        return np.full(len(table), default, dtype=object)
    return np.asarray(table.column(name).to_pylist(), dtype=object)


def with_labels(table: pa.Table, classes: Sequence[str]) -> pa.Table:
    """Keep the labels ``classes`` of a record table, in this order."""
    return table.select([*(c for c in table.column_names if c in RESERVED_COLUMNS), *classes])


def make_table(
    columns: Mapping[str, Any] | pd.DataFrame,
    labels: pd.DataFrame | None = None,
    *,
    boxes: Sequence[Sequence[Sequence[float]]] | None = None,
    box_labels: Sequence[Sequence[int]] | None = None,
    shapes: Sequence[Sequence[str]] | None = None,
) -> pa.Table:
    """Put columns into the form that :class:`RadiographDataset` expects.

    Args:
        columns: some of :data:`TEXT_COLUMNS`, each N values turned into strings (missing: ""); others are ignored.
        labels: N rows, one column per label, 1 present, 0 absent, −1 uncertain, NaN unknown.
        boxes: for each record its boxes (x0, y0, x1, y1).
        box_labels: for each record the class numbers of its boxes, by default 0.
        shapes: for each record the shapes of its mask.
    """
    arrays: dict[str, pa.Array] = {}
    for name in TEXT_COLUMNS:
        if name in columns:
            values = ["" if v is None or v != v else str(v) for v in columns[name]]  # noqa: PLR0124 - NaN test
            arrays[name] = pa.array(values, type=pa.large_string())
    if boxes is not None:
        flat = [[float(v) for box in record for v in box] for record in boxes]
        numbers = [list(map(int, n)) for n in box_labels] if box_labels is not None else [[0] * len(b) for b in boxes]
        arrays["boxes"] = pa.array(flat, type=pa.large_list(pa.float32()))
        arrays["box_labels"] = pa.array(numbers, type=pa.large_list(pa.int32()))
    if shapes is not None:
        arrays["shapes"] = pa.array([list(s) for s in shapes], type=pa.large_list(pa.large_string()))
    for label, column in () if labels is None else labels.items():
        arrays[str(label)] = pa.array(np.array(pd.to_numeric(column), dtype=np.float32), type=pa.float32())
    return pa.table(arrays)


class RadiographDataset(Dataset[Sample]):
    """Radiographs with text, labels, masks and boxes.

    ``dataset[key]`` takes an index (of epoch 0) or an (index, epoch) tuple, as :class:`~medvlp.datamodules.sampler.
    ResumableSampler` yields them. Everything random in a sample depends on (seed, epoch, index) alone, so it is
    the same for any number of workers and after a resumed run.

    A sample is a dictionary:

    * ``image``: float32 (3, S, S) from the transform, or (3, H, W) in [0, 1] without one;
    * ``id``: str; ``index``: int, row in the table; ``text``: str, if the table has texts;
    * ``label``: float32 (K,), NaN where unknown, K may be 0;
    * ``mask`` (target "mask"): float32 (1, S, S) of 0 and 1;
    * ``boxes``, ``box_labels`` (target "boxes"): float32 (n, 4) x0, y0, x1, y1 in pixels of ``image``; int64 (n,);
    * ``size``, ``geometry`` (any target): int64 (2,), height and width of the file; int64 (10,), what the resize did
      (:class:`medvlp.resizing.Geometry`), to take results back to the file's pixels;
    * ``skipped``: list of (id, reason) of unreadable items that this sample stands in for, mostly empty.

    Args:
        table: columns ``id``, ``image`` (path) and others of :data:`RESERVED_COLUMNS`; every other column is a label
            (float32, NaN unknown).
        transform: a recipe of :mod:`medvlp.transforms`, or None for the image as stored.
        targets: what else a sample holds: "mask" (needs the column ``shapes``), "boxes" (needs ``boxes``).
        intensity: how files become grey levels, a key of :data:`medvlp.io.images.INTENSITIES`.
        damaged: "refuse" a file whose decoder warns of damage, or "accept" its pixels as they are.
        seed: run seed.
        text_sampling: what of the text a sample holds, see :func:`sample_text`.
        on_error: "raise" an :class:`UnreadableItemError`, or "skip": take the next readable item instead, under its
            own index, so that an evaluator can drop the duplicate.
        dropped: what was dropped when the table was made, with columns id, row, reason, broken.
        box_names: names of the classes that ``box_labels`` counts.

    Attributes:
        labels: float32 (N, K), NaN where unknown.
        label_names: names of the K labels.
        dropped: columns id, row, reason, broken; ``.attrs["counts"]`` counts by reason.

    Raises:
        DataError: the table lacks a required column.
    """

    def __init__(
        self,
        table: pa.Table,
        *,
        transform: ImageTransform | None = None,
        targets: Sequence[Target] = (),
        intensity: str = "standard",
        damaged: Damaged = "refuse",
        seed: int = 0,
        text_sampling: TextSampling = "whole",
        on_error: OnError = "raise",
        dropped: pd.DataFrame | None = None,
        box_names: Sequence[str] = (),
    ) -> None:
        for target in targets:
            check_choice("target", target, _TARGET_COLUMNS)
        missing = [c for c in ("id", "image", *(_TARGET_COLUMNS[t] for t in targets)) if c not in table.column_names]
        if missing:
            raise DataError(f"the record table lacks the column(s) {missing}; it has {table.column_names}")
        check_choice("text_sampling", text_sampling, get_args(TextSampling))
        check_choice("on_error", on_error, get_args(OnError))
        check_reading(intensity, damaged)
        self.transform = transform
        self.targets: tuple[Target, ...] = tuple(targets)
        self.intensity = intensity
        self.damaged: Damaged = damaged
        self.seed = seed
        self.text_sampling = text_sampling
        self.on_error = on_error
        self.box_names = tuple(box_names)
        self.dropped: pd.DataFrame = Dropped().frame() if dropped is None else dropped
        self._cache: PixelCache | None = None
        self._positions: np.ndarray | None = None
        self._set_table(table)

    def _set_table(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()
        self.label_names = tuple(c for c in table.column_names if c not in RESERVED_COLUMNS)
        columns = [table.column(c).to_numpy() for c in self.label_names]
        stacked = np.stack(columns, axis=1) if columns else np.zeros((len(table), 0))
        self.labels = torch.from_numpy(np.ascontiguousarray(stacked, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> list[str]:
        """Identifiers of all records, in order."""
        return self.table.column("id").to_pylist()

    @property
    def texts(self) -> list[str]:
        """Texts of all records, in order, whole; empty if the table has none."""
        return self.table.column("text").to_pylist() if "text" in self.table.column_names else []

    @property
    def groups(self) -> list[str]:
        """What must stay together in a split: the patient where known, else the record itself."""
        return self.table.column("patient" if "patient" in self.table.column_names else "id").to_pylist()

    @property
    def annotated(self) -> bool:
        """Whether any record has a box or a shape."""
        columns = [self.table.column(name) for name in ("boxes", "shapes") if name in self.table.column_names]
        return any(pc.any(pc.greater(pc.list_value_length(column), 0)).as_py() for column in columns)

    @property
    def reading(self) -> str:
        """How files become grey levels: the intensity rule, and whether damaged ones are accepted."""
        return reading_name(self.intensity, self.damaged)

    def subset(self, mask: np.ndarray) -> "RadiographDataset":
        """The records where ``mask`` (bool, (N,)) is true, with the same settings."""
        new = copy.copy(self)
        keep = np.asarray(mask, dtype=bool)
        new._set_table(self.table.filter(pa.array(keep)))
        if self._positions is not None:
            new._positions = self._positions[keep]
        return new

    def prepared(self, transform: ImageTransform | None, **settings: Any) -> "RadiographDataset":
        """The same records with another transform and other settings: targets, intensity, seed and so on."""
        return RadiographDataset(
            self.table, transform=transform, dropped=self.dropped, box_names=self.box_names, **settings
        )

    def with_cache(self, cache: PixelCache) -> "RadiographDataset":
        """The same samples, read from prepared pixels instead of the files.

        Raises:
            ConfigError: the dataset has no transform, or the pixels were prepared by other rules.
            DataError: the cache lacks an image, or its file has changed since.
        """
        if self.transform is None:
            raise ConfigError("prepared pixels need a transform; without one the files themselves are read")
        needed = (self.reading, self.transform.resize.name)
        if (cache.intensity, cache.rule) != needed:
            raise ConfigError(
                f"the samples need pixels prepared by {' '.join(needed)}, not by {cache.intensity} {cache.rule}"
            )
        new = copy.copy(self)
        new._cache = cache
        new._positions = cache.positions(self.table.column("image").to_pylist())
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
        try:
            resized, geometry, size = self._pixels(row)
            mask = self._mask(row, geometry, size) if "mask" in self.targets else None
        except UnreadableItemError as error:
            message = f"{error}; item {item_id}, index {row} of the dataset; set on_error: skip to leave such items out"
            raise UnreadableItemError(message, item_id=item_id, reason=error.reason) from error
        sample: Sample = {"id": item_id, "index": row, "label": self.labels[row].clone()}
        if "text" in self.table.column_names:
            text = self.table.column("text")[row].as_py()
            sample["text"] = sample_text(text, self.text_sampling, derive_seed(self.seed, epoch, row, 1))
        boxes = self._boxes(row, geometry) if "boxes" in self.targets else None
        keep: Any = slice(None)
        if self.transform is None:
            sample["image"] = (resized.float() / 255).expand(3, -1, -1)
            mask = None if mask is None else mask.float()
        else:
            # fork_rng keeps the surrounding random stream untouched; only the CPU generator is reseeded, because
            # torch.manual_seed would also reset the accelerator's stream when items load in the main process
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(derive_seed(self.seed, epoch, row))
                if mask is None and boxes is None:
                    sample["image"] = self.transform.finish(resized)
                else:
                    sample["image"], mask, boxes, keep = self.transform.finish_joint(resized, mask, boxes)
        if mask is not None:
            sample["mask"] = mask
        if boxes is not None:
            names = self._list("box_labels", row) or [0] * (len(self._list("boxes", row)) // 4)
            # an augmentation may move a box out of the image
            sample["boxes"], sample["box_labels"] = boxes[keep], torch.tensor(names)[keep].to(torch.int64)
        if self.targets:
            sample["size"] = torch.tensor(size)
            sample["geometry"] = torch.tensor(geometry if geometry is not None else Geometry.identity(*size))
        return sample

    def _pixels(self, row: int) -> tuple[Tensor, Geometry | None, tuple[int, int]]:
        """The image after the resize, uint8 (1, h, w), what the resize did, and (H, W) of the file."""
        if self._cache is not None and self._positions is not None:
            stored, numbers, size = self._cache.read(int(self._positions[row]))
            return torch.from_numpy(stored).unsqueeze(0), Geometry(*numbers), size
        path = Path(self.table.column("image")[row].as_py())
        pixels = torch.from_numpy(read_image(path, self.intensity, self.damaged)).unsqueeze(0)
        resized, geometry = (pixels, None) if self.transform is None else self.transform.resize.image(pixels)
        return resized, geometry, (pixels.shape[1], pixels.shape[2])

    def _mask(self, row: int, geometry: Geometry | None, size: tuple[int, int]) -> Tensor:
        """The mask after the resize, bool (1, h, w)."""
        shapes = self._list("shapes", row)
        if self._cache is not None and geometry is not None:
            stored = self._cache.mask(shapes, size, geometry)
            if stored is not None:
                return torch.from_numpy(stored).unsqueeze(0)
        try:
            drawn = torch.from_numpy(draw(shapes, *size)).unsqueeze(0)
        except DataError as error:
            path = self.table.column("image")[row].as_py()
            raise UnreadableItemError(f"mask of {path}: {error}", item_id=path, reason=str(error)) from error
        return drawn if geometry is None or self.transform is None else self.transform.resize.mask(drawn, geometry)

    def _boxes(self, row: int, geometry: Geometry | None) -> Tensor:
        """The boxes after the resize, float32 (n, 4)."""
        boxes = torch.tensor(self._list("boxes", row), dtype=torch.float32).view(-1, 4)
        return boxes if geometry is None or self.transform is None else self.transform.resize.boxes(boxes, geometry)

    def _list(self, name: str, row: int) -> list[Any]:
        return self.table.column(name)[row].as_py() if name in self.table.column_names else []


def sample_text(text: str, sampling: TextSampling, seed: int) -> str:
    """Draw a part of a text.

    =========  ============================================================================================
    whole      the text
    sentence   one random sentence (ConVIRT)
    gloria     one random sentence of those that GLoRIA's code makes: lower case, words only, two of them at least
    sentences  the sentences in random order, of which the first k are kept, k random from 1 to all (MaCo)
    pieces     the same with what lies between full stops, as MaCo's code does it: what follows the last full stop
               counts as a piece, so now and then all sentences are kept; for ``cleaning: maco``
    =========  ============================================================================================

    The result is never empty where the text holds a sentence (a piece), else the text itself.
    """
    if sampling == "whole":
        return text
    if sampling == "pieces":
        parts = [" ".join(piece.split()) for piece in text.split(".")]
        parts = [f"{piece}." if piece else "" for piece in parts]
    else:
        parts = gloria_sentences(text) if sampling == "gloria" else split_sentences(text)
    if not any(parts):
        return text
    if sampling in ("sentence", "gloria"):
        return parts[seed % len(parts)]
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(parts))
    kept = [parts[i] for i in order[: generator.integers(1, len(parts) + 1)] if parts[i]]
    return " ".join(kept or [next(parts[i] for i in order if parts[i])])

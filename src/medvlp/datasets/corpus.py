"""What every corpus is: released files under a root, turned into records that splits, tasks and tools read alike."""

import copy
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from medvlp.datasets.base import RESERVED_COLUMNS, Dropped, OnError, grouped, make_table, text_column
from medvlp.datasets.folders import image_files, with_other_endings
from medvlp.datasets.tables import Table, TableSpec, first_reason, read_table, rows_of
from medvlp.errors import ConfigError, DataError, UnreadableItemError, check_choice
from medvlp.io.paths import folder_path
from medvlp.splits import Part, SplitInput

Task = Literal["pairs", "classification", "segmentation", "detection", "grounding"]
TASKS: tuple[str, ...] = get_args(Task)

SIDE_VIEWS: tuple[str, ...] = ("LATERAL", "LL", "RL", "LLAT", "RLAT")
"""Views that are not frontal, in capitals."""


@dataclass(frozen=True)
class Records:
    """All records of a corpus for a task, over all splits, in the documented order of the corpus.

    Args:
        table: N rows; see :func:`~medvlp.datasets.base.make_table`.
        dropped: what was dropped, with columns id, row, reason, broken.
        box_names: names of the classes that ``box_labels`` counts.
        rows: (R,) int64, only where a split may tear the rows of an image apart (SIIM): for each row of the label table
            that ``Corpus.listing().rows`` counts the record that it belongs to, or −1 if that was dropped.
        row_shapes: (R,) the shape that each of these rows holds, "" for none.
    """

    table: pa.Table
    dropped: pd.DataFrame
    box_names: tuple[str, ...] = ()
    rows: np.ndarray | None = None
    row_shapes: tuple[str, ...] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the label columns."""
        return tuple(c for c in self.table.column_names if c not in RESERVED_COLUMNS)

    def column(self, name: str, default: str = "") -> np.ndarray:
        """A text column as an object array, ``default`` throughout if the corpus has none."""
        return text_column(self.table, name, default)

    def take(self, part: Part) -> pa.Table:
        """The records of one part of a split, with the rows that the part holds and no others.

        Where a part holds some of the rows of an image, so do the shapes, and the boxes if there is one per shape.
        """
        table = self.table.take(pa.array(part.records))
        if part.rows is None or self.rows is None or self.row_shapes is None:
            return table
        position = np.full(len(self.table) + 1, -1)  # the last entry is that of rows without a record
        position[part.records] = np.arange(len(part.records))
        marked = np.array([s != "" for s in self.row_shapes], dtype=bool)
        # which of the shapes of its record a row holds; rows without a shape are not looked up
        nth = pd.Series(marked).groupby(self.rows).cumsum().to_numpy() - 1
        rows = np.sort(part.rows)
        rows = rows[marked[rows]]
        kept = grouped(nth[rows].tolist(), position[self.rows[rows]], len(part.records))
        for name, width in (("shapes", 1), ("boxes", 4), ("box_labels", 1)):
            if name in table.column_names:
                old = table.column(name)
                new = [
                    [v for k in of_record for v in values[k * width : (k + 1) * width]]
                    for of_record, values in zip(kept, old.to_pylist(), strict=True)
                ]
                table = table.set_column(table.column_names.index(name), name, pa.array(new, type=old.type))
        return table


class Corpus(ABC):
    """A corpus as released, under a folder.

    Subclasses describe themselves in class attributes and implement :meth:`records`.

    Args:
        root: folder of the corpus.
        on_error: "raise" an error on the first broken item, or "skip": leave it out and list it in ``Records.dropped``.
    """

    name: ClassVar[str]
    """Layout name: of ``medvlp phantom``, ``medvlp doctor`` and :mod:`medvlp.splits`."""
    title: ClassVar[str]
    """Name that its authors give it."""
    source: ClassVar[str]
    """Where to get it, for the remedy in errors."""
    tasks: ClassVar[tuple[Task, ...]]
    """What its labels allow; the first is the default."""
    tables: ClassVar[tuple[TableSpec, ...]]
    """The released tables."""
    image_folders: ClassVar[tuple[str, ...]] = ()
    """Folders below the root that hold images; the doctor counts files there that no record names."""
    image_counts: ClassVar[dict[str, int]] = {}
    """Folder to the number of image files that the release has in it."""
    checks: ClassVar[tuple[Callable[[Any], Iterable[Any]], ...]] = ()
    """Further checks of ``medvlp doctor``: functions of a ``medvlp.doctor.Case`` that yield findings."""

    def __init__(self, root: str | Path, *, on_error: OnError = "raise") -> None:
        check_choice("on_error", on_error, get_args(OnError))
        self.root = folder_path(root)
        self.on_error = on_error
        self.substituted: dict[str, str] = {}
        """Images that are taken from a file with another ending: listed name to path."""
        self._kept_tables: dict[str, Table] | None = None

    @classmethod
    def variants(cls, root: str | Path) -> tuple[dict[str, str], ...]:
        """Options (values as text) for each edition that a folder holds, where an option has no default."""
        return ({},)

    @property
    def image_root(self) -> Path:
        """Folder that all images lie in: the root, unless they belong to another corpus."""
        return self.root

    def released_sizes(self) -> dict[str, tuple[int, int]]:
        """Height and width of images as the released tables tell them, by record id; empty where they do not."""
        return {}

    @property
    def is_phantom(self) -> bool:
        """Whether the folder is a phantom tree, whose counts are not those of the release."""
        return (self.root / "phantom.json").is_file()

    @property
    def remedy(self) -> str:
        """How to get the corpus."""
        return f"{self.source}, or write a phantom with: medvlp phantom {self.name} --root {self.root}"

    def examined(self) -> Self:
        """A copy that skips broken items and keeps its tables, for tools that ask for all tasks one after another."""
        new = copy.copy(self)
        new.on_error, new._kept_tables = "skip", {}
        return new

    def begin(self, task: Task | None = None, *, listing: bool = False) -> Dropped:
        """Check the task and the folder; returns the empty list of what is dropped."""
        self.require_task(task)
        if not self.root.is_dir():
            raise DataError(f"the {self.title} folder {self.root} does not exist; get it from {self.remedy}")
        return Dropped(listing)

    def require_task(self, task: str | None) -> None:
        """Raise a :class:`ConfigError` unless the labels allow a task."""
        if task is not None and task not in self.tasks:
            raise ConfigError(f"{self.title} has no labels for {task}; it serves {', '.join(self.tasks)}")

    def chosen_labels(
        self, classes: Sequence[str] | None, labels: tuple[str, ...], *, required: bool = False
    ) -> tuple[str, ...]:
        """The option ``classes``: some of the labels, at least one if ``required``, or None for all."""
        if required and classes is not None and not classes:
            raise ConfigError(f"classes is empty; name some of {', '.join(labels)}")
        for name in classes or ():
            check_choice(f"label of {self.title}", name, labels)
        return labels if classes is None else tuple(classes)

    def table_folder(self, spec: TableSpec) -> Path:
        """Folder that holds one of :attr:`tables`."""
        return self.root

    def has_table(self, name: str) -> bool:
        """Whether the file of one of :attr:`tables` exists."""
        spec = self._spec(name)
        return spec.find(self.table_folder(spec)) is not None

    def read_table(self, name: str, dropped: Dropped | None = None, item: str = "") -> Table:
        """Read one of :attr:`tables` by its file name, and note repeated rows in ``dropped``, under the id ``item``."""
        table = (self._kept_tables or {}).get(name)
        if table is None:
            spec = self._spec(name)
            table = read_table(self.table_folder(spec), spec, source=self.remedy)
        if self._kept_tables is not None:
            self._kept_tables[name] = table
            table = replace(table, frame=table.frame.copy(), notes=list(table.notes), repeated=list(table.repeated))
        if dropped is not None:
            dropped.repeated(table.repeated, "" if item else name, item)
        return table

    def _spec(self, name: str) -> TableSpec:
        return next(s for s in self.tables if s.name == name)

    def files_of(self, names: Iterable[str], files: Mapping[str, str]) -> dict[str, str]:
        """:func:`~medvlp.datasets.folders.with_other_endings`, noted in :attr:`substituted`."""
        paths = with_other_endings(names, files)
        self.substitute({n: path for n, path in paths.items() if os.path.basename(n) != os.path.basename(path)})
        return paths

    def substitute(self, paths: Mapping[str, str]) -> None:
        """Note images that are taken from a file with another ending, listed name to path, and warn once."""
        new = {name: path for name, path in paths.items() if name not in self.substituted}
        self.substituted |= new
        if new:
            name, path = next(iter(new.items()))
            warnings.warn(
                f"{self.title}: {len(new)} images are taken from files with another ending than listed, such as"
                f" {os.path.basename(path)} for {os.path.basename(name)}",
                stacklevel=2,
            )

    def unique_items(self, items: pd.DataFrame, cells: list[str], dropped: Dropped, kind: str = "row") -> pd.DataFrame:
        """One row per id: repeats are noted; rows of another table, or that differ in ``cells``, are broken.

        ``items`` have columns id, table (path), row and ``cells``; ``kind`` is what a row is called.
        """
        later = items.duplicated("id")
        same = items.duplicated(["id", "table", *cells])
        dropped.extend(items["id"][same], items["row"][same], f"repeats an earlier {kind}")
        first = items.drop_duplicates("id").set_index("id")["table"]
        for item in rows_of(items[later & ~same]):
            listed = f"also listed in {Path(first[item.id]).name}"
            reason = f"contradicts an earlier {kind}" if first[item.id] == item.table else listed
            self.broken(dropped, item.id, item.row, reason, item.table)
        return items[~later]

    def on_disk(
        self, images: pd.DataFrame, names: Iterable[str], files: Mapping[str, str], dropped: Dropped, where: Any
    ) -> pd.DataFrame:
        """The images whose file exists, with its path in the column ``image``; the others are broken.

        Args:
            images: with a column id, and the row of their table as column ``row`` or as index.
            names: listed name of each.
            files: name to path of the files on the disk.
            dropped: where missing ones are noted.
            where: the table that lists them, or one for each.
        """
        names = list(names)
        paths = self.files_of(names, files)
        images = images.assign(image=pd.Series([paths.get(n) for n in names], index=images.index, dtype=object))
        absent = images["image"].isna()
        where = where if isinstance(where, str) else np.array(where, dtype=object)[absent]
        rows = images["row"][absent] if "row" in images else None
        self.broken_rows(dropped, images["id"][absent], "missing image file", where, rows)
        return images[~absent]

    def pools_on_disk(self, images: pd.DataFrame, folders: Mapping[str, str], dropped: Dropped) -> pd.DataFrame:
        """:meth:`on_disk` where each released part has its folder; ``images`` need a column table (path)."""
        files: dict[str, str] = {}
        for pool in images["pool"].unique():
            folder = self.root / folders[pool]
            present = image_files([folder])
            if not present:
                raise DataError(f"{folder} is missing or holds no image; get the images from {self.remedy}")
            files |= {f"{pool}/{name}": path for name, path in present.items()}
        tables = zip(images["table"], images["pool"], strict=True)
        where = [f"{table} (sought in {self.root / folders[pool]})" for table, pool in tables]
        names = images["pool"] + "/" + images["image"]
        return self.on_disk(images, names, files, dropped, where).reset_index(drop=True)

    def sound_rows(
        self,
        dropped: Dropped,
        ids: pd.Series,
        reasons: Mapping[str, Any],
        where: str,
        *,
        whole: bool = False,
        by_reason: bool = False,
    ) -> pd.Series:
        """Note or raise the rows of a table for which a reason holds; returns a mask of the others.

        Args:
            dropped: where they are noted, each with the first reason that holds.
            ids: of all rows.
            reasons: reason to a mask of the rows.
            where: the table.
            whole: an item with a broken row goes as a whole, and is noted once: half of its boxes are a wrong sample.
            by_reason: go by the order of the reasons and not of the rows.
        """
        reason = first_reason(reasons, ids.index)
        wrong = ids[reason != ""]
        if whole:
            wrong = wrong[~wrong.duplicated() | (wrong == "")]
        if by_reason:
            rank = {text: number for number, text in enumerate(reasons)}
            wrong = wrong[reason[wrong.index].map(rank).sort_values(kind="stable").index]
        self.broken_rows(dropped, wrong, reason, where)
        return ~ids.isin(set(wrong)) if whole else reason == ""

    def broken_rows(
        self, dropped: Dropped, ids: pd.Series, reason: str | pd.Series, where: Any, rows: Iterable[int] | None = None
    ) -> None:
        """:meth:`broken` for several items; ``reason`` and ``where`` may be one for all; ``rows``: index of ``ids``."""
        rows = list(ids.index if rows is None else rows)
        reasons = [reason] * len(ids) if isinstance(reason, str) else reason[ids.index]
        sources = [where] * len(ids) if isinstance(where, str) else where
        for item, row, text, source in zip(ids, rows, reasons, sources, strict=True):
            self.broken(dropped, item, int(row), text, source)

    def broken(self, dropped: Dropped, item_id: str, row: int, reason: str, where: str) -> None:
        """Note a broken item of a 0-based row, or raise it, as ``on_error`` says; no-op while listing."""
        if self.on_error == "raise" and not dropped.listing:
            raise UnreadableItemError(
                f"{where}, row {row}, item {item_id}: {reason}; get the file again from {self.source}, or set on_error:"
                " skip to leave it out",
                item_id=item_id,
                reason=reason,
            )
        dropped.add(item_id, row, reason, broken=True)

    @abstractmethod
    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """Index the corpus.

        Args:
            task: what the records are for; None takes every image with all annotations.
            pools: only records of these released parts (see :class:`~medvlp.splits.SplitInput`); None for all.

        Returns:
            The records in the documented order.

        Raises:
            DataError: the folder, a table or a column is missing.
            UnreadableItemError: an item is broken and ``on_error`` is "raise".
            ConfigError: the labels do not allow the task.
        """

    def after_split(self, table: pa.Table) -> pa.Table:
        """Filter each part of a split, and treat its labels; the default changes nothing.

        Published recipes draw from all rows and look at raw labels, so this comes later.
        """
        return table

    def listing(self) -> SplitInput:
        """Every image that the released tables list, whether its file is there or not: what splits are drawn from.

        A split must not shift because a file is missing, an annotation is broken, a report is empty or a task needs
        fewer images, so recipes see this and not :meth:`records`. No image is looked for; a label that cannot be made
        out is NaN; rows without an id and rows that repeat an earlier one are dropped. Broken items are for the
        records to report, whatever ``on_error``. The default takes all records.

        Raises:
            DataError: a table is missing or cannot be read.
        """
        return self.split_input(self.records())

    def listed(
        self, columns: Mapping[str, Any] | pd.DataFrame, labels: pd.DataFrame, rows: np.ndarray | None = None
    ) -> SplitInput:
        """A :meth:`listing` from columns and labels as in :func:`~medvlp.datasets.base.make_table`."""
        return self.split_input(Records(make_table(columns, labels), Dropped().frame(), rows=rows))

    def split_keys(self, records: Records) -> np.ndarray:
        """For each record the id of its image in :meth:`listing`, (N,) str."""
        return records.column("id")

    def chosen(self, records: Records, listing: SplitInput, part: Part) -> Part:
        """A part of a split of the :meth:`listing` as a part of records (for any task).

        Returns:
            Indices into the records, in the order of the part, several records of an image in a row. Images of the
            part that are not among the records are dropped.
        """
        keys = self.split_keys(records)
        position = pd.Series(np.arange(len(part.records)), index=listing.ids[part.records]).reindex(keys).to_numpy()
        chosen = np.flatnonzero(~np.isnan(position))
        chosen = chosen[np.argsort(position[chosen], kind="stable")]
        if part.rows is None or records.rows is None:
            return Part(chosen, None)
        # the label rows of both are those of the table, in its order; rows of records that were dropped go with them
        return Part(chosen, part.rows[np.isin(records.rows[part.rows], chosen)])

    def split_input(self, records: Records) -> SplitInput:
        """Records as a split recipe may look at them.

        Raises:
            DataError: label rows lack their record; make the split from :meth:`listing`, which has them all.
        """
        if records.rows is not None and (records.rows < 0).any():
            raise DataError(
                f"{int((records.rows < 0).sum())} label rows of {self.root} belong to images that were left out, which"
                " would shift a split; make it from listing()"
            )
        ids, patients, views = (records.column(name) for name in ("id", "patient", "view"))
        return SplitInput(
            ids=ids,
            patients=np.where(patients == "", ids, patients),
            pool=records.column("pool"),
            views=views,
            frontal=~pd.Series(views, dtype=object).str.upper().isin(SIDE_VIEWS).to_numpy(),
            labels=records.table.select(list(records.label_names)).to_pandas(),
            rows=records.rows,
        )

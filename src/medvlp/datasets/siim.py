"""SIIM-ACR Pneumothorax Segmentation, stage 1 or 2, as Kaggle released it.

Expected under the root: ``stage_2_train.csv`` or ``train-rle.csv``, one row **per mask component**, and the images
anywhere below it as ``<SOPInstanceUID>.dcm`` (``dicom-images-train/<StudyUID>/<SeriesUID>/<SOPInstanceUID>.dcm`` as
released); the file name without its suffix is the ImageId of the table.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from medvlp.datasets.base import Dropped, OnError, grouped, make_table
from medvlp.datasets.corpus import Corpus, Records, Task
from medvlp.datasets.folders import common_size, images_below
from medvlp.datasets.tables import Table, read_table, released_tables
from medvlp.errors import DataError, check_choice
from medvlp.io.shapes import bounds, siim_extent
from medvlp.splits import SplitInput

PNEUMOTHORAX = "Pneumothorax"
Stage = Literal[1, 2, "auto"]

_STAGES = {2: "stage_2_train.csv", 1: "train-rle.csv"}


class SIIMPneumothorax(Corpus):
    """SIIM-ACR Pneumothorax Segmentation.

    Records are images in the order of their first row in the table. ``rows`` and ``row_shapes`` keep the rows, since
    the split of GLoRIA and MGCA tears the rows of an image apart. The mask of an image is the **union** of its rows,
    which overlap in the release. The pool is "test" for images below a folder whose name holds "test" (the former test
    images, which stage 2 added), else "train". Patients are not released: each image stands for its own. All images of
    a release have one size (1024 × 1024), which the first header gives.

    Args:
        root: folder of the challenge.
        stage: which table: 1 for ``train-rle.csv`` (11,582 rows, 10,675 images), 2 for ``stage_2_train.csv`` (12,954
            rows, 12,047 images), "auto" for stage 2 if its table exists, else stage 1.
        table: the table, if it lies elsewhere or has another name; ``stage`` is then ignored.
    """

    name = "siim"
    title = "SIIM-ACR Pneumothorax Segmentation"
    source = "Kaggle's siim-acr-pneumothorax-segmentation"
    tasks = ("segmentation", "classification", "grounding")
    # the key is the whole row: an image may have several, and only a row that repeats another is dropped
    tables = released_tables("siim")
    image_folders = ("dicom-images-train", "dicom-images-test")

    def __init__(
        self, root: str | Path, *, stage: Stage = "auto", table: str | Path | None = None, on_error: OnError = "raise"
    ) -> None:
        super().__init__(root, on_error=on_error)
        check_choice("stage", stage, get_args(Stage))
        self.stage = stage
        self.table = Path(table) if table is not None else None

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """Images with the rows of their masks."""
        dropped = self.begin(task)
        table = self._table()
        dropped.repeated(table.repeated, table.path.name)
        frame = table.frame
        paths = self._paths(set(frame["ImageId"]), dropped)
        unlisted = sorted(paths.keys() - set(frame["ImageId"]))
        dropped.extend(unlisted, [-1] * len(unlisted), "no row in the table")
        size = common_size(p for p in paths.values() if p is not None)
        sound = frame[self._sound(table, paths, size, dropped)].drop_duplicates("ImageId")
        sound = sound.assign(pool=[_pool(self.root, paths[i]) for i in sound["ImageId"]])
        if pools is not None:
            sound = sound[sound["pool"].isin(pools)]
        ids = sound["ImageId"]
        # the rows that the listing counts: all that have an id, of whatever became of their image
        listed = frame[frame["ImageId"] != ""]
        owner = pd.Index(ids).get_indexer(listed["ImageId"])
        shape = np.where(listed["EncodedPixels"] == "-1", "", "rle " + listed["EncodedPixels"]).astype(object)
        shapes = grouped(shape[shape != ""], owner[shape != ""], len(ids))
        columns: dict[str, Any] = {"id": ids, "image": [paths[i] for i in ids], "patient": ids, "pool": sound["pool"]}
        boxes = None
        if task == "grounding":
            columns["text"] = [PNEUMOTHORAX] * len(ids)
            # made here from the masks, one per row: the release has no boxes
            boxes = [[bounds(s, *size) for s in of_image] if size else [] for of_image in shapes]
        masks = task != "classification"
        records = make_table(
            columns,
            pd.DataFrame({PNEUMOTHORAX: [float(bool(s)) for s in shapes]}),
            boxes=boxes,
            shapes=shapes if masks else None,
        )
        names = () if boxes is None else (PNEUMOTHORAX,)
        row_shapes = tuple(shape) if masks else None
        return Records(records, dropped.frame(), names, rows=owner.astype(np.int64), row_shapes=row_shapes)

    def listing(self) -> SplitInput:
        """The images of the table in the order of their first rows, without a pool."""
        self.begin()
        frame = self._table().frame
        frame = frame[frame["ImageId"] != ""]
        # factorize numbers the ids by first appearance
        owner, ids = pd.factorize(frame["ImageId"])
        cells = frame["EncodedPixels"]
        # whether the runs are sound is for the records to say
        marked = (cells != "-1").astype(np.float32).where(cells != "").groupby(owner)
        label = marked.first().where(marked.nunique() == 1)
        columns = {"id": ids, "patient": ids}
        return self.listed(columns, pd.DataFrame({PNEUMOTHORAX: label}), rows=owner.astype(np.int64))

    def after_split(self, table: pa.Table) -> pa.Table:
        """For grounding keep the images that show something to ground."""
        if "text" not in table.column_names:
            return table
        return table.filter(pc.greater(pc.list_value_length(table.column("shapes")), 0))

    def _table(self) -> Table:
        if self.table is not None:
            spec = replace(self.tables[0], name=self.table.name, needed_for="table")
            return read_table(self.table.parent, spec, source=self.source)
        if self.stage != "auto":
            return self.read_table(_STAGES[self.stage])
        name = next((n for n in _STAGES.values() if self.has_table(n)), None)
        if name is None:
            raise DataError(
                f"{self.root} holds neither {' nor '.join(_STAGES.values())}; get one from {self.remedy}, or name the"
                " file with table"
            )
        return self.read_table(name)

    def _paths(self, listed: set[str], dropped: Dropped) -> dict[str, Path | None]:
        """ImageId to its file, wherever below the root; None if there are two that differ."""
        paths: dict[str, Path | None] = {}
        files = images_below(self.root, skip="truth")  # beside a phantom
        released = [path for path in files if path.suffix.lower() == ".dcm"]
        stems = {path.stem for path in released}
        # mirrors of other endings keep the masks as images, too, under the same names
        root = os.path.abspath(self.root)
        missing = listed - stems
        others = [p for p in files if p.stem in missing and "mask" not in str(p.relative_to(root)).lower()]
        self.substitute({f"{path.stem}.dcm": str(path) for path in others})
        for path in released + others:
            other = paths.get(path.stem, path)
            if path.stem not in paths:
                paths[path.stem] = path
            elif other is not None and other.stat().st_size == path.stat().st_size:
                dropped.add(path.stem, -1, "another copy of the file")
            else:
                paths[path.stem] = None
        if not paths:
            raise DataError(f"no *.dcm file lies below {self.root}; get the images from {self.remedy}")
        return paths

    def _sound(
        self, table: Table, paths: dict[str, Path | None], size: tuple[int, int] | None, dropped: Dropped
    ) -> pd.Series:
        """The rows of all images that have no broken row: part of a mask is a wrong mask."""
        ids, cells = table.frame["ImageId"], table.frame["EncodedPixels"]
        empty = cells == "-1"
        problems = cells[~empty].map(lambda cell: _rle_problem(cell, size)).reindex(cells.index, fill_value="")
        reasons = {
            "blank ImageId": ids == "",
            "missing image file": ~ids.isin(paths.keys()),
            "two image files that differ": ids.map(lambda i: i in paths and paths[i] is None),
            **{problem: problems == problem for problem in problems.unique() if problem},
            "both -1 and a mask": empty.groupby(ids).transform("nunique") > 1,
        }
        return self.sound_rows(dropped, ids, reasons, str(table.path), whole=True)


def _rle_problem(cell: str, size: tuple[int, int] | None) -> str:
    """What is wrong with the runs of a mask, "" if nothing; without a size the end is not checked."""
    if not cell:
        return "blank EncodedPixels"
    try:
        end = siim_extent(cell)
    except DataError as error:
        return str(error).partition(";")[0]
    if size is not None and end > size[0] * size[1]:
        return f"RLE runs past the image: ends at {end} of {size[0] * size[1]} pixels"
    return ""


def _pool(root: Path, path: Path | None) -> str:
    folders = path.relative_to(os.path.abspath(root)).parts[:-1] if path is not None else ()
    return "test" if any("test" in folder.lower() for folder in folders) else "train"

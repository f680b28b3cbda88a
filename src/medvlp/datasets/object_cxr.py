"""Object-CXR: foreign objects on chest radiographs, marked with rectangles, ellipses and polygons.

Expected under the root: ``train.csv`` and ``dev.csv`` (and, in later mirrors, ``test.csv``) with the images in
folders of the same names. A row is an image and its annotation: ``type n n n …`` joined by ``;``, where 0 is a
rectangle and 1 an ellipse by two corners, 2 a polygon; blank means that there is no object. Some copies call the
image column ``image_path`` and put the folder before the name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from medvlp.datasets.base import Dropped, OnError, make_table
from medvlp.datasets.corpus import Corpus, Records, Task
from medvlp.datasets.folders import read_headers
from medvlp.datasets.tables import relative_path, released_tables, rows_of
from medvlp.errors import DataError, check_choice
from medvlp.io.shapes import bounds, check, parse_object_cxr
from medvlp.splits import SplitInput

POOLS: tuple[str, ...] = ("train", "dev", "test")
LABEL = "Foreign Object"


class ObjectCXR(Corpus):
    """Object-CXR.

    Records are images in the order of train.csv, dev.csv and test.csv, with and without objects. Boxes and shapes
    are in pixels of the file; a shape that leaves its image is broken, and with it the image. The corpus names no
    patients.

    Args:
        root: folder of the corpus.
        polygon_boxes: how a polygon becomes a box: "bounds", the rectangle around it. (MGCA's code takes a box around
            the polygon's pole of inaccessibility, which may leave the image.)
    """

    name = "object_cxr"
    title = "Object-CXR"
    source = "academic torrents' or Kaggle's object-CXR"
    tasks = ("detection", "segmentation", "classification")
    tables = released_tables("object_cxr")
    image_folders = POOLS
    image_counts = {"train": 8_000, "dev": 1_000, "test": 1_000}  # noqa: RUF012 - a class constant

    def __init__(
        self, root: str | Path, *, polygon_boxes: Literal["bounds"] = "bounds", on_error: OnError = "raise"
    ) -> None:
        super().__init__(root, on_error=on_error)
        check_choice("polygon_boxes", polygon_boxes, ("bounds",))
        self.polygon_boxes = polygon_boxes

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """Images in the order of the tables."""
        dropped = self.begin(task)
        rows = self.pools_on_disk(self._rows(pools, dropped), {pool: pool for pool in POOLS}, dropped)
        return self._records(self._checked(self._parsed(rows, dropped), dropped), dropped, task)

    def listing(self) -> SplitInput:
        """Every image of the tables."""
        dropped = self.begin(listing=True)
        rows = self._rows(None, dropped)
        rows["shapes"] = [[annotation] if annotation else [] for annotation in rows["annotation"]]
        return self.split_input(self._records(rows, dropped, "classification"))

    def _records(self, rows: pd.DataFrame, dropped: Dropped, task: Task | None) -> Records:
        labels = pd.DataFrame({LABEL: (rows["shapes"].str.len() > 0).astype("float32")})
        if task == "classification":
            return Records(make_table(rows, labels), dropped.frame())
        boxes = [[bounds(shape, 0, 0) for shape in shapes] for shapes in rows["shapes"]]
        table = make_table(rows, labels, boxes=boxes, shapes=rows["shapes"].tolist())
        return Records(table, dropped.frame(), box_names=(LABEL,))

    def _rows(self, pools: Sequence[str] | None, dropped: Dropped) -> pd.DataFrame:
        # the first release has no test.csv
        read = [p for p in POOLS if (p in pools if pools is not None else p != "test" or self.has_table("test.csv"))]
        if not read:
            raise DataError(f"{self.title} has the parts {', '.join(POOLS)}, not {', '.join(pools or ())}")
        rows = pd.concat([self._part(pool, dropped) for pool in read], ignore_index=True)
        return self.unique_items(rows, ["annotation"], dropped)

    def _part(self, pool: str, dropped: Dropped) -> pd.DataFrame:
        table = self.read_table(f"{pool}.csv")
        names = table.frame["image_name"].map(lambda cell: relative_path(cell).rpartition("/")[2]).astype(object)
        ids = names.map(lambda name: name.rpartition(".")[0]).astype(object)
        blank = table.frame["image_name"] == ""
        reasons = {"blank image name": blank, "no image file name inside the corpus": (ids == "") & ~blank}
        self.sound_rows(dropped, ids, reasons, str(table.path))
        if dropped.listing:  # a listing counts every row with a name
            ids = ids.where(ids != "", table.frame["image_name"])
        columns = {"id": ids, "image": names, "pool": pool, "table": str(table.path), "row": table.frame.index}
        return pd.DataFrame(columns | {"annotation": table.frame["annotation"]})[ids != ""]

    def _parsed(self, rows: pd.DataFrame, dropped: Dropped) -> pd.DataFrame:
        parsed: list[list[str] | None] = []
        for row in rows_of(rows):
            try:
                parsed.append(parse_object_cxr(row.annotation))
            except DataError as error:
                self.broken(dropped, row.id, row.row, f"annotation: {error}", row.table)
                parsed.append(None)
        rows = rows.assign(shapes=pd.Series(parsed, index=rows.index, dtype=object))
        return rows[rows["shapes"].notna()].reset_index(drop=True)

    def _checked(self, rows: pd.DataFrame, dropped: Dropped) -> pd.DataFrame:
        """The rows whose shapes lie in their image."""
        annotated = rows[rows["shapes"].str.len() > 0]
        wrong = []
        for row, header in zip(rows_of(annotated), read_headers(annotated["image"].tolist()), strict=True):
            reason, where = header.problem or "unknown image size", row.image
            if header.width and header.height:
                problems = (check(shape, header.height, header.width) for shape in row.shapes)
                number, problem = next(((n, p) for n, p in enumerate(problems, 1) if p), (0, ""))
                reason, where = f"object {number}: {problem} ({header.width} x {header.height} pixels)", row.table
                if not problem:
                    continue
            self.broken(dropped, row.id, row.row, reason, where)
            wrong.append(row.Index)
        return rows.drop(index=wrong).reset_index(drop=True)

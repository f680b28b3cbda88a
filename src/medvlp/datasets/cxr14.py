"""NIH ChestX-ray14 (CXR8): 112,120 frontal images, 14 labels mined from reports, and boxes of 880 test images.

Expected under the root: ``Data_Entry_2017_v2020.csv`` or the older ``Data_Entry_2017.csv``, the images in
``images_001/images`` … ``images_012/images`` (or in ``images``, or in the root itself), and, for what needs them,
``train_val_list.txt``, ``test_list.txt`` and ``BBox_List_2017.csv``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from medvlp.datasets.base import Dropped, OnError, grouped, make_table, rectangles, text_column, with_labels
from medvlp.datasets.corpus import Corpus, Records, Task
from medvlp.datasets.folders import image_files, read_headers
from medvlp.datasets.tables import RELEASED, TableSpec, read_lines, released_tables
from medvlp.errors import DataError, check_choice
from medvlp.splits import SplitInput

LabelsVersion = Literal["auto", "v2020", "2017"]

NIH_14: tuple[str, ...] = tuple(RELEASED["labels"]["nih_14"])
"""The 14 labels in NIH's order, which MedKLIP, KAD, MRM and MaCo share."""

NO_FINDING = "No Finding"
LABELS: tuple[str, ...] = (*NIH_14, NO_FINDING)

BOX_CLASSES: tuple[str, ...] = NIH_14[:8]
"""The classes with boxes; the table calls Infiltration ``Infiltrate``."""

_TABLES = {"v2020": "Data_Entry_2017_v2020.csv", "2017": "Data_Entry_2017.csv"}
_LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
_BOX_TABLE = "BBox_List_2017.csv"
_BOX_COLUMNS = ["Bbox [x", "y", "w", "h]"]
_CORNERS = ["x0", "y0", "x1", "y1"]
_BOX_SPACE = 1024.0  # pixels: boxes are given on images of this side


class ChestXray14(Corpus):
    """NIH ChestX-ray14.

    Records are images in the order of the label table; ``pool`` says "train_val" or "test" by the official lists, ""
    where these are not there. For "detection" they are the images with boxes, for "grounding" the pairs of such an
    image and a class, whose name is the text; the other images were not searched for boxes, so they are no negatives.
    Boxes are scaled from the 1024 pixels of the release to the size of the file.

    Args:
        root: folder of the corpus.
        labels_version: label table: "v2020", "2017" (they differ in about 0.16 % of the rows), or "auto" for the newest
            available.
        classes: labels to keep, in this order; None keeps the 14 and "No Finding".
        views: values of View Position to keep, after the split.
    """

    name = "cxr14"
    title = "ChestX-ray14"
    source = "the NIH Clinical Center's ChestXray-NIHCC"
    tasks = ("classification", "detection", "grounding")
    tables = released_tables("cxr14")
    image_folders = ("images", *(f"images_{n:03d}" for n in range(1, 13)))

    def __init__(
        self,
        root: str | Path,
        *,
        labels_version: LabelsVersion = "auto",
        classes: Sequence[str] | None = NIH_14,
        views: Sequence[str] = ("PA", "AP"),
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(root, on_error=on_error)
        check_choice("labels_version", labels_version, get_args(LabelsVersion))
        self.labels_version = labels_version
        self.classes = self.chosen_labels(classes, LABELS)
        self.views = tuple(v.upper() for v in views)

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """Images, or (image, class) for "grounding", in the order of the label table."""
        dropped = self.begin(task)
        images = self._images(dropped, pools)
        boxed = task in ("detection", "grounding")
        boxes = None
        if boxed or (task is None and self.has_table(_BOX_TABLE)):
            boxes, bad = self._box_rows(images, dropped, every=pools is None)
            # an image with a broken box is dropped as a whole: its other boxes alone would be a wrong answer
            images = images[~images["id"].isin(bad)]
            images = images[images["id"].isin(boxes["id"])] if boxed else images
        images = self._on_disk(images, dropped)
        if boxes is None:
            return Records(self._table(images), dropped.frame())
        images, boxes = self._scaled(images, boxes, dropped)
        if task == "grounding":
            images = images.merge(boxes[["id", "class"]].drop_duplicates().sort_values(["id", "class"]), on="id")
            # typed, since an empty list would become a column of numbers
            images["text"] = pd.Series([BOX_CLASSES[c] for c in images["class"]], index=images.index, dtype=object)
        return Records(self._table(images, boxes), dropped.frame(), box_names=BOX_CLASSES)

    def listing(self) -> SplitInput:
        """Every image of the label table."""
        images = self._images(self.begin(listing=True), None).assign(image="")
        return self.split_input(Records(self._table(images), Dropped().frame()))

    def split_keys(self, records: Records) -> np.ndarray:
        """Listed names of the image files, which several records for "grounding" share."""
        ids, texts = records.column("id"), records.column("text")
        return np.array([i.removesuffix(f"_{t}") if t else i for i, t in zip(ids, texts, strict=True)], dtype=object)

    def after_split(self, table: pa.Table) -> pa.Table:
        """The chosen views and labels; records of a blank view stay."""
        views = pd.Series(text_column(table, "view")).str.upper()
        table = table.filter(pa.array(views.isin((*self.views, "")).to_numpy(dtype=bool)))
        return with_labels(table, self.classes)

    @property
    def label_table(self) -> str:
        """Name of the label table that is read."""
        names = [n for version, n in _TABLES.items() if self.labels_version in ("auto", version)]
        name = next((n for n in names if self.has_table(n)), None)
        if name is None:
            raise DataError(f"{self.root / ' or '.join(names)} is missing; get it from {self.remedy}")
        return name

    def _images(self, dropped: Dropped, pools: Sequence[str] | None) -> pd.DataFrame:
        """Sound rows of the label table; while listing all rows with an id, with NaN for labels that are broken."""
        table = self.read_table(self.label_table, dropped, item="repeated row")
        frame, ids = table.frame, table.frame["Image Index"]
        findings = frame["Finding Labels"].str.replace(r"\s*\|\s*", "|", regex=True).str.get_dummies("|")
        unknown = findings.columns.difference(list(LABELS))
        labels = findings.reindex(columns=list(LABELS), fill_value=0).astype("float32")
        number = pd.to_numeric(frame["Patient ID"], errors="coerce")
        number = number.where(number.between(0, 99_999_999))  # eight digits in file names
        patient = number.fillna(-1).astype("int64").astype(str).str.zfill(8)
        of_labels = {
            "blank label": frame["Finding Labels"] == "",
            "unknown label": findings[unknown].any(axis=1),
            "No Finding beside a finding": (labels[NO_FINDING] == 1) & (labels.sum(axis=1) > 1),
        }
        reasons = {
            "blank id": ids == "",
            **of_labels,
            "Patient ID is no number": number.isna(),
            "Patient ID is not that of the file name": ids.str[:8] != patient,
        }
        good = self.sound_rows(dropped, ids, reasons, str(table.path), by_reason=True)
        pool = ids.map(self._pools(set(ids), dropped, required=pools is not None)).fillna("")
        if dropped.listing:
            labels[pd.DataFrame(of_labels).any(axis=1)] = np.nan
            patient, good = patient.where(number.notna(), ""), ids != ""
        study = ids.map(lambda name: name.rpartition(".")[0])
        columns = {"id": ids, "patient": patient, "study": study, "view": frame["View Position"], "pool": pool}
        images = pd.DataFrame(columns).join(labels)[good]
        return images if pools is None else images[images["pool"].isin(pools)]

    def _pools(self, known: set[str], dropped: Dropped, required: bool) -> dict[str, str]:
        """Image name to "train_val" or "test"; empty where neither list is there."""
        paths = {name: TableSpec(file, ()).find(self.root) for name, file in _LISTS.items()}
        missing = [file for name, file in _LISTS.items() if paths[name] is None]
        if len(missing) == 1 or (missing and required):
            raise DataError(f"{self.root / missing[0]} (for the official split) is missing; get it from {self.remedy}")
        pool: dict[str, str] = {}
        for name, path in paths.items():
            for row, image in enumerate(read_lines(path, f"get it from {self.remedy}") if path else ()):
                if not image:
                    continue
                if image not in known:
                    self.broken(dropped, image, row, f"not in {self.label_table}", str(path))
                elif image not in pool:
                    pool[image] = name
                elif pool[image] == name:
                    dropped.add(image, row, "repeats an earlier line")
                else:
                    raise DataError(
                        f"{path}, row {row}: {image} is in both official lists; get them from {self.remedy}"
                    )
        return pool

    def _on_disk(self, images: pd.DataFrame, dropped: Dropped) -> pd.DataFrame:
        folders = sorted(self.root.glob("images_*"))
        files = image_files([*(f / "images" for f in folders), *folders, self.root / "images", self.root])
        if not files:
            raise DataError(
                f"{self.root} holds no image, neither in images_*/images nor in images nor in itself; get them from"
                f" {self.remedy}"
            )
        where = f"{self.root / self.label_table} (sought in the image folders)"
        return self.on_disk(images, images["id"], files, dropped, where)

    def _box_rows(self, images: pd.DataFrame, dropped: Dropped, every: bool) -> tuple[pd.DataFrame, set[str]]:
        """Boxes (id, class and corners) in the 1024 pixels of the release, and ids with a broken one.

        ``every`` says that ``images`` are all images, so that a box of another one is an error.
        """
        table = self.read_table(_BOX_TABLE, dropped, item="repeated row")
        frame, ids = table.frame, table.frame["Image Index"]
        numbers = frame[_BOX_COLUMNS].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        corners = np.hstack([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]])
        index = (
            frame["Finding Label"].replace("Infiltrate", "Infiltration").map({c: i for i, c in enumerate(BOX_CLASSES)})
        )
        known = ids.isin(images["id"])
        reasons = {
            "box with a value that is no number": ~np.isfinite(numbers).all(axis=1),
            "unknown class": index.isna(),
            "empty box": (numbers[:, 2:] <= 0).any(axis=1),
            "box outside the image": (corners[:, :2] < 0).any(axis=1) | (corners[:, 2:] > _BOX_SPACE).any(axis=1),
            f"not in {self.label_table}": ~known & every,
        }
        good = self.sound_rows(dropped, ids, reasons, str(table.path), by_reason=True)
        boxes = pd.DataFrame(corners, columns=_CORNERS, index=frame.index)
        boxes.insert(0, "id", ids)
        boxes.insert(1, "class", index.fillna(-1).astype(int))
        return boxes[good & known], set(ids[~good])

    def _scaled(self, images: pd.DataFrame, boxes: pd.DataFrame, dropped: Dropped) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The boxes in pixels of the files, and the images but those whose size cannot be read."""
        boxed = images[images["id"].isin(boxes["id"])]
        headers = read_headers(boxed["image"].tolist())
        unread = np.array([not header.width or not header.height for header in headers], dtype=bool)
        for row, header in zip(boxed.index[unread], np.array(headers, dtype=object)[unread], strict=True):
            self.broken(dropped, boxed["id"][row], row, header.problem or "unknown image size", boxed["image"][row])
        size = pd.DataFrame([(h.width, h.height) for h in headers], index=boxed["id"], columns=["w", "h"])
        boxes = boxes[boxes["id"].isin(boxed["id"][~unread])]
        scale = size.reindex(boxes["id"]).to_numpy(dtype=np.float64) / _BOX_SPACE
        boxes[_CORNERS] *= np.hstack([scale, scale])
        return images.drop(index=boxed.index[unread]), boxes

    @staticmethod
    def _table(images: pd.DataFrame, boxes: pd.DataFrame | None = None) -> pa.Table:
        labels = images[list(LABELS)]
        if boxes is None:
            return make_table(images, labels)
        keys = ["id", "class"] if "text" in images else ["id"]
        record = pd.MultiIndex.from_frame(images[keys]).get_indexer(pd.MultiIndex.from_frame(boxes[keys]))
        corners = grouped(boxes[_CORNERS].to_numpy().tolist(), record, len(images))
        numbers = grouped(boxes["class"], record, len(images))
        if "text" in images:
            images = images.assign(id=images["id"] + "_" + images["text"])
        return make_table(images, labels, boxes=corners, box_labels=numbers, shapes=rectangles(corners))

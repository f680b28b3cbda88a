"""MS-CXR: phrases of reports with boxes, on images of MIMIC-CXR.

Expected under the root: ``MS_CXR_Local_Alignment_v1.1.0.csv`` or ``.json`` (release 1.1.0) or the same with ``v1.0.0``
(release 0.1), and the images of MIMIC-CXR-JPG at ``files/p10/p10000032/s50414267/<dicom_id>.jpg`` there or under
another root. The table has one row per box; a phrase with several boxes repeats. The json holds the same as COCO
annotations.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from medvlp.datasets.base import Dropped, OnError, grouped, make_table, rectangles
from medvlp.datasets.corpus import Corpus, Records, Task
from medvlp.datasets.folders import mimic_paths, read_headers
from medvlp.datasets.tables import RELEASED, relative_path, released_tables, rows_of
from medvlp.errors import DataError, check_choice
from medvlp.io.paths import folder_path
from medvlp.splits import SplitInput

Annotations = Literal["auto", "csv", "json"]

CATEGORIES: tuple[str, ...] = tuple(RELEASED["labels"]["ms_cxr"])
"""The eight findings, in alphabetical order as the papers list them."""

_STEMS = ("MS_CXR_Local_Alignment_v1.1.0", "MS_CXR_Local_Alignment_v1.0.0")
_TEXTS = ["dicom_id", "category_name", "label_text", "path"]
_BOX = ["x", "y", "w", "h"]
_SIZE = ["image_width", "image_height"]
_CORNERS = ["x0", "y0", "x1", "y1"]
_POOLS = {"val": "validate", "valid": "validate"}
_PATH = re.compile(r"(?:^|/)p\d\d/p(\d+)/s(\d+)/([^/]+)\.\w+$")


class MSCXR(Corpus):
    """MS-CXR 0.1 or 1.1.0.

    For "grounding", "segmentation" and "pairs" a record is an image and a phrase with all its boxes, in the order in
    which the pairs first appear; its id is the DICOM id and the number of the phrase on that image. For "detection" and
    "classification" a record is an image with the boxes and findings of all its phrases. A 0 means that no phrase of
    the finding was marked, not that a reader denied it. ``pool`` is the column ``split`` of release 1.1.0, which is not
    MIMIC-CXR's split.

    Boxes are checked against the image size in the table and scaled where the file is a reduced copy of the image.

    Args:
        root: folder of the annotations.
        mimic_root: folder of MIMIC-CXR-JPG, if the images are not under root.
        annotations: "csv", "json", or "auto" for the newest available release, csv first.
    """

    name = "ms_cxr"
    title = "MS-CXR"
    source = "PhysioNet's MS-CXR (the images from PhysioNet's MIMIC-CXR-JPG)"
    tasks = ("grounding", "detection", "classification", "segmentation", "pairs")
    tables = released_tables("ms_cxr")
    image_folders = ("files",)

    def __init__(
        self,
        root: str | Path,
        *,
        mimic_root: str | Path | None = None,
        annotations: Annotations = "auto",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(root, on_error=on_error)
        check_choice("annotations", annotations, get_args(Annotations))
        self.mimic_root = folder_path(mimic_root) if mimic_root is not None else self.root
        self.annotations = annotations

    @property
    def image_root(self) -> Path:
        """Folder of MIMIC-CXR-JPG."""
        return self.mimic_root

    @property
    def annotation_path(self) -> Path:
        """The table that is read."""
        kinds = ("csv", "json") if self.annotations == "auto" else (self.annotations,)
        names = [f"{stem}.{kind}" for stem in _STEMS for kind in kinds]
        for name in names:
            path = self.root / name if name.endswith(".json") else self._spec(name).find(self.root)
            if path is not None and path.is_file():
                return path
        raise DataError(f"{self.root} has neither {' nor '.join(names)}; get one of them from {self.remedy}")

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """Phrases on images, or images, in the order of their first appearance."""
        dropped = self.begin(task)
        if not self.mimic_root.is_dir():
            raise DataError(f"mimic_root {self.mimic_root} does not exist; get MIMIC-CXR-JPG from PhysioNet")
        keys = ["dicom_id"] if task in ("detection", "classification") else ["dicom_id", "label_text"]
        rows = self._checked(self._read(dropped), keys, dropped, self.annotation_path)
        if pools is not None:
            rows = rows[rows["split"].isin(pools)]
        rows = self._on_disk(rows, dropped, self.annotation_path)
        return Records(self._table(rows, keys, task), dropped.frame(), box_names=CATEGORIES)

    def listing(self) -> SplitInput:
        """Every image of the table, once."""
        rows = self._read(self.begin(listing=True))
        rows = rows[rows["dicom_id"] != ""]
        findings = pd.DataFrame({name: rows["category_name"] == name for name in CATEGORIES}).groupby(rows["dicom_id"])
        # a column split that contradicts itself is broken, for the records to say
        first = rows[["dicom_id", "path", "split"]].replace("", None).groupby("dicom_id", sort=False).first()
        patient = first["path"].fillna("").map(relative_path).str.extract(_PATH)[0]
        columns = {"id": first.index, "patient": patient, "pool": first["split"]}
        return self.listed(columns, findings.any().reindex(first.index).astype("float32"))

    def split_keys(self, records: Records) -> np.ndarray:
        """DICOM ids, which the phrases of an image share."""
        return np.array([Path(path).stem for path in records.column("image")], dtype=object)

    def _read(self, dropped: Dropped) -> pd.DataFrame:
        """The rows of the table as text, each once."""
        path = self.annotation_path
        if path.suffix == ".json":
            rows = self._json_rows(path)
        else:
            rows = self.read_table(next(s.name for s in self.tables if s.find(self.root) == path)).frame
            rows = rows.assign(split=rows.get("split", ""))
        rows["row"] = rows.index
        same = rows.duplicated([*_TEXTS, *_BOX, *_SIZE, "split"])
        dropped.extend(rows["dicom_id"][same], rows["row"][same], "repeats an earlier row")
        return rows[~same].assign(split=lambda r: r["split"].str.lower().replace(to_replace=_POOLS))

    def _json_rows(self, path: Path) -> pd.DataFrame:
        """The COCO annotations as rows of the table."""
        again = f"get it again from {self.remedy}"
        try:
            content = json.loads(path.read_bytes())
            images = {image["id"]: image for image in content["images"]}
            names = {category["id"]: str(category["name"]) for category in content["categories"]}
            annotations = list(content["annotations"])
            if len(images) < len(content["images"]) or len(names) < len(content["categories"]):
                raise ValueError("an id that comes twice")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is no COCO file ({type(error).__name__}); {again}") from error
        rows = []
        for number, annotation in enumerate(annotations):
            try:
                image, box = images[annotation["image_id"]], list(annotation["bbox"])
                file = str(image.get("path") or image["file_name"])
                text, category = str(annotation["label_text"]), names[annotation["category_id"]]
                size = [annotation.get(key, image.get(key, "")) for key in ("width", "height")]
                of_image = [image.get(key, value) for key, value in zip(("width", "height"), size, strict=True)]
                if len(box) != 4:
                    raise ValueError(f"{len(box)} numbers")
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else "is malformed"
                raise DataError(f"{path}: annotation {number} {reason} or names what is not there; {again}") from error
            split = annotation.get("split") or image.get("split") or ""
            stem = file.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
            rows.append([stem, category, text.strip(), file, *map(str, (*box, *size)), str(split), size != of_image])
        frame = pd.DataFrame(rows, columns=[*_TEXTS, *_BOX, *_SIZE, "split", "two_sizes"])
        return frame.astype({name: object for name in _TEXTS})

    def _checked(self, rows: pd.DataFrame, keys: list[str], dropped: Dropped, path: Path) -> pd.DataFrame:
        """The rows with numbers, without the records (of ``keys``) that have a broken row."""
        numbers = rows[[*_BOX, *_SIZE]].apply(pd.to_numeric, errors="coerce").astype(np.float64)
        x, y, w, h, width, height = (numbers[name] for name in (*_BOX, *_SIZE))
        relative = rows["path"].map(relative_path)
        parts = relative.str.extract(_PATH)
        ids = rows["dicom_id"]
        sizes = numbers[_SIZE].groupby(ids)
        two_sizes = (sizes.transform("min") != sizes.transform("max")).any(axis=1)
        reasons = {
            "blank id": ids == "",
            "blank phrase": rows["label_text"] == "",
            "unknown class": ~rows["category_name"].isin(CATEGORIES),
            "path leads out of the corpus": (relative == "") & (rows["path"] != ""),
            "path is not files/p../p../s../image": parts[0].isna(),
            "path names another image": parts[2] != ids,
            "box or image size that is no number": ~np.isfinite(numbers.to_numpy()).all(axis=1),
            "two rows of one image differ in the image size": two_sizes,
            "empty box": (w <= 0) | (h <= 0),
            "box outside the image": (x < 0) | (y < 0) | (x + w > width) | (y + h > height),
            "two rows of one image differ in the path": relative.groupby(ids).transform("nunique") > 1,
            "two rows of one image differ in the split": rows["split"].groupby(ids).transform("nunique") > 1,
        }
        if "two_sizes" in rows:
            reasons["image and annotation differ in the image size"] = rows["two_sizes"]
        good = self.sound_rows(dropped, ids, reasons, str(path), by_reason=True)
        rows = rows.assign(relative=relative, patient=parts[0], study=parts[1], **dict(numbers.items()))
        # numbered before any is dropped, so that the id of a phrase does not depend on the others
        rows["nth"] = rows.groupby("dicom_id")["label_text"].transform(lambda texts: pd.factorize(texts)[0] + 1)
        # a phrase that lost a box, or an image that lost a phrase, would be annotated wrongly
        units = pd.MultiIndex.from_frame(rows[keys])
        lost = units.isin(units[~good])
        # nobody knows to which phrase of the image such a row belongs, nor, where they disagree, to which of two images
        strayed = (ids == "") | (rows["label_text"] == "") | (parts[2] != ids)
        lost |= ids.isin({*ids[strayed], *parts[2][strayed].dropna()}).to_numpy()
        others = rows[lost & good]
        dropped.extend(others["dicom_id"], others["row"], "another row of the record is broken", broken=True)
        return rows[~lost]

    def _on_disk(self, rows: pd.DataFrame, dropped: Dropped, path: Path) -> pd.DataFrame:
        """The rows whose image is there, with its path and the boxes in its pixels."""
        images = rows.drop_duplicates("dicom_id")
        files = [os.path.abspath(file) for file in mimic_paths(self.mimic_root, images["relative"].tolist())]
        listed = dict(zip(images["relative"], files, strict=True))
        self.substitute({n: f for n, f in listed.items() if os.path.splitext(n)[1] != os.path.splitext(f)[1]})
        wrong = []
        scales: dict[str, tuple[float, float]] = {}
        for image, file, header in zip(rows_of(images), files, read_headers(files), strict=True):
            scale = (header.width / image.image_width, header.height / image.image_height)
            scales[image.dicom_id] = scale
            problem = ""
            if not header.width or not header.height:
                problem = header.problem or "unknown image size"
            # a reduced copy has whole pixels, so that its sides may be off the exact ratio by one
            elif abs(scale[0] - scale[1]) > max(scale) / min(header.width, header.height):
                problem = f"the file has {header.width} x {header.height} pixels, another shape than the table says"
            if problem:
                problem = "missing image file" if problem.startswith("missing file") else problem
                self.broken(dropped, image.dicom_id, int(image.row), problem, f"{path} (image {file})")
                wrong.append(image.dicom_id)
        rows = rows[~rows["dicom_id"].isin(wrong)]
        scale_xy = np.array([scales[i] for i in rows["dicom_id"]]).reshape(-1, 2)
        low = rows[_BOX[:2]].to_numpy()
        corners = np.hstack([low * scale_xy, (low + rows[_BOX[2:]].to_numpy()) * scale_xy])
        return rows.assign(image=rows["relative"].map(listed), **dict(zip(_CORNERS, corners.T, strict=True)))

    @staticmethod
    def _table(rows: pd.DataFrame, keys: list[str], task: str | None) -> pa.Table:
        units = rows.drop_duplicates(keys).reset_index(drop=True)
        number = pd.MultiIndex.from_frame(units[keys]).get_indexer(pd.MultiIndex.from_frame(rows[keys]))
        category = rows["category_name"].map({name: i for i, name in enumerate(CATEGORIES)}).to_numpy(dtype=np.int64)
        labels = np.zeros((len(units), len(CATEGORIES)), dtype=np.float32)
        labels[number, category] = 1
        columns = units.assign(id=units["dicom_id"], pool=units["split"])
        if len(keys) > 1:
            columns = columns.assign(id=units["dicom_id"] + "_" + units["nth"].astype(str), text=units["label_text"])
        frame = pd.DataFrame(labels, columns=list(CATEGORIES))
        if task in ("classification", "pairs"):
            return make_table(columns, frame)
        boxes = grouped(rows[_CORNERS].to_numpy().tolist(), number, len(units))
        classes = grouped(category, number, len(units))
        return make_table(columns, frame, boxes=boxes, box_labels=classes, shapes=rectangles(boxes))

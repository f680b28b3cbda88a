"""RSNA Pneumonia Detection Challenge, stage 2, as Kaggle released it.

Expected under the root: ``stage_2_train_labels.csv``, one row **per box**, and the images in ``stage_2_train_images/``
and ``stage_2_test_images/`` as ``<patientId>.dcm``. ``stage_2_detailed_class_info.csv`` and
``stage_2_sample_submission.csv`` are read where they serve.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from medvlp.datasets.base import Dropped, OnError, grouped, make_table, rectangles, with_labels
from medvlp.datasets.corpus import Corpus, Records, Task
from medvlp.datasets.folders import common_size, image_files
from medvlp.datasets.tables import TableSpec, read_lines, read_table, released_tables
from medvlp.errors import DataError
from medvlp.splits import SplitInput

PNEUMONIA = "Pneumonia"
DETAILED_CLASSES: tuple[str, ...] = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
"""Classes of ``stage_2_detailed_class_info.csv``. Target 0 is not "normal": it is the first two together."""
_ALL_CLASSES = (PNEUMONIA, *DETAILED_CLASSES)

_LABELS, _CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
_SUBMISSION = "stage_2_sample_submission.csv"
_TRAIN, _TEST = "stage_2_train_images", "stage_2_test_images"
_BOX = ("x", "y", "width", "height")
_NEED_BOXES = ("segmentation", "detection", "grounding")


class RSNAPneumonia(Corpus):
    """RSNA Pneumonia Detection Challenge, stage 2.

    Records are images: those of the label table sorted by patientId, as ``groupby`` sorts them for the published splits
    (pool "train"), then the test images, sorted (pool "test"). Kaggle gave no labels of the test images: without
    ``test_labels`` they are unknown (NaN), and tasks with boxes leave these images out.

    Masks are the union of the boxes. A patientId names one image, so true patients are not known. Boxes lie in the
    files' own pixels; all images of a release have one size (1024 × 1024), which the first header gives.

    Args:
        root: folder of the challenge.
        classes: labels of a sample, in this order: "Pneumonia" (the Target), or the detailed classes "Normal",
            "No Lung Opacity / Not Normal", "Lung Opacity".
        test_labels: file with labels of the test images, which RSNA released after the challenge: a CSV with the
            columns of stage_2_train_labels.csv (patientId and Target at least), or a list with lines
            "stage_2_test_images/<patientId>.dcm 0", as MRM and MaCo have them.
    """

    name = "rsna"
    title = "RSNA Pneumonia Detection Challenge"
    source = "Kaggle's rsna-pneumonia-detection-challenge (stage 2)"
    tasks = ("classification", "segmentation", "detection", "grounding")
    tables = released_tables("rsna")
    image_folders = (_TRAIN, _TEST)
    image_counts = {_TRAIN: 26_684, _TEST: 3_000}  # noqa: RUF012 - a class constant

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[str] = (PNEUMONIA,),
        test_labels: str | Path | None = None,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(root, on_error=on_error)
        self.classes = self.chosen_labels(classes, _ALL_CLASSES, required=True)
        self.test_labels = Path(test_labels) if test_labels is not None else None

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """Images with their boxes."""
        dropped = self.begin(task)
        parts = [_no_images()]
        if pools is None or "train" in pools:
            parts = [self._train(task, dropped)]
        if pools is None or "test" in pools:
            parts.append(self._test(task, dropped, required=pools is not None))
        images = pd.concat(parts, ignore_index=True)
        if task == "grounding":
            images["text"] = PNEUMONIA
        boxes = images["boxes"].tolist()
        with_boxes = task in (None, "detection", "grounding")
        table = make_table(
            images.assign(patient=images["id"]),
            images[[c for c in _ALL_CLASSES if c in images.columns]],
            boxes=boxes if with_boxes else None,
            shapes=rectangles(boxes) if task in (None, "segmentation", "grounding") else None,
        )
        return Records(table, dropped.frame(), box_names=(PNEUMONIA,) if with_boxes else ())

    def listing(self) -> SplitInput:
        """The images of the label table, then those of ``stage_2_sample_submission.csv`` or of the test folder."""
        dropped = self.begin(listing=True)
        train = _targets(self.read_table(_LABELS).frame).assign(pool="train")
        listed, _ = self._listed_test(self._files(self.root / _TEST), dropped)
        ids = sorted(set(listed["patientId"]) - {""})
        targets = pd.Series(dtype=np.float32)
        if self.test_labels is not None:
            targets = _targets(self._read_test_labels(self.test_labels)[0]).set_index("id")[PNEUMONIA]
        test = pd.DataFrame({"id": ids, PNEUMONIA: targets.reindex(ids).to_numpy(np.float32), "pool": "test"})
        # an image in both tables is a training image
        images = pd.concat([train, test], ignore_index=True).drop_duplicates("id", ignore_index=True)
        return self.listed(images.assign(patient=images["id"]), images[[PNEUMONIA]])

    def after_split(self, table: pa.Table) -> pa.Table:
        """Keep the chosen classes; for grounding keep the images that show something to ground, as MedKLIP does."""
        table = with_labels(table, [c for c in self.classes if c in table.column_names])
        if "text" in table.column_names:
            table = table.filter(pc.greater(pc.list_value_length(table.column("boxes")), 0))
        return table

    def _train(self, task: str | None, dropped: Dropped) -> pd.DataFrame:
        table = self.read_table(_LABELS, dropped)
        folder = self.root / _TRAIN
        if not folder.is_dir():
            raise DataError(f"the image folder {folder} is missing; get it from {self.remedy}")
        images = self._annotated(table.frame, str(table.path), folder, dropped)
        detailed = not {*self.classes}.isdisjoint(DETAILED_CLASSES) and task in (None, "classification")
        if detailed or (task is None and self.has_table(_CLASSES)):
            images = self._with_classes(images, dropped)
        return images.assign(pool="train")

    def _test(self, task: str | None, dropped: Dropped, *, required: bool) -> pd.DataFrame:
        folder = self.root / _TEST
        if not folder.is_dir() and required:
            raise DataError(f"the image folder {folder} is missing; get it from {self.remedy}")
        files = self._files(folder)
        listed, where = self._listed_test(files, dropped)
        if not folder.is_dir():
            # many copies hold the training images alone, and most splits need no others
            dropped.extend(listed["patientId"], listed.index, f"no folder {_TEST}")
            return _no_images()
        ids = listed["patientId"]
        ids = ids[self.sound_rows(dropped, ids, {"blank patientId": ids == ""}, where)]
        parts, bare, has_boxes = [], ids, False
        if self.test_labels is not None:
            frame, has_boxes = self._read_test_labels(self.test_labels)
            known = frame["patientId"].isin(ids)
            dropped.extend(frame["patientId"][~known], frame.index[~known], "a label, but no such test image")
            parts = [self._annotated(frame[known], str(self.test_labels), folder, dropped, has_boxes=has_boxes)]
            bare = ids[~ids.isin(frame["patientId"])]
        # images without labels
        bare = bare[self.sound_rows(dropped, bare, {"missing image file": ~bare.isin(files.keys())}, where)]
        columns = {"id": bare, "image": bare.map(files), "row": bare.index, "boxes": [[] for _ in bare]}
        images = pd.concat([*parts, pd.DataFrame({**columns, PNEUMONIA: np.nan})], ignore_index=True)
        images = images.sort_values("id", ignore_index=True).assign(pool="test")
        unlabelled = images[PNEUMONIA].isna() if has_boxes else pd.Series(True, index=images.index)
        if task in _NEED_BOXES and unlabelled.any():
            # an image of which no box is known must not pass for one without opacities
            dropped.extend(images["id"][unlabelled], images["row"][unlabelled], "test image without boxes released")
            images = images[~unlabelled]
        return images

    def _listed_test(self, files: dict[str, str], dropped: Dropped) -> tuple[pd.DataFrame, str]:
        """PatientIds of the test images, and the table or folder that lists them."""
        if not self.has_table(_SUBMISSION):
            return pd.DataFrame({"patientId": sorted(files)}), str(self.root / _TEST)
        table = self.read_table(_SUBMISSION, dropped)
        unlisted = sorted(set(files) - set(table.frame["patientId"]))
        dropped.extend(unlisted, [-1] * len(unlisted), f"no row in {_SUBMISSION}")
        return table.frame[["patientId"]], str(table.path)

    def _read_test_labels(self, path: Path) -> tuple[pd.DataFrame, bool]:
        """The frame in the columns of the label table, and whether it has boxes."""
        if not path.is_file():
            raise DataError(f"the file {path} (test_labels) is missing; check the path, or leave test_labels out")
        if path.suffix == ".txt":
            lines = [line.split() for line in read_lines(path, "get it again") if line]
            for row, cells in enumerate(lines):
                if len(cells) != 2:
                    raise DataError(f"row {row} of {path} is not a path and a label; get the list again")
            stems = [c[0].replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".dcm") for c in lines]
            frame = pd.DataFrame({"patientId": stems, "Target": [c[1] for c in lines]}, dtype=object)
            return frame.drop_duplicates(), False
        spec = TableSpec(path.name, ("patientId", "Target"), optional=_BOX, needed_for="test_labels")
        frame = read_table(path.parent, spec, source="RSNA").frame
        return frame.drop_duplicates(), all(c in frame.columns for c in _BOX)

    def _files(self, folder: Path, listed: Iterable[str] | None = None) -> dict[str, str]:
        """PatientId to absolute path: of DICOM files, and of others that stand in for listed ones.

        By default the patientIds of the sample submission are listed, without it and any DICOM file all images.
        """
        present = image_files([folder])
        released = [name for name in present if name.lower().endswith(".dcm")]
        if listed is None and self.has_table(_SUBMISSION):
            listed = self.read_table(_SUBMISSION).frame["patientId"]
        if listed is None:
            listed = [] if released else dict.fromkeys(os.path.splitext(name)[0] for name in present)
        names = dict.fromkeys([*released, *(f"{i}.dcm" for i in listed if i)])
        return {os.path.splitext(name)[0]: path for name, path in self.files_of(names, present).items()}

    def _annotated(
        self, frame: pd.DataFrame, where: str, folder: Path, dropped: Dropped, *, has_boxes: bool = True
    ) -> pd.DataFrame:
        """One row per image, sorted by id: id, image, row (of its first), boxes, Pneumonia."""
        ids = frame["patientId"]
        files = self._files(folder, ids)
        present = ids.isin(files.keys())
        size = common_size(files[i] for i in sorted(ids[present].unique())) if has_boxes else None
        target = pd.to_numeric(frame["Target"], errors="coerce")
        corners, of_boxes = _boxes(frame, target, size) if has_boxes else (pd.DataFrame(index=frame.index), {})
        reasons = {
            "blank patientId": ids == "",
            "Target is neither 0 nor 1": ~target.isin((0, 1)),
            **of_boxes,
            "both Target 0 and Target 1": ids.map(target.groupby(ids).nunique()) > 1,
            "missing image file": ~present,
        }
        good = self.sound_rows(dropped, ids, reasons, where, whole=True)
        frame, corners, target = frame[good], corners[good], target[good]
        rows = frame.reset_index(names="row").groupby("patientId", sort=True)[["row"]].first()
        boxed = target == 1 if has_boxes else pd.Series(False, index=frame.index)
        record = rows.index.get_indexer(pd.Index(frame["patientId"][boxed]))
        return pd.DataFrame(
            {
                "id": rows.index.to_numpy(dtype=object),
                "image": [files[i] for i in rows.index],
                "row": rows["row"].to_numpy(),
                "boxes": grouped(corners[boxed].astype(float).to_numpy().tolist(), record, len(rows)),
                PNEUMONIA: target.groupby(frame["patientId"], sort=True).first().to_numpy(dtype=np.float32),
            }
        )

    def _with_classes(self, images: pd.DataFrame, dropped: Dropped) -> pd.DataFrame:
        """Add the three detailed classes as one-hot columns."""
        table = self.read_table(_CLASSES)
        # one row per box: a join before this would multiply rows
        frame = table.frame.drop_duplicates(["patientId", "class"])
        frame = frame[(frame["patientId"] != "") | ~frame.duplicated("patientId")]
        ids, names = frame["patientId"], frame["class"]
        positive = ids.map(images.set_index("id")[PNEUMONIA])
        reasons = {
            "blank patientId": ids == "",
            "unknown class name": ~names.isin(DETAILED_CLASSES),
            "two detailed classes": ids.duplicated(keep=False),
            "class and Target disagree": positive.notna() & ((names == DETAILED_CLASSES[2]) != (positive == 1)),
        }
        good = self.sound_rows(dropped, ids, reasons, str(table.path), whole=True)
        images = images[~images["id"].isin(ids[~good])]
        of_image = images["id"].map(names[good].set_axis(ids[good]))
        # the table lists every training image
        listed = of_image.notna()
        self.broken_rows(dropped, images["id"][~listed], "no detailed class", str(table.path), images["row"][~listed])
        one_hot = {c: (of_image[listed] == c).to_numpy(np.float32) for c in DETAILED_CLASSES}
        return images[listed].assign(**one_hot)


def _targets(frame: pd.DataFrame) -> pd.DataFrame:
    """The images of a label table, sorted by id: id, and Pneumonia or NaN where the Target cannot be made out."""
    frame = frame[frame["patientId"] != ""]
    target = pd.to_numeric(frame["Target"], errors="coerce").where(lambda t: t.isin((0, 1)))
    of_image = target.groupby(frame["patientId"], sort=True)
    value = of_image.first().where(of_image.nunique() == 1)
    return pd.DataFrame({"id": value.index.to_numpy(dtype=object), PNEUMONIA: value.to_numpy(np.float32)})


def _no_images() -> pd.DataFrame:
    return pd.DataFrame(columns=["id", "image", "row", "boxes", PNEUMONIA, "pool"], dtype=object)


def _boxes(
    frame: pd.DataFrame, target: pd.Series, size: tuple[int, int] | None
) -> tuple[pd.DataFrame, dict[str, pd.Series]]:
    """Corners of the boxes (NaN for none), and what may be wrong with a row's box."""
    cells = frame[list(_BOX)]
    numbers = cells.apply(pd.to_numeric, errors="coerce")
    x, y, width, height = (numbers[name] for name in _BOX)
    corners = pd.DataFrame({"x0": x, "y0": y, "x1": x + width, "y1": y + height})
    outside = (x < 0) | (y < 0)
    if size is not None:
        outside |= (corners["y1"] > size[0]) | (corners["x1"] > size[1])
    boxed = target == 1
    return corners, {
        "the box is not four numbers": boxed & ~np.isfinite(numbers).all(axis=1),
        "a box, but Target 0": (target == 0) & (cells != "").any(axis=1),
        "empty box": boxed & ((width <= 0) | (height <= 0)),
        "box outside the image": boxed & outside,
    }

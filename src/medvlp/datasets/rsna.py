"""RSNA Pneumonia Detection Challenge, stage 2, as Kaggle released it.

Expected under the root: ``stage_2_train_labels.csv``, one row **per box**, and the images in ``stage_2_train_images/``
and ``stage_2_test_images/`` as ``<patientId>.dcm``. ``stage_2_detailed_class_info.csv`` and
``stage_2_sample_submission.csv`` are read where they serve.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from medvlp.datasets.base import RESERVED_COLUMNS, Dropped, OnError, make_table
from medvlp.datasets.corpus import Corpus, Records, Task, Unnoted
from medvlp.datasets.folders import common_size, image_files
from medvlp.datasets.tables import Table, TableSpec, read_table
from medvlp.errors import ConfigError, DataError
from medvlp.splits import SplitInput

PNEUMONIA = "Pneumonia"
DETAILED_CLASSES: tuple[str, ...] = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
"""Classes of ``stage_2_detailed_class_info.csv``. Target 0 is not "normal": it is the first two together."""

_LABELS, _CLASSES, _SUBMISSION = (
    "stage_2_train_labels.csv",
    "stage_2_detailed_class_info.csv",
    "stage_2_sample_submission.csv",
)
_TRAIN, _TEST = "stage_2_train_images", "stage_2_test_images"
_BOX = ("x", "y", "width", "height")
_COLUMNS = ("patientId", *_BOX, "Target")
_WITH_MASKS = (None, "segmentation", "grounding")
_NEED_BOXES = ("segmentation", "detection", "grounding")


class RSNAPneumonia(Corpus):
    """RSNA Pneumonia Detection Challenge, stage 2.

    Records are images: those of the label table sorted by patientId, as ``groupby`` sorts them for the published splits
    (pool "train"), then the test images, sorted (pool "test"). Kaggle gave no labels of the test images: for
    classification they are unknown (NaN) unless ``test_labels`` are given, for tasks with boxes such images are left
    out.

    Masks are the union of the boxes. An image's patientId names that image alone, so it stands for the patient, and
    true patients cannot be kept together. Boxes lie in the files' own pixels; their far edge is checked against the
    size in the header of the first image, since all images of a release have one size (1024 × 1024).

    Args:
        root: folder of the challenge.
        classes: labels of a sample, in this order: "Pneumonia" (the Target) or names of :data:`DETAILED_CLASSES`.
        test_labels: labels of the test images, which RSNA released after the challenge: a csv in the columns of
            ``stage_2_train_labels.csv`` (patientId and Target at least), or a list with lines
            ``stage_2_test_images/<patientId>.dcm 0``, as MRM and MaCo have them.
        on_error: "raise" on the first broken item, or "skip": leave it out, counted and listed.

    Raises:
        ConfigError: there is no such class.
    """

    name = "rsna"
    title = "RSNA Pneumonia Detection Challenge"
    source = "Kaggle's rsna-pneumonia-detection-challenge (stage 2)"
    tasks = ("classification", "segmentation", "detection", "grounding")
    tables = (
        # the key is the whole row: an image may have several, and only a row that repeats another is dropped
        TableSpec(_LABELS, _COLUMNS, key=_COLUMNS, rows={30_227: "stage 2"}),
        TableSpec(
            _CLASSES,
            ("patientId", "class"),
            required=False,
            needed_for=f"classes: {', '.join(DETAILED_CLASSES)}",
        ),
        TableSpec(
            _SUBMISSION,
            ("patientId",),
            optional=("PredictionString",),
            key=("patientId",),
            required=False,
            needed_for="the list of the test images",
            rows={3_000: "stage 2"},
        ),
    )
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
        known = (PNEUMONIA, *DETAILED_CLASSES)
        if unknown := [c for c in classes if c not in known]:
            raise ConfigError(f"{self.title} has no class {', '.join(unknown)}; it has {', '.join(known)}")
        if not classes:
            raise ConfigError(f"classes is empty; name some of {', '.join(known)}")
        self.classes = tuple(classes)
        self.test_labels = Path(test_labels) if test_labels is not None else None

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """Images with their boxes; see :meth:`Corpus.records`."""
        self.require_task(task)
        self.require_root()
        dropped = Dropped()
        parts = []
        if pools is None or "train" in pools:
            parts.append(self._train(task, dropped))
        if pools is None or "test" in pools:
            parts.append(self._test(task, dropped, required=pools is not None))
        images = pd.concat(parts, ignore_index=True) if parts else _no_images()
        columns: dict[str, Any] = {
            "id": images["id"],
            "image": images["image"],
            "patient": images["id"],
            "pool": images["pool"],
        }
        if task == "grounding":
            columns["text"] = [PNEUMONIA] * len(images)
        labels = images[[c for c in (PNEUMONIA, *DETAILED_CLASSES) if c in images.columns]]
        boxes = images["boxes"].tolist()
        with_boxes = task in (None, "detection", "grounding")
        table = make_table(
            columns,
            labels,
            boxes=boxes if with_boxes else None,
            box_labels=[[0] * len(b) for b in boxes] if with_boxes else None,
            shapes=[[_rectangle(b) for b in bs] for bs in boxes] if task in _WITH_MASKS else None,
        )
        return Records(table, dropped.frame(), box_names=(PNEUMONIA,) if with_boxes else ())

    def listing(self) -> SplitInput:
        """The images of the label table, then the test images, by their tables alone; see :meth:`Corpus.listing`.

        No label table lists the test images. They are those of ``stage_2_sample_submission.csv`` or, without it, those
        in their folder.
        """
        self.require_root()
        train = _targets(self.read_table(_LABELS).frame).assign(pool="train")
        listed, _ = self._listed_test(self._files(self.root / _TEST), Unnoted())
        ids = sorted(set(listed["patientId"]) - {""})
        targets = pd.Series(dtype=np.float32)
        if self.test_labels is not None:
            targets = _targets(self._read_test_labels(self.test_labels)[0]).set_index("id")[PNEUMONIA]
        test = pd.DataFrame({"id": ids, PNEUMONIA: targets.reindex(ids).to_numpy(np.float32), "pool": "test"})
        # an image in both tables is a training image
        images = pd.concat([train, test], ignore_index=True).drop_duplicates("id", ignore_index=True)
        columns = {"id": images["id"], "patient": images["id"], "pool": images["pool"]}
        return self.split_input(Records(make_table(columns, images[[PNEUMONIA]]), Unnoted().frame()))

    def after_split(self, table: pa.Table) -> pa.Table:
        """Keep the chosen classes; for grounding keep the images that show something to ground, as MedKLIP does."""
        labels = [c for c in table.column_names if c not in RESERVED_COLUMNS]
        table = table.drop_columns([c for c in labels if c not in self.classes])
        others = [c for c in table.column_names if c not in labels]
        table = table.select([*others, *(c for c in self.classes if c in labels)])
        if "text" in table.column_names:
            table = table.filter(pa.array([len(b) > 0 for b in table.column("boxes").to_pylist()], type=pa.bool_()))
        return table

    # ------------------------------------------------------------------ the released parts

    def _train(self, task: str | None, dropped: Dropped) -> pd.DataFrame:
        table = self.read_table(_LABELS)
        _note_repeated(table, dropped)
        folder = self.root / _TRAIN
        if not folder.is_dir():
            raise DataError(f"the image folder {folder} is missing; get it from {self.remedy}")
        images = self._annotated(table.frame, str(table.path), folder, dropped)
        wanted = any(c in DETAILED_CLASSES for c in self.classes) and task in (None, "classification")
        if wanted or (task is None and self.has_table(_CLASSES)):
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
        blank = listed["patientId"] == ""
        for row in listed.index[blank]:
            self.broken(dropped, "", int(row), "blank patientId", where)
        listed = listed[~blank]
        has_boxes = False
        if self.test_labels is not None:
            frame, has_boxes = self._read_test_labels(self.test_labels)
            known = frame["patientId"].isin(listed["patientId"])
            dropped.extend(frame["patientId"][~known], frame.index[~known], "a label, but no such test image")
            images = self._annotated(frame[known], str(self.test_labels), folder, dropped, has_boxes=has_boxes)
            bare = ~listed["patientId"].isin(frame["patientId"])
            images = pd.concat([images, self._bare(listed[bare], where, files, dropped)], ignore_index=True)
        else:
            images = self._bare(listed, where, files, dropped)
        images = images.sort_values("id", ignore_index=True).assign(pool="test")
        unlabelled = images[PNEUMONIA].isna() if has_boxes else pd.Series(True, index=images.index)
        if task in _NEED_BOXES and unlabelled.any():
            # an image of which no box is known must not pass for one without opacities
            dropped.extend(images["id"][unlabelled], images["row"][unlabelled], "test image without boxes released")
            images = images[~unlabelled]
        return images

    def _listed_test(self, files: dict[str, str], dropped: Dropped) -> tuple[pd.DataFrame, str]:
        """PatientIds of the test images, and what lists them: the table, or the folder where there is none."""
        if not self.has_table(_SUBMISSION):
            return pd.DataFrame({"patientId": sorted(files)}), str(self.root / _TEST)
        table = self.read_table(_SUBMISSION)
        _note_repeated(table, dropped)
        unlisted = sorted(set(files) - set(table.frame["patientId"]))
        dropped.extend(unlisted, [-1] * len(unlisted), f"no row in {_SUBMISSION}")
        return table.frame[["patientId"]], str(table.path)

    def _bare(self, listed: pd.DataFrame, where: str, files: dict[str, str], dropped: Dropped) -> pd.DataFrame:
        """Images of which nothing is known but that they are there."""
        absent = ~listed["patientId"].isin(files.keys())
        for row in listed.index[absent]:
            self.broken(dropped, listed["patientId"][row], int(row), "missing image file", where)
        ids = listed["patientId"][~absent]
        paths = [files[i] for i in ids]
        return pd.DataFrame(
            {"id": ids.to_numpy(), "image": paths, "row": ids.index, "boxes": [[] for _ in paths], PNEUMONIA: np.nan}
        )

    def _read_test_labels(self, path: Path) -> tuple[pd.DataFrame, bool]:
        """The frame in the columns of the label table, and whether it has boxes."""
        if not path.is_file():
            raise DataError(f"the file {path} (test_labels) is missing; check the path, or leave test_labels out")
        if path.suffix == ".txt":
            try:
                lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} cannot be read ({type(error).__name__}); get it again") from error
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

        Args:
            folder: of a released part.
            listed: patientIds of its tables; None takes those of the sample submission, and where there is neither this
                nor a DICOM file, every image.
        """
        there = image_files([folder])
        released = [name for name in there if name.lower().endswith(".dcm")]
        if listed is None and self.has_table(_SUBMISSION):
            listed = self.read_table(_SUBMISSION).frame["patientId"]
        if listed is None:
            listed = [] if released else dict.fromkeys(os.path.splitext(name)[0] for name in there)
        names = dict.fromkeys([*released, *(f"{i}.dcm" for i in listed if i)])
        stems = {os.path.splitext(name)[0]: path for name, path in self.files_of(names, there).items()}
        return stems

    # ------------------------------------------------------------------ rows to images

    def _annotated(
        self, frame: pd.DataFrame, where: str, folder: Path, dropped: Dropped, *, has_boxes: bool = True
    ) -> pd.DataFrame:
        """One row per image, sorted by id: id, image, row (of its first), boxes, Pneumonia."""
        ids = frame["patientId"]
        files = self._files(folder, ids)
        present = ids.isin(files.keys())
        size = common_size(files[i] for i in sorted(ids[present].unique())) if has_boxes else None
        target = pd.to_numeric(frame["Target"], errors="coerce")
        reason = pd.Series("", index=frame.index, dtype=object)

        def note(wrong: pd.Series, text: str) -> None:
            reason[wrong & (reason == "")] = text

        note(ids == "", "blank patientId")
        note(~target.isin((0, 1)), "Target is neither 0 nor 1")
        corners = pd.DataFrame(index=frame.index)
        if has_boxes:
            cells = frame[list(_BOX)]
            numbers = cells.apply(pd.to_numeric, errors="coerce")
            boxed = target == 1
            note(boxed & ~np.isfinite(numbers).all(axis=1), "the box is not four numbers")
            note((target == 0) & (cells != "").any(axis=1), "a box, but Target 0")
            note(boxed & ((numbers["width"] <= 0) | (numbers["height"] <= 0)), "empty box")
            corners = pd.DataFrame(
                {
                    "x0": numbers["x"],
                    "y0": numbers["y"],
                    "x1": numbers["x"] + numbers["width"],
                    "y1": numbers["y"] + numbers["height"],
                }
            )
            outside = (corners["x0"] < 0) | (corners["y0"] < 0)
            if size is not None:
                outside |= (corners["y1"] > size[0]) | (corners["x1"] > size[1])
            note(boxed & outside, "box outside the image")
        note(ids.map(target.groupby(ids).nunique()) > 1, "both Target 0 and Target 1")
        note(~present, "missing image file")
        wrong = reason != ""
        # the first row that is wrong speaks for its image, and the whole image goes: half its boxes are a wrong sample
        first = frame[wrong].drop_duplicates("patientId")
        first = pd.concat([first, frame[wrong & (ids == "")]]).loc[lambda f: ~f.index.duplicated()].sort_index()
        for row, item in zip(first.index, first["patientId"], strict=True):
            self.broken(dropped, item, int(row), reason[row], where)
        good = ~ids.isin(set(ids[wrong]))
        frame, corners, target = frame[good], corners[good], target[good]
        rows = frame.reset_index(names="row").groupby("patientId", sort=True)["row"].first()
        found: dict[str, list[tuple[float, ...]]] = {i: [] for i in rows.index}
        if has_boxes:
            positive = target == 1
            values = corners[positive].itertuples(index=False, name=None)
            for item, box in zip(frame["patientId"][positive], values, strict=True):
                found[item].append(tuple(map(float, box)))
        return pd.DataFrame(
            {
                "id": rows.index.to_numpy(dtype=object),
                "image": [files[i] for i in rows.index],
                "row": rows.to_numpy(),
                "boxes": list(found.values()),
                PNEUMONIA: target.groupby(frame["patientId"], sort=True).first().to_numpy(dtype=np.float32),
            }
        )

    def _with_classes(self, images: pd.DataFrame, dropped: Dropped) -> pd.DataFrame:
        """Add the three detailed classes as one-hot columns."""
        table = self.read_table(_CLASSES)
        # one row per box: a join before this would multiply rows
        frame = table.frame.drop_duplicates(["patientId", "class"])
        positive = frame["patientId"].map(images.set_index("id")[PNEUMONIA])
        reason = pd.Series("", index=frame.index, dtype=object)
        reason[positive.notna() & ((frame["class"] == DETAILED_CLASSES[2]) != (positive == 1))] = (
            "class and Target disagree"
        )
        reason[frame.duplicated("patientId", keep=False)] = "two detailed classes"
        reason[~frame["class"].isin(DETAILED_CLASSES)] = "unknown class name"
        reason[frame["patientId"] == ""] = "blank patientId"
        wrong = frame[reason != ""].drop_duplicates("patientId")
        for row, item in zip(wrong.index, wrong["patientId"], strict=True):
            self.broken(dropped, item, int(row), reason[row], str(table.path))
        images = images[~images["id"].isin(wrong["patientId"])]
        known = frame[~frame["patientId"].isin(wrong["patientId"])].set_index("patientId")["class"]
        of_image = images["id"].map(known)
        unknown = of_image.isna()
        for row, item in zip(images["row"][unknown], images["id"][unknown], strict=True):
            # the table lists every training image
            self.broken(dropped, item, int(row), "no detailed class", str(table.path))
        images, of_image = images[~unknown], of_image[~unknown]
        return images.assign(**{c: (of_image == c).to_numpy(np.float32) for c in DETAILED_CLASSES})


def _targets(frame: pd.DataFrame) -> pd.DataFrame:
    """The images of a label table, sorted by id: id, and Pneumonia or NaN where the Target cannot be made out."""
    frame = frame[frame["patientId"] != ""]
    target = pd.to_numeric(frame["Target"], errors="coerce").where(lambda t: t.isin((0, 1)))
    of_image = target.groupby(frame["patientId"], sort=True)
    value = of_image.first().where(of_image.nunique() == 1)
    return pd.DataFrame({"id": value.index.to_numpy(dtype=object), PNEUMONIA: value.to_numpy(np.float32)})


def _no_images() -> pd.DataFrame:
    frame = pd.DataFrame({"id": [], "image": [], "row": [], "boxes": [], PNEUMONIA: [], "pool": []}, dtype=object)
    return frame.astype({PNEUMONIA: np.float32})


def _note_repeated(table: Table, dropped: Dropped) -> None:
    dropped.extend([""] * len(table.repeated), table.repeated, f"repeats an earlier row of {table.spec.name}")


def _rectangle(box: Sequence[float]) -> str:
    return "rectangle " + " ".join(f"{v:.10g}" for v in box)

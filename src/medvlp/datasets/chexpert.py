"""CheXpert-v1.0, CheXpert-v1.0-small and the reports of CheXpert Plus, as Stanford AIMI releases them.

Expected under the root: ``train.csv``, ``valid.csv`` and, for the later test set, ``groundtruth.csv``; the images at
``train/patient00001/study1/view1_frontal.jpg`` and so on. The download in batches works as it is unpacked, with the
root above the folders ``CheXpert-v1.0 batch 1 (validate & csv)``, ``CheXpert-v1.0 batch 2 (train 1)`` and so on. For
reports the table ``df_chexpert_plus_240401.csv`` is read.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from medvlp.datasets.base import Dropped, OnError, make_table, with_labels
from medvlp.datasets.chexpert_files import patient_folders, views_of
from medvlp.datasets.corpus import Corpus, Records, Task, unusable
from medvlp.datasets.folders import IMAGE_SUFFIXES
from medvlp.datasets.labels import CHEXPERT_5, CHEXPERT_14, LABEL_POLICIES, Blanks, LabelPolicy, apply_policy
from medvlp.datasets.tables import TableSpec, first_reason, to_numbers
from medvlp.errors import ConfigError, DataError, check_choice
from medvlp.io.paths import folder_path
from medvlp.io.reports import CLEANINGS, POLICIES, Sections, report_text
from medvlp.splits import SplitInput

TestImages = Literal["first", "all"]

PLUS = "df_chexpert_plus_240401.csv"
"""Table of CheXpert Plus with the reports."""

LATERAL, FRONTAL = "LATERAL", "FRONTAL"
"""Views of images whose AP/PA the release leaves blank: by the column Frontal/Lateral, in the test set by file name."""

_RELEASE = "CheXpert-v1.0"  # of which the names of all released folders begin
_TRUTH = "groundtruth.csv"
_FIRST = "/view1_"
_TABLES = {"train": "train.csv", "valid": "valid.csv"}
_POOLS = {**_TABLES, "test": _TRUTH}
_COLUMNS = ("id", "image", "patient", "study", "view", "pool")
_SIDE, _PROJECTION = "Frontal/Lateral", "AP/PA"
_RELEASED = ("Path", _SIDE, _PROJECTION, *CHEXPERT_14)
_TEST_STUDY = r"^(?:[^/]+/)?test/(patient\d+)/(study\d+)/?$"
_REPORTED = r"^(?:[^/]+/)?((?:train|valid)/patient\d+/study\d+/view\d+_(?:frontal|lateral))\.\w+$"
_IMAGE = r"(patient\d+)/(study\d+)/(view\d+_(?:frontal|lateral)\.jpg)$"


class CheXpert(Corpus):
    """CheXpert-v1.0 or CheXpert-v1.0-small, with the reports of CheXpert Plus for pairs.

    Records are **all** images with their raw labels: the rows of train.csv in the order of the file (pool "train"), of
    valid.csv ("valid"), then the test images in the order of groundtruth.csv ("test"); a part that is not there is left
    out unless it is asked for by name. Published splits draw from all views and look at raw labels, so the choice of
    views and of test images, the label policy, the choice of classes and, for pairs, leaving out images without a
    report come after the split (:meth:`after_split`).

    A test label holds for a study. ``test_images`` "first" takes one image per study, the one called view1, as CheXzero
    does: 500 of the 668. An image without a file is found by listing the folders of all patients.

    Args:
        root: folder of the release, folder of the unpacked batches, or where the phantom is written.
        classes: labels of a sample, in this order; None for all 14.
        label_policy: what becomes of uncertain labels, a name of medvlp.datasets.labels.LABEL_POLICIES. The default is
            what GLoRIA, MGCA, MaCo and MRM do.
        blanks: whether an unmentioned label is "unknown" (NaN) or "negative"; None takes what the policy's papers do.
        views: "frontal" (by the column Frontal/Lateral; the 17 images marked LL and RL there are frontal), "all", or
            values of AP/PA, with FRONTAL and LATERAL for images without one. First test images stay whatever their
            view.
        test_images: of each study of the later test set the "first" view, or "all".
        reports_root: folder of CheXpert Plus with the reports, if they are not under root.
        report_policy: which sections, a name of medvlp.io.reports.POLICIES. CheXpert Plus has its sections in columns,
            so nothing is parsed; a "last_paragraph" is never found.
        cleaning: a name of medvlp.io.reports.CLEANINGS.
        min_tokens: reports with fewer words after cleaning are left out.

    Raises:
        ConfigError: an unknown name.
    """

    name = "chexpert"
    title = "CheXpert"
    source = (
        "Stanford AIMI's CheXpert (CheXpert Plus for reports; the labels of the test set: cheXpert-test-set-labels)"
    )
    tasks = ("classification", "pairs")
    tables = (
        *(
            TableSpec(
                name,
                _RELEASED,
                optional=("Sex", "Age"),
                key=("Path",),
                required=pool == "train",
                needed_for="" if pool == "train" else "the validation set",
                rows={223_414 if pool == "train" else 234: "1.0 and 1.0-small"},
            )
            for pool, name in _TABLES.items()
        ),
        TableSpec(
            _TRUTH,
            ("Study", *CHEXPERT_14),
            key=("Study",),
            required=False,
            needed_for="the test set",
            rows={500: "test set"},
        ),
        TableSpec(
            PLUS,
            ("path_to_image", "report", "section_findings", "section_impression"),
            key=("path_to_image",),
            required=False,
            needed_for="task: pairs",
        ),
    )
    image_folders = ("train", "valid", "test")
    image_counts = {"train": 223_414, "valid": 234, "test": 668}  # noqa: RUF012 - a class constant

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[str] | None = CHEXPERT_5,
        label_policy: LabelPolicy = "gloria",
        blanks: Blanks | None = None,
        views: str | Sequence[str] = "frontal",
        test_images: TestImages = "first",
        reports_root: str | Path | None = None,
        report_policy: str = "both",
        cleaning: str = "none",
        min_tokens: int = 3,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(root, on_error=on_error)
        check_choice("label_policy", label_policy, LABEL_POLICIES)
        check_choice("blanks", blanks, (None, *get_args(Blanks)))
        check_choice("test_images", test_images, get_args(TestImages))
        check_choice("report_policy", report_policy, POLICIES)
        check_choice("cleaning", cleaning, CLEANINGS)
        for name in ("none",) if classes is not None and not classes else classes or ():
            check_choice("class", name, CHEXPERT_14)
        if not views or (isinstance(views, str) and views not in ("frontal", "all")):
            raise ConfigError(
                f'views is "frontal", "all", or a list of AP, PA, LL, RL, {FRONTAL}, {LATERAL}, not "{views}"'
            )
        self.classes = CHEXPERT_14 if classes is None else tuple(classes)
        self.label_policy = label_policy
        self.blanks = blanks
        self.views = views if isinstance(views, str) else tuple(v.upper() for v in views)
        self.test_images = test_images
        self.reports_root = folder_path(reports_root) if reports_root is not None else None
        self.report_policy = report_policy
        self.cleaning = cleaning
        self.min_tokens = min_tokens

    def table_folder(self, spec: TableSpec) -> Path:
        """Override: the root, a batch, or the folder of the reports."""
        folders = [self.root, *self._batches()]
        if spec.name == PLUS and self.reports_root is not None:
            folders = [self.reports_root]
        return next((f for f in folders if spec.find(f) is not None), folders[0])

    def _has_images(self, pool: str) -> bool:
        return any((folder / pool).is_dir() for folder in (self.root, *self._batches()))

    def _batches(self) -> list[Path]:
        """Folders of the release below the root, in order."""
        if not self.root.is_dir():
            return []
        return sorted(f for f in self.root.iterdir() if f.name.startswith(_RELEASE) and f.is_dir())

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """All views with raw labels; see :meth:`Corpus.records`."""
        self.require_task(task)
        self.require_root()
        dropped = Dropped()
        parts = []
        for pool, name in _POOLS.items():
            if pool not in pools if pools is not None else not self.has_table(name):
                continue
            if pools is None and pool != "train" and not self._has_images(pool):
                # labels are small and images are not: many copies hold the labels of parts that they lack
                listed = self.read_table(name).frame
                dropped.extend(listed[self._spec(name).key[0]], listed.index, f"no folder {pool}")
                continue
            parts.append(self._test(dropped) if pool == "test" else self._listed(pool, dropped))
        if not parts and pools is None:
            raise self._no_tables()
        images = pd.concat(parts, ignore_index=True) if parts else _no_images()
        columns: dict[str, Any] = {c: images[c] for c in _COLUMNS}
        if task == "pairs" or (task is None and self.has_table(PLUS)):
            columns["text"] = self._texts(images["id"], dropped)
        return Records(make_table(columns, images[list(CHEXPERT_14)]), dropped.frame())

    def listing(self) -> SplitInput:
        """The rows of train.csv and valid.csv, then the images of the studies of groundtruth.csv.

        See :meth:`Corpus.listing`. The table of the test set names studies and no images, so their images are those on
        the disk, and where a study has no first view there, ``view1_frontal.jpg``.

        Raises:
            DataError: none of the three tables is there, or one cannot be read.
        """
        self.require_root()
        tables = {pool: self.read_table(name).frame for pool, name in _POOLS.items() if self.has_table(name)}
        if not tables:
            raise self._no_tables()
        parts = [self._listed_test(f) if pool == "test" else _listed_rows(f, pool) for pool, f in tables.items()]
        images = pd.concat(parts, ignore_index=True).drop_duplicates("id", ignore_index=True)
        columns = {c: images[c] for c in ("id", "patient", "view", "pool")}
        return self.split_input(Records(make_table(columns, images[list(CHEXPERT_14)]), Dropped().frame()))

    def _no_tables(self) -> DataError:
        return DataError(f"{self.root} holds none of train.csv, valid.csv and {_TRUTH}; get them from {self.remedy}")

    def _listed_test(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The images of the rows of groundtruth.csv."""
        parts, study = _studies(frame)
        study = study.fillna(_slashes(frame["Study"]))
        rows = _numbers(frame, (0, 1)).assign(study=study, patient=parts[0].fillna(""))
        rows = rows[study != ""].drop_duplicates("study")
        images = self._test_images(patient_folders(self.root, self._batches(), "test"))
        first = images["study"][images["number"] == 1]
        added = rows["study"][~rows["study"].isin(first)]
        absent = pd.DataFrame({"study": added, "path": added + _FIRST + "frontal.jpg", "number": 1, "side": "frontal"})
        images = pd.concat([images, absent]).sort_values(["study", "number", "path"])
        merged = rows.merge(images, on="study", how="left")
        return merged.assign(id="test/" + merged["path"], view=merged["side"].str.upper(), pool="test")

    def _test_images(self, folders: dict[str, str]) -> pd.DataFrame:
        """The images of some patients of the test set: study, number, side, path (as released) and file, in order."""
        there = views_of(folders, folders)
        # named as the release names them, whatever ending the files have
        released = {n.rpartition(".")[0] + ".jpg" for n in there if n.lower().endswith(IMAGE_SUFFIXES)}
        files = self.files_of(sorted(released), there)
        on_disk = pd.Series(list(files), dtype=object)
        images = on_disk.str.extract(r"^(?P<study>.*)/view(?P<number>\d+)_(?P<side>frontal|lateral)\.jpg$")
        images = images.assign(path=on_disk, file=list(files.values()), number=pd.to_numeric(images["number"]))
        images = images[images["study"].notna()]
        return images.sort_values(["study", "number", "path"])

    def split_input(self, records: Records) -> SplitInput:
        """As of every corpus, but LL and RL count as frontal, as in the column Frontal/Lateral."""
        return replace(super().split_input(records), frontal=records.column("view") != LATERAL)

    def after_split(self, table: pa.Table) -> pa.Table:
        """Choose views and test images, for pairs images with a report, and classes; resolve uncertain labels."""
        view = np.asarray(table.column("view").to_pylist(), dtype=object)
        pool = np.asarray(table.column("pool").to_pylist(), dtype=object)
        if self.views == "all":
            keep = np.ones(len(table), dtype=bool)
        elif self.views == "frontal":
            keep = view != LATERAL
        else:
            keep = np.isin(view, self.views)
        if self.test_images == "first":
            first = np.array([_FIRST in i for i in table.column("id").to_pylist()], dtype=bool)
            keep = np.where(pool == "test", first, keep)
        if "text" in table.column_names:
            keep &= np.asarray(table.column("text").to_pylist(), dtype=object) != ""
        table = table.filter(pa.array(keep, type=pa.bool_()))
        labels = apply_policy(table.select(list(CHEXPERT_14)).to_pandas(), self.label_policy, self.blanks)
        for name in CHEXPERT_14:
            column = pa.array(labels[name].to_numpy(np.float32), type=pa.float32())
            table = table.set_column(table.column_names.index(name), name, column)
        return with_labels(table, self.classes)

    def _listed(self, pool: str, dropped: Dropped) -> pd.DataFrame:
        """The images of train.csv or valid.csv."""
        table = self.read_table(_TABLES[pool])
        frame, where = table.frame, str(table.path)
        dropped.repeated(table.repeated, table.path.name)
        parts = _path_parts(frame, pool)
        listed = parts[0] + "/" + parts[1] + "/" + parts[2]
        ids = f"{pool}/" + listed
        side = frame[_SIDE].str.upper()
        labels = to_numbers(frame[list(CHEXPERT_14)], where)
        folders = patient_folders(self.root, self._batches(), pool, self.remedy if len(frame) else "")
        files = self.files_of(listed.dropna(), views_of(folders, parts[0].dropna().unique()))
        form = f"Path is not of the form {_RELEASE}/{pool}/patient00001/study1/view1_frontal.jpg"
        reason = first_reason(
            {
                "blank Path": frame["Path"] == "",
                form: parts[0].isna(),
                f"{_SIDE} is neither Frontal nor Lateral": ~side.isin((FRONTAL, LATERAL)),
                "a label other than 1, 0, −1 or blank": _other_than(labels, (-1, 0, 1)),
                "an image listed twice": ids.duplicated() & ids.notna(),
                "missing image file": ~listed.isin(files.keys()),
            },
            frame.index,
        )
        self.broken_rows(dropped, frame["Path"][reason != ""], reason, where)
        good = reason == ""
        parts = parts[good]
        columns = (ids[good], listed[good].map(files), parts[0], parts[0] + "/" + parts[1], _views(frame)[good], pool)
        return pd.DataFrame(dict(zip(_COLUMNS, columns, strict=True))).join(labels[good])

    def _test(self, dropped: Dropped) -> pd.DataFrame:
        """The images of the studies of groundtruth.csv, as they lie on the disk."""
        table = self.read_table(_TRUTH)
        frame, where = table.frame, str(table.path)
        dropped.repeated(table.repeated, table.path.name)
        parts, studies = _studies(frame)
        labels = to_numbers(frame[list(CHEXPERT_14)], where)
        folders = patient_folders(self.root, self._batches(), "test", self.remedy if len(frame) else "")
        images = self._test_images(folders)
        unlisted = images[~images["study"].isin(studies)]
        dropped.extend("test/" + unlisted["path"], [-1] * len(unlisted), f"no row in {_TRUTH}")
        first = images["study"][images["number"] == 1]
        one_each = self.test_images == "first"
        reason = first_reason(
            {
                "blank Study": frame["Study"] == "",
                f"Study is not of the form {_RELEASE}/test/patient64741/study1": parts[0].isna(),
                "a label other than 1 and 0": _other_than(labels, (0, 1)),
                "a study listed twice": studies.duplicated() & studies.notna(),
                "missing image file": ~studies.isin(images["study"]),
                "no image called view1": one_each & ~studies.isin(first),
                "two images called view1": one_each & studies.isin(first[first.duplicated()]),
            },
            frame.index,
        )
        self.broken_rows(dropped, frame["Study"][reason != ""], reason, where)
        good = reason == ""
        listed = pd.DataFrame({"study": studies[good], "patient": parts[0][good]}).join(labels[good])
        merged = listed.merge(images, on="study", how="left")
        view = merged["side"].str.upper()
        columns = merged.assign(id="test/" + merged["path"], image=merged["file"], view=view, pool="test")
        return columns.drop(columns=["number", "side", "path", "file"])

    def _texts(self, ids: pd.Series, dropped: Dropped) -> list[str]:
        """The text of each image, "" where there is no usable report."""
        if self.reports_root is not None and not self.reports_root.is_dir():
            raise DataError(
                f"the reports folder {self.reports_root} does not exist; get CheXpert Plus from Stanford AIMI"
            )
        table = self.read_table(PLUS)
        frame = table.frame
        dropped.repeated(table.repeated, PLUS)
        # below the release's name, if it stands there; other copies of the images have another suffix
        key = _slashes(frame["path_to_image"]).str.extract(_REPORTED)[0]
        form = "path_to_image is not of the form train/patient00001/study1/view1_frontal.jpg"
        reason = first_reason({form: key.isna(), "an image listed twice": key.duplicated()}, frame.index)
        bad = reason != ""
        self.broken_rows(dropped, frame["path_to_image"][bad], reason, str(table.path))
        frame, key = frame[~bad], key[~bad]
        # the views of a study share one report: clean it once
        cells = frame[["section_findings", "section_impression", "report"]]
        number, unique = pd.factorize(pd.MultiIndex.from_frame(cells))
        texts = np.array([self._text(*sections) for sections in unique], dtype=object)
        of_image = pd.Series(texts[number] if len(number) else [], index=key, dtype=object)
        return ids.str.removesuffix(".jpg").map(of_image).fillna("").tolist()

    def _text(self, findings: str, impression: str, report: str) -> str:
        named = tuple((n, t.strip()) for n, t in (("findings", findings), ("impression", impression)) if t.strip())
        text = report_text(Sections(report, named), self.report_policy, self.cleaning)
        return "" if unusable(text, self.min_tokens, "text") else text


def _slashes(paths: pd.Series) -> pd.Series:
    return paths.str.replace("\\", "/", regex=False)


def _studies(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Patient and study of each row of groundtruth.csv, and both as a path; NaN where Study is of another form."""
    parts = _slashes(frame["Study"]).str.extract(_TEST_STUDY)
    return parts, parts[0] + "/" + parts[1]


def _path_parts(frame: pd.DataFrame, pool: str) -> pd.DataFrame:
    """Patient, study and file of each Path; NaN where it is of another form."""
    # the first component repeats the name of the release (or of the small one) and is dropped, as MGCA does
    return _slashes(frame["Path"]).str.extract(rf"^(?:[^/]+/)?{pool}/{_IMAGE}")


def _views(frame: pd.DataFrame) -> pd.Series:
    side, projection = frame[_SIDE].str.upper(), frame[_PROJECTION].str.upper()
    # a side that cannot be made out is that of the file name; the records do not take such a row
    named = frame["Path"].str.extract(r"_(frontal|lateral)\.jpg$")[0].str.upper()
    side = side.where(side.isin((FRONTAL, LATERAL)), named)
    return projection.where(projection != "", side).where(side == FRONTAL, LATERAL)


def _numbers(frame: pd.DataFrame, allowed: Sequence[int]) -> pd.DataFrame:
    """The labels as far as they can be made out, else NaN."""
    labels = frame[list(CHEXPERT_14)].apply(pd.to_numeric, errors="coerce").astype(np.float32)
    return labels.where(labels.isin(allowed))


def _listed_rows(frame: pd.DataFrame, pool: str) -> pd.DataFrame:
    """The images of the rows of train.csv or valid.csv; a Path that cannot be made out is its own id."""
    frame = frame[frame["Path"] != ""]
    parts = _path_parts(frame, pool)
    ids = (f"{pool}/" + parts[0] + "/" + parts[1] + "/" + parts[2]).fillna(frame["Path"])
    labels = _numbers(frame, (-1, 0, 1))
    return labels.assign(id=ids, patient=parts[0].fillna(""), view=_views(frame), pool=pool)


def _other_than(labels: pd.DataFrame, allowed: Sequence[int]) -> pd.Series:
    """Rows that hold another value (in the train table a blank is fine, in the test table it is not)."""
    fine = labels.isin(allowed)
    return ~(fine | labels.isna() if -1 in allowed else fine).all(axis=1)


def _no_images() -> pd.DataFrame:
    frame = pd.DataFrame(columns=list(_COLUMNS), dtype=object)
    return frame.assign(**{c: pd.Series(dtype=np.float32) for c in CHEXPERT_14})

"""CheXpert-v1.0, CheXpert-v1.0-small and the reports of CheXpert Plus, as Stanford AIMI releases them.

Expected under the root: ``train.csv``, ``valid.csv`` and, for the later test set, ``groundtruth.csv``; the images at
``train/patient00001/study1/view1_frontal.jpg`` and so on. The download in batches works as it is unpacked, with the
root above the folders ``CheXpert-v1.0 batch 1 (validate & csv)``, ``CheXpert-v1.0 batch 2 (train 1)`` and so on. For
reports the table ``df_chexpert_plus_240401.csv`` is read.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from medvlp.datasets.base import RESERVED_COLUMNS, Dropped, OnError, make_table, to_numbers
from medvlp.datasets.chexpert_files import patient_folders, views_of
from medvlp.datasets.corpus import Corpus, Records, Task, Unnoted
from medvlp.datasets.folders import IMAGE_SUFFIXES
from medvlp.datasets.labels import CHEXPERT_5, CHEXPERT_14, LABEL_POLICIES, Blanks, LabelPolicy, apply_policy
from medvlp.datasets.tables import Table, TableSpec, read_table
from medvlp.errors import ConfigError, DataError
from medvlp.io.paths import folder_path
from medvlp.io.reports import CLEANINGS, POLICIES, Sections, count_tokens, report_text
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
_SIDE, _PROJECTION = "Frontal/Lateral", "AP/PA"
_RELEASED = ("Path", _SIDE, _PROJECTION, *CHEXPERT_14)
_TEST_STUDY = r"^(?:[^/]+/)?test/(patient\d+)/(study\d+)/?$"
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
        root: folder of the release, or the folder that holds the unpacked batches.
        classes: labels of a sample, in this order, by name; None for all 14.
        label_policy: what becomes of uncertain labels, see :data:`medvlp.datasets.labels.LABEL_POLICIES`. The default
            is what GLoRIA, MGCA, MaCo and MRM do.
        blanks: whether an unmentioned label is "unknown" (NaN) or "negative"; None takes what the policy's papers do.
        views: "frontal" (by the column Frontal/Lateral; the 17 images marked LL and RL there are frontal), "all", or
            values of AP/PA, :data:`FRONTAL` and :data:`LATERAL` for images without one. First test images stay whatever
            their view.
        test_images: "first" view of each study, or "all".
        reports_root: folder of CheXpert Plus with the reports, if they are not under ``root``.
        report_policy: which sections, see :func:`medvlp.io.reports.select_text`. CheXpert Plus has its sections in
            columns, so nothing is parsed; a "last_paragraph" is never found.
        cleaning: see :func:`medvlp.io.reports.clean_text`.
        min_tokens: reports with fewer word tokens after cleaning count as none.
        on_error: "raise" on the first broken item, or "skip": leave it out, counted and listed.

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
        TableSpec("train.csv", _RELEASED, optional=("Sex", "Age"), key=("Path",), rows={223_414: "1.0 and 1.0-small"}),
        TableSpec(
            "valid.csv",
            _RELEASED,
            optional=("Sex", "Age"),
            key=("Path",),
            required=False,
            needed_for="the validation set",
            rows={234: "1.0 and 1.0-small"},
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
        for value, allowed, what in (
            (label_policy, tuple(LABEL_POLICIES), "label_policy"),
            (blanks, (None, "unknown", "negative"), "blanks"),
            (test_images, ("first", "all"), "test_images"),
            (report_policy, POLICIES, "report_policy"),
            (cleaning, CLEANINGS, "cleaning"),
        ):
            if value not in allowed:
                raise ConfigError(f'{what} "{value}" is unknown; there are {", ".join(map(str, allowed))}')
        if classes is not None and (not classes or [c for c in classes if c not in CHEXPERT_14]):
            raise ConfigError(f"classes are some of {', '.join(CHEXPERT_14)}, not {', '.join(classes) or 'none'}")
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

    # ------------------------------------------------------------------ tables

    def read_table(self, name: str) -> Table:
        """Read one of :attr:`tables`, from the root or the batch that holds it; see :meth:`Corpus.read_table`."""
        self.require_root()
        spec = self._spec(name)
        return read_table(self._folder(spec) or self.root, spec, source=self.remedy)

    def has_table(self, name: str) -> bool:
        """Whether the file of one of :attr:`tables` is there."""
        return self._folder(self._spec(name)) is not None

    def _spec(self, name: str) -> TableSpec:
        return next(s for s in self.tables if s.name == name)

    def _folder(self, spec: TableSpec) -> Path | None:
        folders = [self.root, *self._batches()]
        if spec.name == PLUS and self.reports_root is not None:
            folders = [self.reports_root]
        return next((f for f in folders if spec.find(f) is not None), None)

    def _has_images(self, pool: str) -> bool:
        return any((folder / pool).is_dir() for folder in (self.root, *self._batches()))

    def _batches(self) -> list[Path]:
        """Folders of the release below the root, in order."""
        if not self.root.is_dir():
            return []
        return sorted(f for f in self.root.iterdir() if f.name.startswith(_RELEASE) and f.is_dir())

    # ------------------------------------------------------------------ records

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """All views with raw labels; see :meth:`Corpus.records`."""
        self.require_task(task)
        self.require_root()
        dropped = Dropped()
        parts = []
        for pool, name in (*_TABLES.items(), ("test", _TRUTH)):
            if pools is not None and pool not in pools:
                continue
            if pools is None and not self.has_table(name):
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
        columns: dict[str, Any] = {c: images[c] for c in ("id", "image", "patient", "study", "view", "pool")}
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
        names = [(pool, name) for pool, name in (*_TABLES.items(), ("test", _TRUTH)) if self.has_table(name)]
        if not names:
            raise self._no_tables()
        tables = {pool: self.read_table(name).frame for pool, name in names}
        parts = [self._listed_test(f) if pool == "test" else _listed_rows(f, pool) for pool, f in tables.items()]
        images = pd.concat(parts, ignore_index=True).drop_duplicates("id", ignore_index=True)
        columns = {c: images[c] for c in ("id", "patient", "view", "pool")}
        return self.split_input(Records(make_table(columns, images[list(CHEXPERT_14)]), Unnoted().frame()))

    def _no_tables(self) -> DataError:
        return DataError(f"{self.root} holds none of train.csv, valid.csv and {_TRUTH}; get them from {self.remedy}")

    def _listed_test(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The images of the rows of groundtruth.csv."""
        names = frame["Study"].str.replace("\\", "/", regex=False)
        parts = names.str.extract(_TEST_STUDY)
        study = (parts[0] + "/" + parts[1]).fillna(names)
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
        table = table.select([c for c in table.column_names if c in RESERVED_COLUMNS])
        for name in self.classes:
            table = table.append_column(name, pa.array(labels[name].to_numpy(np.float32), type=pa.float32()))
        return table

    def _listed(self, pool: str, dropped: Dropped) -> pd.DataFrame:
        """The images of train.csv or valid.csv."""
        table = self.read_table(_TABLES[pool])
        frame, where = table.frame, str(table.path)
        dropped.extend([""] * len(table.repeated), table.repeated, f"repeats an earlier row of {table.path.name}")
        parts = _path_parts(frame, pool)
        ids = f"{pool}/" + parts[0] + "/" + parts[1] + "/" + parts[2]
        side = frame[_SIDE].str.upper()
        labels = to_numbers(frame[list(CHEXPERT_14)], where)
        folders = patient_folders(self.root, self._batches(), pool, self.remedy if len(frame) else "")
        listed = parts[0] + "/" + parts[1] + "/" + parts[2]
        files = self.files_of(listed.dropna(), views_of(folders, parts[0].dropna().unique()))
        reason = pd.Series("", index=frame.index, dtype=object)
        for wrong, text in (
            (frame["Path"] == "", "blank Path"),
            (parts[0].isna(), f"Path is not of the form {_RELEASE}/{pool}/patient00001/study1/view1_frontal.jpg"),
            (~side.isin((FRONTAL, LATERAL)), f"{_SIDE} is neither Frontal nor Lateral"),
            (_other_than(labels, (-1, 0, 1)), "a label other than 1, 0, −1 or blank"),
            (ids.duplicated() & ids.notna(), "an image listed twice"),
            (~listed.isin(files.keys()), "missing image file"),
        ):
            reason[wrong & (reason == "")] = text
        for row in frame.index[reason != ""]:
            self.broken(dropped, frame["Path"][row], int(row), reason[row], where)
        good = reason == ""
        parts = parts[good]
        view = _views(frame)
        return pd.DataFrame(
            {
                "id": ids[good],
                "image": listed[good].map(files),
                "patient": parts[0],
                "study": parts[0] + "/" + parts[1],
                "view": view[good],
                "pool": pool,
            }
        ).join(labels[good])

    def _test(self, dropped: Dropped) -> pd.DataFrame:
        """The images of the studies of groundtruth.csv, as they lie on the disk."""
        table = self.read_table(_TRUTH)
        frame, where = table.frame, str(table.path)
        dropped.extend([""] * len(table.repeated), table.repeated, f"repeats an earlier row of {table.path.name}")
        names = frame["Study"].str.replace("\\", "/", regex=False)
        parts = names.str.extract(_TEST_STUDY)
        studies = parts[0] + "/" + parts[1]
        labels = to_numbers(frame[list(CHEXPERT_14)], where)
        folders = patient_folders(self.root, self._batches(), "test", self.remedy if len(frame) else "")
        images = self._test_images(folders)
        unlisted = images[~images["study"].isin(studies)]
        dropped.extend("test/" + unlisted["path"], [-1] * len(unlisted), f"no row in {_TRUTH}")
        first = images["study"][images["number"] == 1]
        one_each = self.test_images == "first"
        reason = pd.Series("", index=frame.index, dtype=object)
        for wrong, text in (
            (frame["Study"] == "", "blank Study"),
            (parts[0].isna(), f"Study is not of the form {_RELEASE}/test/patient64741/study1"),
            (_other_than(labels, (0, 1)), "a label other than 1 and 0"),
            (studies.duplicated() & studies.notna(), "a study listed twice"),
            (~studies.isin(images["study"]), "missing image file"),
            (one_each & ~studies.isin(first), "no image called view1"),
            (one_each & studies.isin(first[first.duplicated()]), "two images called view1"),
        ):
            reason[wrong & (reason == "")] = text
        for row in frame.index[reason != ""]:
            self.broken(dropped, frame["Study"][row], int(row), reason[row], where)
        good = reason == ""
        listed = pd.DataFrame({"study": studies[good], "patient": parts[0][good]}).join(labels[good])
        merged = listed.merge(images, on="study", how="left")
        return merged.assign(
            id="test/" + merged["path"],
            image=merged["file"],
            view=merged["side"].str.upper(),
            pool="test",
        ).drop(columns=["number", "side", "path", "file"])

    def _texts(self, ids: pd.Series, dropped: Dropped) -> list[str]:
        """The text of each image, "" where there is no usable report."""
        if self.reports_root is not None and not self.reports_root.is_dir():
            raise DataError(
                f"the reports folder {self.reports_root} does not exist; get CheXpert Plus from Stanford AIMI"
            )
        table = self.read_table(PLUS)
        frame = table.frame
        dropped.extend([""] * len(table.repeated), table.repeated, f"repeats an earlier row of {PLUS}")
        image = frame["path_to_image"].str.replace("\\", "/", regex=False)
        # below the release's name, if it stands there; other copies of the images have another suffix
        key = image.str.extract(r"^(?:[^/]+/)?((?:train|valid)/patient\d+/study\d+/view\d+_(?:frontal|lateral))\.\w+$")[
            0
        ]
        bad = key.isna() | key.duplicated()
        for row in frame.index[bad]:
            reason = "path_to_image is not of the form train/patient00001/study1/view1_frontal.jpg"
            reason = reason if pd.isna(key[row]) else "an image listed twice"
            self.broken(dropped, frame["path_to_image"][row], int(row), reason, str(table.path))
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
        return text if count_tokens(text) >= self.min_tokens else ""


def _path_parts(frame: pd.DataFrame, pool: str) -> pd.DataFrame:
    """Patient, study and file of each Path; NaN where it is of another form."""
    # the first component repeats the name of the release (or of the small one) and is dropped, as MGCA does
    paths = frame["Path"].str.replace("\\", "/", regex=False)
    return paths.str.extract(rf"^(?:[^/]+/)?{pool}/{_IMAGE}")


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
    frame = pd.DataFrame({c: pd.Series(dtype=object) for c in ("id", "image", "patient", "study", "view", "pool")})
    return frame.assign(**{c: pd.Series(dtype=np.float32) for c in CHEXPERT_14})

"""CheXpert-v1.0, CheXpert-v1.0-small and the reports of CheXpert Plus, as Stanford AIMI releases them.

Expected under the root: ``train.csv``, ``valid.csv`` and, for the later test set, ``groundtruth.csv``; the images at
``train/patient00001/study1/view1_frontal.jpg`` and so on. The download in batches works as it is unpacked, with the
root above the folders ``CheXpert-v1.0 batch 1 (validate & csv)``, ``CheXpert-v1.0 batch 2 (train 1)`` and so on. For
reports the table ``df_chexpert_plus_240401.csv`` is read.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from medvlp.datasets.base import Dropped, OnError, make_table, text_column, with_labels
from medvlp.datasets.corpus import Records, Task
from medvlp.datasets.folders import IMAGE_SUFFIXES
from medvlp.datasets.labels import CHEXPERT_5, CHEXPERT_14, LABEL_POLICIES, Blanks, LabelPolicy, apply_policy
from medvlp.datasets.reports import ReportCorpus
from medvlp.datasets.tables import TableSpec, released_tables, to_numbers
from medvlp.errors import ConfigError, DataError, check_choice
from medvlp.io.reports import Sections
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
_LABELS = list(CHEXPERT_14)
_SIDE, _PROJECTION = "Frontal/Lateral", "AP/PA"
_TEST_STUDY = r"^(?:[^/]+/)?test/(patient\d+)/(study\d+)/?$"
_REPORTED = r"^(?:[^/]+/)?((?:train|valid)/patient\d+/study\d+/view\d+_(?:frontal|lateral))\.\w+$"
_IMAGE = r"(patient\d+)/(study\d+)/(view\d+_(?:frontal|lateral)\.jpg)$"
_THREADS = 16
_CHUNK = 64  # patients per task of a thread


class CheXpert(ReportCorpus):
    """CheXpert-v1.0 or CheXpert-v1.0-small, with the reports of CheXpert Plus for pairs.

    Records are **all** images with their raw labels: the rows of train.csv in the order of the file (pool "train"), of
    valid.csv ("valid"), then the test images in the order of groundtruth.csv ("test"); a part that is not there is left
    out unless it is asked for by name. The choice of views, test images and classes, the label policy and, for pairs,
    leaving out images without a report come after the split (:meth:`after_split`).

    A test label holds for a study. ``test_images`` "first" takes one image per study, the one called view1, as CheXzero
    does: 500 of the 668.

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
            and no "last_paragraph".
        cleaning: a name of medvlp.io.reports.CLEANINGS.
        min_tokens: reports with fewer words after cleaning are dropped.
    """

    name = "chexpert"
    title = "CheXpert"
    source = (
        "Stanford AIMI's CheXpert (CheXpert Plus for reports; the labels of the test set: cheXpert-test-set-labels)"
    )
    tasks = ("classification", "pairs")
    tables = released_tables("chexpert")
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
        super().__init__(root, on_error, report_policy, cleaning, min_tokens, reports_root)
        check_choice("label_policy", label_policy, LABEL_POLICIES)
        check_choice("blanks", blanks, (None, *get_args(Blanks)))
        check_choice("test_images", test_images, get_args(TestImages))
        if not views or (isinstance(views, str) and views not in ("frontal", "all")):
            raise ConfigError(
                f'views is "frontal", "all", or a list of AP, PA, LL, RL, {FRONTAL}, {LATERAL}, not "{views}"'
            )
        self.classes = self.chosen_labels(classes, CHEXPERT_14, required=True)
        self.label_policy = label_policy
        self.blanks = blanks
        self.views = views if isinstance(views, str) else tuple(v.upper() for v in views)
        self.test_images = test_images

    def table_folder(self, spec: TableSpec) -> Path:
        """Override: the root, a batch, or the folder of the reports."""
        folders = [self.root, *self._batches()]
        if spec.name == PLUS and self.reports_root is not None:
            folders = [self.reports_root]
        return next((f for f in folders if spec.find(f) is not None), folders[0])

    def _batches(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(f for f in self.root.iterdir() if f.name.startswith(_RELEASE) and f.is_dir())

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """All views with raw labels."""
        dropped = self.begin(task)
        parts = []
        for pool, name in _POOLS.items():
            if pool not in pools if pools is not None else not self.has_table(name):
                continue
            folders = [folder / pool for folder in (self.root, *self._batches())]
            if pools is None and pool != "train" and not any(folder.is_dir() for folder in folders):
                # labels are small and images are not: many copies hold the labels of parts that they lack
                listed = self.read_table(name).frame
                dropped.extend(listed[self._spec(name).key[0]], listed.index, f"no folder {pool}")
                continue
            parts.append(self._test(dropped) if pool == "test" else self._train(pool, dropped))
        if not parts and pools is None:
            raise self._no_tables()
        empty = pd.DataFrame(columns=[*_COLUMNS, *_LABELS], dtype=object)
        images = pd.concat(parts, ignore_index=True) if parts else empty
        if task == "pairs" or (task is None and self.has_table(PLUS)):
            images["text"] = self._texts(images["id"], dropped)
        return Records(make_table(images, images[_LABELS]), dropped.frame())

    def listing(self) -> SplitInput:
        """The rows of train.csv and valid.csv, then the images of the studies of groundtruth.csv.

        The table of the test set names studies and no images, so their images are those on the disk, and where a study
        has no first view there, ``view1_frontal.jpg``.
        """
        self.begin()
        tables = {pool: self.read_table(name).frame for pool, name in _POOLS.items() if self.has_table(name)}
        if not tables:
            raise self._no_tables()
        parts = [self._listed_test(f) if pool == "test" else _listed_train(f, pool) for pool, f in tables.items()]
        images = pd.concat(parts, ignore_index=True).drop_duplicates("id", ignore_index=True)
        return self.listed(images, images[_LABELS])

    def _no_tables(self) -> DataError:
        return DataError(f"{self.root} holds none of train.csv, valid.csv and {_TRUTH}; get them from {self.remedy}")

    def split_input(self, records: Records) -> SplitInput:
        """As of every corpus, but LL and RL count as frontal, as in the column Frontal/Lateral."""
        return replace(super().split_input(records), frontal=records.column("view") != LATERAL)

    def after_split(self, table: pa.Table) -> pa.Table:
        """Choose views and test images, for pairs images with a report, and classes; resolve uncertain labels."""
        view = text_column(table, "view")
        keep = np.ones(len(table), dtype=bool) if self.views == "all" else np.isin(view, self.views)
        if self.views == "frontal":
            keep = view != LATERAL
        if self.test_images == "first":
            first = np.array([_FIRST in i for i in table.column("id").to_pylist()], dtype=bool)
            keep = np.where(text_column(table, "pool") == "test", first, keep)
        keep &= text_column(table, "text", "none needed") != ""
        table = table.filter(pa.array(keep, type=pa.bool_()))
        labels = apply_policy(table.select(_LABELS).to_pandas(), self.label_policy, self.blanks)
        for name in CHEXPERT_14:
            column = pa.array(labels[name].to_numpy(np.float32), type=pa.float32())
            table = table.set_column(table.column_names.index(name), name, column)
        return with_labels(table, self.classes)

    def _train(self, pool: str, dropped: Dropped) -> pd.DataFrame:
        """The images of train.csv or valid.csv."""
        table = self.read_table(_TABLES[pool], dropped)
        frame, where = table.frame, str(table.path)
        rows = _named_rows(frame, pool)
        labels = to_numbers(frame[_LABELS], where)
        folders = self._patients(pool, needed=len(frame) > 0)
        files = self.files_of(rows["name"].dropna(), _views_in(folders, rows["patient"].dropna().unique()))
        form = f"Path is not of the form {_RELEASE}/{pool}/patient00001/study1/view1_frontal.jpg"
        reasons = {
            "blank Path": frame["Path"] == "",
            form: rows["name"].isna(),
            f"{_SIDE} is neither Frontal nor Lateral": ~frame[_SIDE].str.upper().isin((FRONTAL, LATERAL)),
            "a label other than 1, 0, −1 or blank": (labels.notna() & ~labels.isin((-1, 0, 1))).any(axis=1),
            "an image listed twice": rows["id"].duplicated() & rows["id"].notna(),
            "missing image file": ~rows["name"].isin(files.keys()),
        }
        good = self.sound_rows(dropped, frame["Path"], reasons, where)
        return rows[good].assign(image=rows["name"][good].map(files)).join(labels[good])

    def _test(self, dropped: Dropped) -> pd.DataFrame:
        """The images of the studies of groundtruth.csv, as they lie on the disk."""
        table = self.read_table(_TRUTH, dropped)
        frame, where = table.frame, str(table.path)
        parts, studies = _studies(frame)
        labels = to_numbers(frame[_LABELS], where)
        images = self._test_images(self._patients("test", needed=len(frame) > 0))
        unlisted = images[~images["study"].isin(studies)]
        dropped.extend("test/" + unlisted["path"], [-1] * len(unlisted), f"no row in {_TRUTH}")
        first = images["study"][images["number"] == 1]
        one_each = self.test_images == "first"
        reasons = {
            "blank Study": frame["Study"] == "",
            f"Study is not of the form {_RELEASE}/test/patient64741/study1": parts[0].isna(),
            "a label other than 1 and 0": ~labels.isin((0, 1)).all(axis=1),
            "a study listed twice": studies.duplicated() & studies.notna(),
            "missing image file": ~studies.isin(images["study"]),
            "no image called view1": one_each & ~studies.isin(first),
            "two images called view1": one_each & studies.isin(first[first.duplicated()]),
        }
        good = self.sound_rows(dropped, frame["Study"], reasons, where)
        listed = pd.DataFrame({"study": studies[good], "patient": parts[0][good]}).join(labels[good])
        return _named_views(listed, images).assign(image=lambda merged: merged["file"])[[*_COLUMNS, *_LABELS]]

    def _listed_test(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The images of the rows of groundtruth.csv, on the disk or not."""
        parts, study = _studies(frame)
        study = study.fillna(_slashes(frame["Study"]))
        rows = _numbers(frame, (0, 1)).assign(study=study, patient=parts[0].fillna(""))
        rows = rows[study != ""].drop_duplicates("study")
        images = self._test_images(self._patients("test"))
        first = images["study"][images["number"] == 1]
        added = rows["study"][~rows["study"].isin(first)]
        absent = pd.DataFrame({"study": added, "path": added + _FIRST + "frontal.jpg", "number": 1, "side": "frontal"})
        return _named_views(rows, pd.concat([images, absent]).sort_values(["study", "number", "path"]))

    def _test_images(self, folders: dict[str, str]) -> pd.DataFrame:
        """Images of patients of the test set: study, number, side, path (as released) and file, in order."""
        on_disk = _views_in(folders, folders)
        # named as the release names them, whatever ending the files have
        released = {n.rpartition(".")[0] + ".jpg" for n in on_disk if n.lower().endswith(IMAGE_SUFFIXES)}
        files = self.files_of(sorted(released), on_disk)
        paths = pd.Series(list(files), dtype=object)
        images = paths.str.extract(r"^(?P<study>.*)/view(?P<number>\d+)_(?P<side>frontal|lateral)\.jpg$")
        images = images.assign(path=paths, file=list(files.values()), number=pd.to_numeric(images["number"]))
        return images[images["study"].notna()].sort_values(["study", "number", "path"])

    def _patients(self, pool: str, *, needed: bool = False) -> dict[str, str]:
        """Patient to absolute path of its folder; the batches hold the training patients directly."""
        batches = self._batches()
        parents = [self.root / pool, *(b / pool for b in batches), *(batches if pool == "train" else ())]
        folders: dict[str, str] = {}
        for parent in parents:
            try:
                with os.scandir(os.path.abspath(parent)) as entries:
                    # links to folders are fine; whether they lead out of the corpus is for the doctor
                    paths = [e.path for e in entries if e.name.startswith("patient") and e.is_dir()]
            except (FileNotFoundError, NotADirectoryError):
                continue
            for path in paths:
                patient = os.path.basename(path)
                if patient in folders:
                    other = os.path.dirname(folders[patient])
                    raise DataError(f"{patient} lies in {other} and in {parent}; set root to one release")
                folders[patient] = path
        if not folders and needed:
            tried = " or ".join(map(str, parents))
            raise DataError(f"no folder of a patient lies in {tried}; get the images from {self.remedy}")
        return folders

    def _texts(self, ids: pd.Series, dropped: Dropped) -> list[str]:
        """The text of each image, "" where there is no usable report."""
        self.require_reports("get CheXpert Plus from Stanford AIMI")
        table = self.read_table(PLUS, dropped)
        # below the release's name, if it stands there; other copies of the images have another suffix
        key = _slashes(table.frame["path_to_image"]).str.extract(_REPORTED)[0]
        form = "path_to_image is not of the form train/patient00001/study1/view1_frontal.jpg"
        reasons = {form: key.isna(), "an image listed twice": key.duplicated()}
        good = self.sound_rows(dropped, table.frame["path_to_image"], reasons, str(table.path))
        # the views of a study share one report: clean it once
        cells = table.frame.loc[good, ["section_findings", "section_impression", "report"]]
        number, unique = pd.factorize(pd.MultiIndex.from_frame(cells))
        texts = np.array([self._text(*sections) for sections in unique], dtype=object)
        of_image = pd.Series(texts[number] if len(number) else [], index=key[good], dtype=object)
        return ids.str.removesuffix(".jpg").map(of_image).fillna("").tolist()

    def _text(self, findings: str, impression: str, report: str) -> str:
        named = (("findings", findings.strip()), ("impression", impression.strip()))
        return self.text_of(Sections(report, tuple(section for section in named if section[1])))[0]


def _slashes(paths: pd.Series) -> pd.Series:
    return paths.str.replace("\\", "/", regex=False)


def _views_in(folders: Mapping[str, str], patients: Iterable[str]) -> dict[str, str]:
    """The images of patients, "patient00001/study1/view1_frontal.jpg" and so on, to their paths.

    Threads, because on a network disk the listing of 250,000 folders waits for the disk.
    """
    present = [(p, folders[p]) for p in patients if p in folders]
    chunks = [present[i : i + _CHUNK] for i in range(0, len(present), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        names = [name for names in pool.map(_names_in, chunks) for name in names]
    return {name: f"{folders[name.partition('/')[0]]}/{name.partition('/')[2]}" for name in names}


def _names_in(patients: Sequence[tuple[str, str]]) -> list[str]:
    names = []
    for patient, folder in patients:
        with os.scandir(folder) as studies:
            for study in studies:
                try:
                    names += [f"{patient}/{study.name}/{name}" for name in os.listdir(study.path)]
                except NotADirectoryError:
                    continue  # a stray file beside the studies
    return names


def _studies(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Patient and study of each row of groundtruth.csv, and both as a path; NaN where Study is of another form."""
    parts = _slashes(frame["Study"]).str.extract(_TEST_STUDY)
    return parts, parts[0] + "/" + parts[1]


def _named_views(rows: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    merged = rows.merge(images, on="study", how="left")
    return merged.assign(id="test/" + merged["path"], view=merged["side"].str.upper(), pool="test")


def _named_rows(frame: pd.DataFrame, pool: str) -> pd.DataFrame:
    """What each Path of train.csv or valid.csv says, NaN where it is of another form; ``name`` is below the pool."""
    # the first component repeats the name of the release (or of the small one) and is dropped, as MGCA does
    parts = _slashes(frame["Path"]).str.extract(rf"^(?:[^/]+/)?{pool}/{_IMAGE}")
    study = parts[0] + "/" + parts[1]
    name = study + "/" + parts[2]
    side, projection = frame[_SIDE].str.upper(), frame[_PROJECTION].str.upper()
    # a side that cannot be made out is that of the file name; the records do not take such a row
    of_file = frame["Path"].str.extract(r"_(frontal|lateral)\.jpg$")[0].str.upper()
    side = side.where(side.isin((FRONTAL, LATERAL)), of_file)
    view = projection.where(projection != "", side).where(side == FRONTAL, LATERAL)
    columns = {"id": f"{pool}/" + name, "name": name, "patient": parts[0], "study": study, "view": view, "pool": pool}
    return pd.DataFrame(columns)


def _listed_train(frame: pd.DataFrame, pool: str) -> pd.DataFrame:
    """The images of the rows of train.csv or valid.csv; a Path that cannot be made out is its own id."""
    frame = frame[frame["Path"] != ""]
    rows = _named_rows(frame, pool).join(_numbers(frame, (-1, 0, 1)))
    return rows.assign(id=rows["id"].fillna(frame["Path"]), patient=rows["patient"].fillna(""))


def _numbers(frame: pd.DataFrame, allowed: Sequence[int]) -> pd.DataFrame:
    """The labels as far as they can be made out, else NaN."""
    labels = frame[_LABELS].apply(pd.to_numeric, errors="coerce").astype(np.float32)
    return labels.where(labels.isin(allowed))

"""Open-I, the chest radiographs of Indiana University (NLMCXR): reports as XML, images as PNG.

Expected under the root: the reports, ``ecgen-radiology/<n>.xml`` or the archive ``NLMCXR_reports.tgz`` as it is, and
the unpacked images of ``NLMCXR_png.tgz``, in the root, in ``images`` or in ``NLMCXR_png``. The reports do not say
which image is a lateral; the table ``indiana_projections.csv`` of the Kaggle mirror does, and is used where it is
there.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from medvlp.datasets.base import RESERVED_COLUMNS, Dropped, OnError, make_table
from medvlp.datasets.corpus import Corpus, Records, Task, Unnoted
from medvlp.datasets.folders import IMAGE_SUFFIXES, image_files
from medvlp.datasets.open_i_reports import LABELS, OpenIReport, parse, report_files
from medvlp.datasets.tables import TableSpec, rows_of
from medvlp.errors import ConfigError, DataError
from medvlp.io.reports import CLEANINGS, count_tokens, report_text
from medvlp.splits import SplitInput

REPORT_POLICIES: tuple[str, ...] = ("both", "findings", "impression", "longest", "all")
"""The report policies that make sense where sections are marked as such."""

_PROJECTIONS = "indiana_projections.csv"
_IMAGE_FOLDERS = ("NLMCXR_png", "images", "images/images_normalized")


class OpenI(Corpus):
    """Open-I, the Indiana University collection.

    Records are images, by report number and then in the order of the report. The report number stands for the
    patient, since the collection names none. For "classification" no report text is needed; for "pairs" (and where no
    task is named) the report must have a usable one. Labels come from the major MeSH terms, see
    :data:`~medvlp.datasets.open_i_reports.MESH_LABELS`: 1 if a term of the label is there, else 0, and NaN throughout
    for the reports that were not indexed.

    Args:
        root: folder of the corpus.
        views: projections to keep, "Frontal" or "Lateral", once the split is made; "" keeps images of unknown
            projection, which are all of them without the table of projections.
        report_policy: one of :data:`REPORT_POLICIES`, see :func:`medvlp.io.reports.select_text`.
        cleaning: see :func:`medvlp.io.reports.clean_text`; "none" keeps the token ``XXXX`` of removed words, as all
            others.
        min_tokens: reports with fewer word tokens after cleaning are dropped.
        classes: labels to keep, in this order; None keeps all.
        on_error: "raise" on a missing image or a broken report, or "skip" (drop and count) them.

    Raises:
        ConfigError: an unknown policy, cleaning or label.
    """

    name = "open_i"
    title = "Open-I"
    source = "NLM Open-i's Indiana University Chest X-ray Collection (NLMCXR_reports.tgz and NLMCXR_png.tgz)"
    tasks = ("pairs", "classification")
    tables = (
        TableSpec(
            _PROJECTIONS,
            ("uid", "filename", "projection"),
            key=("filename",),
            required=False,
            needed_for="views",
        ),
    )
    image_folders = ("NLMCXR_png", "images")

    def __init__(
        self,
        root: str | Path,
        *,
        views: Sequence[str] = ("Frontal", ""),
        report_policy: str = "both",
        cleaning: str = "none",
        min_tokens: int = 3,
        classes: Sequence[str] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(root, on_error=on_error)
        for value, allowed, what in (
            (report_policy, REPORT_POLICIES, "report_policy"),
            (cleaning, CLEANINGS, "cleaning"),
        ):
            if value not in allowed:
                raise ConfigError(f'{what} "{value}" is unknown; there are {", ".join(allowed)}')
        if unknown := [c for c in classes or () if c not in LABELS]:
            raise ConfigError(f"{self.title} has no label {', '.join(unknown)}; it has {', '.join(LABELS)}")
        self.views = tuple("" if v.lower() in ("", "unknown") else v.lower() for v in views)
        self.report_policy = report_policy
        self.cleaning = cleaning
        self.min_tokens = min_tokens
        self.classes = tuple(classes) if classes is not None else LABELS

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """Images by report number; see :meth:`Corpus.records`. There are no released parts, so give no ``pools``."""
        self.require_task(task)
        self.require_root()
        if pools is not None and tuple(pools) != ("",):
            raise DataError(f"{self.title} is released in one part, not in {', '.join(pools)}; leave the pools out")
        dropped = Dropped()
        images, reports = self._listed(dropped)
        images = self._on_disk(images, dropped)
        texts: dict[int, str] = {}
        if task != "classification":
            texts, images = self._texts(images, reports, dropped)
        return self._records(images, reports, texts, task, dropped)

    def listing(self) -> SplitInput:
        """Every image that a report names, whether it has a file and a text or not; see :meth:`Corpus.listing`."""
        self.require_root()
        dropped = Unnoted()
        images, reports = self._listed(dropped)
        return self.split_input(self._records(images.assign(image=""), reports, {}, "classification", dropped))

    def _records(
        self,
        images: pd.DataFrame,
        reports: dict[int, OpenIReport],
        texts: dict[int, str],
        task: Task | None,
        dropped: Dropped,
    ) -> Records:
        columns = {
            "id": images["id"],
            "image": images["image"],
            "patient": images["number"],
            "study": images["study"],
            "view": images["id"].map(self._projections(set(images["id"]), dropped)).fillna(""),
            "pool": [""] * len(images),
        }
        if task != "classification":
            columns["text"] = images["number"].map(texts)
        of_report = {number: report.labels for number, report in reports.items()}
        labels = pd.DataFrame([of_report[n] for n in images["number"]], columns=list(LABELS), dtype=np.float32)
        return Records(make_table(columns, labels), dropped.frame())

    def after_split(self, table: pa.Table) -> pa.Table:
        """The chosen views and labels."""
        views = pd.Series(table.column("view").to_pylist(), dtype=object).str.lower()
        table = table.filter(pa.array(views.isin(self.views).to_numpy(dtype=bool)))
        return table.select([c for c in table.column_names if c in RESERVED_COLUMNS] + list(self.classes))

    def _listed(self, dropped: Dropped) -> tuple[pd.DataFrame, dict[int, OpenIReport]]:
        """The images that the reports name (id, number, study, row, place), and the reports by number."""
        reports: dict[int, OpenIReport] = {}
        studies: dict[str, str] = {}
        owner: dict[str, str] = {}
        rows = []
        for row, file in enumerate(report_files(self.root, self.remedy)):
            item = f"report {file.number}"
            try:
                report = parse(file.data)
                if report.study in studies:
                    raise ValueError(f"same uId as {studies[report.study]}")
            except ValueError as error:
                self.broken(dropped, item, row, str(error), file.place)
                continue
            studies[report.study] = item
            reports[file.number] = report
            if not report.images:
                dropped.add(item, row, "report without an image")
            for image in report.images:
                if not image or "/" in image or "\\" in image:
                    self.broken(dropped, item, row, "blank or malformed image id", file.place)
                elif image in owner:
                    self.broken(dropped, image, row, f"image of {owner[image]} as well", file.place)
                else:
                    owner[image] = item
                    rows.append((image, file.number, report.study, row, file.place))
        return pd.DataFrame(rows, columns=["id", "number", "study", "row", "place"]), reports

    def _on_disk(self, images: pd.DataFrame, dropped: Dropped) -> pd.DataFrame:
        """The images whose file is there, with its path in the column image."""
        files = image_files([*(self.root / folder for folder in _IMAGE_FOLDERS), self.root])
        if not files:
            packed = " (NLMCXR_png.tgz is there: unpack it)" if (self.root / "NLMCXR_png.tgz").is_file() else ""
            raise DataError(
                f"{self.root} holds no PNG image, neither in itself nor in {' nor '.join(_IMAGE_FOLDERS)}{packed}; get"
                f" the images from {self.remedy}"
            )
        known = set(images["id"])
        there = {f"{_image_id(name, known)}{os.path.splitext(name)[1]}": path for name, path in files.items()}
        listed = images["id"] + ".png"
        paths = dict(zip(images["id"], listed.map(self.files_of(listed, there)), strict=True))
        images = images.assign(image=images["id"].map(paths))
        for image in rows_of(images[images["image"].isna()]):
            self.broken(dropped, image.id, image.row, "missing image file", f"{image.place} (sought under {self.root})")
        return images[images["image"].notna()].reset_index(drop=True)

    def _texts(
        self, images: pd.DataFrame, reports: dict[int, OpenIReport], dropped: Dropped
    ) -> tuple[dict[int, str], pd.DataFrame]:
        """Text by report number, and the images whose report has one."""
        texts, reasons = {}, {}
        for number in images["number"].unique():
            sections = reports[number].sections
            # "all" keeps indication and comparison, which alone say nothing about the image
            usable = self.report_policy != "all" or sections.findings or sections.impression
            text = report_text(sections, self.report_policy, self.cleaning) if usable else ""
            if not text:
                named = "impression or findings" if self.report_policy in ("both", "longest", "all") else ""
                reasons[number] = f"no {named or self.report_policy + ' text'}"
            elif count_tokens(text) < self.min_tokens:
                reasons[number] = f"fewer than {self.min_tokens} tokens"
            else:
                texts[number] = text
        reason = images["number"].map(reasons)
        for name in sorted(set(reasons.values())):
            of_reason = images[reason == name]
            dropped.extend(of_reason["id"], of_reason["row"], name)
        return texts, images[reason.isna()]

    def _projections(self, known: set[str], dropped: Dropped) -> dict[str, str]:
        """Image id to Frontal or Lateral; empty without the table."""
        if not self.has_table(_PROJECTIONS):
            return {}
        table = self.read_table(_PROJECTIONS)
        views = {"frontal": "Frontal", "lateral": "Lateral"}
        found = {}
        for row, name, cell in zip(table.frame.index, table.frame["filename"], table.frame["projection"], strict=True):
            view = views.get(cell.lower())
            if view is None:
                self.broken(dropped, name, int(row), "projection is neither Frontal nor Lateral", str(table.path))
            else:
                found[_image_id(name, known)] = view
        return found


def _image_id(name: str, known: set[str]) -> str:
    """The image id of a file name; the Kaggle mirror writes 1_IM-0001-3001.dcm.png for CXR1_1_IM-0001-3001."""
    stem = name
    for suffix in IMAGE_SUFFIXES:
        stem = stem.removesuffix(suffix)
    if stem in known:
        return stem
    return next((i for i in (f"CXR{stem}", f"CXR{stem.partition('_')[0]}_{stem}") if i in known), stem)

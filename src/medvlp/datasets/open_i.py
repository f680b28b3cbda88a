"""Open-I, the chest radiographs of Indiana University (NLMCXR): reports as XML, images as PNG.

Expected under the root: the reports, ``ecgen-radiology/<n>.xml`` or the archive ``NLMCXR_reports.tgz`` as it is, and
the unpacked images of ``NLMCXR_png.tgz``, in the root, in ``images`` or in ``NLMCXR_png``. The reports do not say
which image is a lateral; the table ``indiana_projections.csv`` of the Kaggle mirror does, and is used where it is
there.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from medvlp.datasets.base import Dropped, OnError, make_table, text_column, with_labels
from medvlp.datasets.corpus import Records, Task
from medvlp.datasets.folders import IMAGE_SUFFIXES, image_files
from medvlp.datasets.open_i_reports import LABELS, OpenIReport, parse, report_files
from medvlp.datasets.reports import ReportCorpus
from medvlp.datasets.tables import released_tables
from medvlp.errors import DataError
from medvlp.splits import SplitInput

ReportPolicy = Literal["both", "findings", "impression", "longest", "all"]
"""The report policies that make sense where sections are marked as such."""

_PROJECTIONS = "indiana_projections.csv"
_IMAGE_FOLDERS = ("NLMCXR_png", "images", "images/images_normalized")


class OpenI(ReportCorpus):
    """Open-I, the Indiana University collection.

    Records are images, by report number (which stands for the patient) and then in the order of the report. For
    "classification" no report text is needed; for "pairs" (and where no task is named) the report must have a usable
    one. Labels come from the major MeSH terms, see :data:`~medvlp.datasets.open_i_reports.MESH_LABELS`: 1 if a term of
    the label is there, else 0, and NaN for the reports that were not indexed.

    Args:
        root: folder of the corpus.
        views: projections to keep, "Frontal" or "Lateral", after the split; "" keeps images of unknown projection,
            which are all of them without the table of projections.
        report_policy: which sections make up the text, see docs/datasets/reports.md.
        cleaning: a name of medvlp.io.reports.CLEANINGS; "none" keeps the token XXXX of removed words, as all others.
        min_tokens: reports with fewer words after cleaning are dropped.
        classes: labels to keep, in this order; None keeps all.
    """

    name = "open_i"
    title = "Open-I"
    source = "NLM Open-i's Indiana University Chest X-ray Collection (NLMCXR_reports.tgz and NLMCXR_png.tgz)"
    tasks = ("pairs", "classification")
    tables = released_tables("open_i")
    image_folders = ("NLMCXR_png", "images")
    policies = get_args(ReportPolicy)
    either = ("both", "longest", "all")

    def __init__(
        self,
        root: str | Path,
        *,
        views: Sequence[str] = ("Frontal", ""),
        report_policy: ReportPolicy = "both",
        cleaning: str = "none",
        min_tokens: int = 3,
        classes: Sequence[str] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(root, on_error, report_policy, cleaning, min_tokens)
        self.views = tuple("" if v.lower() in ("", "unknown") else v.lower() for v in views)
        self.classes = self.chosen_labels(classes, LABELS)

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """Images by report number; there are no released parts, so give no ``pools``."""
        dropped = self.begin(task)
        if pools is not None and tuple(pools) != ("",):
            raise DataError(f"{self.title} is released in one part, not in {', '.join(pools)}; leave the pools out")
        images, reports = self._listed(dropped)
        images = self._on_disk(images, dropped)
        texts: dict[int, str] = {}
        if task != "classification":
            texts, images = self._texts(images, reports, dropped)
        return self._records(images, reports, texts, task, dropped)

    def listing(self) -> SplitInput:
        """Every image that a report names."""
        dropped = self.begin(listing=True)
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
        views = pd.Series(text_column(table, "view")).str.lower()
        table = table.filter(pa.array(views.isin(self.views).to_numpy(dtype=bool)))
        return with_labels(table, self.classes)

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
        files = image_files([*(self.root / folder for folder in _IMAGE_FOLDERS), self.root])
        if not files:
            packed = " (NLMCXR_png.tgz is there: unpack it)" if (self.root / "NLMCXR_png.tgz").is_file() else ""
            raise DataError(
                f"{self.root} holds no PNG image, neither in itself nor in {' nor '.join(_IMAGE_FOLDERS)}{packed}; get"
                f" the images from {self.remedy}"
            )
        known = set(images["id"])
        listed = {f"{_image_id(name, known)}{os.path.splitext(name)[1]}": path for name, path in files.items()}
        where = images["place"] + f" (sought under {self.root})"
        return self.on_disk(images, images["id"] + ".png", listed, dropped, where)

    def _texts(
        self, images: pd.DataFrame, reports: dict[int, OpenIReport], dropped: Dropped
    ) -> tuple[dict[int, str], pd.DataFrame]:
        texts, reasons = {}, {}
        for number in images["number"].unique():
            sections = reports[number].sections
            texts[number], reasons[number] = self.text_of(sections)
            # "all" keeps indication and comparison, which alone say nothing about the image
            if self.report_policy == "all" and not (sections.findings or sections.impression):
                texts[number], reasons[number] = "", "no impression or findings"
        reason_of = images["number"].map(reasons)
        for reason in sorted({*reasons.values()} - {""}):
            of_reason = images[reason_of == reason]
            dropped.extend(of_reason["id"], of_reason["row"], reason)
        return texts, images[reason_of == ""]

    def _projections(self, known: set[str], dropped: Dropped) -> dict[str, str]:
        """Image id to Frontal or Lateral; empty without the table."""
        if not self.has_table(_PROJECTIONS):
            return {}
        table = self.read_table(_PROJECTIONS)
        names, view = table.frame["filename"], table.frame["projection"].str.lower()
        reasons = {"projection is neither Frontal nor Lateral": ~view.isin(("frontal", "lateral"))}
        good = self.sound_rows(dropped, names, reasons, str(table.path))
        return {_image_id(n, known): v.capitalize() for n, v in zip(names[good], view[good], strict=True)}


def _image_id(name: str, known: set[str]) -> str:
    """The image id of a file name; the Kaggle mirror writes 1_IM-0001-3001.dcm.png for CXR1_1_IM-0001-3001."""
    stem = name
    for suffix in IMAGE_SUFFIXES:
        stem = stem.removesuffix(suffix)
    if stem in known:
        return stem
    return next((i for i in (f"CXR{stem}", f"CXR{stem.partition('_')[0]}_{stem}") if i in known), stem)

"""MIMIC-CXR-JPG and the reports of MIMIC-CXR, as PhysioNet releases them (and as the phantom imitates them).

Expected under the root: ``mimic-cxr-2.0.0-split.csv[.gz]``, ``mimic-cxr-2.0.0-metadata.csv[.gz]``, optionally the
label tables, and the images at ``files/p10/p10000032/s50414267/<dicom_id>.jpg``. The reports are sought, in the
reports root and then in the root, as files ``files/p10/p10000032/s50414267.txt`` or in ``mimic-cxr-reports.zip``.
Releases 2.0.0 and 2.1.0 differ only in the table of the radiologist's labels of the test reports.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from medvlp.datasets.base import Dropped, OnError, make_table
from medvlp.datasets.corpus import SIDE_VIEWS, Records, Task
from medvlp.datasets.folders import mimic_paths
from medvlp.datasets.labels import LabelPolicy, apply_policy
from medvlp.datasets.mimic_reports import REPORTS_ZIP, Reports, read_sections
from medvlp.datasets.reports import ReportCorpus
from medvlp.datasets.tables import TableSpec, read_table, released_tables, to_numbers
from medvlp.errors import DataError, check_choice
from medvlp.splits import SplitInput

Labels = Literal["chexpert", "negbio", "radiologist", "truth"]

_SPLIT, _METADATA = "mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-metadata.csv"
_POOLS = ("train", "validate", "test")
_NAMES = {"dicom_id": "id", "subject_id": "patient", "study_id": "study", "split": "pool"}
_LABEL_TABLES: dict[str, str] = {
    "chexpert": "mimic-cxr-2.0.0-chexpert.csv",
    "negbio": "mimic-cxr-2.0.0-negbio.csv",
    "radiologist": "mimic-cxr-2.1.0-test-set-labeled.csv",
}
_NO_LABELS = ("subject_id", "split", "dicom_id")  # columns of label tables that are none


class MIMICCXR(ReportCorpus):
    """MIMIC-CXR-JPG 2.0.0 or 2.1.0 with the reports of MIMIC-CXR 2.0.0.

    Records are images, in the order of the split table, of the chosen views. For "pairs" (and where no task is named)
    their study needs a usable report; for "classification" no report is read.

    Args:
        root: folder of MIMIC-CXR-JPG, or where the phantom is written.
        reports_root: folder of MIMIC-CXR with the reports, if they are not under root.
        views: values of ViewPosition to keep; "" or "unknown" stands for a blank one.
        report_policy: which sections, a name of medvlp.io.reports.POLICIES.
        cleaning: a name of medvlp.io.reports.CLEANINGS.
        min_tokens: studies with fewer words after cleaning are dropped (MGCA: 3).
        labels: label table, joined by study: "chexpert", "negbio", "radiologist" (2.1.0, test reports only), the
            phantom's exact "truth", or None. Studies that the table lacks get NaN.
        label_policy: what becomes of uncertain and blank labels, a name of medvlp.datasets.labels.LABEL_POLICIES.
        classes: labels to keep, in this order; None keeps all.
        cache_dir: folder for the parsed reports (Parquet, keyed by the studies and their files); None keeps none.
            The cache holds report text: keep it as safe as the corpus.
    """

    name = "mimic_cxr"
    title = "MIMIC-CXR-JPG"
    source = "PhysioNet's MIMIC-CXR-JPG"
    tasks = ("pairs", "classification")
    tables = released_tables("mimic_cxr")
    image_folders = ("files",)
    image_counts = {"files": 377_110}  # noqa: RUF012 - a class constant

    def __init__(
        self,
        root: str | Path,
        *,
        reports_root: str | Path | None = None,
        views: Sequence[str] = ("PA", "AP"),
        report_policy: str = "both",
        cleaning: str = "none",
        min_tokens: int = 3,
        labels: Labels | None = "chexpert",
        label_policy: LabelPolicy = "keep",
        classes: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(root, on_error, report_policy, cleaning, min_tokens, reports_root)
        check_choice("labels", labels, (*_LABEL_TABLES, "truth", None))
        self.views = tuple(views)
        self.labels = labels
        self.label_policy = label_policy
        self.classes = classes
        self.cache_dir = Path(cache_dir) if cache_dir else None

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """Images of the chosen views, in the order of the split table."""
        dropped = self.begin(task)
        self.require_reports(f"download PhysioNet's MIMIC-CXR ({REPORTS_ZIP})")
        images = self._listed_images(_POOLS if pools is None else pools, dropped)
        if task != "classification":
            images = self._with_texts(images, dropped)
        labels = None if self.labels is None else self._label_table().reindex(images["study_id"])
        columns = images.assign(image=self._image_paths(images)).rename(columns=_NAMES)
        return Records(make_table(columns, labels), dropped.frame())

    def released_sizes(self) -> dict[str, tuple[int, int]]:
        """Rows and Columns of the metadata table, where it has them."""
        meta = self.read_table(_METADATA).frame
        if "Rows" not in meta or "Columns" not in meta:
            return {}
        sizes = meta[["Rows", "Columns"]].apply(pd.to_numeric, errors="coerce").set_index(meta["dicom_id"])
        sizes = sizes[((sizes > 0) & (sizes < 1e6)).all(axis=1)].astype(int)
        return dict(zip(sizes.index, sizes.itertuples(index=False, name=None), strict=True))

    def listing(self) -> SplitInput:
        """All images of the split table, of any view, with or without a usable report."""
        splits = self.read_table(_SPLIT).frame
        meta = self.read_table(_METADATA).frame.set_index("dicom_id")["ViewPosition"]
        view = splits["dicom_id"].map(meta).fillna("").str.upper().to_numpy(dtype=object)
        return SplitInput(
            ids=splits["dicom_id"].to_numpy(dtype=object),
            patients=splits["subject_id"].to_numpy(dtype=object),
            pool=splits["split"].to_numpy(dtype=object),
            views=view,
            frontal=~np.isin(view.astype(str), SIDE_VIEWS),
            labels=pd.DataFrame(index=range(len(splits))),
        )

    def _listed_images(self, pools: Sequence[str], dropped: Dropped) -> pd.DataFrame:
        """Images of released parts in the chosen views: dicom_id, subject_id, study_id, split, view; index = row."""
        splits = self.read_table(_SPLIT).frame
        known = set(splits["split"])
        if unknown := known - set(_POOLS):
            row = int(splits.index[~splits["split"].isin(_POOLS)][0])
            raise DataError(
                f"the split table under {self.root} names a split other than {', '.join(_POOLS)} (row {row}, and"
                f" {len(unknown)} such name(s) in all); get it from {self.remedy}"
            )
        if not known & set(pools):
            there = ", ".join(sorted(known))
            raise DataError(f'the split table under {self.root} has no split "{", ".join(pools)}"; it has {there}')
        splits = splits[splits["split"].isin(pools)]
        meta = self.read_table(_METADATA).frame.set_index("dicom_id")
        splits = splits.assign(view=splits["dicom_id"].map(meta["ViewPosition"]))
        reasons = {f"blank {name}": splits[name] == "" for name in ("dicom_id", "subject_id", "study_id")}
        reasons["not in the metadata table"] = splits["view"].isna()
        splits = splits[self.sound_rows(dropped, splits["dicom_id"], reasons, str(self.root), by_reason=True)]
        chosen = {"" if v in ("", "unknown") else v.upper() for v in self.views}
        upper = splits["view"].str.upper()
        keep = upper.isin(chosen)
        for view in sorted(set(upper[~keep])):
            other = upper == view
            dropped.extend(splits["dicom_id"][other], splits.index[other], f"view {view}" if view else "blank view")
        return splits[keep]

    def _with_texts(self, images: pd.DataFrame, dropped: Dropped) -> pd.DataFrame:
        """The images whose study has a usable report, with its text."""
        roots = [self.root] if self.reports_root is None else [self.reports_root, self.root]
        where = " or ".join(map(str, roots))
        studies = images.drop_duplicates("study_id")[["subject_id", "study_id"]]
        parsed = read_sections(Reports(roots), studies, self.cache_dir)
        if len(parsed) and all(problem == "missing report file" for problem, _ in parsed.values()):
            raise DataError(
                f"no report of the listed studies lies under {where}; download {REPORTS_ZIP}"
                " from PhysioNet's MIMIC-CXR into that folder, or set reports_root"
            )
        texts, reasons = {}, {}
        for study, (problem, sections) in parsed.items():
            texts[study], reasons[study] = ("", problem) if sections is None else self.text_of(sections)
        images = images.assign(reason=images["study_id"].map(reasons))
        usable = images["reason"] == ""
        skipped = images.loc[~usable, ["dicom_id", "study_id", "reason"]]
        for row, dicom, study, reason in skipped.itertuples(name=None):
            if parsed[study][1] is None:
                self.broken(dropped, dicom, row, reason, f"report of study s{study} under {where}")
            else:
                dropped.add(dicom, row, reason)
        return images.assign(text=images["study_id"].map(texts))[usable]

    def _label_table(self) -> pd.DataFrame:
        """Labels by study id: 1, 0, −1, NaN."""
        if self.labels == "truth":
            spec = TableSpec("labels.csv", ("study_id",), others=True)
            if spec.find(self.root / "truth") is None:
                raise DataError(
                    f"{self.root / 'truth' / spec.name} is missing: labels: truth exist for phantoms only; use chexpert"
                    f" or negbio, or write a phantom with: medvlp phantom {self.name} --root {self.root}"
                )
            table = read_table(self.root / "truth", spec, source=self.remedy)
        else:
            table = self.read_table(_LABEL_TABLES[str(self.labels)])
        frame = table.frame.set_index("study_id")
        if (frame.index == "").any():
            row = int(table.frame.index[table.frame["study_id"] == ""][0])
            raise DataError(f"row {row} of {table.path} has no study_id; get it from {self.remedy}")
        frame = frame.drop(columns=[c for c in _NO_LABELS if c in frame.columns])
        labels = to_numbers(frame, str(table.path))
        labels = labels[list(self.chosen_labels(self.classes, tuple(labels.columns)))]
        wrong = (labels.notna() & ~labels.isin((-1, 0, 1))).any(axis=1).to_numpy()
        if wrong.any():
            row = int(table.frame.index[wrong][0])
            raise DataError(
                f"row {row} of {table.path} has a label other than 1, 0, −1 or blank; get it from {self.remedy}"
            )
        return apply_policy(labels, self.label_policy)

    def _image_paths(self, images: pd.DataFrame) -> list[str]:
        keys = list(zip(images["subject_id"], images["study_id"], images["dicom_id"], strict=True))
        paths = mimic_paths(self.root, [f"files/p{p[:2]}/p{p}/s{s}/{d}.jpg" for p, s, d in keys])
        self.substitute({f"{k[2]}.jpg": path for k, path in zip(keys, paths, strict=True) if not path.endswith(".jpg")})
        return paths

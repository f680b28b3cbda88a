"""MIMIC-CXR for pre-training, real or as a phantom."""

import os
from collections.abc import Sequence
from typing import Any, Literal

from medvlp.datamodules.base import PretrainDataModule, Split
from medvlp.datasets.base import ImageTextDataset
from medvlp.datasets.mimic_cxr import read_mimic_cxr
from medvlp.errors import ConfigError
from medvlp.phantom.model import PhantomSpec
from medvlp.phantom.progress import write_with_progress


class MIMICCXRDataModule(PretrainDataModule):
    """MIMIC-CXR-JPG with the reports of MIMIC-CXR, or a phantom in the same layout.

    Args:
        root: folder of MIMIC-CXR-JPG, or where the phantom is (to be) written.
        reports_root: folder of MIMIC-CXR with the reports, if they are not under root.
        views: values of ViewPosition to keep; "" or "unknown" stands for a blank one.
        report_policy: which sections: "findings", "impression", "both", "longest", "last_paragraph" or "all".
        cleaning: "none", "mgca" or "g2d_official", see medvlp.io.reports.
        min_tokens: studies with fewer words are left out.
        labels: label table: "chexpert", "negbio", the phantom's exact "truth", or None.
        cache_dir: folder for the parsed reports; it will hold report text.
        phantom: if given, a phantom of this description is written at root unless it is there already.
        **kwargs: of :class:`~medvlp.datamodules.base.PretrainDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        reports_root: str | None = None,
        views: Sequence[str] = ("PA", "AP"),
        report_policy: Literal["findings", "impression", "both", "longest", "last_paragraph", "all"] = "both",
        cleaning: Literal["none", "mgca", "g2d_official"] = "none",
        min_tokens: int = 3,
        labels: Literal["chexpert", "negbio", "truth"] | None = "chexpert",
        cache_dir: str | None = None,
        phantom: PhantomSpec | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.text_sampling == "sentence" and cleaning == "mgca":
            raise ConfigError("text_sampling: sentence needs sentence ends, which cleaning: mgca removes; use none")
        self.root = root
        self.reports_root = reports_root
        self.views = tuple(views)
        self.report_policy = report_policy
        self.cleaning = cleaning
        self.min_tokens = min_tokens
        self.labels = labels
        self.cache_dir = cache_dir
        self.phantom = phantom

    def prepare_data(self) -> None:
        """Write the phantom, if one is asked for and not there yet (one process per machine calls this).

        Raises:
            DataError: root holds something else, such as a phantom of another description.
        """
        if self.phantom is not None:
            write_with_progress("mimic_cxr", self.root, self.phantom, workers=min(os.cpu_count() or 1, 4))

    def read(self, split: Split) -> ImageTextDataset:
        """Index one official split."""
        return read_mimic_cxr(
            self.root,
            split=split,
            reports_root=self.reports_root,
            views=self.views,
            report_policy=self.report_policy,
            cleaning=self.cleaning,
            min_tokens=self.min_tokens,
            labels=self.labels,
            cache_dir=self.cache_dir,
            on_error=self.on_error,
        )

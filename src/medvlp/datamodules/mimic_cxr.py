"""MIMIC-CXR, real or as a phantom."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.mimic_cxr import MIMICCXR
from medvlp.errors import ConfigError


class MIMICCXRDataModule(CorpusDataModule):
    """MIMIC-CXR-JPG with the reports of MIMIC-CXR, or a phantom in the same layout.

    Args:
        root: folder of MIMIC-CXR-JPG, or where the phantom is (to be) written.
        task: "pairs" of image and report, or "classification", which reads no report.
        split: "official", or another of medvlp.splits.
        reports_root: folder of MIMIC-CXR with the reports, if they are not under root.
        views: values of ViewPosition to keep; "" or "unknown" stands for a blank one.
        report_policy: which sections, a name of medvlp.io.reports.POLICIES.
        cleaning: a name of medvlp.io.reports.CLEANINGS.
        min_tokens: studies with fewer words are left out.
        labels: label table: "chexpert", "negbio", "radiologist" (2.1.0), the phantom's exact "truth", or None.
        label_policy: what becomes of uncertain and blank labels.
        classes: labels to keep, in this order; None keeps all.
        **kwargs: of :class:`~medvlp.datamodules.corpus.CorpusDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        task: Literal["pairs", "classification"] = "pairs",
        split: str = "official",
        reports_root: str | None = None,
        views: Sequence[str] = ("PA", "AP"),
        report_policy: str = "both",
        cleaning: str = "none",
        min_tokens: int = 3,
        labels: Literal["chexpert", "negbio", "radiologist", "truth"] | None = "chexpert",
        label_policy: Literal["keep", "u_zeros", "u_ones", "u_ignore", "gloria"] = "keep",
        classes: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        corpus = MIMICCXR(
            root,
            reports_root=reports_root,
            views=views,
            report_policy=report_policy,
            cleaning=cleaning,
            min_tokens=min_tokens,
            labels=labels,
            label_policy=label_policy,
            classes=classes,
        )
        super().__init__(corpus, task=task, split=split, **kwargs)
        # parsed reports are kept beside the prepared images
        corpus.cache_dir = Path(self.cache_dir) if self.cache_dir else None
        if self.text_sampling != "whole" and cleaning in ("mgca", "gloria"):
            raise ConfigError(
                f"text_sampling: {self.text_sampling} needs sentence ends, which cleaning: {cleaning} removes; use none"
            )

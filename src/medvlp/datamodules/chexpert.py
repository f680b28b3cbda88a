"""CheXpert, real or as a phantom."""

from collections.abc import Sequence
from typing import Any, Literal

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.chexpert import CheXpert
from medvlp.datasets.labels import CHEXPERT_5
from medvlp.errors import ConfigError


class CheXpertDataModule(CorpusDataModule):
    """CheXpert-v1.0 or CheXpert-v1.0-small with the reports of CheXpert Plus, or a phantom in the same layout.

    Args:
        root: folder of the release, the folder of the unpacked batches, or where the phantom is (to be) written.
        task: "classification", or "pairs" of image and report (CheXpert Plus).
        split: "g2d", or another of medvlp.splits. "maco" wants views: all, as its authors use all views.
        classes: labels of a sample, in this order; None for all 14.
        label_policy: what becomes of uncertain labels, a name of medvlp.datasets.labels.LABEL_POLICIES.
        blanks: whether an unmentioned label is "unknown" or "negative"; None takes what the policy's papers do.
        views: "frontal", "all", or values of AP/PA; the filter comes after the split.
        test_images: of each study of the later test set the "first" view, or "all".
        reports_root: folder of CheXpert Plus with the reports, if they are not under root.
        report_policy: which sections, a name of medvlp.io.reports.POLICIES.
        cleaning: a name of medvlp.io.reports.CLEANINGS.
        min_tokens: reports with fewer words are left out.
        **kwargs: of :class:`~medvlp.datamodules.corpus.CorpusDataModule`.

    Raises:
        ConfigError: two settings contradict each other, or a name is unknown.
    """

    def __init__(
        self,
        root: str,
        *,
        task: Literal["classification", "pairs"] = "classification",
        split: str = "g2d",
        classes: Sequence[str] | None = CHEXPERT_5,
        label_policy: Literal["keep", "u_zeros", "u_ones", "u_ignore", "gloria"] = "gloria",
        blanks: Literal["unknown", "negative"] | None = None,
        views: str | Sequence[str] = "frontal",
        test_images: Literal["first", "all"] = "first",
        reports_root: str | None = None,
        report_policy: str = "both",
        cleaning: str = "none",
        min_tokens: int = 3,
        **kwargs: Any,
    ) -> None:
        corpus = CheXpert(
            root,
            classes=classes,
            label_policy=label_policy,
            blanks=blanks,
            views=views,
            test_images=test_images,
            reports_root=reports_root,
            report_policy=report_policy,
            cleaning=cleaning,
            min_tokens=min_tokens,
        )
        super().__init__(corpus, task=task, split=split, **kwargs)
        if task == "pairs" and self.text_sampling != "whole" and cleaning in ("mgca", "gloria"):
            raise ConfigError(
                f"text_sampling: {self.text_sampling} needs sentence ends, which cleaning: {cleaning} removes; use none"
            )

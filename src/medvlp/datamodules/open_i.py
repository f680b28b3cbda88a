"""Open-I, real or as a phantom."""

from collections.abc import Sequence
from typing import Any, Literal

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.open_i import OpenI
from medvlp.errors import ConfigError


class OpenIDataModule(CorpusDataModule):
    """Open-I, the Indiana University collection: images, reports, and labels from their index terms.

    Args:
        root: folder of the corpus, or where the phantom is (to be) written.
        task: "pairs" of image and report, or "classification", which needs no report text.
        split: a name of medvlp.splits; None takes the default.
        views: projections to keep, "Frontal" or "Lateral"; "" keeps images of unknown projection.
        report_policy: which sections: "both", "findings", "impression", "longest" or "all".
        cleaning: a name of medvlp.io.reports.CLEANINGS.
        min_tokens: reports with fewer words are left out.
        classes: labels to keep, in this order; None keeps all.
        **kwargs: of :class:`~medvlp.datamodules.corpus.CorpusDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        task: Literal["pairs", "classification"] = "pairs",
        split: str | None = None,
        views: Sequence[str] = ("Frontal", ""),
        report_policy: Literal["both", "findings", "impression", "longest", "all"] = "both",
        cleaning: str = "none",
        min_tokens: int = 3,
        classes: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        corpus = OpenI(
            root,
            views=views,
            report_policy=report_policy,
            cleaning=cleaning,
            min_tokens=min_tokens,
            classes=classes,
        )
        super().__init__(corpus, task=task, split=split, **kwargs)
        if self.text_sampling != "whole" and cleaning in ("mgca", "gloria"):
            raise ConfigError(
                f"text_sampling: {self.text_sampling} needs sentence ends, which cleaning: {cleaning} removes; use none"
            )

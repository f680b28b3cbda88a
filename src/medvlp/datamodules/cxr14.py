"""NIH ChestX-ray14, real or as a phantom."""

from collections.abc import Sequence
from typing import Any, Literal

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.cxr14 import NIH_14, ChestXray14


class ChestXray14DataModule(CorpusDataModule):
    """NIH ChestX-ray14: 14 labels, and boxes of 8 findings on some test images.

    Args:
        root: folder of the corpus, or where the phantom is (to be) written.
        task: "classification", "detection" or "grounding" (class names as phrases).
        split: a name of medvlp.splits; None takes the default, the official one.
        labels_version: label table: "v2020", "2017", or "auto" for the newest there is.
        classes: labels to keep, in this order; None keeps the 14 and "No Finding".
        views: values of View Position to keep.
        **kwargs: of :class:`~medvlp.datamodules.corpus.CorpusDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        task: Literal["classification", "detection", "grounding"] = "classification",
        split: str | None = None,
        labels_version: Literal["auto", "v2020", "2017"] = "auto",
        classes: Sequence[str] | None = NIH_14,
        views: Sequence[str] = ("PA", "AP"),
        **kwargs: Any,
    ) -> None:
        corpus = ChestXray14(root, labels_version=labels_version, classes=classes, views=views)
        super().__init__(corpus, task=task, split=split, **kwargs)

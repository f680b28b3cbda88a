"""RSNA Pneumonia Detection Challenge, real or as a phantom."""

from collections.abc import Sequence
from typing import Any, Literal

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.rsna import RSNAPneumonia


class RSNADataModule(CorpusDataModule):
    """RSNA Pneumonia Detection Challenge, stage 2, or a phantom in the same layout.

    Args:
        root: folder of the challenge, or where the phantom is (to be) written.
        task: "classification" (images), "segmentation" (masks of the boxes), "detection" (boxes) or "grounding" (boxes,
            masks and the word "Pneumonia"; images without a box are left out after the split).
        split: "g2d", or another of medvlp.splits.
        classes: labels of a sample, in this order: "Pneumonia", or names of the detailed classes "Normal",
            "No Lung Opacity / Not Normal", "Lung Opacity".
        test_labels: file with the labels of the test images, see medvlp.datasets.rsna.RSNAPneumonia.
        **kwargs: of :class:`~medvlp.datamodules.corpus.CorpusDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        task: Literal["classification", "segmentation", "detection", "grounding"] = "classification",
        split: str = "g2d",
        classes: Sequence[str] = ("Pneumonia",),
        test_labels: str | None = None,
        **kwargs: Any,
    ) -> None:
        corpus = RSNAPneumonia(root, classes=classes, test_labels=test_labels)
        super().__init__(corpus, task=task, split=split, **kwargs)

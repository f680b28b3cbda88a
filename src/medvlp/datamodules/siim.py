"""SIIM-ACR Pneumothorax Segmentation, real or as a phantom."""

from typing import Any, Literal

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.siim import SIIMPneumothorax


class SIIMDataModule(CorpusDataModule):
    """SIIM-ACR Pneumothorax Segmentation, or a phantom in the same layout.

    Args:
        root: folder of the challenge, or where the phantom is (to be) written.
        task: "segmentation" (masks), "classification" (images) or "grounding" (masks, boxes around them and the word
            "Pneumothorax"; images without a mask are left out after the split).
        split: "g2d", or another of medvlp.splits. "mgca" tears the mask rows of an image apart, as its code does.
        stage: 2, 1, or "auto" for stage 2 where its table is there.
        table: the table, if it lies elsewhere or has another name.
        **kwargs: of :class:`~medvlp.datamodules.corpus.CorpusDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        task: Literal["segmentation", "classification", "grounding"] = "segmentation",
        split: str = "g2d",
        stage: Literal[1, 2, "auto"] = "auto",
        table: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(SIIMPneumothorax(root, stage=stage, table=table), task=task, split=split, **kwargs)

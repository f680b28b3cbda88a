"""Object-CXR, real or as a phantom."""

from typing import Any, Literal

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.object_cxr import ObjectCXR


class ObjectCXRDataModule(CorpusDataModule):
    """Object-CXR: foreign objects, as boxes, masks or a label.

    Args:
        root: folder of the corpus, or where the phantom is (to be) written.
        task: "detection", "segmentation" or "classification".
        split: a name of medvlp.splits; None takes the default.
        polygon_boxes: how a polygon becomes a box: "bounds", the rectangle around it.
        **kwargs: of :class:`~medvlp.datamodules.corpus.CorpusDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        task: Literal["detection", "segmentation", "classification"] = "detection",
        split: str | None = None,
        polygon_boxes: Literal["bounds"] = "bounds",
        **kwargs: Any,
    ) -> None:
        super().__init__(ObjectCXR(root, polygon_boxes=polygon_boxes), task=task, split=split, **kwargs)

"""MS-CXR, real or as a phantom."""

from typing import Any, Literal

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.ms_cxr import MSCXR


class MSCXRDataModule(CorpusDataModule):
    """MS-CXR: phrases and their boxes on images of MIMIC-CXR.

    Args:
        root: folder of the annotations, or where the phantom is (to be) written.
        task: "grounding", "segmentation" or "pairs" by phrase; "detection" or "classification" by image.
        split: a name of medvlp.splits; None takes the default.
        mimic_root: folder of MIMIC-CXR-JPG, if the images are not under root.
        annotations: "csv", "json", or "auto" for the newest release there is.
        **kwargs: of :class:`~medvlp.datamodules.corpus.CorpusDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        task: Literal["grounding", "detection", "classification", "segmentation", "pairs"] = "grounding",
        split: str | None = None,
        mimic_root: str | None = None,
        annotations: Literal["auto", "csv", "json"] = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(MSCXR(root, mimic_root=mimic_root, annotations=annotations), task=task, split=split, **kwargs)

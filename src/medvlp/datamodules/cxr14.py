"""NIH ChestX-ray14, real or as a phantom."""

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.cxr14 import ChestXray14


class ChestXray14DataModule(CorpusDataModule, corpus=ChestXray14):
    """NIH ChestX-ray14: 14 labels, and boxes of 8 findings on some test images."""

"""SIIM-ACR Pneumothorax Segmentation, real or as a phantom."""

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.siim import SIIMPneumothorax


class SIIMDataModule(CorpusDataModule, corpus=SIIMPneumothorax, split="g2d"):
    """SIIM-ACR Pneumothorax Segmentation, or a phantom in the same layout."""

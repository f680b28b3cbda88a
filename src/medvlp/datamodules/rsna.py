"""RSNA Pneumonia Detection Challenge, real or as a phantom."""

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.rsna import RSNAPneumonia


class RSNADataModule(CorpusDataModule, corpus=RSNAPneumonia, split="g2d"):
    """RSNA Pneumonia Detection Challenge, stage 2, or a phantom in the same layout."""

"""CheXpert, real or as a phantom."""

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.chexpert import CheXpert


class CheXpertDataModule(CorpusDataModule, corpus=CheXpert, split="g2d"):
    """CheXpert-v1.0 or CheXpert-v1.0-small with the reports of CheXpert Plus, or a phantom in the same layout."""

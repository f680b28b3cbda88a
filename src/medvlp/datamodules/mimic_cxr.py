"""MIMIC-CXR, real or as a phantom."""

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.mimic_cxr import MIMICCXR


class MIMICCXRDataModule(CorpusDataModule, corpus=MIMICCXR, split="official"):
    """MIMIC-CXR-JPG with the reports of MIMIC-CXR, or a phantom in the same layout."""

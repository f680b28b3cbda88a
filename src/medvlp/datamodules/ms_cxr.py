"""MS-CXR, real or as a phantom."""

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.ms_cxr import MSCXR


class MSCXRDataModule(CorpusDataModule, corpus=MSCXR):
    """MS-CXR: phrases and their boxes on images of MIMIC-CXR."""

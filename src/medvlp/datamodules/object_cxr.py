"""Object-CXR, real or as a phantom."""

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.object_cxr import ObjectCXR


class ObjectCXRDataModule(CorpusDataModule, corpus=ObjectCXR):
    """Object-CXR: foreign objects, as boxes, masks or a label."""

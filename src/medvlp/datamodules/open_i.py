"""Open-I, real or as a phantom."""

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.open_i import OpenI


class OpenIDataModule(CorpusDataModule, corpus=OpenI):
    """Open-I, the Indiana University collection: images, reports, and labels from their index terms."""

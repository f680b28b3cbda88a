"""COVIDx, real or as a phantom."""

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.covidx import COVIDx


class COVIDxDataModule(CorpusDataModule, corpus=COVIDx):
    """COVIDx: COVID-19, pneumonia and normal, or COVID-19 against the rest."""

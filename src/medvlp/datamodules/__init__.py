"""Splits × fractions × transforms × collate, one thin data module per corpus."""

DATA_MODULES: dict[str, str] = {
    "mimic_cxr": "MIMICCXRDataModule",
    "chexpert": "CheXpertDataModule",
    "rsna": "RSNADataModule",
    "siim": "SIIMDataModule",
    "covidx": "COVIDxDataModule",
    "cxr14": "ChestXray14DataModule",
    "object_cxr": "ObjectCXRDataModule",
    "ms_cxr": "MSCXRDataModule",
    "open_i": "OpenIDataModule",
    "pairs": "PairsDataModule",
}
"""Module of this package to its data module. Corpora are named as in :data:`medvlp.datasets.CORPORA`."""

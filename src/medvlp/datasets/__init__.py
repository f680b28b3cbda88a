"""One file per corpus: its released files to samples. Nothing here knows Lightning."""

import importlib
from typing import TYPE_CHECKING

from medvlp.errors import check_choice

if TYPE_CHECKING:
    from medvlp.datasets.corpus import Corpus

CORPORA: dict[str, str] = {
    "mimic_cxr": "medvlp.datasets.mimic_cxr:MIMICCXR",
    "chexpert": "medvlp.datasets.chexpert:CheXpert",
    "rsna": "medvlp.datasets.rsna:RSNAPneumonia",
    "siim": "medvlp.datasets.siim:SIIMPneumothorax",
    "covidx": "medvlp.datasets.covidx:COVIDx",
    "cxr14": "medvlp.datasets.cxr14:ChestXray14",
    "object_cxr": "medvlp.datasets.object_cxr:ObjectCXR",
    "ms_cxr": "medvlp.datasets.ms_cxr:MSCXR",
    "open_i": "medvlp.datasets.open_i:OpenI",
}
"""Name of a corpus (and of its phantom layout) to the class that reads it."""


def corpus_class(name: str) -> "type[Corpus]":
    """The reader of a corpus, imported on first use."""
    check_choice("dataset", name, CORPORA)
    module, _, attribute = CORPORA[name].partition(":")
    return getattr(importlib.import_module(module), attribute)

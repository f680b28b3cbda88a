"""medvlp: vision-language pre-training for chest radiographs.

The public names are imported on first use, so that ``import medvlp`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medvlp._version import __version__

if TYPE_CHECKING:
    from medvlp.datamodules.chexpert import CheXpertDataModule
    from medvlp.datamodules.covidx import COVIDxDataModule
    from medvlp.datamodules.cxr14 import ChestXray14DataModule
    from medvlp.datamodules.mimic_cxr import MIMICCXRDataModule
    from medvlp.datamodules.ms_cxr import MSCXRDataModule
    from medvlp.datamodules.object_cxr import ObjectCXRDataModule
    from medvlp.datamodules.open_i import OpenIDataModule
    from medvlp.datamodules.pairs import PairsDataModule
    from medvlp.datamodules.rsna import RSNADataModule
    from medvlp.datamodules.siim import SIIMDataModule
    from medvlp.methods.base import PretrainModule
    from medvlp.methods.g2d.module import G2D
    from medvlp.phantom import PhantomSpec, write_phantom
    from medvlp.registry import get_method
    from medvlp.tasks.evaluate import evaluate
    from medvlp.weights import load

_PUBLIC = {
    "COVIDxDataModule": "medvlp.datamodules.covidx",
    "CheXpertDataModule": "medvlp.datamodules.chexpert",
    "ChestXray14DataModule": "medvlp.datamodules.cxr14",
    "G2D": "medvlp.methods.g2d.module",
    "MIMICCXRDataModule": "medvlp.datamodules.mimic_cxr",
    "MSCXRDataModule": "medvlp.datamodules.ms_cxr",
    "ObjectCXRDataModule": "medvlp.datamodules.object_cxr",
    "OpenIDataModule": "medvlp.datamodules.open_i",
    "PairsDataModule": "medvlp.datamodules.pairs",
    "PhantomSpec": "medvlp.phantom",
    "PretrainModule": "medvlp.methods.base",
    "RSNADataModule": "medvlp.datamodules.rsna",
    "SIIMDataModule": "medvlp.datamodules.siim",
    "evaluate": "medvlp.tasks.evaluate",
    "get_method": "medvlp.registry",
    "load": "medvlp.weights",
    "write_phantom": "medvlp.phantom",
}

__all__ = [
    "G2D",
    "COVIDxDataModule",
    "CheXpertDataModule",
    "ChestXray14DataModule",
    "MIMICCXRDataModule",
    "MSCXRDataModule",
    "ObjectCXRDataModule",
    "OpenIDataModule",
    "PairsDataModule",
    "PhantomSpec",
    "PretrainModule",
    "RSNADataModule",
    "SIIMDataModule",
    "__version__",
    "evaluate",
    "get_method",
    "load",
    "write_phantom",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'medvlp' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__

"""medvlp: vision-language pre-training for chest radiographs.

The public names are imported on first use, so that ``import medvlp`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medvlp._version import __version__

if TYPE_CHECKING:
    from medvlp.datamodules.mimic_cxr import MIMICCXRDataModule
    from medvlp.datamodules.pairs import PairsDataModule
    from medvlp.methods.base import PretrainModule
    from medvlp.methods.g2d.module import G2D
    from medvlp.phantom import PhantomSpec, write_phantom
    from medvlp.registry import get_method
    from medvlp.weights import load

_PUBLIC = {
    "G2D": "medvlp.methods.g2d.module",
    "MIMICCXRDataModule": "medvlp.datamodules.mimic_cxr",
    "PairsDataModule": "medvlp.datamodules.pairs",
    "PhantomSpec": "medvlp.phantom",
    "PretrainModule": "medvlp.methods.base",
    "get_method": "medvlp.registry",
    "load": "medvlp.weights",
    "write_phantom": "medvlp.phantom",
}

__all__ = [
    "G2D",
    "MIMICCXRDataModule",
    "PairsDataModule",
    "PhantomSpec",
    "PretrainModule",
    "__version__",
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

"""Former import path of :class:`medvlp.training.optim.OptimConfig`."""

from medvlp.training.optim import OptimConfig

__all__ = ["OptimConfig"]

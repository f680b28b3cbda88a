"""Former import path of :class:`medvlp.training.stopping.StopGuard`, for existing configs."""

from medvlp.training.stopping import StopGuard

__all__ = ["StopGuard"]

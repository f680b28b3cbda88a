"""Former place of :class:`medvlp.training.stopping.StopGuard`, for configs that name it."""

from medvlp.training.stopping import StopGuard

__all__ = ["StopGuard"]

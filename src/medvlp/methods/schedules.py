"""Learning-rate schedules as pure functions of the step, shared by all methods."""

import math


def warmup_cosine(
    step: float, *, lr: float, warmup: float, total: float, min_lr: float = 0.0, start_lr: float | None = None
) -> float:
    """Linear warm-up, then one half cosine (facts of MGCA, MaCo and, by the paper, G2D).

    ``start + (lr − start)·t/W`` for t < W, then ``min + (lr − min)·½(1 + cos(π (t − W)/(T − W)))``.

    Args:
        step: t ≥ 0, in optimiser steps (or fractional epochs; all four times share the unit).
        lr: the peak.
        warmup: W ≥ 0.
        total: T > W; later steps keep ``min_lr``.
        min_lr: where the cosine ends.
        start_lr: where the warm-up starts; ``min_lr`` if None.

    Returns:
        The learning rate at ``step``.
    """
    start = min_lr if start_lr is None else start_lr
    if step < warmup:
        return start + (lr - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(total - warmup, 1e-12))
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def warm_restarts(step: float, *, lr: float, period: float, min_lr: float = 0.0) -> float:
    """Cosine from ``lr`` to ``min_lr`` that starts again every ``period`` steps (G2D's released trainer: 200).

    Args:
        step: t ≥ 0.
        lr: the peak, at each restart.
        period: steps per cycle.
        min_lr: the floor.

    Returns:
        The learning rate at ``step``.
    """
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * (step % period) / period))

"""The papers' YOLOv3 loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.losses.precision import exact
from medvlp.tasks.detection.targets import ScaleTargets


@dataclass(frozen=True)
class LossWeights:
    """Weights of MGCA's released loss (``mgca/utils/yolo_loss.py``).

    Args:
        xy: of the offsets x and y.
        wh: of the log sizes w and h.
        confidence: of objectness.
        classes: of the classes.
        noobj: of the negatives within objectness.
    """

    xy: float = 2.5
    wh: float = 2.5
    confidence: float = 1.0
    classes: float = 1.0
    noobj: float = 0.5


TERMS: tuple[str, ...] = ("x", "y", "w", "h", "confidence", "classes")


def split_output(raw: Tensor, num_classes: int) -> Tensor:
    """Reshape (B, A · (5 + C), H, W), anchor by anchor, to (B, A, H, W, 5 + C)."""
    batch, _, height, width = raw.shape
    return raw.view(batch, -1, 5 + num_classes, height, width).permute(0, 1, 3, 4, 2)


def scale_terms(raw: Tensor, targets: ScaleTargets, weights: LossWeights | None = None) -> dict[str, Tensor]:
    """Compute the unweighted terms of one level.

    Every term is a mean over **all** B · A · H · W cells and anchors (the class term over all its C values there too),
    to which only the positives (for objectness also the negatives) contribute: binary cross-entropy of the offsets,
    objectness and classes, squared error of the log sizes. Objectness is positives + ``weights.noobj`` · negatives.

    The cross-entropies use the logits. The released code clamps the logarithms of sigmoids at −100, which is the same
    except for logits beyond about 15, where a float32 sigmoid saturates and its gradient is lost.

    Args:
        raw: (B, A · (5 + C), H, W) output of a level.
        targets: its targets.
        weights: for the weight of the negatives.

    Returns:
        Scalars under the names :data:`TERMS`.
    """
    weights = weights or LossWeights()
    with torch.autocast(raw.device.type, enabled=False):
        output, *fields = exact(split_output(raw, targets.classes.shape[-1]), *vars(targets).values())
        targets = ScaleTargets(*fields)
        mask, count = targets.mask, targets.mask.numel()

        def entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / logits.numel()

        objectness = output[..., 4]
        return {
            "x": entropy(output[..., 0], targets.x, mask),
            "y": entropy(output[..., 1], targets.y, mask),
            "w": ((output[..., 2] - targets.w).square() * mask).sum() / count,
            "h": ((output[..., 3] - targets.h).square() * mask).sum() / count,
            "confidence": entropy(objectness, mask, mask)
            + weights.noobj * entropy(objectness, torch.zeros_like(mask), targets.noobj_mask),
            "classes": entropy(output[..., 5:], targets.classes, mask[..., None].expand_as(targets.classes)),
        }


def weighted(terms: dict[str, Tensor], weights: LossWeights | None = None) -> dict[str, Tensor]:
    """Weight the terms of :func:`scale_terms` as they enter the total: xy, wh, confidence, classes."""
    weights = weights or LossWeights()
    return {
        "xy": weights.xy * (terms["x"] + terms["y"]),
        "wh": weights.wh * (terms["w"] + terms["h"]),
        "confidence": weights.confidence * terms["confidence"],
        "classes": weights.classes * terms["classes"],
    }


def total_of(terms: dict[str, Tensor], weights: LossWeights | None = None) -> Tensor:
    """Return the weighted sum of the terms of one level."""
    return torch.stack(list(weighted(terms, weights).values())).sum()


def yolo_loss(
    outputs: Sequence[Tensor], targets: Sequence[ScaleTargets], weights: LossWeights | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the loss over the levels.

    Args:
        outputs: raw output of each level, (B, A · (5 + C), H, W).
        targets: of each level.
        weights: of the terms.

    Returns:
        The total, and each term summed over the levels, unweighted, under the names :data:`TERMS`.
    """
    levels = [scale_terms(raw, target, weights) for raw, target in zip(outputs, targets, strict=True)]
    total = torch.stack([total_of(terms, weights) for terms in levels]).sum()
    return total, {name: torch.stack([terms[name] for terms in levels]).sum() for name in TERMS}

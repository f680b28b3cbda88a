"""Losses between a decoder's output and a (soft) mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5
"""Smoothing constant of G2D's released Dice (``PRETRAIN/utils/loss.py``); the paper gives none."""


def soft_dice_loss(prediction: Tensor, target: Tensor, smooth: float = SMOOTH) -> Tensor:
    """One minus the mean over samples of ``(2 Σ p·t + s) / (Σ p + Σ t + s)``, sums over all values of a sample.

    Args:
        prediction: (B, ...) probabilities in [0, 1] (or, in G2D's released code, raw logits).
        target: (B, ...) in [0, 1], same shape.
        smooth: s.

    Returns:
        A scalar in [0, 1] for probabilities; unbounded for logits.
    """
    p, t = prediction.flatten(1), target.flatten(1)
    dice = (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)
    return 1 - dice.mean()


def dice_bce_paper(logits: Tensor, target: Tensor, smooth: float = SMOOTH) -> Tensor:
    """G2D Eq. 4, ½ (Dice + BCE), with a per-image soft Dice on probabilities and BCE as a mean over pixels.

    The paper prints both as sums over pixels, Dice as a ratio per pixel; the per-image ratio on sigmoid outputs is
    the usual reading, and a mean keeps BCE on the scale of the contrast.

    Args:
        logits: (B, K, H, W).
        target: (B, K, H, W) in [0, 1].
        smooth: smoothing constant of Dice.

    Returns:
        A scalar.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, target = logits.float(), target.float()
        bce = F.binary_cross_entropy_with_logits(logits, target)
        return 0.5 * (soft_dice_loss(logits.sigmoid(), target, smooth) + bce)


def dice_bce_official(logits: Tensor, target: Tensor, smooth: float = SMOOTH, bce_weight: float = 0.2) -> Tensor:
    """G2D's released loss (``PRETRAIN/utils/loss.py``, bceDiceLoss): Dice on RAW logits plus 0.2 BCE.

    Unbounded, and singular where the logits sum to minus the mask's area: for reproduction only.

    Args:
        logits: (B, K, H, W).
        target: (B, K, H, W) of 0 and 1.
        smooth: smoothing constant of Dice.
        bce_weight: weight of the mean BCE; 0 leaves the Dice term alone, the code's ``train=False``.

    Returns:
        A scalar.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, target = logits.float(), target.float()
        dice = soft_dice_loss(logits, target, smooth)
        if not bce_weight:
            return dice
        return dice + bce_weight * F.binary_cross_entropy_with_logits(logits, target)

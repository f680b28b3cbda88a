"""Losses between a decoder's output and a (soft) mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.losses.precision import exact

SMOOTH = 1e-5  # of G2D's released Dice (PRETRAIN/utils/loss.py); the paper gives none


def soft_dice_loss(prediction: Tensor, target: Tensor, smooth: float = SMOOTH) -> Tensor:
    """One minus the mean over samples of ``(2 Σ p·t + s) / (Σ p + Σ t + s)``, sums over all values of a sample.

    p are probabilities (B, ...) or, in G2D's released code, raw logits; t targets in [0, 1] of the same shape.
    """
    # in half precision the sums over an image would overflow
    p, t = (side.flatten(1) for side in exact(prediction, target))
    dice = (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)
    return 1 - dice.mean()


def dice_bce_paper(logits: Tensor, target: Tensor, smooth: float = SMOOTH) -> Tensor:
    """G2D Eq. 4, ½ (Dice + BCE), with a per-image soft Dice on probabilities and BCE as a mean over pixels.

    The paper prints both as sums over pixels, Dice as a ratio per pixel; the per-image ratio on sigmoid outputs is
    the usual reading, and a mean keeps BCE on the scale of the contrast. Logits and target are (B, K, H, W).
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, target = exact(logits, target)
        bce = F.binary_cross_entropy_with_logits(logits, target)
        return 0.5 * (soft_dice_loss(logits.sigmoid(), target, smooth) + bce)


def dice_bce_official(logits: Tensor, target: Tensor, smooth: float = SMOOTH, bce_weight: float = 0.2) -> Tensor:
    """G2D's released loss (``PRETRAIN/utils/loss.py``, bceDiceLoss): Dice on RAW logits plus 0.2 BCE.

    Unbounded, and singular where the logits sum to minus the mask's area: for reproduction only. Logits and target are
    (B, K, H, W); ``bce_weight`` 0 is the code's ``train=False``.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, target = exact(logits, target)
        dice = soft_dice_loss(logits, target, smooth)
        if not bce_weight:
            return dice
        return dice + bce_weight * F.binary_cross_entropy_with_logits(logits, target)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean over pixels of ``(1 − p_t)^γ · BCE`` of logits z, p_t = σ(z · (2t − 1)) for soft targets t too (GLoRIA)."""
    logits, target = exact(logits, target)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (torch.exp(gamma * F.logsigmoid(-logits * (2 * target - 1))) * bce).mean()


def soft_dice_of_batch(prediction: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """``(2 Σ p·t + s) / (Σ p + Σ t + s)`` of probabilities p, with sums over **all pixels of the batch**."""
    prediction, target = exact(prediction, target)
    return (2 * (prediction * target).sum() + smooth) / (prediction.sum() + target.sum() + smooth)


def squared_dice_loss(prediction: Tensor, target: Tensor, factor: float = 2.0, smooth: float = 1.0) -> Tensor:
    """One minus the mean over images of ``(f Σ p·t + s) / (Σ p² + Σ t² + s)``, f = 2 in mmsegmentation (MaCo)."""
    p, t = (side.flatten(1) for side in exact(prediction, target))
    return 1 - ((factor * (p * t).sum(1) + smooth) / ((p * p).sum(1) + (t * t).sum(1) + smooth)).mean()


def focal_dice_mgca(
    logits: Tensor, target: Tensor, alpha: float = 10.0, gamma: float = 2.0, smooth: float = 1.0
) -> Tensor:
    """MGCA's and GLoRIA's MixedLoss, ``α · focal − log(soft Dice of the batch)``.

    The target, of the shape of the logits, may be soft: MGCA shrinks masks by area.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, target = exact(logits, target)
        dice = soft_dice_of_batch(logits.sigmoid(), target, smooth)
        return alpha * focal_loss(logits, target, gamma) - dice.log()


def bce_dice_medklip(logits: Tensor, target: Tensor) -> Tensor:
    """MedKLIP's segmentation loss: BCE (mean over pixels) + 1 − soft Dice of the batch."""
    with torch.autocast(logits.device.type, enabled=False):
        logits, target = exact(logits, target)
        dice = soft_dice_of_batch(logits.sigmoid(), target)
        return F.binary_cross_entropy_with_logits(logits, target) + 1 - dice


def focal_dice_maco(logits: Tensor, target: Tensor) -> Tensor:
    """MaCo's main loss, ``2 · focal + Dice`` as mmsegmentation 0.25 computes it.

    There a head has two outputs. Focal (γ 2, α ½) is the mean over both classes, each against the rest; Dice is that of
    the foreground alone, per image, on squares, divided by the number of classes. With one output both class terms of
    focal are equal.

    Logits are (B, 1, H, W) or (B, H, W), one output; or (B, 2, H, W), background and foreground. The target is the
    foreground, (B, 1, H, W) or (B, H, W), in [0, 1].
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, target = exact(logits, target)
        if logits.ndim == 4 and logits.shape[1] == 2:
            target = target.reshape(len(target), 1, *target.shape[-2:])
            foreground = logits.softmax(1)[:, 1:]
            classes = torch.cat([1 - target, target], 1)
        else:
            foreground, classes = logits.sigmoid(), target
        # Not focal_loss: mmsegmentation's 1 − p_t of a soft target is p (1 − t) + (1 − p) t.
        p = logits.sigmoid()
        miss = (1 - p) * classes + p * (1 - classes)
        focal = (0.5 * miss**2 * F.binary_cross_entropy_with_logits(logits, classes, reduction="none")).mean()
        return 2 * focal + squared_dice_loss(foreground, target) / 2

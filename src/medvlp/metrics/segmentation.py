"""Dice and IoU of binary masks, every convention of the field side by side, with what an empty prediction scores.

===================== ==================================================================================================
``dice_positive``     mean Dice of the images that have a lesion. The honest number
``dice_all``          mean over all images; without a lesion 1 if nothing is predicted, else 0 (MedKLIP, MRM, MaCo)
``dice_mgca``         the same as a mean over **means of batches** in dataset order, so that a small last batch weighs
                      more (MGCA's and GLoRIA's code)
``dice_negative``     share of the images without a lesion on which nothing is predicted
``dice_dataset``      Dice of all pixels of the dataset together
``mdice``             mean of ``dice_dataset`` for foreground and background (mmsegmentation: BenchX, MaCo's script)
``iou_positive``      mean IoU of the images that have a lesion
``miou_medklip``      mean over all images of (intersection + 1) / (union + 1) (MedKLIP)
``floor/<name>``      what a prediction of nothing, everywhere, scores in that metric on these images
===================== ==================================================================================================

A mean over no image is NaN: ``dice_positive`` where no image has a lesion, everything without images.
"""

from typing import Any

import torch
from torch import Tensor

from medvlp.errors import ConfigError
from medvlp.metrics.samples import SampleMetric, Samples

COLUMNS = ("intersection", "predicted", "truth", "pixels")
"""What :func:`mask_statistics` gives."""


def mask_statistics(probability: Tensor, mask: Tensor, threshold: float = 0.5) -> dict[str, Tensor]:
    """Areas of each image: all that the metrics need.

    Args:
        probability: (B, H, W) or (B, 1, H, W) in [0, 1]; predicted is what is strictly above the threshold.
        mask: same shape, in [0, 1]; a soft edge counts from above ½.
        threshold: of the probability.

    Returns:
        ``intersection``, ``predicted``, ``truth``, ``pixels``: (B,) long, in pixels.

    Raises:
        ConfigError: the shapes differ, or there are several channels.
    """
    if probability.shape != mask.shape or probability.ndim not in (3, 4) or (mask.ndim == 4 and mask.shape[1] != 1):
        raise ConfigError(
            f"one map and one mask of equal size per image are compared, got {tuple(probability.shape)} and "
            f"{tuple(mask.shape)}"
        )
    predicted, truth = (probability > threshold).flatten(1), (mask > 0.5).flatten(1)
    return {
        "intersection": (predicted & truth).sum(1),
        "predicted": predicted.sum(1),
        "truth": truth.sum(1),
        "pixels": torch.full((len(mask),), truth.shape[1], device=mask.device),
    }


def segmentation_measures(
    samples: Samples, weights: Tensor | None = None, *, batch_size: int | None = None
) -> dict[str, Tensor]:
    """All metrics of the table above.

    Args:
        samples: the columns of :func:`mask_statistics`.
        weights: (R, N) how often each image counts; None: once.
        batch_size: of ``dice_mgca``, which is left out without one.

    Returns:
        Name to scalar, or to (R,) with weights; float64.
    """
    w = torch.ones(1, len(samples), device=samples.index.device) if weights is None else weights
    w = w.double()
    intersection, predicted, truth, pixels = (samples[name].double() for name in COLUMNS)
    result = _conventions(intersection, predicted, truth, pixels, w, batch_size)
    nothing = torch.zeros_like(truth)
    floors = _conventions(nothing, nothing, truth, pixels, w, batch_size)
    result.update({f"floor/{name}": floors[name] for name in _WITH_FLOOR if name in floors})
    return result if weights is not None else {name: value.reshape(()) for name, value in result.items()}


_WITH_FLOOR = ("dice_all", "dice_mgca", "mdice", "miou_medklip")
"""Those in which a prediction of nothing scores above 0."""


def _conventions(
    intersection: Tensor, predicted: Tensor, truth: Tensor, pixels: Tensor, w: Tensor, batch_size: int | None
) -> dict[str, Tensor]:
    union = predicted + truth - intersection
    positive = truth > 0
    own = torch.where(positive, 2 * intersection / (predicted + truth).clamp_min(1), (predicted == 0).double())

    def mean(values: Tensor, among: Tensor) -> Tensor:
        return w @ (values * among) / (w @ among.double())

    def pooled(overlap: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return 2 * (w @ overlap) / (w @ (a + b))

    everywhere = torch.ones_like(positive)
    foreground = pooled(intersection, predicted, truth)
    background = pooled(pixels - union, pixels - predicted, pixels - truth)
    result = {
        "dice_positive": mean(own, positive),
        "dice_all": mean(own, everywhere),
        "dice_negative": mean(own, ~positive),
        "dice_dataset": foreground,
        # A class that neither side has is left out, as in mmsegmentation.
        "mdice": torch.stack([foreground, background]).nanmean(0),
        "iou_positive": mean(intersection / union.clamp_min(1), positive),
        "miou_medklip": mean((intersection + 1) / (union + 1), everywhere),
    }
    if batch_size is not None:
        result["dice_mgca"] = mean_of_batch_means(own, w, batch_size)
    return result


def mean_of_batch_means(values: Tensor, weights: Tensor, batch_size: int) -> Tensor:
    """Mean over batches of each batch's mean, of samples in their order, each as often in a row as its weight says.

    Args:
        values: (N,).
        weights: (R, N).
        batch_size: of all batches but the last.

    Returns:
        (R,) float64; NaN without samples.

    Raises:
        ConfigError: a batch of no samples.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is at least 1, got {batch_size}")
    if not len(values):
        return torch.full((len(weights),), torch.nan, dtype=torch.float64, device=values.device)
    # The sum over the first t samples is linear between the ends of the samples' runs: no repeating needed.
    start = weights.new_zeros(len(weights), 1, dtype=torch.float64)
    ends = torch.cat([start, weights.double().cumsum(1)], 1)
    sums = torch.cat([start, (weights.double() * values.double()).cumsum(1)], 1)
    total = ends[:, -1:]
    count = int((total.amax() / batch_size).ceil())
    cuts = (torch.arange(count + 1, device=values.device, dtype=torch.float64) * batch_size).minimum(total)
    right = torch.searchsorted(ends, cuts.contiguous()).clamp(1, len(values))
    left_end, left_sum = ends.gather(1, right - 1), sums.gather(1, right - 1)
    upto = left_sum + (cuts - left_end) * values.double()[right - 1]
    sizes = cuts.diff(dim=1)
    means = torch.where(sizes > 0, upto.diff(dim=1) / sizes, 0)
    return means.sum(1) / (sizes > 0).sum(1)


class SegmentationMetric(SampleMetric):
    """:func:`segmentation_measures` as a metric that syncs over ranks and counts each dataset row once.

    Args:
        threshold: of the probability.
        options: of :func:`segmentation_measures`.
    """

    def __init__(self, threshold: float = 0.5, **options: Any) -> None:
        super().__init__(segmentation_measures, COLUMNS, **options)
        self.threshold = threshold

    def update(self, preds: Tensor, target: Tensor, index: Tensor) -> None:
        """Adds a batch: probabilities (B, 1, H, W) or (B, H, W), masks of that shape, dataset rows (B,)."""
        self.store.update(index, **mask_statistics(preds, target, self.threshold))

"""Dice and IoU of binary masks in every convention of the field, with the score of an empty prediction beside them.

===================== ==================================================================================================
``dice_positive``     mean Dice of the images that have a lesion. The number to look at
``dice_all``          mean over all images; without a lesion 1 if nothing is predicted, else 0 (MedKLIP, MRM, MaCo)
``dice_mgca``         the same as a mean over **means of batches** in dataset order, so that a small last batch weighs
                      more (MGCA's and GLoRIA's code)
``dice_negative``     share of the images without a lesion on which nothing is predicted
``dice_dataset``      Dice of all pixels of the dataset together
``mdice``             mean of ``dice_dataset`` for foreground and background (mmsegmentation: BenchX, MaCo's script)
``iou_positive``      mean IoU of the images that have a lesion
``miou_medklip``      mean over all images of (intersection + 1) / (union + 1) (MedKLIP)
``floor/<name>``      score of an empty prediction on these images in that metric
===================== ==================================================================================================

A mean over no image is NaN: ``dice_positive`` where no image has a lesion, every metric without images.
"""

import torch
from torch import Tensor

from medvlp.errors import ConfigError
from medvlp.metrics.samples import Samples, named_values, sample_weights

COLUMNS = ("intersection", "predicted", "truth", "pixels")
"""Columns of :func:`mask_statistics`."""

_WITH_FLOOR = ("dice_all", "dice_mgca", "mdice", "miou_medklip")
"""Metrics in which an empty prediction scores above 0."""


def check_maps(maps: Tensor, masks: Tensor) -> None:
    """Raise ConfigError unless both are (B, H, W) or (B, 1, H, W) and of equal shape."""
    if maps.shape != masks.shape or maps.ndim not in (3, 4) or (maps.ndim == 4 and maps.shape[1] != 1):
        raise ConfigError(
            "one map and one mask of equal size per image are compared, got "
            f"{tuple(maps.shape)} and {tuple(masks.shape)}"
        )


def mask_statistics(probability: Tensor, mask: Tensor, threshold: float = 0.5) -> dict[str, Tensor]:
    """Measure the areas of each image that the metrics need, :data:`COLUMNS`, (B,) long, in pixels.

    Args:
        probability: (B, H, W) or (B, 1, H, W) in [0, 1]; predicted where strictly above the threshold.
        mask: same shape, in [0, 1]; soft edges count above ½.
        threshold: of the probability.
    """
    check_maps(probability, mask)
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
    """Compute all metrics of the module's table (see :data:`medvlp.metrics.bootstrap.Measures`).

    Args:
        samples: the columns of :func:`mask_statistics`.
        weights: (R, N) multiplicity of each image; None: 1.
        batch_size: of ``dice_mgca``, which is omitted without it.
    """
    w = sample_weights(samples, weights)
    intersection, predicted, truth, pixels = (samples[name].double() for name in COLUMNS)
    result = _conventions(intersection, predicted, truth, pixels, w, batch_size)
    empty = torch.zeros_like(truth)
    floors = _conventions(empty, empty, truth, pixels, w, batch_size)
    result.update({f"floor/{name}": floors[name] for name in _WITH_FLOOR if name in floors})
    return named_values(result, weights)


def _conventions(
    intersection: Tensor, predicted: Tensor, truth: Tensor, pixels: Tensor, w: Tensor, batch_size: int | None
) -> dict[str, Tensor]:
    union = predicted + truth - intersection
    positive = truth > 0
    dice = torch.where(positive, 2 * intersection / (predicted + truth).clamp_min(1), (predicted == 0).double())

    def mean(values: Tensor, among: Tensor) -> Tensor:
        return w @ (values * among) / (w @ among.double())

    everywhere = torch.ones_like(positive)
    foreground = 2 * (w @ intersection) / (w @ (predicted + truth))
    background = 2 * (w @ (pixels - union)) / (w @ ((pixels - predicted) + (pixels - truth)))
    result = {
        "dice_positive": mean(dice, positive),
        "dice_all": mean(dice, everywhere),
        "dice_negative": mean(dice, ~positive),
        "dice_dataset": foreground,
        # As in mmsegmentation, a class that is neither predicted nor true is skipped.
        "mdice": torch.stack([foreground, background]).nanmean(0),
        "iou_positive": mean(intersection / union.clamp_min(1), positive),
        "miou_medklip": mean((intersection + 1) / (union + 1), everywhere),
    }
    if batch_size is not None:
        result["dice_mgca"] = mean_of_batch_means(dice, w, batch_size)
    return result


def mean_of_batch_means(values: Tensor, weights: Tensor, batch_size: int) -> Tensor:
    """Average the means of consecutive batches; each of (N,) samples counts as often as its (R, N) weight says."""
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if not len(values):
        return torch.full((len(weights),), torch.nan, dtype=torch.float64, device=values.device)
    # The cumulative sum is linear within the repetitions of a sample, so that nothing has to be repeated.
    weights, values = weights.double(), values.double()
    start = weights.new_zeros(len(weights), 1)
    ends = torch.cat([start, weights.cumsum(1)], 1)
    sums = torch.cat([start, (weights * values).cumsum(1)], 1)
    total = ends[:, -1:]
    count = int((total.amax() / batch_size).ceil())
    cuts = (torch.arange(count + 1, device=values.device, dtype=torch.float64) * batch_size).minimum(total)
    right = torch.searchsorted(ends, cuts.contiguous()).clamp(1, len(values))
    left_end, left_sum = ends.gather(1, right - 1), sums.gather(1, right - 1)
    upto = left_sum + (cuts - left_end) * values[right - 1]
    sizes = cuts.diff(dim=1)
    means = torch.where(sizes > 0, upto.diff(dim=1) / sizes, 0)
    return means.sum(1) / (sizes > 0).sum(1)

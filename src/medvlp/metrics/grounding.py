"""Agreement of heatmaps with masks: thresholded overlap, contrast, pointing, and precision over all thresholds.

=========================== ============================================================================================
``iou@<t>``, ``dice@<t>``   of the pixels above t, per image, mean over the images. An empty prediction has 0
``recall@<t>``,             share of the mask's pixels above t, and of the pixels above t inside the mask (0 if there
``precision@<t>``           are none)
``miou``                    mean of ``iou@<t>`` over the thresholds (BioViL and MaCo: 0.1, 0.2, 0.3, 0.4, 0.5)
``cnr``, ``cnr_absolute``   (mean inside − mean outside) / √(variance inside + variance outside): MaCo's signed one, and
                            the absolute value per image (BioViL). 0 where both variances vanish. No upper limit
``pointing_game``           share of the maximal pixels that lie inside, so that a constant map scores the mask's area
``pointing_medklip``        whether **any** maximal pixel lies inside (MedKLIP, MaCo); 1 for a constant map
``pixel_ap``                average precision over the pixels of an image: no threshold, 1 where all pixels inside are
                            above all outside, the mask's share of the area for a constant map
``<name>_category``         of iou@<t>, miou, cnr, cnr_absolute: mean over the categories of the mean in each (BioViL's
                            averages); ``<name>/<category>`` each of them
=========================== ============================================================================================

Only images with a mask count (as in all papers); without any, every metric is NaN. A threshold belongs to a scale:
MedKLIP's 0.008 to attention that sums to 1 over 196 cells, BioViL's to cosines, MaCo's to maps stretched to [−1, 1].
CNR, pointing and pixel AP do not depend on scale or offset. NaN pixels were not seen by the encoder: they are never
predicted, are misses in recall, IoU, Dice and pixel AP, and are ignored in contrast and pointing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from medvlp.errors import ConfigError
from medvlp.metrics.samples import Samples, named_values, sample_weights, weighted_mean
from medvlp.metrics.segmentation import check_maps

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""BioViL's and MaCo's thresholds."""
COLUMNS = ("intersection", "predicted", "truth", "cnr", "pointing_game", "pointing_medklip", "pixel_ap")
"""Columns of :func:`grounding_statistics`."""


def grounding_statistics(
    heatmaps: Tensor, masks: Tensor, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, Tensor]:
    """Compute the per-image statistics that the metrics need.

    Args:
        heatmaps: (B, H, W) or (B, 1, H, W), larger = more likely; NaN = not seen.
        masks: same shape, inside above ½.
        thresholds: K; predicted where strictly above.

    Returns:
        ``intersection``, ``predicted`` (B, K) and ``truth`` (B,) in pixels, long; the others (B,) float32, NaN where
        undefined (no mask; for the contrast, a mask over the whole image; nothing seen).
    """
    check_maps(heatmaps, masks)
    if not thresholds:
        raise ConfigError("grounding needs at least one threshold")
    heat, inside = heatmaps.flatten(1), masks.flatten(1) > 0.5
    heat = heat.float() if heat.dtype in (torch.float16, torch.bfloat16) else heat
    above = torch.stack([heat > t for t in thresholds], 1)
    low = heat.nan_to_num(nan=-torch.inf, neginf=-torch.inf, posinf=torch.inf)
    maximal = (low == low.amax(1, keepdim=True)) & ~heat.isnan()
    pointing = (maximal & inside).sum(1).to(heat.dtype) / maximal.sum(1)
    pointing = torch.where(inside.any(1), pointing, torch.nan)
    return {
        "intersection": (above & inside[:, None]).sum(2),
        "predicted": above.sum(2),
        "truth": inside.sum(1),
        "cnr": _contrast_to_noise(heat, inside),
        "pointing_game": pointing,
        "pointing_medklip": torch.where(pointing.isnan(), pointing, (pointing > 0).to(heat.dtype)),
        "pixel_ap": _average_precision(low, inside),
    }


def _contrast_to_noise(heat: Tensor, inside: Tensor) -> Tensor:
    """(B,) with population variances, of (B, P) pixels; NaN without pixels inside or outside."""
    seen = ~heat.isnan()
    # Relative to the minimum, so that float32 keeps the variances of maps far from 0.
    value = torch.where(seen, heat - torch.where(seen, heat, torch.inf).amin(1, keepdim=True), 0)
    means, variances = [], []
    for part in (inside & seen, ~inside & seen):
        count = part.sum(1, keepdim=True)
        mean = (value * part).sum(1, keepdim=True) / count
        variance = ((value - mean) * part).square().sum(1, keepdim=True) / count
        highest, lowest = torch.where(part, value, -1).amax(1), torch.where(part, value, torch.inf).amin(1)
        means.append(mean[:, 0])
        # Rounding of the mean must not give equal values a variance.
        variances.append(torch.where(highest == lowest, 0, variance[:, 0]))
    noise, difference = variances[0] + variances[1], means[0] - means[1]
    return torch.where((noise == 0) & ~difference.isnan(), 0, difference / noise.sqrt())


def _average_precision(heat: Tensor, inside: Tensor) -> Tensor:
    """(B,) over (B, P) pixels without NaN (−inf: predicted last); equal values are one threshold."""
    ordered, order = heat.sort(dim=1, descending=True)
    last = torch.ones_like(inside)
    last[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    hits = inside.gather(1, order).cumsum(1)
    rank = torch.arange(1, heat.shape[1] + 1, device=heat.device)
    at_end = torch.where(last, hits, 0)
    before = torch.cat([at_end.new_zeros(len(hits), 1), at_end[:, :-1].cummax(1).values], 1)
    gain = torch.where(last, (hits - before) * (hits / rank), 0)
    total = inside.sum(1)
    return torch.where(total > 0, gain.sum(1) / total, torch.nan)


def grounding_measures(
    samples: Samples,
    weights: Tensor | None = None,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    categories: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Compute all metrics of the module's table (see :data:`medvlp.metrics.bootstrap.Measures`).

    Args:
        samples: the columns of :func:`grounding_statistics`, and for category means ``category`` (N,), whole numbers.
        weights: (R, N) multiplicity of each image (or phrase); None: 1.
        thresholds: those of the statistics.
        categories: names of the categories 0, 1, …; None: the numbers.
    """
    truth = samples["truth"].double()
    shape = (len(samples), len(thresholds))
    intersection, predicted = (samples[name].double() for name in ("intersection", "predicted"))
    if len(samples) and intersection.shape != shape:
        raise ConfigError(f"the statistics were taken at {intersection.shape[1:].numel()} thresholds, not {shape[1]}")
    intersection, predicted = intersection.reshape(shape), predicted.reshape(shape)
    w = sample_weights(samples, weights) * (truth > 0)
    area = truth[:, None]
    iou = intersection / (predicted + area - intersection).clamp_min(1)
    cnr = samples["cnr"].double()
    at_thresholds = {
        "dice": 2 * intersection / (predicted + area).clamp_min(1),
        "recall": intersection / area.clamp_min(1),
        "precision": intersection / predicted.clamp_min(1),
    }
    by_category = {f"iou@{t:g}": iou[:, i] for i, t in enumerate(thresholds)}
    by_category |= {"miou": iou.mean(1), "cnr": cnr, "cnr_absolute": cnr.abs()}
    values = {f"{name}@{t:g}": rows[:, i] for name, rows in at_thresholds.items() for i, t in enumerate(thresholds)}
    values |= {name: samples[name].double() for name in ("pointing_game", "pointing_medklip", "pixel_ap")}
    result = {name: weighted_mean(value, w) for name, value in {**by_category, **values}.items()}
    if "category" in samples.columns:
        category = samples["category"].long()
        kinds = category.unique().tolist()
        members = [(category == kind).double() for kind in kinds]
        for name, value in by_category.items():
            means = [weighted_mean(value, w * member) for member in members]
            result[f"{name}_category"] = torch.stack(means).nanmean(0) if means else result[name]
            for kind, mean in zip(kinds, means, strict=True):
                result[f"{name}/{categories[kind] if categories else kind}"] = mean
    return named_values(result, weights)

"""G2D's pseudo segmentation mask: attention → aggregated map → body mask → threshold → smoothing (paper §3.2).

Batched, without host copies or gradients. Nearest up-sampling copies each of the g·g attention cells into a block of
pixels, so statistics of the up-sampled map (quantile, mean, mixture) are computed on g·g values, each weighted by the
number of pixels of its block that count.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import kornia
import torch
from torch import Tensor

from medvlp.errors import ConfigError

Threshold = float | Literal["mean", "median", "gmm"]

_CPU_CHUNK = 8
"""Images per pass on a CPU: planes that fit into the cache are several times faster."""


@dataclass(frozen=True)
class PseudoMaskSettings:
    """Settings of :func:`pseudo_mask`. The defaults are the paper's; "open" marks what it does not specify.

    Args:
        aggregate: mean over heads (Eq. 2); False gives one mask per head (Table 5d).
        threshold: quantile in [0, 1] of the attention (0.85: §3.2), "mean", "median", or "gmm": the side of a
            two-component Gaussian mixture on which a cell lies (Table 5b).
        strict: select values above the threshold; False: at or above (Eq. 3).
        body_mask: set the attention outside the body to zero and never select there.
        domain: pixels that determine the threshold: "body", inside the body mask (open; suggested by the text), or
            "image", all pixels with zeros outside.
        smooth: apply a bilateral filter to the binary mask, for a soft one in [0, 1].
        kernel: side of the bilateral window as a share of the image side (open; 0.05 is 11 px of 224).
        sigma_space: spatial deviation as a share of the image side (open).
        sigma_color: deviation on mask values (open); small values keep the edges sharp.
    """

    aggregate: bool = True
    threshold: Threshold = 0.85
    strict: bool = False
    body_mask: bool = True
    domain: Literal["body", "image"] = "body"
    smooth: bool = True
    kernel: float = 0.05
    sigma_space: float = 0.015
    sigma_color: float = 1.0

    def __post_init__(self) -> None:
        named = self.threshold in ("mean", "median", "gmm")
        if not named and (isinstance(self.threshold, str) or not 0 <= self.threshold <= 1):
            expected = "mean, median, gmm, or a quantile in [0, 1]"
            raise ConfigError(f"unknown threshold {self.threshold!r}; expected one of: {expected}")


OFFICIAL = PseudoMaskSettings(strict=True, body_mask=False, domain="image", smooth=False)
"""The released code (``PRETRAIN/utils/trainer.py``): no body mask, no filter, strictly above the 0.85 quantile."""


class PseudoMask(NamedTuple):
    """Result of :func:`pseudo_mask`; K is 1, or the number of heads without aggregation."""

    mask: Tensor  # (B, K, S, S) float32 in [0, 1]
    attention: Tensor  # (B, K, g, g) float32, the aggregated map
    threshold: Tensor  # (B, K, 1, 1) float32
    body: Tensor | None  # (B, 1, S, S) bool; None without a body mask


def aggregate_heads(attention: Tensor) -> Tensor:
    """Mean over heads, (B, H, g, g) → (B, 1, g, g): Eq. 2, its denominator read as the number of heads."""
    return attention.mean(1, keepdim=True)


def upsample_nearest(maps: Tensor, size: int) -> Tensor:
    """Up-sample (..., g, g) → (..., S, S) with source index ``floor(i · g / S)``, exact for any size."""
    rows, columns = (_cells(size, cells, maps.device) for cells in maps.shape[-2:])
    return maps[..., rows[:, None], columns]


def _cells(size: int, cells: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device) * cells // size


def otsu_threshold(images: Tensor, bins: int = 256) -> Tensor:
    """Return Otsu's threshold of each image: (B, ...) of any range → (B,) float32.

    It is the centre of the last dark bin of a histogram from minimum to maximum, or the value of a constant image.
    """
    x = images.flatten(1).float()
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    span = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    index = ((x - low) / span * bins).long().clamp_(max=bins - 1)
    # scatter_add_ instead of bincount, which copies the maximum to the host
    histogram = x.new_zeros(len(x), bins).scatter_add_(1, index, torch.ones_like(x))
    levels = torch.arange(bins, device=x.device, dtype=torch.float32) + 0.5
    share = histogram / x.shape[1]
    dark = share.cumsum(1)
    mass = (share * levels).cumsum(1)
    total = mass[:, -1:]
    between = (total * dark - mass) ** 2 / (dark * (1 - dark)).clamp_min(1e-12)
    # with all pixels on one side the quotient is rounding noise
    between = between.masked_fill((dark < 1e-7) | (dark > 1 - 1e-7), -1.0)
    best = between.argmax(1)
    return low[:, 0] + (best + 0.5) / bins * span[:, 0] * (high > low)[:, 0]


def _between(bright: Tensor, dim: int) -> Tensor:
    length = bright.shape[dim]
    shape = [1] * bright.ndim
    shape[dim] = length
    # int16 takes a third of the time of running sums, which are int64
    position = torch.arange(length, device=bright.device, dtype=torch.int16).view(shape)
    first = torch.where(bright, position, length).amin(dim, keepdim=True)
    last = torch.where(bright, position, -1).amax(dim, keepdim=True)
    return (position >= first) & (position <= last)


def body_mask(images: Tensor) -> Tensor:
    """Return the pixels between pixels above Otsu's threshold in both their row and their column.

    The paper only says "histogram-based thresholding". Bright pixels alone would miss the lungs, which are as dark as
    the air outside but surrounded by tissue.

    Images (B, C, H, W), bright = dense in any affine range, are averaged over channels; the result (B, 1, H, W) is all
    True for a constant image.
    """
    gray = images.float().mean(1, keepdim=True)
    bright = gray > otsu_threshold(gray)[:, None, None, None]
    body = _between(bright, -1) & _between(bright, -2)
    return body | ~body.flatten(1).any(1)[:, None, None, None]


def _block_counts(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Count the True pixels of each cell: (B, K, S, S) bool → (B, K, g, g) float32."""
    row, column = (
        torch.nn.functional.one_hot(_cells(side, cells, pixels.device), cells).float()
        for side, cells in zip(pixels.shape[-2:], grid, strict=True)
    )
    return row.T @ pixels.float() @ column


def weighted_quantile(values: Tensor, weights: Tensor, q: float) -> Tensor:
    """Return ``numpy.quantile(numpy.repeat(values, weights), q)`` of each row, (N, n) → (N,); NaN without weight."""
    ordered, order = values.sort(dim=1)
    ends = weights.gather(1, order).double().cumsum(1)
    total = ends[:, -1:]
    position = q * (total - 1).clamp_min(0)
    lower = position.floor()
    upper = torch.minimum(lower + 1, (total - 1).clamp_min(0))
    last = values.shape[1] - 1
    low = ordered.gather(1, torch.searchsorted(ends, lower, right=True).clamp_max(last))
    high = ordered.gather(1, torch.searchsorted(ends, upper, right=True).clamp_max(last))
    # lerp is exact if both are equal, as they nearly always are: a block holds thousands of equal pixels
    result = torch.lerp(low, high, (position - lower).to(values.dtype))
    return torch.where(total > 0, result, torch.nan)[:, 0]


def weighted_gmm_threshold(values: Tensor, weights: Tensor, iterations: int = 100) -> Tensor:
    """Return the threshold between two Gaussians fitted by expectation-maximisation, (N,).

    It is the lowest value above the lower mean that more likely belongs to the upper component, else the largest value.
    ``weights`` are frequencies of the values, (N, n). A convergence test would need the host.
    """
    x = values.double()
    w = weights.double() / weights.double().sum(1, keepdim=True).clamp_min(1e-12)
    scale = (w * x.square()).sum(1, keepdim=True).sqrt().clamp_min(1e-30)  # attention is small
    x = x / scale
    mean = (w * x).sum(1, keepdim=True)
    variance = (w * (x - mean) ** 2).sum(1, keepdim=True)
    floor = 1e-6 * variance.clamp_min(1e-12)
    means = torch.cat([mean - variance.sqrt(), mean + variance.sqrt()], 1)  # (N, 2)
    variances = variance.repeat(1, 2).clamp_min(1e-12)
    shares = torch.full_like(means, 0.5)

    def log_density(points: Tensor) -> Tensor:  # (N, m) → (N, m, 2)
        distance = (points[:, :, None] - means[:, None]) ** 2 / variances[:, None]
        return shares.log()[:, None] - 0.5 * (variances.log()[:, None] + distance)

    for _ in range(iterations):
        responsibility = log_density(x).softmax(-1) * w[:, :, None]
        mass = responsibility.sum(1).clamp_min(1e-12)
        means = (responsibility * x[:, :, None]).sum(1) / mass
        variances = (responsibility * (x[:, :, None] - means[:, None]) ** 2).sum(1) / mass
        variances = torch.maximum(variances, floor)
        shares = mass / mass.sum(1, keepdim=True)

    # up to the largest value: a wide upper component may win only beyond its own mean
    low = means.amin(1, keepdim=True)
    high = torch.maximum(low, x.masked_fill(w == 0, -torch.inf).amax(1, keepdim=True))
    steps = torch.linspace(0, 1, 2049, device=x.device, dtype=x.dtype)
    points = low + (high - low) * steps
    density = log_density(points)
    upper = means.argmax(1)[:, None, None].expand(-1, points.shape[1], 1)
    wins = density.gather(2, upper)[..., 0] == density.amax(-1)
    wins[:, -1] = True
    first = wins.to(torch.int32).argmax(1, keepdim=True)
    return (points.gather(1, first) * scale)[:, 0].to(values.dtype)


def bilateral(mask: Tensor, settings: PseudoMaskSettings) -> Tensor:
    """Filter a binary mask (B, K, S, S) as ``kornia.filters.bilateral_blur`` does, but separably.

    A pixel's neighbours have its value (colour weight 1) or the other one (colour weight ``c = exp(−1 / 2σ_color²)``).
    With the Gaussian blur ``p`` of the mask the filter is ``p / (p + c(1 − p))`` on ones and ``cp / (1 − p + cp)`` on
    zeros. kornia unfolds k² copies of the mask (3 GB for 128 images of 224 px, 11 × 11 window); this needs two.
    """
    side = mask.shape[-1]
    kernel = max(3, round(settings.kernel * side) // 2 * 2 + 1)
    sigma = max(settings.sigma_space * side, 0.5)
    blurred = kornia.filters.gaussian_blur2d(mask, (kernel, kernel), (sigma, sigma))
    # far from edges the blur is 0 or 1 up to rounding
    blurred = torch.where((blurred - mask).abs() < 1e-6, mask, blurred).clamp_(0, 1)
    other = math.exp(-0.5 / settings.sigma_color**2)
    own, rest = (torch.full_like(mask, other).masked_fill_(side, 1.0) for side in (mask > 0.5, mask <= 0.5))
    ones = own * blurred
    return ones / (ones + rest * (1 - blurred))


@torch.no_grad()
def pseudo_mask(
    attention: Tensor, images: Tensor, settings: PseudoMaskSettings | None = None, size: int | None = None
) -> PseudoMask:
    """Compute the pseudo masks of a batch, detached from the graph.

    Args:
        attention: (B, H, g, g) attention of the pooled token to the cells, per head.
        images: (B, C, S, S) radiographs, bright = dense, for the body mask and the size.
        settings: the paper's by default.
        size: side of the mask; that of ``images`` if None.
    """
    settings = settings or PseudoMaskSettings()
    size = size or images.shape[-1]
    chunk = _CPU_CHUNK if images.device.type == "cpu" else len(images)
    parts = [
        _pseudo_mask(some_attention, some_images, settings, size)
        for some_attention, some_images in zip(attention.split(chunk), images.split(chunk), strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    masks, maps, thresholds, bodies = zip(*parts, strict=True)
    body = torch.cat(bodies) if settings.body_mask else None
    return PseudoMask(torch.cat(masks), torch.cat(maps), torch.cat(thresholds), body)


def _pseudo_mask(attention: Tensor, images: Tensor, settings: PseudoMaskSettings, size: int) -> PseudoMask:
    with torch.autocast(images.device.type, enabled=False):
        maps = attention.detach().float()  # in half precision ties would flip whole blocks
        if settings.aggregate:
            maps = aggregate_heads(maps)
        batch, heads, *grid = maps.shape
        body = body_mask(images) if settings.body_mask else None
        if body is not None and body.shape[-1] != size:
            body = upsample_nearest(body, size)
        pixels = torch.ones(1, 1, size, size, dtype=torch.bool, device=maps.device) if body is None else body
        counts = _block_counts(pixels, (grid[0], grid[1])).expand(batch, heads, -1, -1)
        values, weights = maps.flatten(0, 1).flatten(1), counts.flatten(0, 1).flatten(1)
        if body is not None and settings.domain == "image":
            outside = size * size - weights.sum(1, keepdim=True)
            values = torch.cat([values, torch.zeros_like(outside)], 1)
            weights = torch.cat([weights, outside], 1)
        if settings.threshold == "mean":
            # in double precision: the mean of equal values must be that value, or rounding selects all or nothing
            threshold = ((values.double() * weights).sum(1) / weights.sum(1)).to(values.dtype)
        elif settings.threshold == "gmm":
            threshold = weighted_gmm_threshold(values, weights)
        else:
            q = 0.5 if settings.threshold == "median" else float(settings.threshold)
            threshold = weighted_quantile(values, weights, q)
        threshold = threshold.view(batch, heads, 1, 1)
        selected = maps > threshold if settings.strict else maps >= threshold
        mask = upsample_nearest(selected, size)
        if body is not None:
            mask = mask & body
        mask = mask.float()
        if settings.smooth:
            mask = bilateral(mask, settings)
    return PseudoMask(mask=mask, attention=maps, threshold=threshold, body=body)

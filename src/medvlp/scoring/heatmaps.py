"""From patch embeddings and phrases to heatmaps: pure functions, a batch at a time, on any device.

A grid of cells lies over the image, so that the map of an S × S image is (…, h, w) before and (…, S, S) after
:func:`upsample`. NaN marks pixels that the encoder never saw.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.errors import ConfigError, DataError
from medvlp.losses.precision import exact
from medvlp.resizing import Geometry
from medvlp.transforms import ImageTransform

Interpolation = Literal["nearest", "bilinear"]


def similarity_maps(
    patches: Tensor, phrases: Tensor, *, normalise: bool = True, patch_weights: Tensor | None = None
) -> Tensor:
    """Compare every cell with every phrase of its image: (B, h, w), or (B, P, h, w).

    Args:
        patches: (B, d, h, w) embeddings of the cells.
        phrases: (B, d), one phrase per image; or (B, P, d), several.
        normalise: take cosines; False takes dot products (MaCo).
        patch_weights: (h, w) or (B, h, w), factors of the cells' embeddings *after* normalisation, such as a prior of
            where findings lie: MaCo's ``patch_weights()``.
    """
    patches, phrases = exact(patches, phrases)
    if normalise:
        patches, phrases = F.normalize(patches, dim=1), F.normalize(phrases, dim=-1)
    if phrases.ndim == 2:
        maps = torch.einsum("bdhw,bd->bhw", patches, phrases)
    else:
        maps = torch.einsum("bdhw,bpd->bphw", patches, phrases)
    if patch_weights is None:
        return maps
    if patch_weights.shape[-2:] != maps.shape[-2:]:
        raise ConfigError(
            f"the patch weights are a grid of {tuple(patch_weights.shape[-2:])} cells, the image one of "
            f"{tuple(maps.shape[-2:])}: evaluate at the image size that the method was trained with"
        )
    weights = patch_weights.to(maps)
    return maps * (weights[:, None] if weights.ndim == 3 and maps.ndim == 4 else weights)


@lru_cache(maxsize=64)
def _smoothing(length: int, sigma: float, truncate: float) -> Tensor:
    # (length, length) float64: row i holds the weights of all cells in smoothed cell i
    radius = int(truncate * sigma + 0.5)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    taps /= taps.sum()
    # d c b a | a b c d | d c b a, over and over: period 2 n
    index = (torch.arange(length)[:, None] + torch.arange(-radius, radius + 1)).remainder(2 * length)
    index = torch.minimum(index, 2 * length - 1 - index)
    return torch.zeros(length, length, dtype=torch.float64).scatter_add_(1, index, taps.expand(length, -1).clone())


def smooth(maps: Tensor, sigma: float = 1.5, truncate: float = 4.0) -> Tensor:
    """Apply a Gaussian filter over the cells, mirrored at the edges with the edge cell repeated (BioViL, MaCo).

    The filter is separable, and with the mirrored edges a matrix per axis, so that it is two small products.

    ``sigma`` is the standard deviation in cells, 0 for none; the filter ends after ⌊truncate · sigma + ½⌋ cells. Maps
    (..., h, w) must not hold NaN.
    """
    if sigma == 0:
        return maps
    rows, columns = (_smoothing(side, float(sigma), float(truncate)).to(maps) for side in maps.shape[-2:])
    return rows @ maps @ columns.T


def upsample(maps: Tensor, size: int | tuple[int, int], mode: Interpolation = "bilinear") -> Tensor:
    """Enlarge maps (..., h, w) to a side, or to (height, width), in pixels.

    "nearest" repeats cells (MedKLIP), "bilinear" interpolates between their centres without aligned corners.
    """
    height, width = (size, size) if isinstance(size, int) else size
    planes = maps.reshape(-1, 1, *maps.shape[-2:])
    options = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(planes, (height, width), mode=mode, **options).reshape(*maps.shape[:-2], height, width)


def with_crop_margin(
    maps: Tensor,
    height: int,
    width: int,
    resize: int | None = None,
    crop: int | None = None,
    mode: Interpolation = "nearest",
) -> Tensor:
    """Lay maps (..., h, w) of a centre crop over the whole image, NaN around (BioViL's inference engine).

    The encoder saw the centre ``crop`` × ``crop`` of the image whose shorter side had been made ``resize`` pixels. In
    pixels of the image that is ⌊crop · shorter side / resize⌋, or ``crop`` without a resize. The margin is rounded down
    at the left and top, up at the right and bottom; where the crop is larger than the image, the map is cut.

    Args:
        maps: (..., h, w).
        height: of the image in pixels.
        width: of the image in pixels.
        resize: shorter side after the resize; None for no resize.
        crop: side of the centre crop; None for no crop.
        mode: of :func:`upsample`.
    """
    if crop is None:
        return upsample(maps, (height, width), mode)
    side = crop if resize is None else int(crop * min(height, width) / resize)
    spare_w, spare_h = width - side, height - side
    margins = (math.floor(spare_w / 2), math.ceil(spare_w / 2), math.floor(spare_h / 2), math.ceil(spare_h / 2))
    return F.pad(upsample(maps, side, mode), margins, value=torch.nan)


def min_max(maps: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Stretch each map (..., H, W) linearly from its minimum and maximum to [low, high] (MaCo: [−1, 1]).

    NaN stays and does not count. A constant map becomes ``low``, since it says nothing of where.
    """
    (maps,) = exact(maps)
    known = ~maps.isnan()
    least = maps.masked_fill(~known, torch.inf).amin((-2, -1), keepdim=True)
    most = maps.masked_fill(~known, -torch.inf).amax((-2, -1), keepdim=True)
    span = most - least
    unit = torch.where(span > 0, (maps - least) / span.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)
    return torch.where(known, unit * (high - low) + low, torch.nan)


def stretch(maps: Tensor, size: int | tuple[int, int], mode: Interpolation = "bilinear") -> Tensor:
    """Stretch each map over its own range to [0, 1] and enlarge it: (..., h, w) → (..., height, width), for figures."""
    return upsample(min_max(maps), size, mode).clamp(0, 1)


class Frame(NamedTuple):
    """Map from pixels of the resize rule's result to those of the encoder's image: x' = scale · x + offset.

    ``offset_x`` is −16 where a transform cut 16 columns off the left, for example.
    """

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float


def frame_of(transform: ImageTransform, geometry: Geometry) -> Frame:
    """Return what an evaluation transform does to its resize rule's result, of an image's geometry: crop or scale.

    The transform must have no augmentation, whose images lie somewhere else each time.
    """
    if transform.train:
        raise ConfigError("heatmaps go back to their image through the evaluation transform: build it with train=False")
    g = geometry
    # it moves a box inside the part that every recipe keeps as it moves the image
    quarters = [g.out_width / 4, g.out_height / 4, g.out_width * 3 / 4, g.out_height * 3 / 4]
    before = torch.tensor([quarters], dtype=torch.float32)
    _, _, after, _ = transform.finish_joint(torch.zeros(1, g.out_height, g.out_width, dtype=torch.uint8), boxes=before)
    assert after is not None
    scale = ((after[0, 2:] - after[0, :2]).double() / (before[0, 2:] - before[0, :2]).double()).tolist()
    offset = (after[0, :2].double() - before[0, :2].double() * torch.tensor(scale, dtype=torch.float64)).tolist()
    return Frame(scale[0], scale[1], offset[0], offset[1])


def back_to_image(
    heatmap: Tensor,
    geometry: Geometry | Sequence[int],
    size: tuple[int, int],
    frame: Frame | None = None,
    mode: Interpolation = "bilinear",
) -> Tensor:
    """Lay a heatmap of the encoder's image over the image as it was read from the file.

    Args:
        heatmap: (..., S, S), of the encoder's S × S image; without NaN.
        geometry: what the resize rule did, as samples and ``ResizeRule.image`` give it.
        size: (H, W) of the image in its file.
        frame: what the transform then did, of :func:`frame_of`; None: it scaled the whole.
        mode: interpolation between the centres of the heatmap's pixels.

    Returns:
        (..., H, W); NaN where the encoder saw nothing: outside of a rule's crop, and what a transform cut off. What the
        encoder saw of padding is no part of the image.
    """
    (heatmap,) = exact(heatmap)
    g = geometry if isinstance(geometry, Geometry) else Geometry(*(int(v) for v in geometry))
    height, width = size
    if g.left + g.crop_width > width or g.top + g.crop_height > height:
        raise DataError(
            f"the geometry is that of an image of at least {g.left + g.crop_width} × {g.top + g.crop_height} pixels, "
            f"not of {width} × {height}"
        )
    side_h, side_w = heatmap.shape[-2:]
    f = frame or Frame(side_w / g.out_width, side_h / g.out_height, 0.0, 0.0)
    rows, columns = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    # centres of the file's pixels in pixels of the rule's result, then of the heatmap
    y = f.scale_y * ((rows + 0.5 - g.top) * g.height / g.crop_height + g.pad_top) + f.offset_y
    x = f.scale_x * ((columns + 0.5 - g.left) * g.width / g.crop_width + g.pad_left) + f.offset_x
    seen_y = (rows >= g.top) & (rows < g.top + g.crop_height) & (y >= 0) & (y <= side_h)
    seen_x = (columns >= g.left) & (columns < g.left + g.crop_width) & (x >= 0) & (x <= side_w)
    grid = torch.stack(torch.meshgrid(x / side_w * 2 - 1, y / side_h * 2 - 1, indexing="xy"), -1).to(heatmap)
    planes = heatmap.reshape(1, -1, side_h, side_w)
    laid = F.grid_sample(planes, grid[None], mode=mode, padding_mode="border", align_corners=False)
    seen = (seen_y[:, None] & seen_x).to(heatmap.device)
    return laid.reshape(*heatmap.shape[:-2], height, width).masked_fill(~seen, torch.nan)


def centre_prior(height: int, width: int) -> Tensor:
    """Return a heatmap (height, width) that knows no image: 1 at the centre, falling with distance to 0 at the corners.

    Distances are in shares of the sides, so that the level lines of an oblong image are ellipses.
    """
    y, x = (((torch.arange(side, dtype=torch.float32) + 0.5) / side - 0.5).abs() for side in (height, width))
    return 1 - (y[:, None].square() + x.square()).sqrt() / math.sqrt(0.5)

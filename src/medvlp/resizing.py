"""The first, deterministic step of every image recipe: uint8 (1, H, W) to uint8 (1, h, w), named by a string.

Nothing here is random, so an image read from a cache equals the same image prepared again, byte for byte. Masks and
boxes follow the image by the :class:`Geometry` that describes what a rule did. Pixels are squares: pixel i covers
[i, i + 1), box corners are pixel edges, and x1, y1 are exclusive.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from medvlp.errors import ConfigError, DataError


class Geometry(NamedTuple):
    """What a rule did to one image, in whole pixels: crop, then scale, then pad with zeros.

    ``left`` and ``top`` are the crop's corner in the source image, ``width`` and ``height`` its size after scaling.
    """

    left: int
    top: int
    crop_width: int
    crop_height: int
    width: int
    height: int
    pad_left: int
    pad_top: int
    out_width: int
    out_height: int

    @classmethod
    def identity(cls, height: int, width: int) -> "Geometry":
        """Return the geometry of an image that stays as it is."""
        return cls(0, 0, width, height, width, height, 0, 0, width, height)


Resized = tuple[Tensor, Geometry]
_BILINEAR = InterpolationMode.BILINEAR


def _whole(source: Tensor, result: Tensor) -> Resized:
    """Add the geometry of a rule that scales the whole image and does not pad."""
    (old_height, old_width), (height, width) = source.shape[-2:], result.shape[-2:]
    return result, Geometry(0, 0, old_width, old_height, width, height, 0, 0, width, height)


def _pillow_lanczos(pixels: Tensor, height: int, width: int) -> Tensor:
    small = Image.fromarray(pixels[0].numpy()).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small))[None]


def _square(pixels: Tensor, size: int, mode: InterpolationMode = _BILINEAR, antialias: bool = True) -> Resized:
    return _whole(pixels, v2.functional.resize(pixels, [size, size], mode, antialias=antialias))


def _padded(source: Tensor, small: Tensor, size: int) -> Resized:
    """Zero-pad to a square: floor(d / 2) at the left and top, the rest at the right and bottom."""
    (old_height, old_width), (height, width) = source.shape[-2:], small.shape[-2:]
    right, down = size - width, size - height
    x = F.pad(small, (right // 2, right - right // 2, down // 2, down - down // 2))
    return x, Geometry(0, 0, old_width, old_height, width, height, right // 2, down // 2, size, size)


def _area_axis(x: Tensor, length: int) -> Tensor:
    """Average the last axis over ``length`` equal intervals, with fractional weights at their ends."""
    old = x.shape[-1]
    total = F.pad(x.cumsum(-1, dtype=torch.float64 if x.shape[-1] > 2**15 else torch.float32), (1, 0))
    edges = torch.arange(length + 1, dtype=torch.float64) * (old / length)
    left = edges.floor().clamp_(max=old - 1).long()
    weight = (edges - left).to(total.dtype)
    at_edges = torch.lerp(total[..., left], total[..., left + 1], weight)
    return at_edges.diff(dim=-1).mul_(length / old).float()


def _pad(pixels: Tensor, size: int) -> Resized:
    """MGCA's and GLoRIA's resize: longer side to ``size``, shorter side cut to an integer, zero-padded to a square.

    Shrinks by area averaging with exact fractional weights (OpenCV's INTER_AREA) and enlarges bilinearly.
    """
    height, width = pixels.shape[-2:]
    ratio = size / max(height, width)
    new = (max(int(height * ratio), 1), max(int(width * ratio), 1))
    new = (size, new[1]) if height >= width else (new[0], size)
    if ratio < 1:
        x = _area_axis(_area_axis(pixels, new[1]).mT, new[0]).mT
    else:
        x = F.interpolate(pixels.float()[None], new, mode="bilinear", align_corners=False)[0]
    return _padded(pixels, x.round_().clamp_(0, 255).to(torch.uint8), size)


def _longer_pad(pixels: Tensor, size: int) -> Resized:
    """CheXzero's data_process.py: both sides × size / longer side, cut to integers, Lanczos, zero-padded.

    Both sides are cut in binary arithmetic, as released, so that the longer one now and then is one pixel short.
    """
    height, width = pixels.shape[-2:]
    ratio = size / max(height, width)
    small = _pillow_lanczos(pixels, max(int(height * ratio), 1), max(int(width * ratio), 1))
    return _padded(pixels, small, size)


def _kept_aspect(pixels: Tensor, size: int, side: Callable[[Sequence[int]], int]) -> Resized:
    """Scale so that a side becomes ``size``, unless it is that small already; the other side is cut to an integer."""
    height, width = pixels.shape[-2:]
    old = side((height, width))
    if old <= size:
        return _whole(pixels, pixels)
    # whole-number division: torchvision's Resize cuts the other side in the same way
    new = [max(height * size // old, 1), max(width * size // old, 1)]
    return _whole(pixels, v2.functional.resize(pixels, new, _BILINEAR, antialias=True))


def _stretch(pixels: Tensor, size: int, top_level: int) -> Resized:
    """The offline image preparation of the released G2D code (ext_data.py).

    Crop to the bounding box of the non-zero pixels, scale (x − min) / (max − min) to 0…top, resize to size × size
    without keeping the aspect, bilinear without anti-aliasing, cut to uint8. The released code scales to 256, so that
    the brightest pixels wrap to 0 in uint8.
    """
    x = pixels[0]
    left = top = 0
    rows, columns = x.amax(1).nonzero(), x.amax(0).nonzero()
    if len(rows):  # an all-zero image has no box and stays whole
        top, left = int(rows[0, 0]), int(columns[0, 0])
        x = x[top : int(rows[-1, 0]) + 1, left : int(columns[-1, 0]) + 1]
    low, high = int(x.min()), int(x.max())
    # divided first, as released: only so does the maximum become exactly 256
    scaled = (x.float() - low).div_(max(high - low, 1)).mul_(top_level)
    y = F.interpolate(scaled[None, None], (size, size), mode="bilinear", align_corners=False)[0].to(torch.int32)
    y = y.remainder(256) if top_level == 256 else y.clamp_(0, 255)
    return y.to(torch.uint8), Geometry(left, top, x.shape[1], x.shape[0], size, size, 0, 0, size, size)


_APPLY: dict[str, Callable[[Tensor, int], Resized]] = {
    "square": _square,
    "square_plain": partial(_square, antialias=False),
    "bicubic": partial(_square, mode=InterpolationMode.BICUBIC),
    "lanczos": lambda pixels, size: _whole(pixels, _pillow_lanczos(pixels, size, size)),
    "pad": _pad,
    "longer_pad": _longer_pad,
    "longer": partial(_kept_aspect, side=max),
    "shorter": partial(_kept_aspect, side=min),
    "stretch_official": partial(_stretch, top_level=256),
    "stretch_255": partial(_stretch, top_level=255),
    "full": lambda pixels, size: _whole(pixels, pixels),
}

RESIZE_RULES: dict[str, str] = {
    "square": "size × size, aspect lost, bilinear with anti-aliasing (G2D's paper; MedKLIP's evaluation)",
    "square_plain": "size × size, aspect lost, bilinear without anti-aliasing (MGCA's detection and segmentation)",
    "bicubic": "size × size, aspect lost, bicubic with anti-aliasing (KAD's evaluation; its CXR14 images are square)",
    "lanczos": "size × size, aspect lost, Lanczos as in Pillow (BenchX: NIH and COVIDx at 224, Object-CXR at 512)",
    "pad": "longer side to size by area averaging, zero-padded to a square (MGCA, GLoRIA)",
    "longer_pad": "longer side to size, Lanczos as in Pillow, zero-padded to a square (CheXzero, size 320)",
    "longer": "longer side to at most size, aspect kept, never enlarged, bilinear with anti-aliasing (for storage)",
    "shorter": "shorter side to at most size, aspect kept, never enlarged, bilinear with anti-aliasing (for storage)",
    "stretch_official": "box of the non-zero pixels, min-max × 256 that wraps 256 to 0, size × size (G2D's code)",
    "stretch_255": "box of the non-zero pixels, min-max × 255, size × size (G2D's code without the wrap)",
    "full": "the image as it is; takes no size",
}
"""What each rule does, in one line, with its source."""

_VARIABLE = ("longer", "shorter", "full")
_CROPPING = ("stretch_official", "stretch_255")
_NAME = re.compile(r"([a-z0-9_]+)(?::([1-9][0-9]{0,4}))?")


@dataclass(frozen=True)
class ResizeRule:
    """One deterministic resize, made by :func:`build_resize`; it can be pickled and compared.

    Attributes:
        name: the rule in writing, such as "square:256"; equal names mean equal results.
        rule: a key of :data:`RESIZE_RULES`.
        size: the number after the colon, in pixels; 0 for "full".
    """

    name: str
    rule: str
    size: int

    @property
    def square_side(self) -> int | None:
        """Side of the result in pixels, or None where the result's size depends on the image."""
        return None if self.rule in _VARIABLE else self.size

    def image(self, pixels: Tensor) -> Resized:
        """Resize an image, uint8 (1, H, W), which stays as it is.

        Returns:
            A contiguous uint8 (1, h, w) tensor, which may be ``pixels`` itself, and what was done.

        Raises:
            DataError: the image has another type or shape, or no pixels.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 1 or not pixels.numel():
            raise DataError(
                f"{self.name} resizes uint8 images of shape (1, H, W), not {pixels.dtype} {tuple(pixels.shape)}"
            )
        result, geometry = _APPLY[self.rule](pixels.contiguous(), self.size)
        return result.contiguous(), geometry

    def mask(self, mask: Tensor, geometry: Geometry) -> Tensor:
        """Resize a mask with its image: crop, nearest neighbour by pixel centres, zero padding.

        Args:
            mask: bool (1, H, W), of the size of the source image.
            geometry: what :meth:`image` returned for that image.

        Returns:
            bool (1, h, w), of the size of the resized image. Structures thinner than one of its pixels may vanish.

        Raises:
            DataError: the mask has another type or size.
        """
        if mask.dtype != torch.bool or mask.ndim != 3 or mask.shape[0] != 1:
            raise DataError(f"a mask must be bool of shape (1, H, W), not {mask.dtype} {tuple(mask.shape)}")
        g = geometry
        needed = (g.top + g.crop_height, g.left + g.crop_width)
        size = (mask.shape[1], mask.shape[2])
        # only the rules that crop may leave a margin at the bottom and right, whose width the geometry does not hold
        if size != needed and not (self.rule in _CROPPING and size[0] >= needed[0] and size[1] >= needed[1]):
            raise DataError(
                f"the mask is {size[1]} × {size[0]} pixels and does not fit its image of {needed[1]} × {needed[0]}; "
                "draw it at the size at which the image was read"
            )
        crop = mask[:, g.top : g.top + g.crop_height, g.left : g.left + g.crop_width]
        result = mask.new_zeros(1, g.out_height, g.out_width)
        rows, columns = slice(g.pad_top, g.pad_top + g.height), slice(g.pad_left, g.pad_left + g.width)
        result[:, rows, columns] = nearest(crop, g.height, g.width)
        return result

    def boxes(self, boxes: Tensor, geometry: Geometry) -> Tensor:
        """Resize boxes, float32 (n, 4), x0, y0, x1, y1 in pixels, with their image; see :meth:`mask`.

        The result is not clipped: where a rule crops, a box may reach outside the image.
        """
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise DataError(f"boxes must be of shape (n, 4), x0 y0 x1 y1, not {tuple(boxes.shape)}")
        g = geometry
        pairs = ((g.width / g.crop_width, g.height / g.crop_height), (g.left, g.top), (g.pad_left, g.pad_top))
        scale, source, result = (torch.tensor(p * 2, dtype=torch.float64, device=boxes.device) for p in pairs)
        return ((boxes.double() - source) * scale + result).float()


def nearest(mask: Tensor, height: int, width: int) -> Tensor:
    """Resize (..., H, W) of any type to the nearest neighbours of pixel centres, in whole numbers and thus exactly."""
    old_height, old_width = mask.shape[-2:]
    rows = (2 * torch.arange(height, device=mask.device) + 1) * old_height // (2 * height)
    columns = (2 * torch.arange(width, device=mask.device) + 1) * old_width // (2 * width)
    return mask.index_select(-2, rows).index_select(-1, columns)


def build_resize(name: str) -> ResizeRule:
    """Build a resize rule from ``rule:size``, size in pixels, such as "pad:256"; or "full".

    Raises:
        ConfigError: an unknown rule, or the size is missing, superfluous or not between 1 and 99999.
    """
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in RESIZE_RULES or (match[1] == "full") != (match[2] is None):
        rules = ", ".join(r if r == "full" else f"{r}:SIZE" for r in RESIZE_RULES)
        raise ConfigError(f"unknown resize rule {name!r}; expected one of: {rules}, with SIZE in pixels")
    return ResizeRule(name, match[1], int(match[2] or 0))

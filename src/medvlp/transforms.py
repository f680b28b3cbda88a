"""Augmentation recipes by name: uint8 (1, H, W) of any size to float32 (3, S, S).

All work on one channel; the three channels that pretrained encoders expect are a view of it, made at the very end.
All randomness comes from torch's global CPU generator, which :class:`~medvlp.datasets.base.ImageTextDataset` seeds
for each item.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from medvlp.errors import ConfigError

Transform = Callable[[Tensor], Tensor]
Triple = tuple[float, float, float]

_IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_UNIT: tuple[Triple, Triple] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

_NORMALISATION: dict[str, tuple[Triple, Triple]] = {
    "plain": _UNIT,
    "phantom": _UNIT,
    "g2d_paper": _UNIT,
    "g2d_official": _IMAGENET,
    "g2d_official_255": _IMAGENET,
    "mgca": _HALF,
    "convirt": _IMAGENET,
}

TRANSFORMS: tuple[str, ...] = tuple(_NORMALISATION)
"""Names that :func:`build_transform` knows."""


class _Finish(nn.Module):
    """uint8 (1, S, S) to normalised float32 (3, S, S); a view of one channel where the three are equal."""

    def __init__(self, mean: Triple, std: Triple) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, image: Tensor) -> Tensor:
        x = image.float().div_(255) if image.dtype == torch.uint8 else image
        if len(set(self.mean)) == 1 and len(set(self.std)) == 1:
            if self.mean[0] != 0 or self.std[0] != 1:
                x = x.sub(self.mean[0]).div_(self.std[0])
            return x.expand(3, -1, -1)
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return (x - mean) / std


class _CropAndStretch(nn.Module):
    """The offline image preparation of the released G2D code (ext_data.py).

    Crop to the bounding box of the non-zero pixels, scale (x − min) / (max − min) to 0…top, resize to size × size
    without keeping the aspect, bilinear without anti-aliasing, cut to uint8. The released code scales to 256, and the
    brightest pixels, 256, wrap to 0 in uint8; ``wrap`` keeps that, otherwise they become 255.
    """

    def __init__(self, size: int, wrap: bool) -> None:
        super().__init__()
        self.size, self.wrap = size, wrap

    def forward(self, image: Tensor) -> Tensor:
        x = image[0]
        rows, columns = x.amax(1).nonzero(), x.amax(0).nonzero()
        if len(rows):  # an all-zero image has no box and stays whole
            x = x[rows[0, 0] : rows[-1, 0] + 1, columns[0, 0] : columns[-1, 0] + 1]
        low, high = int(x.min()), int(x.max())
        # divided first, as released: only so does the maximum become exactly 256
        x = (x.float() - low).div_(max(high - low, 1)).mul_(256 if self.wrap else 255)
        y = F.interpolate(x[None, None], (self.size, self.size), mode="bilinear", align_corners=False)[0]
        y = y.to(torch.int32)
        return (y.remainder(256) if self.wrap else y.clamp_(0, 255)).to(torch.uint8)


def _area_axis(x: Tensor, length: int) -> Tensor:
    """Average the last axis over ``length`` equal intervals, with fractional weights at their ends."""
    old = x.shape[-1]
    total = F.pad(x.cumsum(-1, dtype=torch.float64 if x.shape[-1] > 2**15 else torch.float32), (1, 0))
    edges = torch.arange(length + 1, dtype=torch.float64) * (old / length)
    left = edges.floor().clamp_(max=old - 1).long()
    weight = (edges - left).to(total.dtype)
    at_edges = torch.lerp(total[..., left], total[..., left + 1], weight)
    return at_edges.diff(dim=-1).mul_(length / old).float()


class _PadResize(nn.Module):
    """MGCA's and GLoRIA's resize: longer side to ``side``, shorter side cut to an integer, zero-padded to a square.

    Shrinks by area averaging with exact fractional weights (OpenCV's INTER_AREA) and enlarges bilinearly. Padding is
    floor(d / 2) at the left or top and the rest at the right or bottom.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        ratio = self.side / max(height, width)
        new = (max(int(height * ratio), 1), max(int(width * ratio), 1))
        new = (self.side, new[1]) if height >= width else (new[0], self.side)
        if ratio < 1:
            x = _area_axis(_area_axis(image, new[1]).mT, new[0]).mT
        else:
            x = F.interpolate(image.float()[None], new, mode="bilinear", align_corners=False)[0]
        x = x.round_().clamp_(0, 255).to(torch.uint8)
        down, right = self.side - new[0], self.side - new[1]
        return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))


class _Blur(nn.Module):
    """Gaussian blur with a random σ in pixels; two one-dimensional passes instead of one square kernel."""

    def __init__(self, kernel: int, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.kernel, self.sigma = kernel, sigma

    def forward(self, image: Tensor) -> Tensor:
        sigma = torch.empty(()).uniform_(*self.sigma)
        half = self.kernel // 2
        taps = torch.exp(-0.5 * (torch.arange(-half, half + 1) / sigma) ** 2)
        taps = taps / taps.sum()
        x = F.pad(image.float()[None], (half, half, half, half), mode="reflect")
        x = F.conv2d(F.conv2d(x, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))[0]
        return x.round_().to(torch.uint8)


_BILINEAR = InterpolationMode.BILINEAR


def _square(size: int) -> nn.Module:
    return v2.Resize((size, size), interpolation=_BILINEAR, antialias=True)


def _recipe(name: str, size: int, train: bool) -> list[nn.Module]:
    margin = round(size * 256 / 224)
    if name == "g2d_paper":
        augment = [v2.RandomPerspective(distortion_scale=0.5, p=0.5), v2.RandomAutocontrast(p=0.5)]
        return [_square(margin), *(augment if train else []), v2.CenterCrop(size)]
    if name in ("g2d_official", "g2d_official_255"):
        augment = [v2.RandomAffine(15, shear=15), v2.ColorJitter(brightness=0.2, contrast=0.2)]
        return [_CropAndStretch(size, wrap=name == "g2d_official"), *(augment if train else [])]
    if name == "mgca":
        return [_PadResize(margin), v2.RandomCrop(size) if train else v2.CenterCrop(size)]
    if name == "convirt" and train:
        return [
            v2.RandomResizedCrop(size, scale=(0.6, 1.0), interpolation=_BILINEAR, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomAffine(20, translate=(0.1, 0.1), scale=(0.95, 1.05), interpolation=_BILINEAR),
            v2.ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4)),
            # reflect padding must stay inside the image
            _Blur(min(2 * (round(size / 20) // 1) + 1, 2 * ((size - 1) // 2) + 1), (0.1, 3.0)),
        ]
    if name == "phantom" and train:
        return [
            _square(size),
            v2.RandomAffine(5, translate=(0.03, 0.03), scale=(0.95, 1.05), interpolation=_BILINEAR),
            v2.ColorJitter(brightness=0.15, contrast=0.15),
        ]
    return [_square(size)]


def build_transform(name: str, size: int, train: bool) -> Transform:
    """Build an image transform.

    ==================== ====================================================================================
    plain                size × size, [0, 1]; no augmentation
    phantom              plain; in training ±5°, scale 0.95–1.05, shift 3 %, brightness and contrast ±15 %
    g2d_paper            G2D's paper: 256 × 256, centre crop 224 (both scaled with ``size``), [0, 1]; in training
                         perspective (p 0.5, distortion 0.5) and autocontrast (p 0.5), between resize and crop. The
                         paper's random grayscale is the identity on grey images and therefore absent. The paper
                         gives no parameters; these are torchvision's defaults
    g2d_official         G2D's released code: bounding-box crop, min–max × 256 **with its wrap of the brightest
                         pixels to 0**, bilinear resize without anti-aliasing, ImageNet mean and std; in training
                         ±15° with shear 15, brightness and contrast 0.2. Its CenterCrop(256) of a 256-pixel image
                         does nothing and is absent. The released size is 256
    g2d_official_255     the same with × 255, that is, without the wrap
    mgca                 MGCA's and GLoRIA's: longer side to 256 by area averaging, zero-padded; random crop 224 in
                         training, else centre crop (scaled with ``size``); mean 0.5, std 0.5
    convirt              ConVIRT's paper: crop 0.6–1.0 of the area, flip 0.5, ±20°, shift 0.1, scale 0.95–1.05,
                         brightness and contrast 0.6–1.4, Gaussian blur σ 0.1–3.0. ImageNet mean and std, because its
                         encoder starts from ImageNet (not stated in the paper); otherwise size × size
    ==================== ====================================================================================

    Args:
        name: one of :data:`TRANSFORMS`.
        size: side S of the result, in pixels.
        train: with random augmentation.

    Returns:
        A picklable function of a uint8 (1, H, W) tensor that returns a float32 (3, size, size) tensor; where mean
        and std are the same for all channels, the channels share memory.

    Raises:
        ConfigError: an unknown name or a size below 8.
    """
    if name not in _NORMALISATION:
        raise ConfigError(f'there is no transform "{name}"; there are {", ".join(TRANSFORMS)}')
    if size < 8:
        raise ConfigError(f"image size {size} is too small; it must be at least 8 pixels")
    return v2.Compose([*_recipe(name, size, train), _Finish(*_NORMALISATION[name])])


def normalisation(name: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation, per channel, that a transform subtracts from and divides [0, 1] images by.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in _NORMALISATION:
        raise ConfigError(f'there is no transform "{name}"; there are {", ".join(TRANSFORMS)}')
    return _NORMALISATION[name]

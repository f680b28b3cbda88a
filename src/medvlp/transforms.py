"""Augmentation recipes by name: uint8 (1, H, W) of any size to float32 (3, S, S).

A recipe is a deterministic resize (:mod:`medvlp.resizing`), whose result can be stored, then random augmentation, then
normalisation. All work on one channel, of which the three that pretrained encoders expect are a view. All randomness
comes from torch's global CPU generator, which :class:`~medvlp.datasets.base.RadiographDataset` seeds for each item.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from medvlp.errors import DataError, check_choice, check_range
from medvlp.resizing import ResizeRule, build_resize, nearest

Triple = tuple[float, float, float]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

NORMALISATION: dict[str, tuple[Triple, Triple]] = {
    **dict.fromkeys(("plain", "phantom", "g2d_paper"), ((0.0,) * 3, (1.0,) * 3)),
    **dict.fromkeys(("g2d_official", "g2d_official_255"), _IMAGENET),
    **dict.fromkeys(("mgca", "mgca_detection", "mgca_segmentation"), ((0.5,) * 3, (0.5,) * 3)),
    **dict.fromkeys(("convirt", "medklip", "kad"), _IMAGENET),
    "chexzero": ((101.48761 / 255,) * 3, (83.43944 / 255,) * 3),
    **dict.fromkeys(("benchx", "maco"), ((0.4978,) * 3, (0.2449,) * 3)),
}
"""Mean and standard deviation, per channel, by which a transform normalises [0, 1] images."""

TRANSFORMS: tuple[str, ...] = tuple(NORMALISATION)
"""Names that :func:`build_transform` knows."""

_KEPT_AREA = 0.1
_BILINEAR = InterpolationMode.BILINEAR


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
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std


def _follows(item: Any) -> bool:
    """Whether only the geometry of a transform applies to an item of a sample, not colours and blur."""
    return isinstance(item, tv_tensors.Mask | tv_tensors.BoundingBoxes)


class _Blur(v2.Transform):
    """Gaussian blur with a random σ in pixels; two one-dimensional passes instead of one square kernel."""

    def __init__(self, kernel: int, sigma: tuple[float, float]) -> None:
        super().__init__()
        self.kernel, self.sigma = kernel, sigma

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"sigma": torch.empty(()).uniform_(*self.sigma)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if _follows(inpt):
            return inpt
        half = self.kernel // 2
        taps = torch.exp(-0.5 * (torch.arange(-half, half + 1) / params["sigma"]) ** 2)
        taps = taps / taps.sum()
        x = F.pad(inpt.as_subclass(Tensor).float()[None], (half, half, half, half), mode="reflect")
        x = F.conv2d(F.conv2d(x, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))[0]
        return tv_tensors.wrap(x.round_().to(torch.uint8), like=inpt)


class _ToSquare(v2.Transform):
    """Resize to size × size; masks by the nearest pixel centre."""

    def __init__(self, size: int, bicubic: bool = False) -> None:
        super().__init__()
        self.size, self.bicubic = [size, size], bicubic

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.Mask(nearest(inpt.as_subclass(Tensor), *self.size))
        if self.bicubic and not isinstance(inpt, tv_tensors.BoundingBoxes):
            # on floats without anti-aliasing, and without cutting off what overshoots [0, 1]
            levels = inpt.as_subclass(Tensor).float().div_(255)[None]
            return tv_tensors.wrap(F.interpolate(levels, self.size, mode="bicubic", align_corners=False)[0], like=inpt)
        return v2.functional.resize(inpt, self.size, _BILINEAR, antialias=True)


class _ResizedCrop(v2.RandomResizedCrop):
    """RandomResizedCrop whose masks are taken at pixel centres; torchvision's are half a pixel off."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        rows = slice(params["top"], params["top"] + params["height"])
        columns = slice(params["left"], params["left"] + params["width"])
        return tv_tensors.Mask(nearest(inpt.as_subclass(Tensor)[:, rows, columns], *self.size))


class _RandomOperation(v2.Transform):
    """Half of MedKLIP's and KAD's RandomAugment(2, 7): one of ten operations, done with p 0.5.

    Strengths at level 7 of 10 as in ALBEF's release, where the operations come from: brightness and sharpness 1.36,
    shear 0.21, shift 7 pixels (at every image size), rotation 21°, signs at random; uncovered pixels become 128.
    """

    colours: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "autocontrast": v2.functional.autocontrast,
        "equalize": v2.functional.equalize,
        "brightness": partial(v2.functional.adjust_brightness, brightness_factor=1.36),
        "sharpness": partial(v2.functional.adjust_sharpness, sharpness_factor=1.36),
    }
    names = (*colours, "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate")

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        name = self.names[int(torch.randint(len(self.names), ()))]
        done, negative = (torch.rand(2) < 0.5).tolist()
        return {"name": name if done else "identity", "sign": -1 if negative else 1}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        name = params["name"]
        if name in self.colours:
            return inpt if _follows(inpt) else self.colours[name](inpt)
        if name == "identity":
            return inpt
        sign = params["sign"]
        slope = math.degrees(math.atan(sign * 0.21))
        return v2.functional.affine(
            inpt,
            angle=sign * 21.0 if name == "rotate" else 0.0,
            translate=[7 * sign * (name == "translate_x"), 7 * sign * (name == "translate_y")],
            scale=1.0,
            shear=[slope * (name == "shear_x"), slope * (name == "shear_y")],
            interpolation=_BILINEAR,
            fill=[0.0 if _follows(inpt) else 128.0],
            center=None if name == "rotate" else [0.0, 0.0],  # there, shears keep the top left corner
        )


def _recipe(name: str, size: int, train: bool) -> tuple[str, list[nn.Module]]:  # noqa: C901 (a case per paper)
    """The resize rule, and what follows it up to the normalisation."""
    margin = round(size * 256 / 224)
    rule = f"square:{size}"
    augment: list[nn.Module] = []  # in training only
    always: list[nn.Module] = []  # after it
    match name:
        case "phantom":
            augment = [
                v2.RandomAffine(5, translate=(0.03, 0.03), scale=(0.95, 1.05), interpolation=_BILINEAR),
                v2.ColorJitter(brightness=0.15, contrast=0.15),
            ]
        case "g2d_paper":
            rule = f"square:{margin}"
            augment = [v2.RandomPerspective(distortion_scale=0.5, p=0.5), v2.RandomAutocontrast(p=0.5)]
            always = [v2.CenterCrop(size)]
        case "g2d_official" | "g2d_official_255":
            rule = f"stretch_{'official' if name == 'g2d_official' else '255'}:{size}"
            augment = [v2.RandomAffine(15, shear=15), v2.ColorJitter(brightness=0.2, contrast=0.2)]
        case "mgca":
            rule = f"pad:{margin}"
            always = [v2.RandomCrop(size) if train else v2.CenterCrop(size)]
        case "mgca_detection" | "mgca_segmentation":
            rule = f"square_plain:{size}"
            if name == "mgca_segmentation":
                affine = v2.RandomAffine(10, scale=(0.9, 1.1), interpolation=_BILINEAR)
                augment = [v2.RandomApply([affine], p=0.5)]
        case "convirt":
            rule = f"shorter:{2 * size}"
            augment = [
                _ResizedCrop(size, scale=(0.6, 1.0), interpolation=_BILINEAR, antialias=True),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomAffine(20, translate=(0.1, 0.1), scale=(0.95, 1.05), interpolation=_BILINEAR),
                v2.ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4)),
                # reflect padding must stay inside the image
                _Blur(min(2 * (round(size / 20) // 1) + 1, 2 * ((size - 1) // 2) + 1), (0.1, 3.0)),
            ]
            always = [] if train else [_ToSquare(size)]
        case "medklip" | "kad":
            rule = f"shorter:{2 * size}" if train else rule if name == "medklip" else f"bicubic:{size}"
            crop = _ResizedCrop(size, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True)
            augment = [crop, v2.RandomHorizontalFlip(0.5), _RandomOperation(), _RandomOperation()]
        case "chexzero":
            rule = f"longer_pad:{round(size * 320 / 224)}"
            always = [_ToSquare(size, bicubic=True)]
        case "benchx":
            rule = f"lanczos:{size}"
            crop = _ResizedCrop(size, scale=(0.08, 1.0), interpolation=_BILINEAR, antialias=True)
            augment = [crop, v2.RandomHorizontalFlip(0.5)]
        case "maco":
            augment = [v2.RandomHorizontalFlip(0.5), v2.RandomAffine(20, scale=(0.8, 1.2))]
    return rule, [*(augment if train else []), *always]


def _boxes(corners: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    # torchvision's own clipping is off: it would hide how much of a box is left
    return tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size, clamping_mode=None)


def _clip(boxes: tv_tensors.BoundingBoxes) -> tuple[tv_tensors.BoundingBoxes, Tensor]:
    """Boxes (n, 4) cut at the edges of their image, and the share (n,) of the area that is left of each."""
    height, width = boxes.canvas_size
    whole = boxes.as_subclass(Tensor)
    inside = whole.clamp(min=0).minimum(whole.new_tensor([width, height, width, height]))
    before, after = ((corners[:, 2:] - corners[:, :2]).prod(1) for corners in (whole, inside))
    return _boxes(inside, (height, width)), torch.where(before > 0, after / before, 0.0)


class ImageTransform:
    """A resize rule, augmentation and normalisation, made by :func:`build_transform`; it can be pickled.

    What the first step, ``resize``, returns may be stored and passed to :meth:`finish` later.
    """

    def __init__(self, name: str, size: int, train: bool) -> None:
        self.name, self.size, self.train = name, size, train
        rule, steps = _recipe(name, size, train)
        self.resize: ResizeRule = build_resize(rule)
        self._augment = nn.Sequential(*steps)
        self._normalise = _Finish(*NORMALISATION[name])

    def __repr__(self) -> str:
        return f"ImageTransform({self.name!r}, size={self.size}, train={self.train}, resize={self.resize.name!r})"

    def __call__(self, image: Tensor) -> Tensor:
        """Resize, augment and normalise one image, as :meth:`finish` does after ``resize.image``."""
        return self.finish(self.resize.image(image)[0])

    def finish(self, image: Tensor) -> Tensor:
        """Augment and normalise an image, uint8 (1, h, w), as ``resize.image`` returned it; it stays as it is.

        Returns:
            float32 (3, S, S); where mean and std are the same for all channels, the channels share memory.
        """
        self._check(image)
        return self._normalise(self._augment(image))

    def finish_joint(
        self, image: Tensor, mask: Tensor | None = None, boxes: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """Augment and normalise a resized image, and move its mask and boxes with it.

        Colours and blur act on the image alone. Masks are sampled at the nearest pixel, and pixels from outside the
        image are unset. A box becomes the upright box around its moved corners, as in torchvision. The image is the
        same as from :meth:`finish` under the same random state.

        Args:
            image: uint8 (1, h, w) as ``resize.image`` returned it, never changed.
            mask: bool (1, h, w) as ``resize.mask`` returned it, or None.
            boxes: float32 (n, 4), x0, y0, x1, y1 in pixels of ``image`` as ``resize.boxes`` returned them, or None.

        Returns:
            Image, float32 (3, S, S); mask, float32 (1, S, S) of 0 and 1, or None; boxes, float32 (n, 4), clipped to
            the result, or None; and which boxes to keep, bool (n,): false for one less than 1 pixel wide or high, or
            of which under 10 % of the area is left.

        Raises:
            DataError: image or mask do not have the size that the resize rule gives.
        """
        self._check(image)
        sample: dict[str, Any] = {"image": tv_tensors.Image(image)}
        if mask is not None:
            if mask.shape != image.shape:
                raise DataError(f"the mask is {tuple(mask.shape)} and its image {tuple(image.shape)}; resize both")
            sample["mask"] = tv_tensors.Mask(mask.to(torch.uint8))
        left = torch.ones(0 if boxes is None else len(boxes))
        if boxes is not None:
            sample["boxes"], left = _clip(_boxes(boxes, (image.shape[-2], image.shape[-1])))
        for step in self._augment:
            sample = step(sample)
            if boxes is not None:
                # at each step, because what one step pushes out of the image the next may not bring back
                sample["boxes"], share = _clip(sample["boxes"])
                left = left * share
        moved = {key: value.as_subclass(Tensor) for key, value in sample.items()}
        mask = moved["mask"].float() if mask is not None else None
        result = self._normalise(moved["image"])
        if boxes is None:
            return result, mask, None, left.bool()
        sides = moved["boxes"][:, 2:] - moved["boxes"][:, :2]
        return result, mask, moved["boxes"], (sides >= 1).all(1) & (left >= _KEPT_AREA)

    def _check(self, image: Tensor) -> None:
        side = self.resize.square_side
        fits = image.ndim == 3 and image.shape[0] == 1 and (side is None or image.shape[1:] == (side, side))
        if image.dtype != torch.uint8 or not fits:
            expected = "(1, h, w)" if side is None else f"(1, {side}, {side})"
            raise DataError(
                f"transform {self.name} continues from uint8 images of shape {expected}, made by the resize rule "
                f"{self.resize.name}, not from {image.dtype} {tuple(image.shape)}; resize with that rule, or make the "
                "cache again with it"
            )


def build_transform(name: str, size: int, train: bool) -> ImageTransform:
    """Build an image transform; docs/transforms.md describes the recipes.

    Args:
        name: one of :data:`TRANSFORMS`.
        size: side S of the result, in pixels.
        train: include the random augmentation.

    Raises:
        ConfigError: an unknown name or a size below 8.
    """
    check_choice("transform", name, TRANSFORMS)
    check_range("[8, inf)", image_size=size)
    return ImageTransform(name, size, train)

"""Images in any form, prepared for a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medvlp.errors import ConfigError, DataError
from medvlp.io.headers import bomb, first_line
from medvlp.io.images import DARK, read_image, warn_dark
from medvlp.resizing import Geometry
from medvlp.transforms import ImageTransform, build_transform

AnyImage = Any
"""A path of a JPEG, PNG or DICOM file; a PIL image; a NumPy array or tensor (H, W), (H, W, 1 or 3 or 4) or
(1 or 3, H, W): integers of 8 or 16 bits, or floats in [0, 1]."""


@dataclass(frozen=True)
class PreparedImages:
    """N images as a model takes them, float32 (N, 3, S, S), and as read, uint8 (H, W), and how they were resized."""

    batch: Tensor
    grey: list[np.ndarray]
    geometry: list[Geometry]
    transform: ImageTransform


def grey_levels(image: AnyImage, intensity: str = "standard") -> np.ndarray:
    """Return an image as grey levels, uint8 (H, W).

    Floats in [0, 1] are scaled by 255, integers above 255 by the range of 16 bits, as for 16-bit files; colour becomes
    luma by ITU-R 601. Arrays must hold a radiograph in which air is dark; ``intensity`` is for files.
    """
    if isinstance(image, str | Path):
        return read_image(image, intensity=intensity)
    try:
        if isinstance(image, Image.Image):
            image = np.asarray(image if image.mode in ("L", "RGB") or image.mode[0] in "IF" else image.convert("RGB"))
        elif isinstance(image, Tensor):
            wide = image.detach().cpu()
            image = (wide.float() if wide.dtype == torch.bfloat16 else wide).numpy()
    except Exception as error:  # a file that Pillow opened and cannot decode; a sparse or quantised tensor
        raise DataError(f"an image cannot be read ({first_line(error)}); give it as an array") from error
    if not isinstance(image, np.ndarray):
        raise DataError(f"an image is a path, a PIL image, an array or a tensor, not a {type(image).__name__}")
    return _from_array(image)


def _from_array(array: np.ndarray) -> np.ndarray:
    shape = array.shape
    if array.ndim == 3 and shape[-1] not in (1, 3, 4) and shape[0] in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)) or 0 in shape:
        raise DataError(f"an image has the shape (H, W), (H, W, 3) or (3, H, W), not {tuple(shape)}")
    if array.dtype == np.bool_:
        raise DataError("an image of booleans is a mask: give grey levels")
    if array.dtype.kind not in "uif":
        raise DataError(f"an image of {array.dtype} is none: give whole numbers, or floats in [0, 1]")
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise DataError("an image has masked pixels: fill them first, with 0 for background")
    if problem := bomb(*array.shape[:2]):
        raise DataError(f"an image is too large ({problem}); make it smaller")
    values = _scaled(array)
    if values.ndim == 3:
        values = values[..., 0] if values.shape[-1] == 1 else values[..., :3] @ np.array([0.299, 0.587, 0.114])
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _scaled(array: np.ndarray) -> np.ndarray:
    """The values between 0 and 255, by the range of their type."""
    values = np.asarray(array, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError("an image holds NaN or infinite values")
    if np.issubdtype(array.dtype, np.floating):
        if values.min() < 0 or values.max() > 1:
            raise DataError(
                f"an image of floats lies in [0, 1], and this one between {values.min():g} and {values.max():g}; "
                "divide by its range, or give whole numbers"
            )
        values = values * 255
    elif array.dtype != np.uint8:
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"an image of {array.dtype} lies between {values.min():g} and {values.max():g}, not 0…65535"
            )
        if 255 < values.max() < DARK:
            warn_dark("an array of 16 bits", "if it holds 12 bits, say, divide it by 4095")
        if values.max() > 255:
            values = values * (255 / 65535)
    return values


def prepare_images(images: AnyImage | Sequence[AnyImage], preprocess: dict[str, Any]) -> PreparedImages:
    """Read one or several images and apply the evaluation transform of a model: its transform, size and intensity."""
    if "transform" not in preprocess:
        raise ConfigError(
            "the model does not know how its images are prepared; load it from a checkpoint, or set model.preprocess = "
            '{"transform": …, "size": …, "intensity": …}'
        )
    several = list(images) if isinstance(images, list | tuple) else [images]
    if not several:
        raise ConfigError("no image given")
    transform = build_transform(preprocess["transform"], int(preprocess["size"]), train=False)
    grey = [grey_levels(image, preprocess.get("intensity", "standard")) for image in several]
    resized = [transform.resize.image(torch.from_numpy(array)[None]) for array in grey]
    batch = torch.stack([transform.finish(image) for image, _ in resized])
    return PreparedImages(batch, grey, [geometry for _, geometry in resized], transform)

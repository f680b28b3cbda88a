import pickle

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from medvlp.errors import ConfigError
from medvlp.transforms import TRANSFORMS, _area_axis, _PadResize, build_transform, normalisation


def _image(height=97, width=60, seed=0):
    grey = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    return torch.from_numpy(cv2.resize(grey, (width, height), interpolation=cv2.INTER_CUBIC))[None]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("shape", [(97, 60), (40, 200), (1, 1), (64, 64)])
def test_shape_range_and_repeatability(name, train, shape):
    transform = pickle.loads(pickle.dumps(build_transform(name, 32, train)))
    image = _image(*shape)
    before = image.clone()
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(transform(image))
    assert torch.equal(image, before)
    assert torch.equal(*results)
    x = results[0]
    assert x.shape == (3, 32, 32)
    assert x.dtype == torch.float32
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in normalisation(name))
    grey = x * std + mean
    assert grey.min() >= -1e-6
    assert grey.max() <= 1 + 1e-6
    assert torch.allclose(grey[0], grey[1], atol=1e-6)
    assert torch.allclose(grey[0], grey[2], atol=1e-6)


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if n != "plain"])
def test_training_augments(name):
    transform = build_transform(name, 32, True)
    torch.manual_seed(0)
    assert len({round(float(transform(_image()).sum()), 3) for _ in range(8)}) > 2


def test_grey_channels_share_memory():
    x = build_transform("g2d_paper", 32, False)(_image())
    assert x.stride(0) == 0


def test_g2d_official_is_the_released_preparation():
    """Against a plain numpy and OpenCV transcription of the steps; the brightest pixels wrap to 0."""
    image = np.zeros((50, 70), np.uint8)
    image[5:45, 10:60] = _image(40, 50)[0].numpy() // 2 + 3
    box = image[5:45, 10:60].astype(np.float32)
    scaled = (box - box.min()) / (box.max() - box.min()) * 256
    expected = cv2.resize(scaled, (32, 32), interpolation=cv2.INTER_LINEAR).astype(np.int32) % 256
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in normalisation("g2d_official"))
    x = build_transform("g2d_official", 32, False)(torch.from_numpy(image)[None])
    grey = ((x * std + mean) * 255).round()[0].numpy()
    assert np.abs(grey - expected).max() <= 1
    bright = torch.full((1, 64, 64), 7, dtype=torch.uint8)
    bright[:, 20:40, 20:40] = 250
    wrapped, kept = (build_transform(n, 64, False)(bright)[0, 30, 30] for n in ("g2d_official", "g2d_official_255"))
    assert wrapped == pytest.approx(-0.485 / 0.229)
    assert kept == pytest.approx((1 - 0.485) / 0.229)


@pytest.mark.parametrize("shape", [(97, 60), (60, 97), (80, 80), (300, 211), (20, 30)])
def test_pad_resize_is_opencv_area(shape):
    image = _image(*shape)
    height, width = shape
    side = 64
    ratio = side / max(shape)
    new = (side, int(width * ratio)) if height >= width else (int(height * ratio), side)
    method = cv2.INTER_AREA if side < max(shape) else cv2.INTER_LINEAR
    small = cv2.resize(image[0].numpy(), new[::-1], interpolation=method)
    down, right = side - new[0], side - new[1]
    expected = np.pad(small, ((down // 2, down - down // 2), (right // 2, right - right // 2)))
    result = _PadResize(side)(image)[0].numpy()
    assert result.shape == (side, side)
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_area_axis_keeps_the_mean():
    x = torch.randint(0, 256, (3, 3056), dtype=torch.uint8)
    assert torch.allclose(_area_axis(x, 253).mean(1), x.float().mean(1), atol=1e-2)


def test_mgca_evaluates_the_centre():
    x = build_transform("mgca", 224, False)(_image(300, 300))
    expected = v2.functional.center_crop(_PadResize(256)(_image(300, 300)), [224, 224]).float() / 255
    assert torch.allclose(x[:1] * 0.5 + 0.5, expected, atol=1e-6)


def test_unknown_name_and_size():
    with pytest.raises(ConfigError, match="g2d_paper"):
        build_transform("g2d", 224, True)
    with pytest.raises(ConfigError, match="too small"):
        build_transform("plain", 4, True)
    with pytest.raises(ConfigError):
        normalisation("g2d")

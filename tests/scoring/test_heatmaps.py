"""Heatmaps against SciPy's filter, loops, and the way of masks through the transforms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from medvlp.errors import ConfigError, DataError
from medvlp.resizing import Geometry
from medvlp.scoring.heatmaps import (
    back_to_image,
    frame_of,
    min_max,
    similarity_maps,
    smooth,
    stretch,
    upsample,
    with_crop_margin,
)
from medvlp.transforms import build_transform


def test_similarity_is_the_cosine_of_each_cell():
    torch.manual_seed(0)
    patches, phrases = torch.randn(3, 8, 5, 4), torch.randn(3, 2, 8)
    maps = similarity_maps(patches, phrases)
    for b in range(3):
        for p in range(2):
            torch.testing.assert_close(similarity_maps(patches, phrases[:, p])[b], maps[b, p])
            for i in range(5):
                for j in range(4):
                    expected = F.cosine_similarity(patches[b, :, i, j], phrases[b, p], dim=0)
                    torch.testing.assert_close(maps[b, p, i, j], expected)
    raw = similarity_maps(patches, phrases, normalise=False)
    torch.testing.assert_close(raw[1, 0, 2, 3], patches[1, :, 2, 3] @ phrases[1, 0])


def test_patch_weights_multiply_each_cell():
    torch.manual_seed(0)
    patches, phrases = torch.randn(2, 8, 5, 4), torch.randn(2, 3, 8)
    weights = torch.rand(5, 4)
    plain = similarity_maps(patches, phrases)
    torch.testing.assert_close(similarity_maps(patches, phrases, patch_weights=weights), plain * weights)
    own = torch.rand(2, 5, 4)
    torch.testing.assert_close(similarity_maps(patches, phrases, patch_weights=own), plain * own[:, None])
    torch.testing.assert_close(
        similarity_maps(patches, phrases[:, 0], patch_weights=own), similarity_maps(patches, phrases[:, 0]) * own
    )
    with pytest.raises(ConfigError, match=r"grid of \(4, 5\)"):
        similarity_maps(patches, phrases, patch_weights=weights.T)


@pytest.mark.parametrize("shape", [(7, 7), (14, 9), (3, 2), (1, 1)])
@pytest.mark.parametrize("sigma", [0.4, 1.5, 3.0])
def test_smoothing_is_scipys(shape, sigma):
    maps = np.random.default_rng(0).normal(size=(2, 3, *shape))
    expected = np.stack([[gaussian_filter(m, sigma, mode="reflect") for m in row] for row in maps])
    np.testing.assert_allclose(smooth(torch.from_numpy(maps), sigma).numpy(), expected, atol=1e-12)
    assert smooth(torch.from_numpy(maps), 0).equal(torch.from_numpy(maps))
    torch.testing.assert_close(smooth(torch.ones(2, *shape), sigma), torch.ones(2, *shape))


def test_upsampling_repeats_or_interpolates():
    maps = torch.arange(4.0).view(1, 2, 2)
    near = upsample(maps, 4, "nearest")
    torch.testing.assert_close(near, maps.repeat_interleave(2, 1).repeat_interleave(2, 2))
    smooth_map = upsample(maps[:, None], (4, 6))
    assert smooth_map.shape == (1, 1, 4, 6)
    torch.testing.assert_close(smooth_map[0, 0, 0, 0], torch.tensor(0.0))
    torch.testing.assert_close(smooth_map[0, 0, -1, -1], torch.tensor(3.0))


def test_min_max_is_per_map_and_leaves_nan_out():
    maps = torch.tensor([[[1.0, torch.nan], [3.0, 2.0]], [[5.0, 5.0], [5.0, torch.nan]]])
    found = min_max(maps, -1, 1)
    torch.testing.assert_close(found[0], torch.tensor([[-1.0, torch.nan], [1.0, 0.0]]), equal_nan=True)
    # says nothing of where, and so predicts nothing
    torch.testing.assert_close(found[1], torch.tensor([[-1.0, -1.0], [-1.0, torch.nan]]), equal_nan=True)
    assert min_max(torch.full((2, 2), torch.nan)).isnan().all()


def test_crop_margins():
    whole = with_crop_margin(torch.rand(2, 7, 7), 20, 31)
    assert whole.shape == (2, 20, 31)
    assert not whole.isnan().any()
    found = with_crop_margin(torch.ones(7, 7), 20, 31, resize=40, crop=35)
    side = 17  # int(35 · 20 / 40)
    assert found.shape == (20, 31)
    assert int((found == 1).sum()) == side**2
    assert found[:1].isnan().all()
    assert found[1, 7] == 1
    assert found[0, 0].isnan()
    assert found[17, 23] == 1
    assert found[18:].isnan().all()
    assert found[:, 24:].isnan().all()


@pytest.mark.parametrize("name", ["plain", "g2d_paper", "mgca", "chexzero", "g2d_official", "convirt", "medklip"])
@pytest.mark.parametrize("shape", [(90, 64), (50, 130)])
def test_back_to_the_image_is_the_inverse_of_the_transform(name, shape):
    """A blob that goes with the image through a transform comes back to where it was."""
    rows, columns = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    centre = (0.45 * shape[0], 0.6 * shape[1])
    blob = torch.exp(-(((rows + 0.5 - centre[0]) / shape[0]) ** 2 + ((columns + 0.5 - centre[1]) / shape[1]) ** 2) * 40)
    pixels = (blob * 250).to(torch.uint8)[None]
    if name == "g2d_official":
        pixels = pixels.clamp(1)
        pixels[:, :3] = 0  # a black margin, which the rule cuts off
        pixels[..., -4:] = 0
    transform = build_transform(name, 112, train=False)
    resized, geometry = transform.resize.image(pixels)
    mask = pixels > 125
    moved = transform.finish_joint(resized, transform.resize.mask(mask, geometry))[1]
    laid = back_to_image(moved[0], geometry, shape, frame_of(transform, geometry))
    assert laid.shape == shape
    seen = ~laid.isnan()
    inside = mask[0] & seen
    back = (laid > 0.5) & seen
    iou = (inside & back).sum() / (inside | back).sum()
    assert iou > 0.9
    if name == "g2d_official":
        assert laid[:3].isnan().all()
        assert laid[:, -4:].isnan().all()
        assert seen[3:, :-4].all()
    elif name in ("plain", "chexzero", "convirt", "medklip"):
        assert seen.all()
    else:  # a centre crop
        assert 0.6 < seen.float().mean() < 1


def test_back_without_a_frame_takes_the_whole_as_scaled():
    heat = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(back_to_image(heat, Geometry.identity(8, 8), (8, 8)), heat)
    padded = Geometry(0, 0, 4, 8, 4, 8, 2, 0, 8, 8)
    torch.testing.assert_close(back_to_image(heat, tuple(padded), (8, 4)), heat[..., 2:6])
    with pytest.raises(DataError, match="at least 4 × 8"):
        back_to_image(heat, padded, (4, 8))
    transform = build_transform("mgca", 56, train=True)
    with pytest.raises(ConfigError, match="train=False"):
        frame_of(transform, padded)


def test_the_whole_way():
    torch.manual_seed(0)
    patches, phrases = torch.randn(2, 8, 7, 7), torch.randn(2, 8)
    maps = smooth(similarity_maps(patches, phrases), 1.5)
    assert torch.equal(stretch(maps, 56, "nearest")[:, ::8, ::8], min_max(maps))
    smoothly = stretch(maps, 56)
    assert smoothly.min() >= 0
    assert smoothly.max() <= 1
    assert stretch(similarity_maps(patches, phrases[:, None].expand(-1, 4, -1)), 56).shape == (2, 4, 56, 56)

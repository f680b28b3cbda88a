import dataclasses
import warnings

import cv2
import kornia
import numpy as np
import pytest
import torch
from helpers import chest, chests
from scipy.optimize import brentq
from sklearn.mixture import GaussianMixture

from medvlp.errors import ConfigError
from medvlp.methods.g2d.pseudo_mask import (
    OFFICIAL,
    PseudoMaskSettings,
    aggregate_heads,
    bilateral,
    body_mask,
    otsu_threshold,
    pseudo_mask,
    upsample_nearest,
    weighted_gmm_threshold,
    weighted_quantile,
)

HARD = PseudoMaskSettings(body_mask=False, smooth=False)


def attention(batch=3, heads=3, grid=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, grid * grid, generator=g).softmax(-1).view(batch, heads, grid, grid)


def numpy_upsample(values, size):
    rows = [i * values.shape[0] // size for i in range(size)]
    return np.array([[values[r, c] for c in rows] for r in rows])


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(("grid", "size"), [(7, 224), (8, 256), (7, 64), (3, 10), (5, 5)])
def test_upsample_nearest(grid, size):
    values = torch.rand(2, 1, grid, grid)
    up = upsample_nearest(values, size)
    for i in range(2):
        np.testing.assert_array_equal(up[i, 0].numpy(), numpy_upsample(values[i, 0].numpy(), size))
    if size % grid == 0:
        torch.testing.assert_close(up, torch.nn.functional.interpolate(values, (size, size), mode="nearest"))


def test_aggregate_heads_is_the_mean():
    a = attention(heads=4)
    np.testing.assert_allclose(aggregate_heads(a)[:, 0], a.numpy().mean(1), rtol=1e-6)


def numpy_otsu(image, bins=256):
    """Centre of the last dark bin of the cut with the largest between-class variance (scikit-image's convention)."""
    counts, edges = np.histogram(image.astype(np.float64), bins)
    centres = (edges[:-1] + edges[1:]) / 2
    best, where = -1.0, 0
    for cut in range(bins - 1):
        dark, light = counts[: cut + 1], counts[cut + 1 :]
        means = np.average(centres[: cut + 1], weights=dark), np.average(centres[cut + 1 :], weights=light)
        between = dark.sum() * light.sum() * (means[0] - means[1]) ** 2
        if between > best * (1 + 1e-12):
            best, where = between, cut
    return centres[where]


def test_otsu_against_numpy_and_opencv():
    rng = np.random.default_rng(0)
    images = [chest(64, 1), chest(50, 2), rng.integers(0, 256, (40, 40))]
    images.append(np.where(rng.random((60, 60)) < 0.2, rng.normal(200, 10, (60, 60)), rng.normal(60, 25, (60, 60))))
    for image in (values.clip(0, 255).astype(np.uint8) for values in images):
        image.flat[0], image.flat[1] = 0, 255  # cv2's histogram is of 0 to 255, ours of the image's own range
        ours = float(otsu_threshold(torch.from_numpy(image)[None].float()))
        assert ours == pytest.approx(numpy_otsu(image), abs=1e-3)
        reference, _ = cv2.threshold(image, 0, 255, cv2.THRESH_OTSU)
        assert abs(ours - reference) <= 1  # one of 256 grey levels: cv2 gives the bin's edge, we its centre


def test_otsu_is_of_each_image_and_follows_affine_changes():
    images = torch.stack([torch.from_numpy(chest(48, s)).float() * (s + 1) - 30 * s for s in range(3)])
    together = otsu_threshold(images)
    for i in range(3):
        assert torch.equal(otsu_threshold(images[i : i + 1])[0], together[i])
    torch.testing.assert_close(otsu_threshold(images * 0.01 - 2), together * 0.01 - 2, rtol=1e-4, atol=1e-5)


def test_otsu_of_a_constant_image_is_its_value():
    assert otsu_threshold(torch.full((1, 1, 8, 8), 0.3)).tolist() == pytest.approx([0.3])


def loop_body(image):
    """Pixels with bright ones (or themselves) on all four sides, one pixel at a time."""
    threshold = float(otsu_threshold(torch.from_numpy(image)[None].float()))
    bright = image > threshold
    result = np.zeros(image.shape, bool)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            sides = (bright[y, : x + 1], bright[y, x:], bright[: y + 1, x], bright[y:, x])
            result[y, x] = all(side.any() for side in sides)
    return result


def test_body_mask_of_a_drawn_chest():
    image = chest(64)
    body = body_mask(torch.from_numpy(image)[None, None].float())[0, 0].numpy()
    np.testing.assert_array_equal(body, loop_body(image))
    y, x = np.mgrid[0:64, 0:64] / 64
    lungs = (((x - 0.32) / 0.13) ** 2 + ((y - 0.5) / 0.28) ** 2 < 1) | (
        ((x - 0.68) / 0.13) ** 2 + ((y - 0.5) / 0.28) ** 2 < 1
    )
    assert body[lungs].all()
    assert not body[(np.abs(x - 0.5) > 0.42) | (y < 0.08)].any()
    assert 0.6 < body.mean() < 0.8


@pytest.mark.parametrize(("gain", "shift"), [(1 / 255, 0.0), (2.5, -80.0), (1 / 58.0, -2.1)])
def test_body_mask_does_not_depend_on_the_intensity_scale(gain, shift):
    images = torch.from_numpy(np.stack([chest(64, s) for s in range(4)]))[:, None].float()
    assert torch.equal(body_mask(images * gain + shift), body_mask(images))
    coloured = images.expand(-1, 3, -1, -1) * gain + torch.tensor([0.1, 0.2, -0.3]).view(3, 1, 1) + shift
    assert torch.equal(body_mask(coloured), body_mask(images))


def test_body_mask_of_a_constant_image_is_everything():
    images = torch.stack([torch.full((1, 32, 32), 0.4), torch.from_numpy(chest(32))[None].float()])
    body = body_mask(images)
    assert body[0].all()
    assert not body[1].all()


def test_weighted_quantile_is_numpys():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(40, 49)).astype(np.float32)
    values[::3] = values[::3].round(1)  # ties
    weights = rng.integers(0, 6, (40, 49)) * rng.integers(0, 2, (40, 49))
    weights[0] = 0
    weights[0, 5] = 1
    for q in (0.0, 0.1, 0.25, 0.5, 0.75, 0.85, 0.99, 1.0):
        got = weighted_quantile(torch.from_numpy(values), torch.from_numpy(weights).float(), q).numpy()
        want = [np.quantile(np.repeat(v, w).astype(np.float64), q) for v, w in zip(values, weights, strict=True)]
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-7)


def test_weighted_quantile_without_weight_is_nan():
    result = weighted_quantile(torch.rand(2, 5), torch.tensor([[0.0] * 5, [1.0] * 5]), 0.5)
    assert result.isnan().tolist() == [True, False]


def two_clusters(seed, share):
    rng = np.random.default_rng(seed)
    upper = rng.random(64) < share
    return np.where(upper, rng.normal(0.03, 0.004, 64), rng.normal(0.01, 0.003, 64))


@pytest.mark.parametrize(("seed", "share"), [(0, 0.3), (1, 0.5), (2, 0.2)])
def test_gmm_threshold_against_sklearn(seed, share):
    values = two_clusters(seed, share)
    weights = np.random.default_rng(seed).integers(1, 5, 64)
    sample = np.repeat(values, weights)[:, None] * 100  # sklearn's reg_covar is absolute
    mean, deviation = sample.mean(), sample.std()
    mixture = GaussianMixture(
        2,
        max_iter=1000,
        tol=1e-12,
        reg_covar=1e-12,
        weights_init=[0.5, 0.5],
        means_init=[[mean - deviation], [mean + deviation]],
        precisions_init=np.full((2, 1, 1), 1 / deviation**2),
    ).fit(sample)
    upper = int(mixture.means_.argmax())
    low, high = sorted(mixture.means_[:, 0])
    want = brentq(lambda v: mixture.predict_proba([[v]])[0, upper] - 0.5, low, high) / 100
    got = float(weighted_gmm_threshold(torch.tensor(values)[None], torch.tensor(weights)[None].double()))
    # The crossing is looked for on a grid of 2048 steps from the lower mean to the largest value.
    assert abs(got - want) < 2 * (values.max() - low / 100) / 2048
    chosen = mixture.predict(values[:, None] * 100) == upper
    np.testing.assert_array_equal((values >= got)[values > low / 100], chosen[values > low / 100])


def test_gmm_threshold_ignores_cells_without_weight_and_scales():
    values = torch.tensor(two_clusters(4, 0.4))[None]
    weights = torch.ones_like(values)
    alone = weighted_gmm_threshold(values, weights)
    padded = weighted_gmm_threshold(
        torch.cat([values, torch.full((1, 9), 0.5)], 1), torch.cat([weights, torch.zeros(1, 9)], 1)
    )
    torch.testing.assert_close(padded, alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(weighted_gmm_threshold(1e-3 * values, weights), 1e-3 * alone, rtol=1e-6, atol=0)


def test_gmm_without_two_clusters_selects_the_upper_side_only():
    # In maps of one cluster the wider component may win in the tail alone; the lower mean is then no boundary.
    g = torch.Generator().manual_seed(0)
    values = torch.randn(60, 49, generator=g)
    threshold = weighted_gmm_threshold(values, torch.ones_like(values))
    assert (threshold <= values.amax(1)).all()
    for row, level in zip(values.double(), threshold.double(), strict=True):
        mixture = GaussianMixture(2, max_iter=100, tol=0.0, reg_covar=1e-9, init_params="random", random_state=0)
        deviation = float(row.std(correction=0))
        mixture.means_init = [[float(row.mean()) - deviation], [float(row.mean()) + deviation]]
        mixture.weights_init = [0.5, 0.5]
        mixture.precisions_init = np.full((2, 1, 1), 1 / deviation**2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mixture.fit(row[:, None].numpy())
        upper = int(mixture.means_.argmax())
        start, step = float(mixture.means_.min()), (float(row.max()) - float(mixture.means_.min())) / 2048
        points = np.arange(start, float(row.max()) + step, step)
        wins = mixture.predict_proba(points[:, None])[:, upper] >= 0.5
        want = points[wins.argmax()] if wins.any() else float(row.max())
        assert abs(float(level) - want) <= 2 * step


# ---------------------------------------------------------------- bilateral filter


def loop_bilateral(mask, kernel, sigma_color, sigma):
    half = kernel // 2
    padded = np.pad(mask, half, mode="reflect")
    out = np.zeros_like(mask)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            window = padded[y : y + kernel, x : x + kernel]
            dy, dx = np.mgrid[-half : half + 1, -half : half + 1]
            space = np.exp(-(dx**2 + dy**2) / (2 * sigma**2))
            colour = np.exp(-((window - mask[y, x]) ** 2) / (2 * sigma_color**2))
            out[y, x] = (window * space * colour).sum() / (space * colour).sum()
    return out


def test_bilateral_is_the_loop():
    rng = np.random.default_rng(0)
    mask = (rng.random((40, 40)) < 0.4).astype(np.float32)
    settings = PseudoMaskSettings(kernel=0.12, sigma_space=0.05, sigma_color=0.7)
    got = bilateral(torch.from_numpy(mask)[None, None], settings)[0, 0].numpy()
    want = loop_bilateral(mask.astype(np.float64), 5, 0.7, 2.0)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_bilateral_against_opencv():
    mask = upsample_nearest(torch.eye(4)[None, None], 40)
    # A window of three deviations: OpenCV's is a disc, and its corners must not count.
    got = bilateral(mask, PseudoMaskSettings(kernel=0.3, sigma_space=0.05, sigma_color=1.0))[0, 0].numpy()
    want = cv2.bilateralFilter(mask[0, 0].numpy(), 13, 1.0, 2.0)
    np.testing.assert_allclose(got[6:-6, 6:-6], want[6:-6, 6:-6], atol=0.01)


def test_smoothing_is_soft_near_edges_alone():
    made = pseudo_mask(attention(), chests(3, 224), dataclasses.replace(HARD, smooth=True))
    hard = pseudo_mask(attention(), chests(3, 224), HARD).mask
    assert made.mask.min() >= 0
    assert made.mask.max() <= 1
    near = torch.nn.functional.max_pool2d(hard, 11, 1, 5) != -torch.nn.functional.max_pool2d(-hard, 11, 1, 5)
    soft = (made.mask > 0) & (made.mask < 1)
    assert soft.any()
    assert not (soft & ~near).any()
    assert torch.equal(made.mask[~near], hard[~near])


@pytest.mark.parametrize(("kernel", "sigma", "color"), [(5, 2.0, 1.0), (11, 3.36, 0.3), (7, 0.8, 5.0)])
def test_the_closed_form_is_kornias_filter(kernel, sigma, color):
    side = 56
    mask = (torch.rand(4, 1, side, side, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    settings = PseudoMaskSettings(kernel=kernel / side, sigma_space=sigma / side, sigma_color=color)
    want = kornia.filters.bilateral_blur(mask, (kernel, kernel), color, (sigma, sigma))
    torch.testing.assert_close(bilateral(mask, settings), want, rtol=0, atol=5e-6)


# ---------------------------------------------------------------- the whole


def numpy_mask(maps, image, settings):
    """The pseudo mask of one map at image size, by sorting every pixel."""
    size = image.shape[-1]
    values = numpy_upsample(maps, size).astype(np.float64)
    inside = loop_body(image) if settings.body_mask else np.ones((size, size), bool)
    pool = values[inside] if settings.domain == "body" else np.where(inside, values, 0)
    if settings.threshold == "mean":
        threshold = pool.mean()
    else:
        threshold = np.quantile(pool, 0.5 if settings.threshold == "median" else settings.threshold)
    chosen = values > threshold if settings.strict else values >= threshold
    return chosen & inside, threshold


@pytest.mark.parametrize("threshold", [0.85, 0.75, 0.3, "mean", "median"])
@pytest.mark.parametrize("domain", ["body", "image"])
@pytest.mark.parametrize("with_body", [True, False])
def test_pseudo_mask_against_numpy(threshold, domain, with_body):
    size, maps = 56, attention(batch=2)
    gray = np.stack([chest(size, s) for s in range(2)])
    settings = PseudoMaskSettings(threshold=threshold, domain=domain, body_mask=with_body, smooth=False)
    for strict in (False, True):
        settings = dataclasses.replace(settings, strict=strict)
        made = pseudo_mask(maps, torch.from_numpy(gray)[:, None].float(), settings)
        assert made.mask.shape == (2, 1, size, size)
        for i in range(2):
            want, level = numpy_mask(made.attention[i, 0].numpy(), gray[i], settings)
            assert float(made.threshold[i]) == pytest.approx(level, rel=1e-6)
            np.testing.assert_array_equal(made.mask[i, 0].numpy(), want)


@pytest.mark.parametrize(
    ("grid", "size", "strict", "cells"), [(8, 256, 9, None), (7, 224, 7, None), (8, 256, None, 10)]
)
def test_number_of_selected_cells(grid, size, strict, cells):
    settings = OFFICIAL if cells is None else dataclasses.replace(OFFICIAL, strict=False)
    made = pseudo_mask(attention(8, 4, grid), torch.zeros(8, 3, size, size), settings)
    counted = made.mask[:, 0].sum((1, 2)) / (size // grid) ** 2
    assert counted.tolist() == [strict or cells] * 8


def test_at_or_above_against_above():
    maps = torch.tensor([1.0, 1.0, 2.0, 2.0]).view(1, 1, 2, 2)
    images = torch.zeros(1, 1, 8, 8)
    settings = dataclasses.replace(HARD, threshold=0.9)
    assert pseudo_mask(maps, images, settings).mask.mean() == 0.5
    assert pseudo_mask(maps, images, dataclasses.replace(settings, strict=True)).mask.mean() == 0


@pytest.mark.parametrize("threshold", [0.85, "mean", "median", "gmm"])
def test_nothing_outside_the_body(threshold):
    images = chests(4, 64)
    settings = PseudoMaskSettings(threshold=threshold, smooth=False)
    made = pseudo_mask(attention(4), images, settings)
    assert made.body is not None
    assert not made.mask[~made.body].any()
    assert made.mask.any()
    soft = pseudo_mask(attention(4), images, dataclasses.replace(settings, smooth=True)).mask
    around = torch.nn.functional.max_pool2d(made.body.float(), 3, 1, 1).bool()  # a window of 3 pixels at this size
    assert not soft[~around].any()


def test_share_of_the_body_that_is_selected():
    made = pseudo_mask(attention(8), chests(8, 64), PseudoMaskSettings(smooth=False))
    share = made.mask.sum((1, 2, 3)) / made.body.sum((1, 2, 3))
    assert ((share > 0.15 - 1e-6) & (share < 0.15 + 1 / 25)).all()  # whole blocks: at most one more than 15 %


def test_heads_without_aggregation_have_their_own_masks():
    maps, images = attention(2, 3), chests(2, 64)
    many = pseudo_mask(maps, images, dataclasses.replace(PseudoMaskSettings(), aggregate=False))
    assert many.mask.shape == (2, 3, 64, 64)
    for head in range(3):
        alone = pseudo_mask(maps[:, head : head + 1], images)
        assert torch.equal(many.mask[:, head : head + 1], alone.mask)


@pytest.mark.parametrize("threshold", [0.85, "mean", "gmm"])
def test_images_do_not_see_their_batch(threshold):
    maps, images = attention(5), chests(5, 64)
    settings = PseudoMaskSettings(threshold=threshold)
    hard = dataclasses.replace(settings, smooth=False)
    together, together_hard = pseudo_mask(maps, images, settings).mask, pseudo_mask(maps, images, hard).mask
    for i in range(5):
        one = slice(i, i + 1)
        assert torch.equal(pseudo_mask(maps[one], images[one], hard).mask, together_hard[one])
        # The convolution of the smoothing may add in another order for another batch size.
        alone = pseudo_mask(maps[one], images[one], settings).mask
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-6)


def test_no_gradient_flows():
    maps, images = attention().requires_grad_(), chests(3, 32).requires_grad_()
    made = pseudo_mask(maps, images)
    assert not made.mask.requires_grad
    assert not made.attention.requires_grad
    assert not made.threshold.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_mask_of_its_float32_copy(dtype):
    maps, images = attention().to(dtype), chests(3, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = pseudo_mask(maps, images.to(dtype).float())
    plain = pseudo_mask(maps.float(), images.to(dtype).float())
    assert cast.mask.dtype == torch.float32
    assert torch.equal(cast.mask, plain.mask)
    assert torch.equal(cast.threshold, plain.threshold)


@pytest.mark.parametrize("threshold", [0.85, "mean", "median", "gmm"])
def test_constant_attention_is_all_or_nothing_by_the_comparison(threshold):
    # Rounding of the statistic must not decide: hundreds of constants, each on its own.
    levels = 1 / torch.arange(1, 300, dtype=torch.float32)
    maps, images = levels[:, None, None, None].expand(-1, 1, 7, 7), torch.zeros(299, 1, 14, 14)
    assert pseudo_mask(maps, images, dataclasses.replace(HARD, threshold=threshold)).mask.all()
    assert not pseudo_mask(maps, images, dataclasses.replace(HARD, threshold=threshold, strict=True)).mask.any()


def test_constant_image_counts_as_all_body():
    maps = attention(2)
    flat = torch.full((2, 3, 56, 56), 0.5)
    plain = pseudo_mask(maps, flat, HARD)
    made = pseudo_mask(maps, flat, dataclasses.replace(HARD, body_mask=True))
    assert torch.equal(made.mask, plain.mask)
    assert torch.equal(made.threshold, plain.threshold)


def test_size_of_the_mask_may_differ_from_the_image():
    made = pseudo_mask(attention(2), chests(2, 64), PseudoMaskSettings(), size=128)
    assert made.mask.shape == (2, 1, 128, 128)
    assert made.body.shape == (2, 1, 128, 128)


@pytest.mark.parametrize("threshold", [85, -0.1, "otsu"])
def test_unknown_thresholds_are_refused(threshold):
    with pytest.raises(ConfigError, match="quantile"):
        PseudoMaskSettings(threshold=threshold)

import math

import pytest
import torch

from medvlp.losses.segmentation import dice_bce_official, dice_bce_paper, soft_dice_loss


def nine_of_64(batch=2):
    """256 × 256 with 9 of 8 × 8 cells positive, as G2D's 0.85 quantile selects them."""
    cells = torch.zeros(64)
    cells[[3, 9, 10, 21, 30, 40, 47, 55, 63]] = 1
    mask = cells.view(8, 8).repeat_interleave(32, 0).repeat_interleave(32, 1)
    return mask.expand(batch, 1, 256, 256).clone()


@pytest.mark.parametrize(("level", "expected"), [(0.0, 1.13863), (1.0, 0.98795), (-1.0, 0.76350)])
def test_official_loss_of_flat_logits(level, expected):
    mask = nine_of_64()
    assert float(dice_bce_official(torch.full_like(mask, level), mask)) == pytest.approx(expected, abs=6e-6)


def test_official_parts():
    mask = nine_of_64()
    logits = torch.full_like(mask, -1.0)
    dice = dice_bce_official(logits, mask, bce_weight=0)
    assert float(dice) == pytest.approx(0.67273, abs=6e-6)
    bce = dice_bce_official(logits, mask, bce_weight=1) - dice
    assert float(bce) == pytest.approx(0.45389, abs=6e-6)
    assert float(dice_bce_official(torch.zeros_like(mask), mask, bce_weight=0)) == pytest.approx(1, abs=1e-6)


def paper_loop(logits, target, smooth=1e-5):
    """½ (Dice + BCE), pixel by pixel in Python floats."""
    dice, bce, count = 0.0, 0.0, 0
    for z_image, t_image in zip(logits.flatten(1).tolist(), target.flatten(1).tolist(), strict=True):
        both = p_sum = t_sum = 0.0
        for z, t in zip(z_image, t_image, strict=True):
            p = 1 / (1 + math.exp(-z))
            both, p_sum, t_sum = both + p * t, p_sum + p, t_sum + t
            bce -= t * math.log(p) + (1 - t) * math.log(1 - p)
            count += 1
        dice += 1 - (2 * both + smooth) / (p_sum + t_sum + smooth)
    return 0.5 * (dice / len(logits) + bce / count)


def drawn(kind, seed=0, channels=1):
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(3, channels, 6, 7, generator=g)
    return 2 * torch.randn(3, channels, 6, 7, generator=g), target if kind == "soft" else target.round()


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("channels", [1, 3])
def test_paper_loss_is_the_loop(kind, channels):
    logits, target = drawn(kind, channels=channels)
    assert float(dice_bce_paper(logits, target)) == pytest.approx(paper_loop(logits, target), rel=2e-6)


def test_paper_loss_is_least_at_the_target():
    _, target = drawn("soft")
    target = target.clamp(0.02, 0.98)
    best = target.logit().requires_grad_()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(best, target)
    loss.backward()
    assert float(best.grad.abs().max()) < 1e-7  # soft targets: BCE alone is stationary there
    hard = target.round()
    perfect = dice_bce_paper(40 * (2 * hard - 1), hard)
    assert float(perfect) == pytest.approx(0, abs=1e-6)
    assert float(dice_bce_paper(-40 * (2 * hard - 1), hard)) > 20


def test_gradient_of_both_is_the_numerical_one():
    for function in (dice_bce_paper, dice_bce_official):
        logits, target = drawn("soft", seed=3)
        logits.requires_grad_()
        function(logits, target).backward()
        step = 1e-2
        for place in ((0, 0, 1, 2), (2, 0, 5, 6)):
            moved = []
            for sign in (1, -1):
                other = logits.detach().clone()
                other[place] += sign * step
                moved.append(float(function(other, target)))
            assert float(logits.grad[place]) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=0.02, abs=2e-5)


def test_dice_is_per_sample():
    prediction = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)])
    target = torch.stack([torch.ones(1, 4, 4), torch.ones(1, 4, 4)])
    assert float(soft_dice_loss(prediction, target)) == pytest.approx(0.5, abs=1e-5)


def test_empty_masks_are_finite():
    empty = torch.zeros(2, 1, 8, 8)
    assert float(soft_dice_loss(empty, empty)) == 0
    assert torch.isfinite(dice_bce_paper(torch.full_like(empty, -50.0), empty))


def test_autocast_leaves_float32():
    logits, target = drawn("soft")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dice_bce_paper(logits, target), dice_bce_paper(logits.clone(), target))
        assert dice_bce_paper(logits.bfloat16(), target).dtype == torch.float32

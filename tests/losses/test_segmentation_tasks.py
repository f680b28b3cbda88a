import math

import pytest
import torch
import torch.nn.functional as F

from medvlp.losses.segmentation import bce_dice_medklip, focal_dice_maco, focal_dice_mgca, squared_dice_loss

LOSSES = [focal_dice_mgca, bce_dice_medklip, focal_dice_maco]


def drawn(soft=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(3, 1, 5, 6, generator=g)
    target = target if soft else target.round()
    target[1] = 0
    return 2 * torch.randn(3, 1, 5, 6, generator=g), target


def pixels(logits, target):
    for z, t in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        yield z, t, p, -(t * math.log(p) + (1 - t) * math.log(1 - p))


def mgca_loop(logits, target):
    both = p_sum = t_sum = focal = 0.0
    for z, t, p, bce in pixels(logits, target):
        both, p_sum, t_sum = both + p * t, p_sum + p, t_sum + t
        focal += (1 / (1 + math.exp(z * (2 * t - 1)))) ** 2 * bce
    return 10 * focal / logits.numel() - math.log((2 * both + 1) / (p_sum + t_sum + 1))


def medklip_loop(logits, target):
    both = p_sum = t_sum = total = 0.0
    for _, t, p, bce in pixels(logits, target):
        both, p_sum, t_sum, total = both + p * t, p_sum + p, t_sum + t, total + bce
    return total / logits.numel() + 1 - (2 * both + 1) / (p_sum + t_sum + 1)


def maco_loop(logits, target):
    dice = focal = 0.0
    for image, truth in zip(logits, target, strict=True):
        both = squares = 0.0
        for _, t, p, bce in pixels(image, truth):
            both, squares = both + p * t, squares + p * p + t * t
            focal += 0.5 * ((1 - p) * t + p * (1 - t)) ** 2 * bce
        dice += 1 - (2 * both + 1) / (squares + 1)
    return 2 * focal / logits.numel() + dice / len(logits) / 2


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("loss", "loop"), [(focal_dice_mgca, mgca_loop), (bce_dice_medklip, medklip_loop), (focal_dice_maco, maco_loop)]
)
def test_losses_are_their_loops(loss, loop, soft):
    logits, target = drawn(soft)
    assert float(loss(logits, target)) == pytest.approx(loop(logits, target), rel=1e-5)
    assert float(loss(logits[:, 0], target[:, 0])) == pytest.approx(loop(logits, target), rel=1e-5)


def test_two_outputs_of_maco():
    """One output and its mirror image give one loss; two free outputs give focal per class and Dice of softmax."""
    logits, target = drawn()
    two = torch.cat([-logits, logits], 1)
    p = two.softmax(1)[:, 1:]
    classes = torch.cat([1 - target, target], 1)
    sigmoid = two.sigmoid()
    miss = torch.where(classes == 1, 1 - sigmoid, sigmoid)
    focal = (0.5 * miss**2 * F.binary_cross_entropy(sigmoid, classes, reduction="none")).mean()
    want = 2 * focal + squared_dice_loss(p, target) / 2
    assert float(focal_dice_maco(two, target)) == pytest.approx(float(want), rel=1e-5)
    assert float(focal_dice_maco(two, target[:, 0])) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_least_at_the_truth_finite_far_away(loss):
    _, target = drawn()
    assert float(loss(60 * (2 * target - 1), target)) == pytest.approx(0, abs=1e-6)
    wrong = (-60 * (2 * target - 1)).requires_grad_()
    value = loss(wrong, target)
    value.backward()
    assert float(value.detach()) > 1
    assert torch.isfinite(wrong.grad).all()
    assert math.isfinite(loss(torch.full_like(target, -80.0), torch.zeros_like(target)))


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_leaves_float32_and_gradient_is_the_numerical_one(loss):
    logits, target = drawn(soft=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(logits, target), loss(logits.clone(), target))
        assert loss(logits.bfloat16(), target).dtype == torch.float32
    assert torch.autograd.gradcheck(lambda z: loss(z, target.double()), logits.double().requires_grad_())

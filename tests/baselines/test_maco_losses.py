import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from medvlp_baselines.maco import losses as maco

from medvlp.errors import ConfigError


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_masking_keeps_the_patches_of_least_noise():
    tokens, noise = normal(3, 10, 2), torch.rand(3, 10)
    kept, mask, restore = maco.random_masking(tokens, 0.75, noise)
    for i in range(3):
        order = sorted(range(10), key=lambda p, row=noise[i]: float(row[p]))
        assert torch.equal(kept[i], tokens[i, order[:2]])
        assert mask[i].tolist() == [float(p not in order[:2]) for p in range(10)]
        assert [order[p] for p in restore[i].tolist()] == list(range(10))


def test_masking_is_random_and_reproducible():
    tokens = normal(2, 196, 1)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(maco.random_masking(tokens, 0.5)[1])
    one, two, other = masks
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert one.sum(1).tolist() == [98, 98]


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 0.99])
def test_masking_must_leave_something(ratio):
    with pytest.raises(ConfigError, match="mask ratio"):
        maco.random_masking(normal(1, 10, 1), ratio)


def test_patches_and_back():
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    patches = maco.patchify(images, 4)
    assert patches.shape == (2, 4, 48)
    # patch 1 lies to the right of patch 0; inside a patch the channel runs fastest
    assert patches[1, 1].tolist() == [int(images[1, c, y, 4 + x]) for y in range(4) for x in range(4) for c in range(3)]
    assert torch.equal(maco.unpatchify(patches, 4), images)
    with pytest.raises(ConfigError, match="do not divide"):
        maco.patchify(images, 3)
    with pytest.raises(ConfigError, match="no square"):
        maco.unpatchify(patches[:, :3], 4)


@pytest.mark.parametrize("normalise", [False, True])
def test_reconstruction_is_the_loop(normalise):
    images, mask = normal(3, 3, 8, 8), torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]])
    prediction = normal(3, 4, 48, seed=1).requires_grad_()
    errors = []
    for i in range(3):
        for p in range(4):
            target = maco.patchify(images, 4)[i, p]
            if normalise:
                target = (target - target.mean()) / (target.var() + 1e-6) ** 0.5
            if mask[i, p]:
                errors.append(((prediction[i, p] - target) ** 2).mean())
    wanted = torch.stack(errors).mean()
    made = maco.reconstruction_loss(prediction, images, mask, 4, normalise)
    torch.testing.assert_close(made, wanted)
    torch.testing.assert_close(torch.autograd.grad(made, prediction), torch.autograd.grad(wanted, prediction))


def test_reconstruction_of_nothing_and_of_another_size():
    images, prediction = normal(1, 3, 8, 8), normal(1, 4, 48)
    assert float(maco.reconstruction_loss(prediction, images, torch.zeros(1, 4), 4)) == 0
    with pytest.raises(ConfigError, match="decoder predicts"):
        maco.reconstruction_loss(prediction, images, torch.zeros(1, 4), 8)
    with pytest.raises(ConfigError, match="decoder predicts"):
        maco.reconstruction_loss(prediction, torch.cat([images] * 2), torch.zeros(1, 4), 4)


def test_projection_and_mean_commute():
    tokens, weight, bias = normal(2, 5, 3), normal(4, 3, seed=1), normal(4, seed=2)
    torch.testing.assert_close(
        maco.image_embedding(tokens, weight, bias), F.linear(tokens, weight, bias)[:, 1:].mean(1)
    )


def cosines(image, text):
    return torch.stack([torch.stack([torch.cosine_similarity(v, t, dim=0) for t in text]) for v in image])


def official_one_by_one(image, text, logit, scale):
    matrix = scale * cosines(image, text)
    s = (1 + logit.exp()).log()
    total = 0.0
    for scores in (matrix, matrix.T):
        n = len(scores)
        total = total - sum((s[i] * scores[i]).log_softmax(0)[i] for i in range(n)) / n
        fixed = s.detach()
        total = total - sum(fixed[i] * scores[i].log_softmax(0)[i] for i in range(n)) / fixed.sum()
    return total / 4


def paper_one_by_one(image, text, logit, tau3, group, tau1, tau2):
    similarity, total = cosines(image, text), 0.0
    for start in range(0, len(image), group):
        members = range(start, min(start + group, len(image)))
        p = logit[start : start + group]
        soft, weight = (p / tau1).softmax(0).exp(), (p / tau2).softmax(0).detach()
        for place, i in enumerate(members):
            term = -weight[place] * (similarity[i] / (soft[place] * tau3)).log_softmax(0)[i]
            total = total + term * len(members) / len(image)
    return total


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("variant", ["official", "paper"])
def test_contrast_is_the_loop(variant, count):
    leaves = [normal(count, 5), normal(count, 5, seed=1), normal(count, seed=2), torch.tensor(0.4, dtype=torch.float64)]
    for leaf in leaves:
        leaf.requires_grad_()
    image, text, logit, factor = leaves
    if variant == "official":
        made = maco.contrast_official(image, text, logit[:, None], 10 * factor)
        wanted = official_one_by_one(image, text, logit, 10 * factor)
    else:
        made = maco.contrast_paper(image, text, logit[:, None], factor, group=3, tau1=0.7, tau2=2.0)
        wanted = paper_one_by_one(image, text, logit, factor, 3, 0.7, 2.0)
    torch.testing.assert_close(made, wanted)
    for got, want in zip(torch.autograd.grad(made, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch", [2, 16, 20])
def test_equal_cosines_give_the_logarithm_of_the_batch(batch):
    same, logit = torch.ones(batch, 3), torch.randn(batch)
    assert float(maco.contrast_official(same, same, logit, 33.3)) == pytest.approx(math.log(batch), rel=1e-5)
    assert float(maco.contrast_paper(same, same, logit, 0.03)) == pytest.approx(math.log(batch), rel=1e-5)


def test_paper_weights_of_a_group():
    logit = normal(20)
    soft, weight = maco.paper_weights(logit.requires_grad_())
    torch.testing.assert_close(soft[:16], logit[:16].softmax(0).exp())
    torch.testing.assert_close(soft[16:], logit[16:].softmax(0).exp())
    torch.testing.assert_close(weight[16:], (logit[16:] / 16).softmax(0).detach())
    assert not weight.requires_grad
    assert (soft > 1).all()
    assert (soft < math.e).all()
    with pytest.raises(ConfigError, match="group must be at least 1"):
        maco.paper_weights(logit, 0)


@pytest.mark.parametrize("contrast", [maco.contrast_official, maco.contrast_paper])
def test_contrast_wants_pairs(contrast):
    for image, text, logit in ((4, 5, 4), (4, 4, 3)):
        with pytest.raises(ConfigError, match="image and text"):
            contrast(normal(image, 3), normal(text, 3), normal(logit), 0.03)
    with pytest.raises(ConfigError, match="another width"):
        contrast(normal(4, 3), normal(4, 6), normal(4), 0.03)


def test_autocast_does_not_reach_the_logits():
    image, text, logit = normal(6, 32).float(), normal(6, 32, seed=1).float(), normal(6).float()
    plain = maco.contrast_official(image, text, logit, 33.3), maco.contrast_paper(image, text, logit, 0.03)
    with torch.autocast("cpu", torch.bfloat16):
        cast = maco.contrast_official(image, text, logit, 33.3), maco.contrast_paper(image, text, logit, 0.03)
    assert plain == cast


def test_weights_of_the_terms():
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert sum(maco.weighted_terms(one, two).values()) == pytest.approx(0.9 + 0.1 * 2)
    assert sum(maco.weighted_terms(one, two, "official").values()) == 3
    with pytest.raises(ConfigError, match="variant"):
        maco.weighted_terms(one, two, "code")


@pytest.mark.parametrize(("variant", "span"), [("mae", 4), ("official", 16)])
def test_positions(variant, span):
    table = maco.position_table(16, 3, variant)
    assert table.shape == (10, 16)
    assert float(table[0].abs().sum()) == 0
    for y in range(3):
        for x in range(3):
            wanted = [
                function(place / 10000 ** (k / span))
                for place in (x, y)
                for function in (np.sin, np.cos)
                for k in range(4)
            ]
            np.testing.assert_allclose(table[1 + 3 * y + x], wanted, atol=1e-6)


def test_positions_need_a_multiple_of_four():
    with pytest.raises(ConfigError, match="multiple of 4"):
        maco.position_table(18, 3)
    with pytest.raises(ConfigError, match="variant"):
        maco.position_table(16, 3, "paper")


def test_grounding_weights():
    weight = normal(1, 196)
    made = maco.grounding_weights(weight.requires_grad_())
    assert not made.requires_grad
    torch.testing.assert_close(made, (weight[0] / 0.02).softmax(0).detach())

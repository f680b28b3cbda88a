import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medvlp.errors import ConfigError
from medvlp.metrics.bootstrap import distribution
from medvlp.metrics.classification import classification_measures
from medvlp.metrics.samples import Samples
from medvlp.metrics.significance import delong_test, holm


def two_methods(n=150, effect=0.0, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.35).astype(np.float32)
    shared = rng.normal(size=n) + labels
    a, b = shared + 0.7 * rng.normal(size=n) + effect * labels, shared + 0.7 * rng.normal(size=n)
    if ties:
        a, b = a.round(1), b.round(0)
    return (torch.from_numpy(np.float32(x)) for x in (a, b, labels))


@pytest.mark.parametrize("ties", [False, True])
def test_delong_is_the_double_sum(ties):
    a, b, labels = two_methods(ties=ties)
    found = delong_test(a, b, labels)
    positive = labels == 1
    aurocs, placements = [], []
    for scores in (a, b):
        pairs = scores[positive][:, None] - scores[~positive][None]
        kernel = (pairs > 0).double() + 0.5 * (pairs == 0)
        aurocs.append(float(kernel.mean()))
        placements.append((kernel.mean(1), kernel.mean(0)))
    covariance = sum(
        np.cov(torch.stack([placements[0][side], placements[1][side]]).numpy()) / len(placements[0][side])
        for side in (0, 1)
    )
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert (found.a, found.b) == pytest.approx(aurocs, abs=1e-9)
    assert found.a == pytest.approx(roc_auc_score(labels, a), abs=1e-9)
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    assert found.z == pytest.approx((aurocs[0] - aurocs[1]) / error, rel=1e-9)


def test_standard_error_is_that_of_the_bootstrap():
    a, b, labels = two_methods(400, effect=0.3)
    aurocs = [
        distribution(
            lambda samples, weights: {"auroc": classification_measures(samples, weights)["auroc"]},
            Samples(torch.arange(400), {"score": scores[:, None], "label": labels[:, None]}),
            torch.arange(400),
            resamples=2000,
        )["auroc"]
        for scores in (a, b)
    ]
    found = delong_test(a, b, labels)
    assert float((aurocs[0] - aurocs[1]).std()) == pytest.approx(found.standard_error, rel=0.06)


def test_p_value_is_that_of_a_permutation_test():
    """Swapping the two methods' ranks on each sample at random, under which they are exchangeable."""
    a, b, labels = two_methods(150, effect=0.45, seed=0)
    found = delong_test(a, b, labels)
    ranks = [torch.argsort(torch.argsort(x)).double() for x in (a, b)]
    swap = torch.rand(4000, 150, generator=torch.Generator().manual_seed(0)) < 0.5

    def auroc(scores):
        rank = torch.argsort(torch.argsort(scores, dim=1), dim=1).double() + 1
        m = float(labels.sum())
        return ((rank * (labels == 1)).sum(1) - m * (m + 1) / 2) / (m * (len(labels) - m))

    mixed = [
        torch.where(swap, *(pair + 1e-7 * torch.rand(150))) for pair in (torch.stack(ranks), torch.stack(ranks[::-1]))
    ]
    difference = (auroc(mixed[0]) - auroc(mixed[1])).abs()
    p = float((difference >= abs(found.a - found.b) - 1e-9).double().mean())
    assert 0.001 < found.p < 0.3
    assert found.p == pytest.approx(p, abs=0.03)


def test_level_is_kept_under_equality_and_power_is_there():
    null = [delong_test(*two_methods(120, seed=s)).p for s in range(400)]
    assert np.mean(np.array(null) < 0.05) == pytest.approx(0.05, abs=0.03)
    strong = [delong_test(*two_methods(120, effect=1.5, seed=s)).p for s in range(50)]
    assert np.mean(np.array(strong) < 0.05) > 0.9


def test_symmetry_and_degenerate_cases():
    a, b, labels = two_methods()
    one, other = delong_test(a, b, labels), delong_test(b, a, labels)
    assert (one.z, one.p) == pytest.approx((-other.z, other.p))
    same = delong_test(a, a, labels)
    assert (same.z, same.p) == (0, 1)
    perfect = delong_test(labels, -labels, labels)
    assert (perfect.a, perfect.b) == (1, 0)
    assert math.isnan(perfect.p)
    assert math.isnan(delong_test(a, b, torch.ones(150)).a)
    lone = torch.zeros(150)
    lone[3] = 1
    assert not math.isnan(delong_test(a, b, lone).a)
    assert math.isnan(delong_test(a, b, lone).p)
    unknown = labels.clone()
    unknown[:10] = torch.nan
    assert delong_test(a, b, unknown) == delong_test(a[10:], b[10:], labels[10:])
    with pytest.raises(ConfigError, match="same samples"):
        delong_test(a, b[:-1], labels)


def test_holm_by_hand():
    found = holm([0.01, 0.04, 0.03, float("nan"), 0.005])
    # 4·0.005, 3·0.01, 2·0.03, and 0.04, which must not fall below 0.06
    assert found.tolist() == pytest.approx([0.03, 0.06, 0.06, float("nan"), 0.02], nan_ok=True)
    assert holm([0.9, 0.8]).tolist() == [1, 1]
    assert holm([]).tolist() == []
    assert holm(torch.tensor([0.2])).tolist() == pytest.approx([0.2])

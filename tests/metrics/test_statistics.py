"""Whether intervals and tests keep what they promise, on simulated data where the truth is known."""

import numpy as np
import pytest
import torch

from medvlp.metrics.bootstrap import interval
from medvlp.metrics.curves import Curve
from medvlp.metrics.samples import Samples, weighted_mean
from medvlp.metrics.significance import delong_test, holm

DRAWS, AT_ONCE, PATIENTS = 1000, 50, 200


def coverage(measure, truth, draw, groups, level=0.95):
    """Share of simulated studies whose interval holds the truth.

    Studies of the same patients are resampled together, some at a time: one measure each.
    """
    inside = 0
    for batch in range(DRAWS // AT_ONCE):
        rng = np.random.default_rng(batch)
        samples = Samples(torch.arange(len(groups)), draw(rng))

        def measures(samples, weights):
            return {str(i): measure(samples, i, weights) for i in range(AT_ONCE)}

        found = interval(measures, samples, torch.as_tensor(groups), resamples=1000, level=level, seed=batch)
        inside += sum(low <= truth <= high for low, high in found.values())
    return inside / DRAWS


def mean(samples, study, weights):
    return weighted_mean(samples["value"][:, study], weights)


def auroc(samples, study, weights):
    return Curve(samples["score"][:, study], samples["label"][:, study], weights).auroc()


def several_images(rng):
    """As many images as a patient has (1 to 4), alike: two thirds of the variance lie between patients."""
    counts = np.random.default_rng(0).integers(1, 5, PATIENTS)
    groups = np.repeat(np.arange(PATIENTS), counts)
    if rng is None:
        return groups
    own = rng.normal(size=(PATIENTS, AT_ONCE)) * np.sqrt(2)
    return {"value": torch.from_numpy(own[groups] + rng.normal(size=(len(groups), AT_ONCE)))}


def test_coverage_of_an_auroc():
    """Of binormal scores one unit apart, whose AUROC is Φ(1 / √2)."""
    truth = float(torch.special.ndtr(torch.tensor(0.5**0.5).double()))

    def draw(rng):
        label = rng.random((PATIENTS, AT_ONCE)) < 0.3
        score = rng.normal(size=label.shape) + label
        return {"score": torch.from_numpy(score), "label": torch.from_numpy(label.astype(np.float32))}

    assert 0.93 <= coverage(auroc, truth, draw, np.arange(PATIENTS)) <= 0.97


def test_coverage_of_a_skewed_mean():
    """Overlap with a lesion is mostly small: a beta distribution with mean 1 / 3."""

    def draw(rng):
        return {"value": torch.from_numpy(rng.beta(1, 2, (PATIENTS, AT_ONCE)))}

    assert 0.93 <= coverage(mean, 1 / 3, draw, np.arange(PATIENTS)) <= 0.97


def test_coverage_where_patients_have_several_images():
    assert 0.93 <= coverage(mean, 0.0, several_images, several_images(None)) <= 0.97
    # Taking the images for independent promises too much.
    assert coverage(mean, 0.0, several_images, np.arange(len(several_images(None)))) < 0.9


def test_coverage_is_that_which_was_asked_for():
    def draw(rng):
        return {"value": torch.from_numpy(rng.normal(size=(PATIENTS, AT_ONCE)))}

    assert coverage(mean, 0.0, draw, np.arange(PATIENTS), level=0.8) == pytest.approx(0.8, abs=0.03)


def paired_scores(effect, seed, n=120):
    rng = np.random.default_rng(seed)
    labels = np.float32(rng.random(n) < 0.4)
    shared = rng.normal(size=n) + labels
    a, b = (shared + 0.8 * rng.normal(size=n) + extra * labels for extra in (effect, 0.0))
    return (torch.from_numpy(x) for x in (a, b, labels))


def permutation_p(a, b, labels, permutations=4000):
    """Two-sided p of the difference of AUROCs when it is left to chance which score of a sample is whose."""
    swap = torch.rand(permutations, len(a), generator=torch.Generator().manual_seed(0)) < 0.5

    def auroc(scores):
        rank = scores.argsort(1).argsort(1).double() + 1
        m = float(labels.sum())
        return ((rank * labels).sum(1) - m * (m + 1) / 2) / (m * (len(labels) - m))

    observed = (auroc(a[None]) - auroc(b[None])).abs()
    mixed = (auroc(torch.where(swap, b, a)) - auroc(torch.where(swap, a, b))).abs()
    return float(((mixed >= observed - 1e-12).sum() + 1) / (permutations + 1))


@pytest.mark.parametrize(("effect", "rejected"), [(0.0, (0, 3)), (0.6, (10, 25))])
def test_delong_is_the_permutation_test(effect, rejected):
    """Study by study, where the methods are equal and where they are not."""
    pairs = []
    for seed in range(25):
        a, b, labels = paired_scores(effect, seed)
        pairs.append((delong_test(a, b, labels).p, permutation_p(a, b, labels)))
    ours, theirs = np.array(pairs).T
    assert np.abs(ours - theirs).max() < 0.05
    assert np.abs(ours - theirs).mean() < 0.02
    assert rejected[0] <= (ours < 0.05).sum() <= rejected[1]


def test_holm_goes_step_by_step():
    # 4 · 0.01, 3 · 0.015, and 2 · 0.02 and 1 · 0.04, which must not fall below 0.045. Bonferroni would keep one.
    assert holm([0.04, 0.01, 0.02, 0.015]).tolist() == pytest.approx([0.045, 0.04, 0.045, 0.045])
    # The first step that fails ends it: 0.02 · 3 > 0.05 holds the others back.
    assert (holm([0.001, 0.02, 0.021, 0.03]) < 0.05).tolist() == [True, False, False, False]


def test_holm_keeps_the_level_of_the_family():
    """Of six tests of true hypotheses that share half of their noise, and beside a false one."""
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(2000, 1)) + rng.normal(size=(2000, 6))) / np.sqrt(2)
    p = torch.from_numpy(2 * (1 - torch.special.ndtr(torch.from_numpy(np.abs(z))).numpy()))
    uncorrected = float((p < 0.05).any(1).double().mean())
    corrected = np.mean([bool((holm([1e-6, *row])[1:] < 0.05).any()) for row in p.tolist()])
    assert uncorrected > 0.15
    assert corrected <= 0.055

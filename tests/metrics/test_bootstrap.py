import pytest
import torch

from medvlp.errors import ConfigError
from medvlp.metrics.bootstrap import distribution, group_codes, interval, resample_weights
from medvlp.metrics.samples import Samples


def mean_measure(samples, weights=None):
    value = samples["value"]
    if weights is None:
        return {"mean": value.mean()}
    return {"mean": (weights * value).sum(1) / weights.sum(1), "constant": torch.tensor(3.0)}


def rare_measure(samples, weights=None):
    """Defined only in resamples that drew the first sample."""
    weights = torch.ones(1, len(samples)) if weights is None else weights
    return {"rare": torch.where(weights[:, 0] > 0, 1.0, torch.nan)}


def made(value):
    return Samples(torch.arange(len(value)), {"value": value}, {})


def test_samples_of_a_patient_are_drawn_together():
    groups = group_codes(["b", "a", "b", "c", "a"])
    assert groups.tolist() == [1, 0, 1, 2, 0]
    weights = torch.cat(list(resample_weights(groups, 50, seed=0)))
    assert weights.shape == (50, 5)
    assert torch.equal(weights[:, 0], weights[:, 2])
    assert torch.equal(weights[:, 1], weights[:, 4])
    assert torch.equal(weights[:, [0, 1, 3]].sum(1), torch.full((50,), 3.0))  # as many patients as there are
    assert len(set(weights[:, 3].tolist())) > 2


def test_draws_depend_on_the_seed_and_not_on_the_chunk():
    groups, strata = torch.arange(30) // 2, torch.arange(30) % 3 == 0
    whole = torch.cat(list(resample_weights(groups, 20, seed=1, strata=strata)))
    parts = list(resample_weights(groups, 20, seed=1, strata=strata, chunk=7))
    assert [len(part) for part in parts] == [7, 7, 6]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(torch.cat(list(resample_weights(groups, 20, seed=2, strata=strata))), whole)


def test_strata_keep_their_size():
    groups = torch.tensor([0, 0, 1, 2, 3, 4])
    strata = torch.tensor([0, 1, 0, 0, 1, 0])  # patients 0 and 3 have a positive
    weights = torch.cat(list(resample_weights(groups, 40, seed=0, strata=strata)))
    assert torch.equal(weights[:, 1] + weights[:, 4], torch.full((40,), 2.0))
    assert torch.equal(weights[:, 2] + weights[:, 3] + weights[:, 5], torch.full((40,), 3.0))


def test_interval_of_a_mean_is_that_of_theory():
    g = torch.Generator().manual_seed(0)
    value = torch.randn(400, generator=g)
    found = interval(mean_measure, made(value), torch.arange(400))
    low, high = found["mean"]
    error = float(value.std() / 20)
    assert low == pytest.approx(float(value.mean()) - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(float(value.mean()) + 1.96 * error, abs=0.2 * error)
    assert found["mean"].undefined == 0
    assert found["constant"] == (3.0, 3.0)


def test_more_images_of_the_same_patients_do_not_narrow_it():
    value = torch.randn(50, generator=torch.Generator().manual_seed(0))
    one = interval(mean_measure, made(value), torch.arange(50))["mean"]
    four = made(value.repeat_interleave(4))
    assert interval(mean_measure, four, torch.arange(200) // 4)["mean"] == pytest.approx(one, abs=1e-6)
    narrow = interval(mean_measure, four, torch.arange(200))["mean"]
    assert narrow[1] - narrow[0] < 0.7 * (one[1] - one[0])


def test_resamples_without_a_value_are_counted():
    found = interval(rare_measure, made(torch.zeros(10)), torch.arange(10), resamples=500)["rare"]
    assert found == (1.0, 1.0)
    assert found.undefined / 500 == pytest.approx(0.9**10, abs=0.08)


def test_distribution_is_repeatable_and_weights_are_repetitions():
    value = torch.rand(9, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(9) // 2
    found = distribution(mean_measure, made(value), groups, resamples=8, seed=3)["mean"]
    assert torch.equal(found, distribution(mean_measure, made(value), groups, resamples=8, seed=3)["mean"])
    for weights, mean in zip(torch.cat(list(resample_weights(groups, 8, 3))), found, strict=True):
        assert float(value.repeat_interleave(weights.long()).mean()) == pytest.approx(float(mean), abs=1e-6)


def test_nothing_to_resample():
    with pytest.raises(ConfigError, match="samples"):
        interval(mean_measure, made(torch.zeros(0)), torch.zeros(0, dtype=torch.long))

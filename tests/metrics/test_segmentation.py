import math

import pytest
import torch
from torchmetrics.functional.classification import binary_jaccard_index
from torchmetrics.functional.segmentation import dice_score

from medvlp.errors import ConfigError
from medvlp.metrics.samples import Samples
from medvlp.metrics.segmentation import (
    mask_statistics,
    mean_of_batch_means,
    segmentation_measures,
)


def pictures(n=11, size=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    probability = torch.rand(n, 1, size, size, generator=g) ** 2
    mask = (torch.rand(n, 1, size, size, generator=g) > 0.6).float()
    mask[::3] = 0  # without a lesion
    probability[::6] *= 0.4  # nothing predicted
    return probability, mask


def table(probability, mask, threshold=0.5):
    return Samples(torch.arange(len(mask)), mask_statistics(probability, mask, threshold))


def loop(probability, mask, batch_size):
    """Every convention pixel set by pixel set, as the sources describe them."""
    ones, positives, negatives, ious, smoothed = [], [], [], [], []
    for p, t in zip(probability > 0.5, mask > 0.5, strict=True):
        both, either = int((p & t).sum()), int((p | t).sum())
        if t.any():
            dice = 2 * both / int(p.sum() + t.sum())
            positives.append(dice)
            ious.append(both / either)
        else:
            dice = 0.0 if p.any() else 1.0
            negatives.append(dice)
        ones.append(dice)
        smoothed.append((both + 1) / (either + 1))
    batches = [ones[i : i + batch_size] for i in range(0, len(ones), batch_size)]

    def mean(x):
        return sum(x) / len(x) if x else math.nan

    return {
        "dice_positive": mean(positives),
        "dice_all": mean(ones),
        "dice_negative": mean(negatives),
        "dice_mgca": mean([mean(batch) for batch in batches]),
        "iou_positive": mean(ious),
        "miou_medklip": mean(smoothed),
        "floor/dice_all": len(negatives) / len(ones),
    }


def test_every_convention_is_the_loop():
    probability, mask = pictures()
    found = segmentation_measures(table(probability, mask), batch_size=4)
    for name, value in loop(probability, mask, 4).items():
        assert float(found[name]) == pytest.approx(value, abs=1e-9), name
    assert found["dice_mgca"] != found["dice_all"]  # a last batch of 3


def test_pooled_dice_is_torchmetrics():
    probability, mask = pictures()
    found = segmentation_measures(table(probability, mask))
    p, t = (probability > 0.5).long().reshape(1, 1, -1), mask.long().reshape(1, 1, -1)
    two = [torch.cat([1 - x, x], 1) for x in (p, t)]
    for name, include in (("dice_dataset", False), ("mdice", True)):
        want = dice_score(*two, num_classes=2, include_background=include, average="macro", input_format="one-hot")
        assert float(found[name]) == pytest.approx(float(want), abs=1e-6)
    one = torch.arange(1, 2)
    iou = binary_jaccard_index((probability[one] > 0.5).long(), mask[one].long())
    assert float(segmentation_measures(table(probability[one], mask[one]))["iou_positive"]) == pytest.approx(float(iou))
    assert "dice_mgca" not in found


def test_weights_are_repetitions():
    samples = table(*pictures())
    g = torch.Generator().manual_seed(1)
    weights = torch.randint(0, 3, (20, 11), generator=g).float()
    weights[0] = 0
    weights[0, 1] = 5  # only one image, which has a lesion
    found = segmentation_measures(samples, weights, batch_size=4)
    for r, counts in enumerate(weights.long()):
        want = segmentation_measures(samples.select(torch.repeat_interleave(counts)), batch_size=4)
        assert want.keys() == found.keys()
        for name, value in want.items():
            assert float(found[name][r]) == pytest.approx(float(value), abs=1e-9, nan_ok=True), (name, r)


def test_floors_are_what_an_empty_prediction_scores():
    _, mask = pictures()
    empty = segmentation_measures(table(torch.zeros_like(mask), mask), batch_size=4)
    for name in ("dice_all", "dice_mgca", "mdice", "miou_medklip"):
        assert float(empty[name]) == pytest.approx(float(empty[f"floor/{name}"]))
    for name in ("dice_positive", "dice_dataset", "iou_positive"):
        assert float(empty[name]) == 0
    assert float(empty["floor/dice_all"]) == pytest.approx(4 / 11)


def test_without_lesions_and_without_images():
    probability, mask = pictures(4)
    found = segmentation_measures(table(probability * 0, mask * 0), batch_size=2)
    assert math.isnan(found["dice_positive"])
    assert math.isnan(found["iou_positive"])
    assert math.isnan(found["dice_dataset"])
    assert [float(found[n]) for n in ("dice_all", "dice_mgca", "mdice", "miou_medklip")] == [1, 1, 1, 1]
    nothing = segmentation_measures(table(probability[:0], mask[:0]), batch_size=2)
    assert all(math.isnan(value) for value in nothing.values())
    weighted = segmentation_measures(table(probability[:0], mask[:0]), torch.zeros(3, 0), batch_size=2)
    assert all(value.shape == (3,) and value.isnan().all() for value in weighted.values())


def test_thresholds_are_strict_and_soft_edges_are_cut():
    probability, mask = torch.tensor([[[0.5, 0.51]]]), torch.tensor([[[0.51, 0.5]]])
    found = mask_statistics(probability, mask)
    assert {name: int(value) for name, value in found.items()} == {
        "intersection": 0,
        "predicted": 1,
        "truth": 1,
        "pixels": 2,
    }
    assert int(mask_statistics(probability, mask, threshold=0.4)["predicted"]) == 2


def test_shapes_are_checked():
    with pytest.raises(ConfigError, match="equal size"):
        mask_statistics(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(ConfigError, match="equal size"):
        mask_statistics(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ConfigError, match="batch_size"):
        mean_of_batch_means(torch.ones(2), torch.ones(1, 2), 0)


def test_batch_means_take_fractions_of_samples():
    found = mean_of_batch_means(torch.tensor([1.0, 0.0]), torch.tensor([[1.5, 1.5]]), 2)
    assert float(found) == pytest.approx((1.5 / 2 + 0) / 2)

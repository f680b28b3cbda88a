import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from medvlp.errors import ConfigError
from medvlp.metrics.grounding import (
    COLUMNS,
    THRESHOLDS,
    grounding_measures,
    grounding_statistics,
)
from medvlp.metrics.samples import Samples, SampleStore


def drawn(n=9, size=12, seed=0, ties=True):
    g = torch.Generator().manual_seed(seed)
    heat, mask = torch.rand(n, size, size, generator=g) * 2 - 1, torch.zeros(n, size, size)
    if ties:
        heat[::2] = (heat[::2] * 5).round() / 5
    for i in range(n):
        if i % 4:
            y, x = torch.randint(0, size - 4, (2,), generator=g).tolist()
            mask[i, y : y + 4, x : x + 3] = 1
    return heat, mask


def table(heat, mask, thresholds=THRESHOLDS, category=None):
    columns = grounding_statistics(heat, mask, thresholds)
    if category is not None:
        columns["category"] = category
    return Samples(torch.arange(len(heat)), columns)


def loop(heat, mask, thresholds):
    """Image by image, as the sources describe it."""
    rows = []
    for h, m in zip(heat.double().numpy(), mask.bool().numpy(), strict=True):
        if not m.any():
            continue
        row = {}
        for t in thresholds:
            p = h > np.float32(t)
            both, either = (p & m).sum(), (p | m).sum()
            row[f"iou@{t:g}"], row[f"dice@{t:g}"] = both / either, 2 * both / (p.sum() + m.sum())
            row[f"recall@{t:g}"] = both / m.sum()
            row[f"precision@{t:g}"] = both / p.sum() if p.any() else 0
        row["miou"] = np.mean([row[f"iou@{t:g}"] for t in thresholds])
        row["cnr"] = (h[m].mean() - h[~m].mean()) / math.sqrt(h[m].var() + h[~m].var())
        row["cnr_absolute"] = abs(row["cnr"])
        row["pointing_game"] = m[h == h.max()].mean()
        row["pointing_medklip"] = float(m[h == h.max()].any())
        row["pixel_ap"] = average_precision_score(m.ravel(), h.ravel())
        rows.append(row)
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("channel", [False, True])
def test_every_metric_is_the_loop(channel):
    heat, mask = drawn()
    shown = (heat[:, None], mask[:, None]) if channel else (heat, mask)
    found = grounding_measures(table(*shown))
    want = loop(heat, mask, THRESHOLDS)
    assert found.keys() == want.keys()
    for name, value in want.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-6), name


def test_weights_are_repetitions():
    samples = table(*drawn(), category=torch.arange(9) % 2)
    weights = torch.randint(0, 3, (12, 9), generator=torch.Generator().manual_seed(1)).float()
    weights[0] = 0
    weights[0, 4] = 1  # no mask
    found = grounding_measures(samples, weights)
    for r, counts in enumerate(weights.long()):
        want = grounding_measures(samples.select(torch.repeat_interleave(counts)))
        assert want.keys() <= found.keys()  # a category that was not drawn has no name there
        for name, value in want.items():
            assert float(found[name][r]) == pytest.approx(float(value), abs=1e-9, nan_ok=True), (name, r)
    assert found["miou"][0].isnan()


def test_category_means_weigh_categories_alike():
    heat, mask = drawn(8)
    category = torch.tensor([0, 0, 2, 2, 2, 2, 2, 5])
    found = grounding_measures(table(heat, mask, category=category), categories=list("abcdef"))
    each = {k: grounding_measures(table(heat[category == k], mask[category == k])) for k in (0, 2, 5)}
    for name in ("miou", "iou@0.3", "cnr", "cnr_absolute"):
        mean = np.mean([float(values[name]) for values in each.values()])
        assert float(found[f"{name}_category"]) == pytest.approx(mean)
        assert float(found[f"{name}/c"]) == pytest.approx(float(each[2][name]))
    assert "dice@0.3_category" not in found
    alone = grounding_measures(table(heat[:1], mask[:1], category=category[:1]))
    assert math.isnan(alone["miou_category"])


def test_scale_and_offset_do_not_matter_to_the_threshold_free_ones():
    heat, mask = drawn(ties=False)
    found, moved = (grounding_measures(table(h, mask)) for h in (heat, 1000 + 3 * heat))
    for name in ("cnr", "cnr_absolute", "pointing_game", "pixel_ap"):
        assert float(moved[name]) == pytest.approx(float(found[name]), abs=1e-3)
    assert float(grounding_measures(table(-heat, mask))["cnr"]) == pytest.approx(-float(found["cnr"]), abs=1e-5)


def test_pixels_that_were_not_seen():
    heat, mask = drawn(ties=False)
    blind = heat.clone()
    blind[:, :, 8:] = torch.nan
    found = grounding_measures(table(blind, mask))
    never = heat.clone()
    never[:, :, 8:] = -5
    want = grounding_measures(table(never, mask))
    for name in ("miou", "dice@0.1", "recall@0.5", "pointing_game", "pixel_ap"):
        assert float(found[name]) == pytest.approx(float(want[name]), abs=1e-6)
    cut = table(heat[:, :, :8], mask[:, :, :8])
    seen = mask[:, :, :8].flatten(1).any(1)
    assert torch.allclose(table(blind, mask)["cnr"][seen], cut["cnr"][seen], atol=1e-5)
    nothing = table(torch.full_like(heat, torch.nan), mask)
    assert nothing["cnr"].isnan().all()
    assert nothing["pointing_game"].isnan().all()
    assert float(grounding_measures(nothing)["miou"]) == 0


def test_contrast_without_variance_is_zero():
    mask = torch.zeros(2, 8, 8)
    mask[:, 2:4, 2:5] = 1
    heat = torch.stack([torch.full((8, 8), 0.1), 0.3 + 0.4 * mask[1]])
    assert grounding_statistics(heat, mask)["cnr"].tolist() == [0, 0]
    everywhere = grounding_statistics(heat, torch.ones(2, 8, 8))
    assert everywhere["cnr"].isnan().all()  # nothing outside to compare with
    assert everywhere["pixel_ap"].tolist() == [1, 1]


def test_medklip_threshold_is_strict():
    heat = torch.tensor([[[0.008, 0.0081]]])
    found = grounding_statistics(heat, torch.ones(1, 1, 2), (0.008,))
    assert found["predicted"].tolist() == [[1]]


def test_no_mask_no_sample_and_wrong_shapes():
    heat, mask = drawn()
    found = grounding_measures(table(heat, mask * 0))
    assert all(math.isnan(value) for value in found.values())
    with pytest.warns(UserWarning, match="before the"):
        nothing = SampleStore([*COLUMNS, "category"]).compute()
    assert all(math.isnan(value) for value in grounding_measures(nothing).values())
    assert all(v.isnan().all() for v in grounding_measures(nothing, torch.zeros(2, 0)).values())
    with pytest.raises(ConfigError, match="equal size"):
        grounding_statistics(heat, mask[:, :4])
    with pytest.raises(ConfigError, match="at least one"):
        grounding_statistics(heat, mask, [])
    with pytest.raises(ConfigError, match="taken at 5"):
        grounding_measures(table(heat, mask), thresholds=[0.1])

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from medvlp.metrics.bootstrap import group_codes, interval
from medvlp.metrics.detection import COLUMNS, IOUS, RATES, detection_measures, rank_detections
from medvlp.metrics.samples import Ragged, Samples, SampleStore

RECALLS = np.linspace(0, 1, 101).tolist()
"""COCO's own; torchmetrics' default rounds them to float32, which decides where a recall falls on one of them."""


def images(n=13, seed=0, classes=1, noise=6.0):
    """Boxes, and detections around them and elsewhere; some images have none of either."""
    rng = np.random.default_rng(seed)
    preds, target = [], []
    for i in range(n):
        count = 0 if i % 4 == 0 else rng.integers(1, 5)
        corner = rng.uniform(0, 150, (count, 2))
        truth = np.concatenate([corner, corner + rng.uniform(20, 70, (count, 2))], 1)
        near = truth.repeat(2, 0) + rng.normal(0, noise, (2 * count, 4))
        corner = rng.uniform(0, 150, (rng.integers(0, 4), 2))
        far = np.concatenate([corner, corner + rng.uniform(20, 70, corner.shape)], 1)
        boxes = np.concatenate([near, far]) if i % 5 else np.zeros((0, 4))
        labels = np.concatenate([np.arange(count).repeat(2) % classes, rng.integers(0, classes, len(far))])
        preds.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "scores": torch.tensor(rng.random(len(boxes)), dtype=torch.float32),
                "labels": torch.tensor(labels[: len(boxes)], dtype=torch.long),
            }
        )
        target.append({"boxes": torch.tensor(truth, dtype=torch.float32), "labels": torch.arange(count) % classes})
    return preds, target


def table(preds, target):
    columns = {key: Ragged.of([one[key] for one in preds]) for key in ("boxes", "scores", "labels")}
    columns["truth"] = Ragged.of([one["boxes"] for one in target])
    columns["truth_labels"] = Ragged.of([one["labels"] for one in target])
    return Samples(torch.arange(len(preds)), {}, columns)


def reference(preds, target, ious=IOUS):
    metric = MeanAveragePrecision(iou_thresholds=list(ious), rec_thresholds=RECALLS)
    metric.update(preds, target)
    return float(metric.compute()["map"])


def papers(preds, target):
    """MGCA's loop: cut at ½, then only images with a detection and a box are shown to the metric."""
    cut = [{key: value[one["scores"] >= 0.5] for key, value in one.items()} for one in preds]
    kept = [i for i in range(len(cut)) if len(cut[i]["boxes"]) and len(target[i]["boxes"])]
    return reference([cut[i] for i in kept], [target[i] for i in kept]), len(kept) / len(preds)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [1, 3])
def test_average_precision_is_torchmetrics(seed, classes):
    preds, target = images(seed=seed, classes=classes)
    found = detection_measures(table(preds, target))
    assert float(found["map_coco"]) == pytest.approx(reference(preds, target), abs=1e-6)
    assert float(found["ap@0.50"]) == pytest.approx(reference(preds, target, [0.5]), abs=1e-6)
    value, share = papers(preds, target)
    assert float(found["map_mgca"]) == pytest.approx(value, abs=1e-6)
    assert float(found["images_mgca"]) == pytest.approx(share)


@pytest.mark.filterwarnings("ignore:Encountered more than 100:UserWarning")
def test_more_detections_than_100():
    preds, target = images(4, seed=5)
    preds[1] = {key: torch.cat([value] * 40) for key, value in preds[1].items()}
    preds[1]["scores"] = torch.rand(len(preds[1]["scores"]), generator=torch.Generator().manual_seed(0))
    assert len(preds[1]["boxes"]) > 100
    assert float(detection_measures(table(preds, target))["map_coco"]) == pytest.approx(
        reference(preds, target), abs=1e-6
    )


def test_weights_are_repetitions():
    samples = table(*images(classes=2))
    weights = torch.randint(0, 3, (12, 13), generator=torch.Generator().manual_seed(0)).float()
    weights[0] = 0
    weights[0, 4] = 2  # an image without boxes alone
    found = detection_measures(samples, weights)
    for r, counts in enumerate(weights.long()):
        want = detection_measures(samples.select(torch.repeat_interleave(counts)))
        assert want.keys() == found.keys()
        for name, value in want.items():
            assert float(found[name][r]) == pytest.approx(float(value), abs=1e-9, nan_ok=True), (name, r)
    assert math.isnan(found["map_coco"][0])


def test_matching_is_cocos_loop():
    """One detection after the other, one overlap after the other, equal overlaps to the last box."""
    preds, target = images(noise=12.0)
    target[1]["boxes"] = target[1]["boxes"][:1].repeat(3, 1)  # the same box three times
    target[1]["labels"] = torch.zeros(3, dtype=torch.long)
    own = rank_detections(table(preds, target))[0]
    hits = {
        (int(o), float(s)): own.hit[:, i].tolist() for i, (o, s) in enumerate(zip(own.owner, own.scores, strict=True))
    }
    for i, (pred, truth) in enumerate(zip(preds, target, strict=True)):
        for k, iou in enumerate(IOUS):
            taken = set()
            for d in pred["scores"].argsort(descending=True).tolist():
                x0, y0, x1, y1 = pred["boxes"][d].tolist()
                best, chosen = iou, None
                for g, (u0, v0, u1, v1) in enumerate(truth["boxes"].tolist()):
                    shared = max(0, min(x1, u1) - max(x0, u0)) * max(0, min(y1, v1) - max(y0, v0))
                    value = shared / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared)
                    if g not in taken and value >= best:
                        best, chosen = value, g
                if chosen is not None:
                    taken.add(chosen)
                assert hits[i, float(pred["scores"][d].double())][k] == (chosen is not None)


def test_scores_below_the_cut_change_nothing_above_it():
    samples = table(*images())
    whole, cut = rank_detections(samples)[0].above(0.5), rank_detections(samples, min_score=0.5)[0]
    assert torch.equal(whole.hit, cut.hit)
    assert torch.equal(whole.owner, cut.owner)
    low = detection_measures(samples, min_score=0.5)["map_coco"]
    assert float(low) < float(detection_measures(samples)["map_coco"])


def test_froc_by_hand():
    box = torch.tensor([[0.0, 0, 10, 10]])
    other = torch.tensor([[50.0, 50, 60, 60]])

    def image(scores, boxes, truth):
        zeros = torch.zeros(len(scores), dtype=torch.long)
        return (
            {"scores": torch.tensor(scores), "boxes": torch.cat(boxes) if boxes else box[:0], "labels": zeros},
            {"boxes": box if truth else box[:0], "labels": torch.zeros(int(truth), dtype=torch.long)},
        )

    # In order of score: found, false, found, false, false; one box is missed. Four images, three boxes.
    pairs = [
        image([0.9, 0.8], [box, other], True),
        image([0.7, 0.3], [box, other], True),
        image([], [], True),
        image([0.2], [other], False),
    ]
    found = detection_measures(table([p for p, _ in pairs], [t for _, t in pairs]))
    want = {0.125: 1 / 3, 0.25: 2 / 3, 0.5: 2 / 3, 1: 2 / 3, 2: 2 / 3, 4: 2 / 3, 8: 2 / 3}
    for rate, value in want.items():
        assert float(found[f"sensitivity@{rate:g}"]) == pytest.approx(value)
    assert float(found["froc"]) == pytest.approx(sum(want.values()) / 7)
    assert set(RATES) == set(want)


def test_images_without_boxes_count_in_ours_alone():
    preds, target = images(8)
    alarm = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "scores": torch.tensor([0.99]), "labels": torch.tensor([0])}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    before = detection_measures(table(preds, target))
    after = detection_measures(table([*preds, alarm], [*target, nothing]))
    assert float(after["map_mgca"]) == float(before["map_mgca"])
    assert float(after["map_coco"]) < float(before["map_coco"])
    assert float(after["sensitivity@0.125"]) < float(before["sensitivity@8"])


def empty(n):
    preds, target = images(n)
    return [{key: value[:0] for key, value in one.items()} for one in preds], target


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_nothing_found_nothing_there_no_image():
    found = detection_measures(table(*empty(8)))
    assert [float(found[n]) for n in ("map_coco", "ap@0.50", "froc", "images_mgca")] == [0, 0, 0, 0]
    assert math.isnan(found["map_mgca"])  # every image is skipped
    preds, target = images(8)
    found = detection_measures(table(preds, [{key: value[:0] for key, value in one.items()} for one in target]))
    assert all(math.isnan(value) for name, value in found.items() if name != "images_mgca")
    found = SampleStore([], COLUMNS).compute()
    for weights in (None, torch.zeros(2, 0)):
        assert all(value.isnan().all() for value in detection_measures(found, weights).values())
    with_names = Samples(torch.zeros(0, dtype=torch.long), {}, found.ragged)
    assert rank_detections(with_names) == {}


def test_boxes_without_area_match_nothing():
    line = torch.tensor([[5.0, 5, 5, 20]])
    one = {"boxes": line, "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    found = detection_measures(table([one], [{"boxes": line, "labels": torch.tensor([0])}]))
    assert float(found["map_coco"]) == 0


def test_saved_predictions_give_the_same_values_and_intervals(tmp_path):
    samples = table(*images())
    ids = [str(i) for i in range(13)]
    samples.to_frame(ids, [str(i // 2) for i in range(13)]).to_parquet(tmp_path / "predictions.parquet")
    frame = pd.read_parquet(tmp_path / "predictions.parquet")
    again, groups = Samples.from_frame(frame), group_codes(frame["group"])
    want = {name: float(value) for name, value in detection_measures(samples).items()}
    assert {name: float(value) for name, value in detection_measures(again).items()} == want
    found = interval(detection_measures, again, groups, resamples=100)
    assert found == interval(detection_measures, samples, groups, resamples=100)
    low, high = found["map_coco"]
    assert low <= want["map_coco"] <= high

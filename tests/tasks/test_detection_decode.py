"""Decoding and non-maximum suppression."""

import pytest
import torch
from torch import Tensor

from medvlp.tasks.detection.decode import Predictions, decode, detect, suppress
from medvlp.tasks.detection.loss import assign, truth_of
from medvlp.tasks.detection.yolo import scaled_anchors


def outputs_for(levels) -> list[Tensor]:
    """Raw outputs that say exactly what the targets ask."""
    made = []
    for t in levels:
        logit = torch.logit(torch.stack([t.x, t.y], -1).clamp(1e-6, 1 - 1e-6))
        sure = (2 * torch.cat([t.mask[..., None], t.classes], -1) - 1) * 20
        found = torch.cat([logit, torch.stack([t.w, t.h], -1), sure], -1)
        made.append(found.permute(0, 1, 4, 2, 3).flatten(1, 2))
    return made


@pytest.mark.parametrize(
    ("image_size", "grids"),
    [((224, 224), [(7, 7), (14, 14), (28, 28)]), ((100, 84), [(4, 3), (7, 6), (13, 11)])],
)
@pytest.mark.parametrize("variant", ["official", "yolov3"])
def test_decoding_gives_the_encoded_boxes_back(image_size, grids, variant):
    boxes = [
        torch.tensor([[3.0, 5.0, 40.0, 60.0], [50.0, 20.0, 80.0, 33.0]]),
        torch.zeros(0, 4),
        torch.tensor([[10.0, 70.0, 30.0, 99.0]]),
    ]
    labels = [torch.tensor([1, 0]), torch.zeros(0, dtype=torch.long), torch.tensor([1])]
    anchors = scaled_anchors(image_size)
    targets = assign(truth_of(boxes, labels, image_size), grids, anchors, image_size, 2, variant)
    found = detect(decode(outputs_for(targets), anchors, image_size, 2), 0.5, 0.5)
    for got, label, want, truth_label in zip(
        found.per_image(found.boxes), found.per_image(found.labels), boxes, labels, strict=True
    ):
        # on three levels the same box is found three times, and the suppression leaves one
        assert len(got) == len(want)
        order, wanted = got[:, 0].argsort(), want[:, 0].argsort()
        torch.testing.assert_close(got[order], want[wanted], atol=1e-3, rtol=0)
        assert torch.equal(label[order], truth_label[wanted])


def test_decoded_sizes_stay_finite():
    raw = torch.full((1, 18, 2, 2), 1e6)
    found = decode([raw], scaled_anchors((64, 64))[:1], (64, 64))
    assert found.boxes.isfinite().all()
    assert found.scores.isfinite().all()


def slow_nms(boxes: Tensor, scores: Tensor, threshold: float, convention: str) -> list[int]:
    extra = 1 if convention == "official" else 0
    kept: list[int] = []

    def area(b):
        return (b[2] - b[0] + extra) * (b[3] - b[1] + extra)

    for i in scores.argsort(descending=True, stable=True).tolist():
        gone = False
        for j in kept:
            a, b = boxes[i].double(), boxes[j].double()
            w = (min(a[2], b[2]) - max(a[0], b[0]) + extra).clamp(min=0)
            h = (min(a[3], b[3]) - max(a[1], b[1]) + extra).clamp(min=0)
            iou = (w * h / (area(a) + area(b) - w * h)).item()
            gone |= iou >= threshold if convention == "official" else iou > threshold
        if not gone:
            kept.append(i)
    return kept


@pytest.mark.parametrize("convention", ["official", "plain"])
def test_suppression_is_that_of_a_loop(convention):
    generator = torch.Generator().manual_seed(0)
    # whole pixels, so that overlaps of exactly the threshold happen; some beyond the image
    first = torch.randint(-10, 24, (3, 60, 2), generator=generator).float()
    boxes = torch.cat([first, first + torch.randint(4, 14, (3, 60, 2), generator=generator)], 2)
    scores = torch.rand(3, 60, generator=generator)
    classes = torch.rand(3, 60, 2, generator=generator)
    found = detect(Predictions(boxes, scores, classes), 0.3, 0.5, convention)
    for image, (got, score) in enumerate(zip(found.per_image(found.boxes), found.per_image(found.scores), strict=True)):
        assert (score.diff() <= 0).all()
        label = classes[image].argmax(1)
        want = []
        for c in (0, 1):
            mine = ((label == c) & (scores[image] >= 0.3)).nonzero().squeeze(1)
            kept = slow_nms(boxes[image][mine], scores[image][mine], 0.5, convention)
            want += mine[kept].tolist()
        want.sort(key=lambda i: -scores[image, i])
        assert torch.equal(got, boxes[image][want])


def test_the_two_conventions_differ_at_the_threshold():
    # (9+1)·(9+1) = 100 and (4+1)·(9+1) = 50: an official IoU of exactly 0.5; plain 36/81
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 4.0, 9.0]])
    scores, groups = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.long)
    assert suppress(boxes, scores, groups, 0.5, "official").tolist() == [0]
    assert suppress(boxes, scores, groups, 0.5, "plain").tolist() == [0, 1]
    half = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 5.0, 10.0]])
    assert suppress(half, scores, groups, 0.5, "plain").tolist() == [0, 1]


def test_a_higher_cut_gives_the_part_that_reaches_it():
    generator = torch.Generator().manual_seed(1)
    first = torch.rand(2, 200, 2, generator=generator) * 100
    boxes = torch.cat([first, first + 20 + torch.rand(2, 200, 2, generator=generator) * 30], 2)
    found = Predictions(boxes, torch.rand(2, 200, generator=generator), torch.ones(2, 200, 1))
    low, high = detect(found, 0.01), detect(found, 0.5)
    assert torch.equal(low.boxes[low.scores >= 0.5], high.boxes)
    assert torch.equal(low.owner[low.scores >= 0.5], high.owner)


def test_limits_and_nothing_found():
    boxes = torch.arange(6.0)[None, :, None] * 50 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    found = Predictions(boxes.expand(2, 6, 4), torch.arange(1.0, 7.0).expand(2, 6) / 10, torch.ones(2, 6, 1))
    first = detect(found, 0.0, max_detections=2)
    assert first.scores.tolist() == pytest.approx([0.6, 0.5, 0.6, 0.5])
    assert first.owner.tolist() == [0, 0, 1, 1]
    assert detect(found, 0.0, max_candidates=4).scores.tolist() == pytest.approx([0.6, 0.5, 0.4, 0.3] * 2)
    assert len(detect(found, 0.0, max_candidates=100).scores) == 12
    none = detect(found, 0.99)
    assert none.boxes.shape == (0, 4)
    assert [len(b) for b in none.per_image(none.boxes)] == [0, 0]

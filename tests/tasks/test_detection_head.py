"""Levels, neck and the whole detector."""

import pytest
import torch
from torchvision.ops import box_iou

from medvlp.encoders.image import ImageEncoder, ImageEncoderConfig
from medvlp.errors import ConfigError
from medvlp.tasks.detection.decode import detect
from medvlp.tasks.detection.loss import TERMS, assign, scale_terms, truth_of, yolo_loss
from medvlp.tasks.detection.pyramid import ThreeLevels, plan_levels
from medvlp.tasks.detection.yolo import YOLOv3, YOLOv3Neck


def pyramid_of(channels, grids, batch=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, c, *g, generator=generator) for c, g in zip(channels, grids, strict=True)]


@pytest.mark.parametrize(
    ("reductions", "sources", "resample", "strides"),
    [
        ([2, 4, 8, 16, 32], (4, 3, 2), ("keep",) * 3, (32, 16, 8)),
        ([2, 4, 8, 16], (3, 2, 1), ("keep",) * 3, (16, 8, 4)),
        ([4, 8, 16, 16], (3, 1, 0), ("keep",) * 3, (16, 8, 4)),
        ([2, 4], (1, 1, 0), ("down", "keep", "keep"), (8, 4, 2)),
        ([16, 16, 16], (2, 1, 0), ("down", "keep", "up"), (32, 16, 8)),
        ([16], (0, 0, 0), ("down", "keep", "up"), (32, 16, 8)),
        ([14, 14], (1, 1, 1), ("down", "keep", "up"), (28, 14, 7)),
    ],
)
def test_three_levels_of_any_encoder(reductions, sources, resample, strides):
    plan = plan_levels(reductions)
    assert plan.sources == sources
    assert plan.resample == resample
    assert plan.strides == strides
    # maps as large as their strides say
    size = 2 * 16 * 14
    used = [torch.randn(1, 8, size // reductions[i], size // reductions[i]) for i in plan.used]
    levels = ThreeLevels(plan, [8] * len(plan.used))(used)
    assert [level.shape[-1] for level in levels] == [size / stride for stride in strides]


def test_no_level_and_wrong_levels():
    with pytest.raises(ConfigError, match="none"):
        plan_levels([])
    with pytest.raises(ConfigError, match="uses 3 levels"):
        ThreeLevels(plan_levels([4, 8, 16]), [8, 8])
    with pytest.raises(ConfigError, match="official, yolov3"):
        YOLOv3(plan_levels([4, 8, 16]), [8, 8, 8], (64, 64), variant="other")


def test_the_neck_has_the_papers_widths_and_can_be_narrower():
    neck = YOLOv3Neck([2048, 1024, 512])
    assert [branch.output.in_channels for branch in neck.branches] == [1024, 512, 256]
    assert [branch.output.out_channels for branch in neck.branches] == [18] * 3
    assert [branch.stem[0][0].in_channels for branch in neck.branches] == [2048, 1024 + 256, 512 + 128]
    narrow = YOLOv3Neck([256, 128, 64], num_classes=2, width=0.125)
    assert [branch.output.in_channels for branch in narrow.branches] == [128, 64, 32]
    outputs = narrow(pyramid_of([256, 128, 64], [(2, 2), (4, 4), (8, 8)]))
    assert [tuple(raw.shape) for raw in outputs] == [(2, 21, 2, 2), (2, 21, 4, 4), (2, 21, 8, 8)]


@pytest.mark.parametrize(
    ("name", "options", "size", "grids"),
    [
        ("resnet18", {}, 96, [3, 6, 12]),
        ("resnet18", {"depth": 4}, 96, [6, 12, 24]),
        ("resnet18", {"depth": 4}, 75, [5, 10, 19]),  # no multiple of the stride
        ("vit_tiny_patch16_224", {"depth": 3}, 80, [3, 5, 10]),  # an odd grid is halved upwards
    ],
)
def test_detector_on_encoders(name, options, size, grids):
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageEncoderConfig(name=name, **options), size).eval()
    plan = plan_levels(encoder.reductions)
    detector = YOLOv3(plan, [encoder.channels[i] for i in plan.used], (size, size), width=0.0625)
    with torch.no_grad():
        pyramid = encoder(torch.rand(2, 3, size, size))
    outputs = detector([pyramid[i] for i in plan.used])
    assert [raw.shape[-1] for raw in outputs] == grids
    truth = truth_of([torch.tensor([[5.0, 8.0, 40.0, 60.0]]), torch.zeros(0, 4)], None, (size, size))
    terms = detector.loss(outputs, truth)
    total = sum(terms.values())
    total.backward()
    assert total.isfinite()
    assert set(terms) == {"xy", "wh", "confidence", "classes"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    found = detector.decode(outputs)
    assert found.boxes.shape == (2, 3 * sum(g * g for g in grids), 4)


def test_a_batch_without_boxes_trains_only_objectness():
    torch.manual_seed(0)
    plan = plan_levels([8, 16, 32])
    detector = YOLOv3(plan, [8, 8, 8], (64, 64), width=0.0625)
    outputs = detector(pyramid_of([8, 8, 8], [(8, 8), (4, 4), (2, 2)]))
    terms = detector.loss(outputs, truth_of([torch.zeros(0, 4)] * 2, None, (64, 64)))
    assert {name for name, value in terms.items() if value != 0} == {"confidence"}
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())


def test_the_loss_of_a_right_output_is_small():
    boxes = [torch.tensor([[30.0, 30.0, 70.0, 90.0]])]
    anchors = YOLOv3(plan_levels([8, 16, 32]), [8, 8, 8], (224, 224), width=0.0625).anchors
    grids = [(7, 7), (14, 14), (28, 28)]
    targets = assign(truth_of(boxes, None, (224, 224)), grids, anchors, (224, 224), variant="yolov3")
    raw = [torch.zeros(1, 18, *g) for g in grids]
    terms = yolo_loss(raw, targets)
    right = []
    for t in targets:
        sure = (2 * torch.cat([t.mask[..., None], t.classes], -1) - 1) * 30
        offsets = torch.logit(torch.stack([t.x, t.y], -1), 1e-6)
        values = torch.cat([offsets, torch.stack([t.w, t.h], -1), sure], -1)
        right.append(values.permute(0, 1, 4, 2, 3).flatten(1, 2))
    good = yolo_loss(right, targets)
    assert all(good[name] < 1e-6 for name in ("w", "h", "confidence", "classes"))
    assert good["x"] < terms["x"]


def test_autocast_does_not_touch_the_loss():
    targets = assign(truth_of([torch.tensor([[3.0, 3.0, 40.0, 50.0]])], None, (64, 64)), [(2, 2)],
                     torch.tensor([[[30.0, 30.0], [60.0, 50.0]]]), (64, 64))  # fmt: skip
    raw = torch.randn(1, 12, 2, 2, generator=torch.Generator().manual_seed(0))
    want = scale_terms(raw, targets[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = scale_terms(raw, targets[0])
    assert all(torch.equal(got[name], want[name]) for name in TERMS)


@pytest.mark.parametrize("variant", ["official", "yolov3"])
def test_a_small_head_learns_three_images_by_heart(variant):
    torch.manual_seed(0)
    size = 64
    boxes = [torch.tensor([[8.0, 10.0, 30.0, 40.0], [36.0, 36.0, 60.0, 52.0]]), torch.tensor([[20.0, 4.0, 44.0, 50.0]])]
    boxes.append(torch.zeros(0, 4))
    plan = plan_levels([8, 16, 32])
    detector = YOLOv3(plan, [16, 16, 16], (size, size), variant=variant, width=0.125)
    pyramid = pyramid_of([16, 16, 16], [(8, 8), (4, 4), (2, 2)], batch=3)
    truth = truth_of(boxes, None, (size, size))
    optimiser = torch.optim.AdamW(detector.parameters(), lr=5e-3)
    for _ in range(120):
        optimiser.zero_grad()
        sum(detector.loss(detector(pyramid), truth).values()).backward()
        optimiser.step()
    with torch.no_grad():
        found = detect(detector.decode(detector(pyramid)), min_score=0.05)
    for box, score, wanted in zip(found.per_image(found.boxes), found.per_image(found.scores), boxes, strict=True):
        # in all images each truth ranks before anything else: average precision 1 at every threshold to 0.75
        assert len(wanted) == 0 or box_iou(wanted, box[: len(wanted)]).amax(1).min() > 0.75
        assert (score[len(wanted) :] < 0.5).all()
        assert (score[: len(wanted)] > 0.5).all()

"""Target assignment against a loop over boxes."""

import math

import pytest
import torch
from torch import Tensor

from medvlp.tasks.detection.loss import ScaleTargets, Truth, assign, shape_iou, truth_of
from medvlp.tasks.detection.yolo import COCO_ANCHORS, scaled_anchors


def slow(truth: Truth, grids, anchors: Tensor, image_size, num_classes: int, variant: str) -> list[dict[str, Tensor]]:
    """Box by box, cell by cell."""
    height, width = image_size
    levels = []
    for level, (rows, columns) in enumerate(grids):
        shape = (truth.batch, len(anchors[level]), rows, columns)
        out = {name: torch.zeros(shape) for name in ("mask", "x", "y", "w", "h")}
        out["noobj_mask"], out["classes"] = torch.ones(shape), torch.zeros(*shape, num_classes)
        for box, label, image, valid in zip(truth.boxes, truth.labels, truth.owner, truth.valid, strict=True):
            if not valid:
                continue
            cx, cy, w, h = box.tolist()
            gx, gy, gw, gh = cx * columns, cy * rows, w * columns, h * rows
            i, j = min(int(gx), columns - 1), min(int(gy), rows - 1)

            def overlap(w1, h1, w2, h2):
                inter = min(w1, w2) * min(h1, h2)
                return inter / (w1 * h1 + w2 * h2 - inter)

            cells = [(a * columns / width, b * rows / height) for a, b in anchors[level].tolist()]
            if variant == "official":
                ious = [overlap(gw + 1, gh + 1, a + 1, b + 1) for a, b in cells]
                best = ious.index(max(ious))
            else:
                nine = [[overlap(w * width, h * height, a, b) for a, b in lev] for lev in anchors.tolist()]
                ious = nine[level]
                flat = [iou for row in nine for iou in row]
                winner = flat.index(max(flat))
                best = winner - 3 * level if winner // 3 == level else None
            for k, iou in enumerate(ious):
                if iou > 0.5 or (variant == "yolov3" and k == best):
                    out["noobj_mask"][image, k, j, i] = 0
            if best is None:
                continue
            where = (int(image), best, j, i)
            out["mask"][where] = 1
            out["x"][where], out["y"][where] = gx - i, gy - j
            out["w"][where], out["h"][where] = math.log(gw / cells[best][0]), math.log(gh / cells[best][1])
            out["classes"][(*where, int(label))] = 1
        levels.append(out)
    return levels


def random_boxes(seed: int, counts: list[int], height: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for count in counts:
        first = torch.rand(count, 2, generator=generator) * 0.7
        size = 0.02 + torch.rand(count, 2, generator=generator) * 0.28
        boxes.append(torch.cat([first, first + size], 1) * torch.tensor([width, height, width, height]))
    return boxes


@pytest.mark.parametrize("variant", ["official", "yolov3"])
@pytest.mark.parametrize(
    ("image_size", "grids"),
    [((224, 224), [(7, 7), (14, 14), (28, 28)]), ((100, 84), [(4, 3), (7, 6), (13, 11)])],
)
def test_assignment_is_that_of_a_loop(variant, image_size, grids):
    # many boxes in few cells, so that several share one
    boxes = random_boxes(0, [9, 0, 40, 1], *image_size)
    labels = [torch.randint(0, 3, (len(b),), generator=torch.Generator().manual_seed(i)) for i, b in enumerate(boxes)]
    truth = truth_of(boxes, labels, image_size)
    anchors = scaled_anchors(image_size)
    got = assign(truth, grids, anchors, image_size, 3, variant)
    for level, want in zip(got, slow(truth, grids, anchors, image_size, 3, variant), strict=True):
        for name, value in want.items():
            torch.testing.assert_close(
                getattr(level, name), value, msg=lambda m, n=name: f"{n}: {m}", atol=2e-5, rtol=0
            )


def positives(levels: list[ScaleTargets]) -> list[int]:
    return [int(level.mask.sum()) for level in levels]


def test_official_assigns_on_every_level_and_yolov3_on_one():
    truth = truth_of([torch.tensor([[20.0, 20.0, 60.0, 70.0]])], None, (224, 224))
    grids = [(7, 7), (14, 14), (28, 28)]
    anchors = scaled_anchors((224, 224))
    assert positives(assign(truth, grids, anchors, (224, 224))) == [1, 1, 1]
    assert sum(positives(assign(truth, grids, anchors, (224, 224), variant="yolov3"))) == 1


def test_an_official_positive_may_be_a_negative_too_and_a_yolov3_one_never_is():
    # a sliver is unlike any anchor
    truth = truth_of([torch.tensor([[0.0, 100.0, 220.0, 102.0]])], None, (224, 224))
    args = ([(7, 7), (14, 14), (28, 28)], scaled_anchors((224, 224)), (224, 224))
    both = [bool((t.mask * t.noobj_mask).any()) for t in assign(truth, *args)]
    assert any(both)
    assert not any(bool((t.mask * t.noobj_mask).any()) for t in assign(truth, *args, variant="yolov3"))


def test_the_later_of_two_boxes_in_a_cell_wins():
    early, late = [40.0, 40.0, 52.0, 52.0], [41.0, 41.0, 53.0, 54.0]
    for first, second in ((early, late), (late, early)):
        truth = truth_of([torch.tensor([first, second])], [torch.tensor([0, 1])], (224, 224))
        [level] = assign(truth, [(7, 7)], scaled_anchors((224, 224))[:1], (224, 224), 2)
        assert level.mask.sum() == 1
        place = level.mask.nonzero()[0]
        centre = (second[0] + second[2]) / 2
        assert level.x[tuple(place)] == pytest.approx(centre / 32 % 1)
        # the released loop writes the classes of both
        assert level.classes[tuple(place)].tolist() == [1, 1]


def test_bad_boxes_are_cut_or_left_out():
    nan = float("nan")
    boxes = torch.tensor(
        [
            [-20.0, 10.0, 30.0, 40.0],  # cut
            [10.0, 10.0, 10.0, 40.0],  # no width
            [300.0, 10.0, 340.0, 40.0],  # outside
            [50.0, 60.0, 40.0, 80.0],  # corners swapped
            [nan, 10.0, 30.0, 40.0],
            [200.0, 200.0, 400.0, 400.0],  # cut, centre near the corner
        ]
    )
    truth = truth_of([boxes], None, (224, 224))
    assert truth.valid.tolist() == [True, False, False, False, False, True]
    torch.testing.assert_close(truth.boxes[0] * 224, torch.tensor([15.0, 25.0, 30.0, 30.0]))
    levels = assign(truth, [(7, 7)], scaled_anchors((224, 224))[:1], (224, 224))
    assert positives(levels) == [2]
    assert all(getattr(levels[0], name).isfinite().all() for name in ("mask", "x", "y", "w", "h", "noobj_mask"))


def test_a_batch_without_boxes_is_all_negative():
    truth = truth_of([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2, (224, 224))
    for level in assign(truth, [(7, 7), (14, 14), (28, 28)], scaled_anchors((224, 224)), (224, 224)):
        assert level.mask.sum() == 0
        assert level.noobj_mask.all()
        assert len(level.mask) == 2


def test_anchors_scale_with_the_image_and_their_order_is_coarse_to_fine():
    anchors = scaled_anchors((224, 112))
    torch.testing.assert_close(anchors[0, 0], torch.tensor([116 * 112 / 416, 90 * 224 / 416]))
    areas = torch.tensor(COCO_ANCHORS, dtype=torch.float32).prod(2).mean(1)
    assert (areas.diff() < 0).all()
    # half the image and half the stride: the same shapes in cells
    torch.testing.assert_close(scaled_anchors((112, 112)) / 16, scaled_anchors((224, 224)) / 32)


def test_shape_iou_of_equal_shapes_is_one_and_plus_one_makes_small_ones_alike():
    sizes = torch.tensor([[3.0, 4.0]])
    assert shape_iou(sizes, sizes).item() == pytest.approx(1)
    small = torch.tensor([[0.1, 0.1]])
    assert shape_iou(small, 4 * small).item() == pytest.approx(1 / 16)
    assert shape_iou(small, 4 * small, extra=1).item() > 0.6

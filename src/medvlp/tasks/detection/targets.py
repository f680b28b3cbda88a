"""From truth boxes to what each cell and anchor should say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medvlp.errors import ConfigError

Variant = Literal["official", "yolov3"]
VARIANTS: tuple[str, ...] = ("official", "yolov3")


@dataclass(frozen=True)
class Truth:
    """The boxes of a batch, in one row of tensors.

    Args:
        boxes: (M, 4) float32 centre x, centre y, width, height as fractions of the image.
        labels: (M,) int64 class numbers.
        owner: (M,) int64 which image of the batch a box belongs to.
        valid: (M,) bool; False for boxes that are left out. They stay as rows, so that no size depends on values.
        batch: number of images, those without a box included.
    """

    boxes: Tensor
    labels: Tensor
    owner: Tensor
    valid: Tensor
    batch: int


@dataclass(frozen=True)
class ScaleTargets:
    """What one level should say; (B, A, H, W) float32 each, A anchors.

    Args:
        mask: 1 where a box is assigned.
        noobj_mask: 1 where objectness should be 0. In the official rule a cell may be both (see :func:`assign`).
        x: offset of the centre in its cell, in [0, 1].
        y: the same downwards.
        w: log(box width / anchor width).
        h: log(box height / anchor height).
        classes: (B, A, H, W, C) 1 for the class of the box. Where two boxes share a cell and anchor, both classes.
    """

    mask: Tensor
    noobj_mask: Tensor
    x: Tensor
    y: Tensor
    w: Tensor
    h: Tensor
    classes: Tensor


def truth_of(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor] | None,
    image_size: tuple[int, int],
) -> Truth:
    """The batch's boxes in one row of tensors.

    A box that reaches beyond the image is cut at its edge. Left out are boxes that then have no width or no height
    (wholly outside, or of zero area) and boxes with coordinates that are not finite.

    Args:
        boxes: B tensors (n, 4): x0, y0, x1, y1 in pixels of the image; n may be 0.
        labels: B tensors (n,) of class numbers; None means class 0.
        image_size: height and width of the images in pixels.

    Returns:
        The truth, on the device of the boxes.
    """
    counts = [len(b) for b in boxes]
    device = boxes[0].device if counts else torch.device("cpu")
    corners = torch.cat([b.reshape(-1, 4) for b in boxes]).float() if counts else torch.zeros(0, 4, dtype=torch.float32)
    owner = torch.repeat_interleave(torch.tensor(counts, dtype=torch.long)).to(device)
    classes = torch.zeros_like(owner) if labels is None else torch.cat(list(labels)).long()
    height, width = image_size
    finite = corners.isfinite().all(1)
    limit = corners.new_tensor([width, height, width, height])
    corners = torch.minimum(corners.nan_to_num().clamp(min=0), limit) / limit
    size = corners[:, 2:] - corners[:, :2]
    centre = (corners[:, 2:] + corners[:, :2]) / 2
    return Truth(torch.cat([centre, size], 1), classes, owner, finite & (size > 0).all(1), len(counts))


def shape_iou(sizes: Tensor, anchors: Tensor, extra: float = 0.0) -> Tensor:
    """IoU of boxes and anchors laid on one corner.

    Args:
        sizes: (M, 2) width and height.
        anchors: (A, 2) in the same unit.
        extra: added to every width and height: 1 is the convention that counts pixels at both ends.

    Returns:
        (M, A) in [0, 1].
    """
    sizes, anchors = sizes + extra, anchors + extra
    inter = torch.minimum(sizes[:, None], anchors[None]).clamp(min=0).prod(2)
    return inter / (sizes.prod(1)[:, None] + anchors.prod(1)[None] - inter + 1e-16)


def assign(
    truth: Truth,
    grids: Sequence[tuple[int, int]],
    anchors: Tensor,
    image_size: tuple[int, int],
    num_classes: int = 1,
    variant: Variant = "official",
    ignore_threshold: float = 0.5,
) -> list[ScaleTargets]:
    """Assigns every box of a batch, without a loop over images or boxes.

    A box belongs to the cell that holds its centre. Which anchors answer for it:

    official
        MGCA's released rule (``mgca/utils/yolo_loss.py``), G2D's and LoVT's too: on **every** level, the anchor of
        that level with the best shape IoU. The IoU is taken in cells with the +1 pixel convention, so small boxes
        seem more alike than they are. The anchors of the box's cell with a shape IoU above ``ignore_threshold`` are
        no negatives; an anchor that is the best one without reaching it is positive and negative at once.
    yolov3
        Redmon and Farhadi: the one best of all nine anchors, by plain shape IoU. An anchor above the threshold is no
        negative, and a positive never is one.

    Where two boxes meet in a cell and anchor, the later box of the image gives position and size.

    Args:
        truth: the boxes.
        grids: rows and columns of each level, coarsest first.
        anchors: (levels, A, 2) width and height in pixels of the image.
        image_size: height and width in pixels. A cell is image size / grid large, be it a whole number or not.
        num_classes: C.
        variant: which rule.
        ignore_threshold: shape IoU above which an anchor of the box's cell is not held to be empty.

    Returns:
        The targets of each level.

    Raises:
        ConfigError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise ConfigError(f'there is no detection variant "{variant}"; there are {", ".join(VARIANTS)}')
    anchors = anchors.to(truth.boxes)
    height, width = image_size
    pixels = truth.boxes.new_tensor([width, height])
    everywhere = torch.ones_like(truth.valid)
    out = []
    if variant == "yolov3":
        nine = shape_iou(truth.boxes[:, 2:] * pixels, anchors.flatten(0, 1)).unflatten(1, anchors.shape[:2])
        level_of, anchor_of = (t.squeeze(1) for t in _unravel(nine.flatten(1).argmax(1, keepdim=True), nine.shape[2]))
    for level, (rows, columns) in enumerate(grids):
        cells = truth.boxes.new_tensor([columns, rows])
        in_cells = anchors[level] / (pixels / cells)
        if variant == "official":
            iou = shape_iou(truth.boxes[:, 2:] * cells, in_cells, extra=1.0)
            best, here = iou.argmax(1), everywhere
        else:
            iou, best, here = nine[:, level], anchor_of, level_of == level
        spared = iou > ignore_threshold
        if variant == "yolov3":
            chosen = torch.nn.functional.one_hot(best, iou.shape[1]).bool() & here[:, None]
            spared = spared | chosen
        out.append(_scale_targets(truth, (rows, columns), in_cells, num_classes, best, here, spared))
    return out


def _unravel(index: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    return torch.div(index, columns, rounding_mode="floor"), index % columns


def _scale_targets(
    truth: Truth,
    grid: tuple[int, int],
    anchors: Tensor,
    num_classes: int,
    best: Tensor,
    here: Tensor,
    spared: Tensor,
) -> ScaleTargets:
    """The targets of one level.

    Args:
        truth: M boxes.
        grid: rows and columns.
        anchors: (A, 2) in cells.
        num_classes: C.
        best: (M,) the anchor that answers for a box.
        here: (M,) whether it does on this level.
        spared: (M, A) whether an anchor of the box's cell is no negative.

    Returns:
        The targets.
    """
    rows, columns = grid
    count = len(anchors)
    place = truth.boxes[:, :2] * truth.boxes.new_tensor([columns, rows])
    sizes = truth.boxes[:, 2:] * truth.boxes.new_tensor([columns, rows])
    # a centre on the right or lower edge of the image belongs to the last cell
    column = place[:, 0].long().clamp(0, columns - 1)
    row = place[:, 1].long().clamp(0, rows - 1)
    shape = (truth.batch, count, rows, columns)
    total = truth.batch * count * rows * columns
    # one slot behind the last cell takes what must not be written
    which = torch.arange(count, device=best.device)
    slots = ((truth.owner[:, None] * count + which) * rows + row[:, None]) * columns + column[:, None]
    slots = slots.masked_fill(~truth.valid[:, None], total)
    own = slots.gather(1, best[:, None]).squeeze(1).masked_fill(~here, total)

    # duplicates in one write have no order, so the latest box of a slot is found first
    order = torch.arange(len(best), device=best.device)
    latest = torch.full((total + 1,), -1, device=best.device).scatter_reduce(0, own, order, "amax")[:total]
    values = torch.cat(
        [
            torch.ones_like(sizes[:, :1]),
            place - torch.stack([column, row], 1),
            torch.log(sizes.clamp(min=0) / anchors[best] + 1e-16),
        ],
        1,
    )
    # index −1 is the appended row of zeros
    filled = torch.cat([values, values.new_zeros(1, 5)])[latest].view(*shape, 5)
    mask, x, y, w, h = filled.unbind(-1)

    noobj = torch.ones(total + 1, device=best.device, dtype=values.dtype)
    noobj = noobj.scatter(0, slots.masked_fill(~spared, total).flatten(), 0.0)[:total].view(shape)
    classes = torch.zeros((total + 1) * num_classes, device=best.device, dtype=values.dtype)
    classes = classes.scatter(0, own * num_classes + truth.labels, 1.0)[: total * num_classes]
    return ScaleTargets(mask, noobj, x, y, w, h, classes.view(*shape, num_classes))

"""The papers' YOLOv3 loss: targets of each cell and anchor from the annotated boxes, and the terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.losses.precision import exact

Variant = Literal["official", "yolov3"]


@dataclass(frozen=True)
class Truth:
    """The M boxes of a batch, concatenated."""

    boxes: Tensor
    """(M, 4) float32 centre x, centre y, width, height as fractions of the image."""
    labels: Tensor
    owner: Tensor
    """(M,) int64 image of the batch that a box belongs to."""
    valid: Tensor
    """(M,) bool; False for skipped boxes. They stay as rows, so that no size depends on values."""
    batch: int
    """Number of images, with those without a box."""


@dataclass(frozen=True)
class ScaleTargets:
    """Targets of one level; (B, A, H, W) float32 each, A anchors."""

    mask: Tensor
    """1 where a box is assigned."""
    noobj_mask: Tensor
    """1 where objectness should be 0. In the official rule a cell may be both (see :func:`assign`)."""
    x: Tensor
    """Offset of the centre in its cell, in [0, 1]."""
    y: Tensor
    w: Tensor
    """log(box width / anchor width)."""
    h: Tensor
    classes: Tensor
    """(B, A, H, W, C) 1 for the class of the box. Where two boxes share a cell and anchor, both classes."""


def truth_of(boxes: Sequence[Tensor], labels: Sequence[Tensor] | None, image_size: tuple[int, int]) -> Truth:
    """Concatenate the boxes of a batch, B tensors (n, 4): x0, y0, x1, y1 in pixels of the image.

    Boxes are clipped to the image. Those that then have no area (outside the image, or of zero area) and those with
    coordinates that are not finite are skipped. Without ``labels``, B tensors (n,), all are of class 0.
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
    """Compute the (M, A) IoU of boxes and anchors, (M, 2) and (A, 2) width and height, that share a corner.

    ``extra`` is added to every width and height: 1 is the convention that counts pixels at both ends.
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
    """Assign every box of a batch to the cell that holds its centre and to anchors, without a loop over boxes.

    official
        MGCA's released rule (``mgca/utils/yolo_loss.py``), G2D's and LoVT's too: on **every** level, the anchor of
        that level with the best shape IoU. The IoU is computed in cells with the +1 pixel convention, which makes small
        boxes more alike. The anchors of the box's cell with a shape IoU above ``ignore_threshold`` are no negatives; a
        best anchor below the threshold is positive and negative at once.
    yolov3
        Redmon and Farhadi: the best of all nine anchors by plain shape IoU. An anchor above the threshold is no
        negative, nor is a positive.

    Of two boxes with the same cell and anchor, the later one gives position and size. ``grids`` are rows and columns of
    each level, coarsest first; a cell measures image size / grid, whole number or not. ``anchors`` is (levels, A, 2)
    width and height in pixels of the image.
    """
    anchors = anchors.to(truth.boxes)
    height, width = image_size
    pixels = truth.boxes.new_tensor([width, height])
    everywhere = torch.ones_like(truth.valid)
    out = []
    if variant == "yolov3":
        nine = shape_iou(truth.boxes[:, 2:] * pixels, anchors.flatten(0, 1)).unflatten(1, anchors.shape[:2])
        flat = nine.flatten(1).argmax(1, keepdim=True).squeeze(1)
        level_of, anchor_of = flat.div(nine.shape[2], rounding_mode="floor"), flat % nine.shape[2]
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
            spared = spared | (F.one_hot(best, iou.shape[1]).bool() & here[:, None])
        out.append(_scale_targets(truth, (rows, columns), in_cells, num_classes, best, here, spared))
    return out


def _scale_targets(
    truth: Truth, grid: tuple[int, int], anchors: Tensor, num_classes: int, best: Tensor, here: Tensor, spared: Tensor
) -> ScaleTargets:
    """Targets of one level with (A, 2) anchors in cells.

    ``best`` (M,) is the anchor of each box, ``here`` (M,) whether it counts on this level, ``spared`` (M, A) whether an
    anchor of the box's cell is no negative.
    """
    rows, columns = grid
    count = len(anchors)
    centre, sizes = (truth.boxes * truth.boxes.new_tensor([columns, rows, columns, rows])).split(2, 1)
    # a centre on the right or lower edge of the image belongs to the last cell
    column = centre[:, 0].long().clamp(0, columns - 1)
    row = centre[:, 1].long().clamp(0, rows - 1)
    shape = (truth.batch, count, rows, columns)
    total = truth.batch * count * rows * columns
    # writes to skip go to one extra slot behind the last cell
    which = torch.arange(count, device=best.device)
    slots = ((truth.owner[:, None] * count + which) * rows + row[:, None]) * columns + column[:, None]
    slots = slots.masked_fill(~truth.valid[:, None], total)
    assigned = slots.gather(1, best[:, None]).squeeze(1).masked_fill(~here, total)

    # a scatter with duplicates has no order, so the latest box of a slot is determined first
    order = torch.arange(len(best), device=best.device)
    latest = torch.full((total + 1,), -1, device=best.device).scatter_reduce(0, assigned, order, "amax")[:total]
    offsets, log_sizes = centre - torch.stack([column, row], 1), torch.log(sizes.clamp(min=0) / anchors[best] + 1e-16)
    values = torch.cat([torch.ones_like(sizes[:, :1]), offsets, log_sizes], 1)
    # index −1 is the appended row of zeros
    filled = torch.cat([values, values.new_zeros(1, 5)])[latest].view(*shape, 5)
    mask, x, y, w, h = filled.unbind(-1)

    noobj = torch.ones(total + 1, device=best.device, dtype=values.dtype)
    noobj = noobj.scatter(0, slots.masked_fill(~spared, total).flatten(), 0.0)[:total].view(shape)
    classes = torch.zeros((total + 1) * num_classes, device=best.device, dtype=values.dtype)
    classes = classes.scatter(0, assigned * num_classes + truth.labels, 1.0)[: total * num_classes]
    return ScaleTargets(mask, noobj, x, y, w, h, classes.view(*shape, num_classes))


WEIGHTS = {"xy": 2.5, "wh": 2.5, "confidence": 1.0, "classes": 1.0, "noobj": 0.5}
"""Weights of MGCA's released loss (``mgca/utils/yolo_loss.py``); ``noobj`` is of the negatives within objectness."""
TERMS: tuple[str, ...] = ("x", "y", "w", "h", "confidence", "classes")


def split_output(raw: Tensor, num_classes: int) -> Tensor:
    """Reshape (B, A · (5 + C), H, W), anchor by anchor, to (B, A, H, W, 5 + C)."""
    batch, _, height, width = raw.shape
    return raw.view(batch, -1, 5 + num_classes, height, width).permute(0, 1, 3, 4, 2)


def scale_terms(raw: Tensor, targets: ScaleTargets) -> dict[str, Tensor]:
    """Compute the unweighted terms of one level with output (B, A · (5 + C), H, W).

    Every term is a mean over **all** B · A · H · W cells and anchors (the class term over all its C values there too),
    to which only the positives (for objectness also the negatives) contribute: binary cross-entropy of the offsets,
    objectness and classes, squared error of the log sizes. Objectness is positives + ``noobj`` · negatives.

    The cross-entropies use the logits. The released code clamps the logarithms of sigmoids at −100, which is the same
    except for logits beyond about 15, where a float32 sigmoid saturates and its gradient is lost.

    Returns:
        Scalars under the names :data:`TERMS`.
    """
    with torch.autocast(raw.device.type, enabled=False):
        output, *fields = exact(split_output(raw, targets.classes.shape[-1]), *vars(targets).values())
        targets = ScaleTargets(*fields)
        mask, count = targets.mask, targets.mask.numel()

        def entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / logits.numel()

        objectness = output[..., 4]
        return {
            "x": entropy(output[..., 0], targets.x, mask),
            "y": entropy(output[..., 1], targets.y, mask),
            "w": ((output[..., 2] - targets.w).square() * mask).sum() / count,
            "h": ((output[..., 3] - targets.h).square() * mask).sum() / count,
            "confidence": entropy(objectness, mask, mask)
            + WEIGHTS["noobj"] * entropy(objectness, torch.zeros_like(mask), targets.noobj_mask),
            "classes": entropy(output[..., 5:], targets.classes, mask[..., None].expand_as(targets.classes)),
        }


def weighted(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight the terms of :func:`scale_terms` as they enter the total: xy, wh, confidence, classes."""
    return {
        "xy": WEIGHTS["xy"] * (terms["x"] + terms["y"]),
        "wh": WEIGHTS["wh"] * (terms["w"] + terms["h"]),
        "confidence": WEIGHTS["confidence"] * terms["confidence"],
        "classes": WEIGHTS["classes"] * terms["classes"],
    }


def yolo_loss(outputs: Sequence[Tensor], targets: Sequence[ScaleTargets]) -> dict[str, Tensor]:
    """Sum the unweighted terms of each level's output, (B, A · (5 + C), H, W), over the levels."""
    levels = [scale_terms(raw, target) for raw, target in zip(outputs, targets, strict=True)]
    return {name: torch.stack([terms[name] for terms in levels]).sum() for name in TERMS}

"""Decoding of raw outputs to boxes, and the choice among them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from medvlp.losses.precision import exact
from medvlp.tasks.detection.loss import split_output

Convention = Literal["official", "plain"]

_MAX_LOG_SIZE = math.log(1e5)


@dataclass(frozen=True)
class Predictions:
    """All boxes of the head, before any choice; they may reach beyond the image."""

    boxes: Tensor
    """(B, N, 4) x0, y0, x1, y1 in pixels of the image."""
    scores: Tensor
    """(B, N) in [0, 1], by which boxes are chosen and ranked: objectness alone in the papers' head."""
    classes: Tensor
    """(B, N, C) class probabilities."""


@dataclass(frozen=True)
class Detections:
    """The M chosen boxes, image by image, best first, of a batch with ``batch`` images."""

    boxes: Tensor
    """(M, 4) x0, y0, x1, y1 in pixels of the image."""
    scores: Tensor
    class_scores: Tensor
    labels: Tensor
    owner: Tensor
    """(M,) int64 image of the batch; ascending."""
    batch: int

    def per_image(self, values: Tensor) -> list[Tensor]:
        """Split rows, (M, ...), into one tensor per image."""
        return list(values.split(torch.bincount(self.owner, minlength=self.batch).tolist()))


def decode_scale(raw: Tensor, anchors: Tensor, image_size: tuple[int, int], num_classes: int = 1) -> Tensor:
    """Decode one level, (B, A · (5 + C), H, W): centre = (sigmoid + cell) · cell size, size = exp · anchor.

    Returns:
        (B, A · H · W, 5 + C) float32 at least, in the order anchor, row, column: centre x, centre y, width, height in
        pixels, objectness, class probabilities. Sizes are clamped to 1e5 anchors, so that they stay finite.
    """
    (output,) = exact(split_output(raw, num_classes))
    rows, columns = output.shape[2:4]
    height, width = image_size
    cell = output.new_tensor([width / columns, height / rows])
    y, x = torch.meshgrid(
        torch.arange(rows, device=raw.device), torch.arange(columns, device=raw.device), indexing="ij"
    )
    centre = (output[..., :2].sigmoid() + torch.stack([x, y], -1)) * cell
    size = output[..., 2:4].clamp(max=_MAX_LOG_SIZE).exp() * anchors.to(output)[:, None, None]
    return torch.cat([centre, size, output[..., 4:].sigmoid()], -1).flatten(1, 3)


def corners_of(boxes: Tensor) -> Tensor:
    """Convert (..., 4) centre x, centre y, width, height to x0, y0, x1, y1."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def decode(
    outputs: Sequence[Tensor], anchors: Tensor, image_size: tuple[int, int], num_classes: int = 1
) -> Predictions:
    """Decode all levels of the papers' head; see :func:`decode_scale`. ``anchors`` is (levels, A, 2)."""
    rows = torch.cat([decode_scale(raw, anchors[i], image_size, num_classes) for i, raw in enumerate(outputs)], 1)
    return Predictions(corners_of(rows[..., :4]), rows[..., 4], rows[..., 5:])


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float = 0.5, convention: Convention = "official"
) -> Tensor:
    """Run greedy non-maximum suppression within groups.

    official
        MGCA's released rule (``mgca/utils/detection_utils.py``): widths and heights count pixels at both ends, x1 − x0
        + 1, and a box is dropped at IoU **≥** the threshold. This equals the plain IoU of boxes whose far corner is
        moved by 1.
    plain
        IoU of real-valued boxes; a box is dropped at IoU **>** the threshold (torchvision).

    Overlaps of the (M, 4) corners are computed in float64, so that many (M,) groups cost no precision.

    Returns:
        Indices of the kept boxes, by descending score.
    """
    if not len(boxes):
        return torch.zeros(0, dtype=torch.long, device=boxes.device)
    corners = boxes.double()
    corners = corners - corners.min()  # batched_nms shifts groups apart and assumes positive coordinates for that
    if convention == "official":
        corners = corners + corners.new_tensor([0, 0, 1, 1])
        iou_threshold = math.nextafter(iou_threshold, -math.inf)
    return batched_nms(corners, scores.double(), groups, iou_threshold)


def detect(
    predictions: Predictions,
    min_score: float = 0.5,
    iou_threshold: float = 0.5,
    convention: Convention = "official",
    max_candidates: int | None = None,
    max_detections: int | None = None,
) -> Detections:
    """Choose the detections of a batch: score cut, then non-maximum suppression within image and class.

    A cut by score commutes with the suppression, so the detections at a higher ``min_score`` are the part of these that
    reaches it, as long as ``max_candidates``, the highest scores of an image before the suppression, drops none.
    ``max_detections`` of an image are kept after it. See :func:`suppress` for the rule.
    """
    batch, count, num_classes = predictions.classes.shape
    scores, index = predictions.scores.topk(count if max_candidates is None else min(max_candidates, count))
    owner, rank = (scores >= min_score).nonzero(as_tuple=True)
    scores, index = scores[owner, rank], index[owner, rank]
    boxes = predictions.boxes[owner, index]
    class_scores, labels = predictions.classes[owner, index].max(1)
    kept = suppress(boxes, scores, owner * num_classes + labels, iou_threshold, convention)
    kept = kept[owner[kept].argsort(stable=True)]
    if max_detections is not None:
        first = torch.searchsorted(owner[kept], owner[kept])  # the first row of each row's image
        kept = kept[torch.arange(len(kept), device=kept.device) - first < max_detections]
    return Detections(boxes[kept], scores[kept], class_scores[kept], labels[kept], owner[kept], batch)

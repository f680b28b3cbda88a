"""From raw outputs to boxes, and from many boxes to few."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from medvlp.errors import ConfigError
from medvlp.losses.precision import exact
from medvlp.tasks.detection.loss import split_output

Convention = Literal["official", "plain"]
CONVENTIONS: tuple[str, ...] = ("official", "plain")

_MAX_LOG_SIZE = math.log(1e5)


@dataclass(frozen=True)
class Predictions:
    """All boxes that the head names, before any choice.

    Args:
        boxes: (B, N, 4) x0, y0, x1, y1 in pixels of the image; they may reach beyond it.
        scores: (B, N) in [0, 1], what boxes are chosen and ranked by: objectness alone in the papers' head.
        classes: (B, N, C) class probabilities.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Detections:
    """The boxes that are left, image by image, best first.

    Args:
        boxes: (M, 4) x0, y0, x1, y1 in pixels of the image.
        scores: (M,).
        class_scores: (M,) probability of the box's class.
        labels: (M,) int64 class.
        owner: (M,) int64 image of the batch; rising.
        batch: number of images, those without a detection included.
    """

    boxes: Tensor
    scores: Tensor
    class_scores: Tensor
    labels: Tensor
    owner: Tensor
    batch: int

    def per_image(self, values: Tensor) -> list[Tensor]:
        """Splits rows, (M, ...), into one tensor per image."""
        return list(values.split(torch.bincount(self.owner, minlength=self.batch).tolist()))


def decode_scale(raw: Tensor, anchors: Tensor, image_size: tuple[int, int], num_classes: int = 1) -> Tensor:
    """Decodes one level: centre = (sigmoid + cell) · cell size, size = exp · anchor.

    Args:
        raw: (B, A · (5 + C), H, W).
        anchors: (A, 2) width and height in pixels of the image.
        image_size: height and width in pixels.
        num_classes: C.

    Returns:
        (B, A · H · W, 5 + C) float32 at least, in the order anchor, row, column: centre x, centre y, width, height in
        pixels, objectness, class probabilities. Sizes are cut at 1e5 anchors, so that they stay finite.
    """
    (found,) = exact(split_output(raw, num_classes))
    rows, columns = found.shape[2:4]
    height, width = image_size
    cell = found.new_tensor([width / columns, height / rows])
    y, x = torch.meshgrid(
        torch.arange(rows, device=raw.device), torch.arange(columns, device=raw.device), indexing="ij"
    )
    centre = (found[..., :2].sigmoid() + torch.stack([x, y], -1)) * cell
    size = found[..., 2:4].clamp(max=_MAX_LOG_SIZE).exp() * anchors.to(found)[:, None, None]
    return torch.cat([centre, size, found[..., 4:].sigmoid()], -1).flatten(1, 3)


def corners_of(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height to x0, y0, x1, y1."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def decode(
    outputs: Sequence[Tensor], anchors: Tensor, image_size: tuple[int, int], num_classes: int = 1
) -> Predictions:
    """Decodes all levels of the papers' head.

    Args:
        outputs: raw output of each level.
        anchors: (levels, A, 2) in pixels of the image.
        image_size: height and width in pixels.
        num_classes: C.

    Returns:
        The boxes of all levels in their order; the score is objectness.
    """
    rows = [decode_scale(raw, anchors[i], image_size, num_classes) for i, raw in enumerate(outputs)]
    found = torch.cat(rows, 1)
    return Predictions(corners_of(found[..., :4]), found[..., 4], found[..., 5:])


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float = 0.5, convention: Convention = "official"
) -> Tensor:
    """Greedy non-maximum suppression within groups: in falling order of score, a box goes if it overlaps a kept one.

    official
        MGCA's released rule (``mgca/utils/detection_utils.py``): widths and heights count pixels at both ends, x1 − x0
        + 1, and a box goes at IoU **≥** the threshold. That is the plain IoU of boxes whose far corner is moved by 1.
    plain
        IoU of real-valued boxes; a box goes at IoU **>** the threshold (torchvision).

    Overlaps are taken in float64, so that many groups cost no precision.

    Args:
        boxes: (M, 4) x0, y0, x1, y1.
        scores: (M,).
        groups: (M,) int64; boxes of different groups do not meet.
        iou_threshold: in [0, 1].
        convention: how IoU is measured.

    Returns:
        Positions of the kept boxes, in falling order of score.

    Raises:
        ConfigError: there is no such convention.
    """
    if convention not in CONVENTIONS:
        raise ConfigError(f'there is no IoU convention "{convention}"; there are {", ".join(CONVENTIONS)}')
    if not len(boxes):
        return torch.zeros(0, dtype=torch.long, device=boxes.device)
    exact = boxes.double()
    exact = exact - exact.min()  # batched_nms shifts groups apart, and takes coordinates to be positive for that
    if convention == "official":
        exact = exact + exact.new_tensor([0, 0, 1, 1])
        iou_threshold = math.nextafter(iou_threshold, -math.inf)
    return batched_nms(exact, scores.double(), groups, iou_threshold)


def detect(
    predictions: Predictions,
    min_score: float = 0.5,
    iou_threshold: float = 0.5,
    convention: Convention = "official",
    max_candidates: int | None = None,
    max_detections: int | None = None,
) -> Detections:
    """Chooses the detections of a batch: score cut, then non-maximum suppression within image and class.

    Args:
        predictions: all boxes.
        min_score: boxes below it are dropped.
        iou_threshold: of the suppression.
        convention: of its IoU, see :func:`suppress`.
        max_candidates: of an image, keep this many of the highest scores before the suppression; None keeps all.
        max_detections: of an image, keep this many afterwards; None keeps all.

    Returns:
        The detections. A cut by score commutes with the suppression, so those at a higher ``min_score`` are the part
        of these that reaches it, as long as no ``max_candidates`` bites.
    """
    batch, count, num_classes = predictions.classes.shape
    scores, place = predictions.scores.topk(count if max_candidates is None else min(max_candidates, count))
    owner, rank = (scores >= min_score).nonzero(as_tuple=True)
    scores, place = scores[owner, rank], place[owner, rank]
    boxes = predictions.boxes[owner, place]
    class_scores, labels = predictions.classes[owner, place].max(1)
    kept = suppress(boxes, scores, owner * num_classes + labels, iou_threshold, convention)
    kept = kept[owner[kept].argsort(stable=True)]
    if max_detections is not None:
        first = torch.searchsorted(owner[kept], owner[kept])  # where the image of each row begins
        kept = kept[torch.arange(len(kept), device=kept.device) - first < max_detections]
    return Detections(boxes[kept], scores[kept], class_scores[kept], labels[kept], owner[kept], batch)

"""Average precision and FROC of boxes, over all images and as the papers compute it.

====================== =================================================================================================
``map_coco``           AP over **all** images and all detections given, 101-point interpolation, at most 100 detections
                       of an image and class, mean over IoU 0.40, 0.45, … 0.75 and over the classes. The number to
                       look at
``map_mgca``           the same of detections scored at least ½, **without** the images that then have no detection or
                       no box: neither their misses nor their false alarms count (MGCA's code, G2D). NaN if no image
                       is left
``images_mgca``        share of the images that ``map_mgca`` looks at
``ap@0.50``            as ``map_coco`` at IoU 0.50 alone
``sensitivity@<f>``    share of the boxes found at no more than f false positives per image (all images), IoU 0.50
``froc``               mean of these for f = ⅛, ¼, ½, 1, 2, 4, 8
====================== =================================================================================================

Matching is COCO's: in order of score, each detection takes the free box of its class that it overlaps most, if the IoU
reaches the threshold. Classes without a box are skipped; without any box every metric is NaN. Without a detection
precision and sensitivity are 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medvlp.metrics.samples import Ragged, Samples, named_values, sample_weights

IOUS = (0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75)
"""Overlaps of the papers' mAP; MGCA's text prints 0.65 twice and means 0.55."""
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per image of the FROC."""
COLUMNS = ("boxes", "scores", "labels", "truth", "truth_labels")
"""Ragged columns of detections and truth."""

_MOST = 100
"""Detections of an image and class that count: the best."""
_MGCA_SCORE = 0.5
_RECALLS = 101
_CHUNK = 8_000_000


@dataclass(frozen=True)
class Ranked:
    """The M detections of one class in all images, best first."""

    owner: Tensor
    """(M,) image of each."""
    scores: Tensor
    hit: Tensor
    """(K, M) bool, whether it finds a box at each of K overlaps."""
    truths: Tensor
    """(N,) boxes of the class in each image."""

    def above(self, score: float) -> "Ranked":
        """Drop the detections below a score; it does not change the matches of the others."""
        keep = self.scores >= score
        return Ranked(self.owner[keep], self.scores[keep], self.hit[:, keep], self.truths)


def _padded(rows: Ragged, values: Tensor, fill: float) -> Tensor:
    """(N, most rows of an image, ...)."""
    most = int(rows.counts.max()) if len(rows) else 0
    padded = values.new_full((len(rows), most, *values.shape[1:]), fill)
    padded[rows.owner, rows.position] = values
    return padded


def _overlaps(a: Tensor, b: Tensor) -> Tensor:
    """(n, D, G) IoU of boxes (n, D, 4) and (n, G, 4), corners x1 y1 x2 y2; 0 of two empty boxes."""
    sides = torch.minimum(a[:, :, None, 2:], b[:, None, :, 2:]) - torch.maximum(a[:, :, None, :2], b[:, None, :, :2])
    shared = sides.clamp_min(0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1) for box in (a, b)]
    return shared / (areas[0][:, :, None] + areas[1][:, None] - shared).clamp_min(1e-12)


def _greedy(overlap: Tensor, ious: Tensor) -> Tensor:
    """(n, D, K) bool, which detections find a box at K overlaps: all images at once, one rank after the other.

    ``overlap`` is (n, D, G), detections best first; −1 where a pair cannot match.
    """
    images, ranks, boxes = overlap.shape
    hit = overlap.new_zeros(images, ranks, len(ious), dtype=torch.bool)
    if not boxes:
        return hit
    free = overlap.new_ones(images, len(ious), boxes, dtype=torch.bool)
    for rank in range(ranks):
        candidates = torch.where(free, overlap[:, rank, None], -1.0)
        # Of equal overlaps the last box, as in COCO.
        best = boxes - 1 - candidates.flip(-1).argmax(-1, keepdim=True)
        matched = candidates.gather(-1, best) >= ious[:, None]
        hit[:, rank] = matched[..., 0]
        free.scatter_(-1, best, free.gather(-1, best) & ~matched)
    return hit


def _ordered(owner: Tensor, scores: Tensor, labels: Tensor, min_score: float) -> Tensor:
    """Rows of the detections that count: image by image, best first, at most ``_MOST`` of an image and class."""
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(owner[order], stable=True)]
    order = order[scores[order] >= min_score]
    classes, kind = torch.unique(labels[order], return_inverse=True)
    key = owner[order] * max(len(classes), 1) + kind
    by_key = torch.argsort(key, stable=True)
    sizes = torch.unique_consecutive(key[by_key], return_counts=True)[1]
    rank = torch.empty_like(by_key)
    rank[by_key] = Ragged.from_counts(by_key, sizes).position
    return order[rank < _MOST]


def rank_detections(samples: Samples, ious: Sequence[float] = IOUS, min_score: float = 0.0) -> dict[int, Ranked]:
    """Match the detections of each class with its boxes.

    Args:
        samples: ragged columns ``boxes`` (n, 4) and ``truth`` (m, 4) as corners x1 y1 x2 y2 in pixels of one image,
            ``scores`` (n,), ``labels`` (n,), ``truth_labels`` (m,).
        ious: K overlaps, each above 0.
        min_score: detections below are dropped.

    Returns:
        Class number to its detections, for the classes that have a box. Of equal scores the earlier image first.
    """
    count, device = len(samples), samples.index.device
    truth, detections = samples.ragged["truth"], samples.ragged["boxes"]
    truth_labels = samples.ragged["truth_labels"].values.long()
    scores, labels = samples.ragged["scores"].values.double(), samples.ragged["labels"].values.long()
    owner = detections.owner
    order = _ordered(owner, scores, labels, min_score)
    rows = Ragged.from_counts(order, torch.bincount(owner[order], minlength=count))
    thresholds = torch.tensor([min(iou, 1 - 1e-10) for iou in ious], dtype=torch.float64, device=device)
    hit = torch.zeros(len(order), len(thresholds), dtype=torch.bool, device=device)
    per_image = max(int(rows.counts.max()) if count else 0, 1) * max(int(truth.counts.max()) if count else 0, 1)
    step = max(1, _CHUNK // (4 * per_image))
    for start in range(0, count, step):
        at = torch.arange(start, min(start + step, count), device=device)
        some, boxes = rows.select(at), truth.select(at)
        kinds = truth_labels[truth.offsets[at[0]] : truth.offsets[at[-1] + 1]]
        predicted = _padded(some, detections.values[some.values].reshape(-1, 4).double(), 0.0)
        expected = _padded(boxes, boxes.values.reshape(-1, 4).double(), 0.0)
        same = _padded(some, labels[some.values], -1)[:, :, None] == _padded(boxes, kinds, -2)[:, None]
        overlap = torch.where(same, _overlaps(predicted, expected), -1.0)
        begin, end = int(rows.offsets[at[0]]), int(rows.offsets[at[-1] + 1])
        hit[begin:end] = _greedy(overlap, thresholds)[some.owner, some.position]

    best = torch.argsort(scores[order], descending=True, stable=True)
    order, hit = order[best], hit[best]
    result = {}
    for label in torch.unique(truth_labels).tolist():
        member = labels[order] == label
        boxes_of = torch.bincount(truth.owner[truth_labels == label], minlength=count)
        result[label] = Ranked(owner[order][member], scores[order][member], hit[member].T, boxes_of)
    return result


@dataclass(frozen=True)
class _Points:
    """At each detection that is a hit: (R, H) weight of the hits and of all detections up to it; (R,) of the boxes."""

    hits: Tensor
    everything: Tensor
    truths: Tensor

    def average_precision(self) -> Tensor:
        """(R,) 101-point interpolated; NaN without a box."""
        if not self.hits.shape[1]:
            return torch.where(self.truths > 0, 0.0, torch.nan)
        # Precision peaks and recall rises only at hits.
        precision = torch.where(self.everything > 0, self.hits / self.everything, 0)
        envelope = precision.flip(1).cummax(1).values.flip(1)
        recall = self.hits / self.truths[:, None].clamp_min(1e-300)
        grid = torch.arange(_RECALLS, dtype=torch.float64, device=recall.device) * 0.01
        grid[-1] = 1.0
        at = torch.searchsorted(recall.contiguous(), grid.expand(len(recall), -1).contiguous())
        reached = at < recall.shape[1]
        value = torch.where(reached, envelope.gather(1, at.clamp_max(recall.shape[1] - 1)), 0).mean(1)
        return torch.where(self.truths > 0, value, torch.nan)

    def sensitivity(self, false_positives: Tensor) -> Tensor:
        """(R,) share of the boxes found before there are more than (R,) false positives; NaN without a box."""
        wrong = self.everything - self.hits
        hits = torch.where(wrong <= false_positives[:, None] + 1e-9, self.hits, 0)
        most = hits.amax(1) if hits.shape[1] else torch.zeros_like(self.truths)
        return torch.where(self.truths > 0, most / self.truths, torch.nan)


def _points(ranked: Ranked, weights: Tensor) -> list[_Points]:
    """One per overlap; the running weight of all detections is summed once for all overlaps."""
    positions = [hit.nonzero()[:, 0] for hit in ranked.hit]
    parts: list[list[Tensor]] = [[] for _ in positions]
    for some in weights.split(max(1, _CHUNK // max(len(ranked.owner), 1))):
        running = some[:, ranked.owner].cumsum(1)
        for part, at in zip(parts, positions, strict=True):
            part.append(running[:, at])
    truths = weights @ ranked.truths.double()
    return [
        _Points(weights[:, ranked.owner[at]].cumsum(1), torch.cat(part), truths)
        for part, at in zip(parts, positions, strict=True)
    ]


def detection_measures(
    samples: Samples, weights: Tensor | None = None, *, ious: Sequence[float] = IOUS, min_score: float = 0.0
) -> dict[str, Tensor]:
    """Compute all metrics of the module's table (see :data:`medvlp.metrics.bootstrap.Measures`).

    Args:
        samples: as for :func:`rank_detections`.
        weights: (R, N) multiplicity of each image; None: 1.
        ious: overlaps that mAP is the mean over.
        min_score: of ``map_coco``, ``ap@0.50`` and the FROC; keep it low (0.001 to 0.05).
    """
    w = sample_weights(samples, weights)
    seen = torch.zeros(len(samples), dtype=torch.bool, device=w.device)
    seen[samples.ragged["boxes"].owner[samples.ragged["scores"].values >= _MGCA_SCORE]] = True
    kept = seen & (samples.ragged["truth"].counts > 0)
    sensitivities = {f"sensitivity@{rate:g}": rate for rate in RATES}
    per_class: dict[str, list[Tensor]] = {name: [] for name in ("map_coco", "map_mgca", "ap@0.50", *sensitivities)}
    for ranked in rank_detections(samples, [*ious, 0.5], min_score).values():
        points = _points(ranked, w)
        papers = _points(ranked.above(_MGCA_SCORE), w * kept)
        # Mean over the overlaps before the classes: a class without a box is undefined at every overlap.
        per_class["map_coco"].append(torch.stack([at.average_precision() for at in points[:-1]]).mean(0))
        per_class["map_mgca"].append(torch.stack([at.average_precision() for at in papers[:-1]]).mean(0))
        per_class["ap@0.50"].append(points[-1].average_precision())
        for name, rate in sensitivities.items():
            per_class[name].append(points[-1].sensitivity(rate * w.sum(1)))
    undefined = torch.full((len(w),), torch.nan, dtype=torch.float64, device=w.device)
    mean = {name: torch.stack(values).nanmean(0) if values else undefined for name, values in per_class.items()}
    result = {
        "map_coco": mean["map_coco"],
        "map_mgca": mean["map_mgca"],
        "images_mgca": w @ kept.double() / w.sum(1),
        "ap@0.50": mean["ap@0.50"],
        "froc": torch.stack([mean[name] for name in sensitivities]).nanmean(0),
        **{name: mean[name] for name in sensitivities},
    }
    return named_values(result, weights)

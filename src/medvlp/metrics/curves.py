"""Counts above every threshold of a score, for many weightings of the samples at once, and what follows from them."""

import torch
from torch import Tensor

from medvlp.errors import ConfigError

_TINY = 1e-300
"""Below every weight: keeps 0 / 0 at 0."""


def known(labels: Tensor) -> Tensor:
    """Mark labels that are 1 or 0; NaN, −1 and anything else is unknown."""
    return (labels == 0) | (labels == 1)


def _steps(counts: Tensor) -> Tensor:
    return counts.diff(dim=1, prepend=counts.new_zeros(len(counts), 1))


class Curve:
    """True and false positives at each distinct score taken as threshold (prediction: score >= threshold).

    Args:
        scores: (N,); ties share a threshold.
        labels: (N,), 1 positive, 0 negative; samples with any other label are skipped.
        weights: (R, N) multiplicity of each sample; None: 1, R = 1.

    Attributes:
        thresholds: (K,) distinct scores, descending.
        tp: (R, K) weight of the positives at or above each threshold.
        fp: (R, K) weight of the negatives.
        here: (R, K) bool, whether any sample of the weighting has this score; other points repeat the one before.
        positives, negatives: (R,) weight of all of them.
        defined: (R,) bool, whether there are a positive and a negative.
    """

    def __init__(self, scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        keep = known(labels).nonzero()[:, 0]
        order = keep[torch.argsort(scores[keep], descending=True, stable=True)]
        scores, positive = scores[order], labels[order] == 1
        last = torch.ones_like(positive)
        last[:-1] = scores[1:] != scores[:-1]
        ends = last.nonzero()[:, 0]
        weights = torch.ones(1, len(order), device=scores.device) if weights is None else weights[:, order]
        both = weights.cumsum(1, dtype=torch.float64)[:, ends]
        self.thresholds = scores[ends]
        self.tp = (weights * positive).cumsum(1, dtype=torch.float64)[:, ends]
        self.fp = both - self.tp
        self.here = _steps(both) > 0
        self.positives, self.negatives = self.tp[:, -1:].sum(1), self.fp[:, -1:].sum(1)
        self.defined = (self.positives > 0) & (self.negatives > 0)

    def auroc(self) -> Tensor:
        """(R,) area under the ROC curve, ties counting half; NaN without a positive or a negative."""
        before = torch.cat([self.tp.new_zeros(len(self.tp), 1), self.tp[:, :-1]], 1)[:, : self.tp.shape[1]]
        area = (_steps(self.fp) * (self.tp + before)).sum(1) / 2
        return torch.where(self.defined, area / (self.positives * self.negatives), torch.nan)

    def average_precision(self) -> Tensor:
        """(R,) Σ (recall_k − recall_{k−1}) · precision_k, not interpolated; NaN without a positive or a negative."""
        precision = self.tp / (self.tp + self.fp).clamp_min(_TINY)
        return torch.where(self.defined, (_steps(self.tp) * precision).sum(1) / self.positives, torch.nan)

    def f1(self) -> Tensor:
        """(R, K) 2 · recall · precision / (recall + precision) at each threshold; 0 where undefined."""
        precision = self.tp / (self.tp + self.fp).clamp_min(_TINY)
        recall = self.tp / self.positives[:, None].clamp_min(_TINY)
        # Not simplified: which of two nearly equal thresholds is best depends on rounding.
        return 2 * recall * precision / (recall + precision).clamp_min(_TINY)

    def mcc(self) -> Tensor:
        """(R, K) Matthews correlation at each threshold; 0 where undefined."""
        positives, negatives = self.positives[:, None], self.negatives[:, None]
        fn, tn = positives - self.tp, negatives - self.fp
        spread = (self.tp + self.fp) * (fn + tn) * positives * negatives
        return torch.where(spread > 0, (self.tp * tn - self.fp * fn) / spread.clamp_min(_TINY).sqrt(), 0)

    def youden(self) -> Tensor:
        """(R, K) sensitivity + specificity − 1 at each threshold."""
        sensitivity = self.tp / self.positives[:, None].clamp_min(_TINY)
        return sensitivity - self.fp / self.negatives[:, None].clamp_min(_TINY)

    def best(self, quality: Tensor) -> Tensor:
        """(R,) position of the largest (R, K) quality, at least −1, among scores in the weighting; of ties the last."""
        quality = torch.where(self.here, quality, -2)
        return quality.shape[1] - 1 - quality.flip(1).argmax(1)

    def optimised(self, quality: Tensor, f1: Tensor, strict: bool = False) -> tuple[Tensor, Tensor]:
        """(R,) F1 and (R,) accuracy at the best threshold of the scored set itself; NaN where undefined.

        Args:
            quality: (R, K) of this curve, to maximise.
            f1: result of :meth:`f1`.
            strict: accuracy takes a score equal to the threshold as negative (F1 as positive), as in MedKLIP's released
                code (``Sample_zero-shot_Classification_CXR14/test.py``).
        """
        if not len(self.thresholds):
            undefined = torch.full_like(self.positives, torch.nan)
            return undefined, undefined
        at = self.best(quality)[:, None]
        last = at - int(strict)  # the last point that accuracy counts as positive
        gain = self.tp.gather(1, last.clamp_min(0)) - self.fp.gather(1, last.clamp_min(0))
        accuracy = ((gain * (last >= 0))[:, 0] + self.negatives) / (self.positives + self.negatives)
        best_f1 = f1.gather(1, at)[:, 0]
        return torch.where(self.defined, best_f1, torch.nan), torch.where(self.defined, accuracy, torch.nan)


def _thresholds(scores: Tensor, labels: Tensor, quality: str) -> Tensor:
    if scores.shape != labels.shape:
        raise ConfigError(f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must have one shape")
    thresholds = torch.full((scores.shape[1],), torch.nan, dtype=torch.float32)
    for c in range(scores.shape[1]):
        curve = Curve(scores[:, c], labels[:, c])
        if bool(curve.defined):
            thresholds[c] = curve.thresholds[curve.best(getattr(curve, quality)())[0]]
    return thresholds


def best_f1_thresholds(scores: Tensor, labels: Tensor) -> Tensor:
    """Choose for each class the threshold with the largest F1 (MedKLIP's rule; call it on validation data).

    Prediction: score >= threshold. Of equally good thresholds the smallest. Labels, (N, C), other than 0 and 1 are
    unknown and skipped.

    Returns:
        (C,) float32; NaN for a class without both a positive and a negative.
    """
    return _thresholds(scores, labels, "f1")


def best_mcc_thresholds(scores: Tensor, labels: Tensor) -> Tensor:
    """As :func:`best_f1_thresholds`, for the largest Matthews correlation (KAD and CheXzero)."""
    return _thresholds(scores, labels, "mcc")


def youden_thresholds(scores: Tensor, labels: Tensor) -> Tensor:
    """As :func:`best_f1_thresholds`, for the largest sensitivity + specificity (CheXzero's operating point)."""
    return _thresholds(scores, labels, "youden")

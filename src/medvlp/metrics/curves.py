"""Counts above every threshold of a score, for many weightings of the samples at once, and what follows from them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medvlp.errors import ConfigError


@dataclass(frozen=True)
class Curve:
    """True and false positives at each distinct score, taken as threshold (prediction: score >= threshold).

    Attributes:
        thresholds: (K,) distinct scores, descending.
        tp: (R, K) weight of the positives at or above each threshold.
        fp: (R, K) of the negatives.
        here: (R, K) bool; whether any sample of the weighting has just this score. Others repeat the point before.
    """

    thresholds: Tensor
    tp: Tensor
    fp: Tensor
    here: Tensor

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> "Curve":
        """Sorted once, summed for every weighting.

        Args:
            scores: (N,); ties are one threshold.
            labels: (N,), 1 positive, 0 negative; samples with any other label are left out.
            weights: (R, N) how often each sample counts; None: once, R = 1.
        """
        keep = known(labels).nonzero()[:, 0]
        order = keep[torch.argsort(scores[keep], descending=True, stable=True)]
        scores, positive = scores[order], labels[order] == 1
        last = torch.ones_like(positive)
        last[:-1] = scores[1:] != scores[:-1]
        ends = last.nonzero()[:, 0]
        weights = torch.ones(1, len(order), device=scores.device) if weights is None else weights[:, order]
        both = weights.cumsum(1, dtype=torch.float64)[:, ends]
        tp = (weights * positive).cumsum(1, dtype=torch.float64)[:, ends]
        here = both.diff(dim=1, prepend=both.new_zeros(len(both), 1)) > 0
        return cls(scores[ends], tp, both - tp, here)

    @property
    def positives(self) -> Tensor:
        """(R,) weight of all positives."""
        return self.tp[:, -1] if len(self.thresholds) else self.tp.sum(1)

    @property
    def negatives(self) -> Tensor:
        """(R,) weight of all negatives."""
        return self.fp[:, -1] if len(self.thresholds) else self.fp.sum(1)

    @property
    def defined(self) -> Tensor:
        """(R,) bool: there is a positive and a negative."""
        return (self.positives > 0) & (self.negatives > 0)

    def auroc(self) -> Tensor:
        """(R,) area under the ROC curve, ties counting half; NaN without a positive or a negative."""
        steps = self.fp.diff(dim=1, prepend=self.fp.new_zeros(len(self.fp), 1))
        before = torch.cat([self.tp.new_zeros(len(self.tp), 1), self.tp[:, :-1]], 1)[:, : self.tp.shape[1]]
        area = (steps * (self.tp + before)).sum(1) / 2
        return _where(self.defined, area / (self.positives * self.negatives))

    def average_precision(self) -> Tensor:
        """(R,) Σ (recall_k − recall_{k−1}) · precision_k, without interpolation; NaN without a positive."""
        precision = self.tp / (self.tp + self.fp).clamp_min(_TINY)
        steps = self.tp.diff(dim=1, prepend=self.tp.new_zeros(len(self.tp), 1))
        return _where(self.positives > 0, (steps * precision).sum(1) / self.positives)

    def f1(self) -> Tensor:
        """(R, K) F1 at each threshold; 0 where nothing is right. As 2·recall·precision / (recall + precision)."""
        precision = self.tp / (self.tp + self.fp).clamp_min(_TINY)
        recall = self.tp / self.positives[:, None].clamp_min(_TINY)
        # In this order, since which of two nearly equal thresholds is best hangs on the rounding.
        return 2 * recall * precision / (recall + precision).clamp_min(_TINY)

    def mcc(self) -> Tensor:
        """(R, K) Matthews' correlation at each threshold; 0 where it is not defined."""
        positives, negatives = self.positives[:, None], self.negatives[:, None]
        fn, tn = positives - self.tp, negatives - self.fp
        spread = (self.tp + self.fp) * (fn + tn) * positives * negatives
        return torch.where(spread > 0, (self.tp * tn - self.fp * fn) / spread.clamp_min(_TINY).sqrt(), 0)

    def youden(self) -> Tensor:
        """(R, K) sensitivity + specificity − 1 at each threshold."""
        rates = (self.tp / self.positives[:, None].clamp_min(_TINY), self.fp / self.negatives[:, None].clamp_min(_TINY))
        return rates[0] - rates[1]

    def best(self, quality: Tensor) -> Tensor:
        """(R,) place of the best threshold: of equally good ones the smallest, among scores that are in the weighting.

        Args:
            quality: (R, K) of this curve, at least −1.
        """
        quality = torch.where(self.here, quality, -2)
        return quality.shape[1] - 1 - quality.flip(1).argmax(1)

    def best_f1(self) -> tuple[Tensor, Tensor]:
        """MedKLIP's test-optimised F1, and the accuracy that goes with it.

        F1 takes a score equal to the threshold as positive, accuracy as negative, as the released code does
        (``Sample_zero-shot_Classification_CXR14/test.py``).

        Returns:
            (R,) largest F1 and (R,) accuracy at its threshold; NaN without a positive or a negative.
        """
        if not len(self.thresholds):
            nothing = torch.full_like(self.positives, torch.nan)
            return nothing, nothing
        f1 = self.f1()
        at = self.best(f1)[:, None]
        above = (self.tp - self.fp).gather(1, (at - 1).clamp_min(0)) * (at > 0)  # strictly above the threshold
        accuracy = (above[:, 0] + self.negatives) / (self.positives + self.negatives)
        return _where(self.defined, f1.gather(1, at)[:, 0]), _where(self.defined, accuracy)

    def best_mcc(self) -> tuple[Tensor, Tensor]:
        """KAD's test-optimised numbers: F1 and accuracy where Matthews' correlation is largest (score >= threshold).

        Returns:
            (R,) F1 and (R,) accuracy; NaN without a positive or a negative.
        """
        if not len(self.thresholds):
            nothing = torch.full_like(self.positives, torch.nan)
            return nothing, nothing
        at = self.best(self.mcc())[:, None]
        right = (self.tp - self.fp).gather(1, at)[:, 0] + self.negatives
        return (
            _where(self.defined, self.f1().gather(1, at)[:, 0]),
            _where(self.defined, right / (self.positives + self.negatives)),
        )


_TINY = 1e-300
"""Below every weight: keeps 0 / 0 at 0."""


def _where(defined: Tensor, value: Tensor) -> Tensor:
    return torch.where(defined, value, torch.nan)


def known(labels: Tensor) -> Tensor:
    """Where a label says yes (1) or no (0); NaN, −1 and anything else is unknown."""
    return (labels == 0) | (labels == 1)


def _thresholds(scores: Tensor, labels: Tensor, quality: str) -> Tensor:
    if scores.shape != labels.shape:
        raise ConfigError(f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must have one shape")
    found = torch.full((scores.shape[1],), torch.nan, dtype=torch.float32)
    for c in range(scores.shape[1]):
        curve = Curve.of(scores[:, c], labels[:, c])
        if bool(curve.defined):
            found[c] = curve.thresholds[curve.best(getattr(curve, quality)())[0]]
    return found


def best_f1_thresholds(scores: Tensor, labels: Tensor) -> Tensor:
    """Per class the score that, as threshold, gives the largest F1 (MedKLIP's rule; choose it on validation data).

    Prediction: score >= threshold. Of equally good thresholds the smallest.

    Args:
        scores: (N, C).
        labels: (N, C): 1 present, 0 absent, anything else unknown and left out.

    Returns:
        (C,) float32; NaN for a class without both a positive and a negative.

    Raises:
        ConfigError: the shapes differ.
    """
    return _thresholds(scores, labels, "f1")


def best_mcc_thresholds(scores: Tensor, labels: Tensor) -> Tensor:
    """As :func:`best_f1_thresholds`, with the largest Matthews correlation (KAD and CheXzero)."""
    return _thresholds(scores, labels, "mcc")


def youden_thresholds(scores: Tensor, labels: Tensor) -> Tensor:
    """As :func:`best_f1_thresholds`, with the largest sensitivity + specificity (CheXzero's operating point)."""
    return _thresholds(scores, labels, "youden")

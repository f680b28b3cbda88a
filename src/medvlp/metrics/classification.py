"""Metrics of classification from one table of scores and labels, for the samples as they are or as weighted.

=========================== ============================================================================================
``auroc``                   mean over the classes that have a positive and a negative; ``auroc/<class>`` each of them
``classes_absent``          how many classes have not, and are left out of every mean
``average_precision``       area under the precision-recall curve, step-wise, mean over the classes; ``/<class>``
``f1``, ``accuracy``        at thresholds chosen elsewhere (validation), mean over the classes; ``/<class>``
``f1_medklip``,             largest F1 over the thresholds **of the scored set itself**, and the accuracy there: what
``accuracy_medklip``        MedKLIP's released code prints. For comparison with published tables alone
``f1_kad``,                 the same at the threshold of the scored set with the largest Matthews correlation (KAD)
``accuracy_kad``
``accuracy`` (multiclass)   top 1, micro average (what COVIDx tables hold)
``f1`` (multiclass)         of the top 1, one class against the others, mean over the classes that have a positive
=========================== ============================================================================================

A label that is neither 0 nor 1 is unknown and left out. A class without a positive or without a negative has NaN. In
weighted samples (a bootstrap resample) a class can be absent by chance; means are over the classes present there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_auroc,
    binary_average_precision,
    binary_f1_score,
)

from medvlp.errors import ConfigError, DataError
from medvlp.metrics.curves import Curve, best_f1_thresholds, best_mcc_thresholds, known, youden_thresholds
from medvlp.metrics.samples import SampleMetric, Samples, weighted_mean

__all__ = [
    "ClassificationMetric",
    "best_f1_thresholds",
    "best_mcc_thresholds",
    "classification_measures",
    "youden_thresholds",
]


def classification_measures(
    samples: Samples,
    weights: Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    thresholds: Tensor | None = None,
    multiclass: bool = False,
) -> dict[str, Tensor]:
    """All metrics of the table above.

    Args:
        samples: columns ``score`` (N, C), larger = more likely (any monotone scale, unless thresholds or
            ``multiclass`` compare them), and ``label`` (N, C): 1, 0, or unknown. One class is binary.
        weights: (R, N) how often each sample counts; None: once.
        names: C names of the classes; None: 0, 1, ….
        thresholds: (C,), prediction: score >= threshold; NaN leaves a class out. None: no ``f1`` and ``accuracy``,
            except in multiclass, which needs none.
        multiclass: exactly one class is right; a sample with an unknown label is left out.

    Returns:
        Name to scalar, or to (R,) with weights; float64. Without samples NaN, and ``classes_absent`` is C.

    Raises:
        ConfigError: shapes that do not fit, or a multiclass sample with none or several right classes.
        DataError: a score is NaN.
    """
    scores, labels = samples["score"], samples["label"]
    if not len(samples):
        count = len(names or ()) or (scores.shape[1] if scores.ndim == 2 else 0)
        scores = labels = scores.new_zeros(0, count)
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ConfigError(f"score and label must both be (N, C), got {tuple(scores.shape)}, {tuple(labels.shape)}")
    names = [str(c) for c in range(scores.shape[1])] if names is None else names
    if len(names) != scores.shape[1] or (thresholds is not None and len(thresholds) != len(names)):
        raise ConfigError(f"{scores.shape[1]} classes were scored, but {len(names)} names or other thresholds given")
    if bool((broken := scores.isnan().any(1)).any()):
        raise DataError(
            f"the scores of {int(broken.sum())} of {len(scores)} samples are NaN: has the training diverged?"
        )
    usable = known(labels)
    top = None
    if multiclass:
        usable = usable.all(1, keepdim=True).expand_as(labels)
        labels = labels.masked_fill(~usable, torch.nan)
        if bool((labels[usable[:, 0]].sum(1) != 1).any()):
            raise ConfigError("in multiclass each sample has one right class; for several use multilabel")
        top = torch.zeros_like(usable)
        if labels.numel():
            top.scatter_(1, scores.argmax(1, keepdim=True), torch.ones_like(usable[:, :1]))
    rows: dict[str, list[Tensor]] = {}
    for c in range(len(names)):
        score, label = scores[:, c], labels[:, c]
        curve = Curve.of(score, label, weights)
        found = {"auroc": curve.auroc()}
        found["average_precision"] = torch.where(curve.defined, curve.average_precision(), torch.nan)
        if weights is None and bool(curve.defined):
            rank, target = _ranks(score[usable[:, c]]), label[usable[:, c]].long()
            found["auroc"] = binary_auroc(rank, target)[None]
            found["average_precision"] = binary_average_precision(rank, target)[None]
        if top is not None:
            found["f1"] = _decided(top[:, c], label, weights)[0]
        else:
            found["f1_medklip"], found["accuracy_medklip"] = curve.best_f1()
            found["f1_kad"], found["accuracy_kad"] = curve.best_mcc()
            if thresholds is not None:
                threshold = thresholds[c].to(score)
                f1, accuracy = _decided(score >= threshold, label, weights)
                chosen = curve.defined & ~threshold.isnan()
                found["f1"], found["accuracy"] = (torch.where(chosen, v, torch.nan) for v in (f1, accuracy))
        for name, value in found.items():
            rows.setdefault(name, []).append(value.double())
    result: dict[str, Tensor] = {}
    for name, values in rows.items():
        stacked = torch.stack(values)
        result[name] = stacked.nanmean(0)
        if len(names) > 1:
            result.update({f"{name}/{own}": value for own, value in zip(names, stacked, strict=True)})
    if rows:
        result["classes_absent"] = torch.stack(rows["auroc"]).isnan().sum(0).double()
    if top is not None:
        right = torch.where(usable[:, 0], (top & (labels == 1)).any(1), torch.nan)
        ones = torch.ones(1, len(right), device=right.device)
        result["accuracy"] = weighted_mean(right, ones if weights is None else weights)
    return result if weights is not None else {name: value.reshape(()) for name, value in result.items()}


def _ranks(scores: Tensor) -> Tensor:
    """Ranks in [0, 1]: torchmetrics takes values outside for logits, and their sigmoid makes ties of large ones."""
    rank = torch.unique(scores, return_inverse=True)[1].double()
    return rank / rank.max().clamp_min(1)


def _decided(decision: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """(R,) F1, NaN without a positive, and (R,) accuracy of (N,) decisions."""
    usable, positive = known(labels), labels == 1
    if weights is None and bool(positive.any()):
        pair = decision[usable].long(), labels[usable].long()
        return binary_f1_score(*pair).double()[None], binary_accuracy(*pair).double()[None]
    weights = torch.ones(1, len(labels), device=labels.device) if weights is None else weights
    counted = (positive & decision, decision & usable, positive, (decision == positive) & usable, usable)
    hits, chosen, present, right, total = (weights.double() @ torch.stack(counted, 1).double()).unbind(1)
    f1 = torch.where(present > 0, 2 * hits / (chosen + present), torch.nan)
    return f1, right / total


class ClassificationMetric(SampleMetric):
    """:func:`classification_measures` as a metric that syncs over ranks and counts each dataset row once.

    Args:
        options: of :func:`classification_measures`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(classification_measures, ["score", "label"], **options)

    def update(self, preds: Tensor, target: Tensor, index: Tensor) -> None:
        """Adds a batch: scores (B, C), labels (B, C), dataset rows (B,)."""
        self.store.update(index, score=preds, label=target)

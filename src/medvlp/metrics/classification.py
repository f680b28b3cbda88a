"""Classification metrics from scores and labels, with optional sample weights.

=========================== ============================================================================================
``auroc``                   mean over the classes that have a positive and a negative; ``auroc/<class>`` each of them
``classes_absent``          number of the other classes, which enter no mean
``average_precision``       area under the precision-recall curve, step-wise, mean over the classes; ``/<class>``
``f1``, ``accuracy``        at given thresholds (chosen on validation data), mean over the classes; ``/<class>``
``f1_medklip``,             largest F1 over the thresholds **of the scored set itself**, and the accuracy there, as
``accuracy_medklip``        MedKLIP's released code prints them. Only for comparison with published tables
``f1_kad``,                 the same at the threshold of the scored set with the largest Matthews correlation (KAD)
``accuracy_kad``
``accuracy`` (multiclass)   top 1, micro average (as in COVIDx tables)
``f1`` (multiclass)         of the top 1, one class against the others, mean over the classes that have a positive
=========================== ============================================================================================

A label that is neither 0 nor 1 is unknown and skipped. A class without a positive or without a negative has NaN. A
bootstrap resample can lack a class by chance; means are over the classes present in it.
"""

from collections.abc import Sequence

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
from medvlp.metrics.samples import Samples, named_values, sample_weights, weighted_mean

__all__ = ["best_f1_thresholds", "best_mcc_thresholds", "classification_measures", "youden_thresholds"]


def classification_measures(
    samples: Samples,
    weights: Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    thresholds: Tensor | None = None,
    multiclass: bool = False,
) -> dict[str, Tensor]:
    """Compute all metrics of the module's table (see :data:`medvlp.metrics.bootstrap.Measures`).

    Args:
        samples: columns ``score`` (N, C), larger = more likely (any monotone scale, unless thresholds or
            ``multiclass`` compare them), and ``label`` (N, C): 1, 0, or unknown. One class is binary.
        weights: (R, N) multiplicity of each sample; None: 1.
        names: C class names; None: 0, 1, ….
        thresholds: (C,), prediction: score >= threshold; NaN skips a class. None: no ``f1`` and ``accuracy`` (except
            in multiclass, which needs no thresholds).
        multiclass: exactly one class is right; samples with an unknown label are skipped.

    Raises:
        ConfigError: shapes that do not fit, or a multiclass sample with none or several right classes.
        DataError: a score is NaN.
    """
    scores, labels, names = _checked(samples, names, thresholds)
    top = None
    if multiclass:
        labels, top = _top_class(scores, labels)
    per_class: dict[str, list[Tensor]] = {}
    for c in range(len(names)):
        threshold = None if thresholds is None else thresholds[c].to(scores)
        values = _of_class(scores[:, c], labels[:, c], weights, None if top is None else top[:, c], threshold)
        for name, value in values.items():
            per_class.setdefault(name, []).append(value.double())
    result: dict[str, Tensor] = {}
    for name, columns in per_class.items():
        stacked = torch.stack(columns)
        result[name] = stacked.nanmean(0)
        if len(names) > 1:
            result.update({f"{name}/{label}": value for label, value in zip(names, stacked, strict=True)})
    if per_class:
        result["classes_absent"] = torch.stack(per_class["auroc"]).isnan().sum(0).double()
    if top is not None:
        right = torch.where(known(labels)[:, 0], (top & (labels == 1)).any(1), torch.nan)
        result["accuracy"] = weighted_mean(right, sample_weights(samples, weights))
    return named_values(result, weights)


def _checked(
    samples: Samples, names: Sequence[str] | None, thresholds: Tensor | None
) -> tuple[Tensor, Tensor, Sequence[str]]:
    scores, labels = samples["score"], samples["label"]
    if not len(samples):
        count = len(names or ()) or (scores.shape[1] if scores.ndim == 2 else 0)
        scores = labels = scores.new_zeros(0, count)
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ConfigError(f"score and label must both be (N, C), got {tuple(scores.shape)}, {tuple(labels.shape)}")
    names = [str(c) for c in range(scores.shape[1])] if names is None else names
    if len(names) != scores.shape[1] or (thresholds is not None and len(thresholds) != len(names)):
        raise ConfigError(f"{scores.shape[1]} classes were scored, but {len(names)} names or other thresholds given")
    if broken := int(scores.isnan().any(1).sum()):
        raise DataError(f"the scores of {broken} of {len(scores)} samples are NaN: has the training diverged?")
    return scores, labels, names


def _top_class(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) labels, NaN in samples with an unknown one, and (N, C) bool decisions for the class of highest score."""
    usable = known(labels).all(1, keepdim=True).expand_as(labels)
    labels = labels.masked_fill(~usable, torch.nan)
    if bool((labels[usable[:, 0]].sum(1) != 1).any()):
        raise ConfigError("multiclass needs exactly one right class per sample; for several use multilabel")
    top = torch.zeros_like(usable)
    if labels.numel():
        top.scatter_(1, scores.argmax(1, keepdim=True), torch.ones_like(usable[:, :1]))
    return labels, top


def _of_class(
    score: Tensor, label: Tensor, weights: Tensor | None, top: Tensor | None, threshold: Tensor | None
) -> dict[str, Tensor]:
    """(R,) metrics of one class; ``top`` (N,) bool are its multiclass decisions."""
    curve = Curve(score, label, weights)
    values = {"auroc": curve.auroc(), "average_precision": curve.average_precision()}
    if weights is None and bool(curve.defined):
        usable = known(label)
        # torchmetrics takes scores outside [0, 1] for logits, and a sigmoid would make ties of large ones.
        rank = torch.unique(score[usable], return_inverse=True)[1].double()
        rank, target = rank / rank.max().clamp_min(1), label[usable].long()
        values = {
            "auroc": binary_auroc(rank, target)[None],
            "average_precision": binary_average_precision(rank, target)[None],
        }
    if top is not None:
        return {**values, "f1": _decided(top, label, weights)[0]}
    f1 = curve.f1()
    values["f1_medklip"], values["accuracy_medklip"] = curve.optimised(f1, f1, strict=True)
    values["f1_kad"], values["accuracy_kad"] = curve.optimised(curve.mcc(), f1)
    if threshold is not None:
        chosen = curve.defined & ~threshold.isnan()
        decided = _decided(score >= threshold, label, weights)
        values["f1"], values["accuracy"] = (torch.where(chosen, value, torch.nan) for value in decided)
    return values


def _decided(decision: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """(R,) F1, NaN without a positive, and (R,) accuracy of (N,) decisions."""
    usable, positive = known(labels), labels == 1
    if weights is None and bool(positive.any()):
        pair = decision[usable].long(), labels[usable].long()
        return binary_f1_score(*pair).double()[None], binary_accuracy(*pair).double()[None]
    weights = torch.ones(1, len(labels), device=labels.device) if weights is None else weights
    counted = (positive & decision, decision & usable, positive, (decision == positive) & usable, usable)
    hits, chosen, present, right, total = (weights.double() @ torch.stack(counted, 1).double()).unbind(1)
    return torch.where(present > 0, 2 * hits / (chosen + present), torch.nan), right / total

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, matthews_corrcoef, precision_recall_curve, roc_auc_score
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_f1_score

from medvlp.errors import ConfigError, DataError
from medvlp.metrics.classification import (
    best_f1_thresholds,
    best_mcc_thresholds,
    classification_measures,
    youden_thresholds,
)
from medvlp.metrics.samples import Samples


def made(n=60, classes=4, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < [0.5, 0.3, 0.2, 0.4][:classes]).astype(np.float32)
    scores = rng.random((n, classes)).astype(np.float32) + 0.4 * labels
    if ties:
        scores[:, 0] = scores[:, 0].round(1)
    labels[rng.random(labels.shape) < 0.15] = np.nan
    labels[rng.random(labels.shape) < 0.05] = -1
    return table(scores, labels)


def table(scores, labels):
    scores, labels = torch.as_tensor(scores, dtype=torch.float32), torch.as_tensor(labels, dtype=torch.float32)
    return Samples(torch.arange(len(scores)), {"score": scores, "label": labels})


def drawn(n, resamples=6, seed=0):
    rng = np.random.default_rng(seed)
    return torch.stack([torch.from_numpy(np.bincount(rng.integers(0, n, n), minlength=n)) for _ in range(resamples)])


def test_known_labels_alone_count():
    samples = made()
    found = classification_measures(samples)
    for c in range(4):
        label, score = samples["label"][:, c].numpy(), samples["score"][:, c].numpy()
        keep = np.isin(label, (0, 1))
        assert float(found[f"auroc/{c}"]) == pytest.approx(roc_auc_score(label[keep], score[keep]), abs=1e-6)
        want = average_precision_score(label[keep], score[keep])
        assert float(found[f"average_precision/{c}"]) == pytest.approx(want, abs=1e-6)
    assert float(found["auroc"]) == pytest.approx(np.mean([float(found[f"auroc/{c}"]) for c in range(4)]))
    assert int(found["classes_absent"]) == 0


def test_weights_are_repetitions():
    """Each measure of weighted samples is the one that torchmetrics (or our own point value) gives when repeated."""
    samples, weights = made(), drawn(60).double()
    thresholds = torch.tensor([0.7, 0.5, 0.4, 0.6])
    found = classification_measures(samples, weights, thresholds=thresholds)
    for r, counts in enumerate(weights.long()):
        again = samples.select(torch.repeat_interleave(counts))
        want = classification_measures(again, thresholds=thresholds)
        assert found.keys() == want.keys()
        for name, value in want.items():
            assert float(found[name][r]) == pytest.approx(float(value), abs=1e-6), name
        label, score = again["label"][:, 0], again["score"][:, 0]
        keep = (label == 0) | (label == 1)
        pair = score[keep] / 2, label[keep].long()  # within [0, 1], what torchmetrics takes as it is
        assert float(found["auroc/0"][r]) == pytest.approx(float(binary_auroc(*pair)), abs=1e-6)
        assert float(found["average_precision/0"][r]) == pytest.approx(float(binary_average_precision(*pair)), abs=1e-6)
        f1 = binary_f1_score((score[keep] >= 0.7).long(), label[keep].long())
        assert float(found["f1/0"][r]) == pytest.approx(float(f1), abs=1e-6)


def test_large_logits_are_no_ties():
    scores = torch.tensor([[100.0], [101.0], [102.0], [103.0]])
    found = classification_measures(table(scores, [[0.0], [1.0], [0.0], [1.0]]))
    assert float(found["auroc"]) == 0.75


@pytest.mark.parametrize(
    ("choose", "quality"),
    [
        (best_f1_thresholds, lambda y, p: f1_score(y, p, zero_division=0)),
        (best_mcc_thresholds, matthews_corrcoef),
        (youden_thresholds, lambda y, p: p[y == 1].mean() - p[y == 0].mean()),
    ],
)
def test_chosen_thresholds_are_the_best_ones(choose, quality):
    samples = made()
    for c, threshold in enumerate(choose(samples["score"], samples["label"]).tolist()):
        label, score = samples["label"][:, c].numpy(), samples["score"][:, c].numpy()
        keep = np.isin(label, (0, 1))
        label, score = label[keep], score[keep]
        values = {t: quality(label, score >= t) for t in np.unique(score)}
        best = max(values.values())
        assert values[np.float32(threshold)] == pytest.approx(best, abs=1e-9)
        assert threshold == pytest.approx(min(t for t, v in values.items() if v > best - 1e-9))


def test_medklip_rule_in_every_resample():
    """Search and accuracy as the released code writes them, on explicit resamples with many ties."""
    samples = made(40, classes=1, seed=3)
    weights = drawn(40, 20).double()
    found = classification_measures(samples, weights)
    for r, counts in enumerate(weights.long()):
        again = samples.select(torch.repeat_interleave(counts))
        label, score = again["label"][:, 0].numpy(), again["score"][:, 0].numpy()
        keep = np.isin(label, (0, 1))
        precision, recall, thresholds = precision_recall_curve(label[keep], score[keep])
        f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-12)
        assert float(found["f1_medklip"][r]) == pytest.approx(f1.max(), abs=1e-6)
        accuracy = ((score[keep] > thresholds[f1.argmax()]) == label[keep]).mean()
        assert float(found["accuracy_medklip"][r]) == pytest.approx(accuracy, abs=1e-6)


def test_kad_rule_in_every_resample():
    samples = made(40, classes=1, seed=4)
    weights = drawn(40, 20).double()
    found = classification_measures(samples, weights)
    for r, counts in enumerate(weights.long()):
        again = samples.select(torch.repeat_interleave(counts))
        label, score = again["label"][:, 0].numpy(), again["score"][:, 0].numpy()
        keep = np.isin(label, (0, 1))
        label, score = label[keep], score[keep]
        values = {t: matthews_corrcoef(label, score >= t) for t in np.unique(score)}
        best = min(t for t, v in values.items() if v > max(values.values()) - 1e-9)
        assert float(found["f1_kad"][r]) == pytest.approx(f1_score(label, score >= best), abs=1e-6)
        assert float(found["accuracy_kad"][r]) == pytest.approx(((score >= best) == label).mean(), abs=1e-6)


def test_classes_without_both_answers_are_left_out_and_counted():
    labels = torch.tensor([[1.0, 1, torch.nan, 1], [0, 1, torch.nan, 0], [1, -1, torch.nan, torch.nan]])
    scores = torch.tensor([[0.9, 0.1, 0.1, 0.3], [0.2, 0.2, 0.2, 0.6], [0.3, 0.3, 0.3, 0.3]])
    found = classification_measures(table(scores, labels), names=list("abcd"), thresholds=torch.full((4,), 0.5))
    assert int(found["classes_absent"]) == 2
    assert [math.isnan(found[f"auroc/{c}"]) for c in "abcd"] == [False, True, True, False]
    assert float(found["auroc"]) == 0.5  # 1 of class a, 0 of class d
    assert float(found["f1"]) == pytest.approx((2 / 3 + 0) / 2)
    assert math.isnan(found["accuracy/b"])
    assert best_f1_thresholds(scores, labels).isnan().tolist() == [False, True, True, False]
    weights = torch.tensor([[1.0, 1, 1], [1, 0, 1]])  # the second draws no negative at all
    weighted = classification_measures(table(scores, labels), weights)
    assert weighted["classes_absent"].tolist() == [2, 4]
    assert weighted["auroc"].isnan().tolist() == [False, True]


def test_thresholds_of_absent_classes_leave_them_out():
    samples = made()
    found = classification_measures(samples, thresholds=torch.tensor([0.5, torch.nan, 0.5, 0.5]))
    assert math.isnan(found["f1/1"])
    assert float(found["f1"]) == pytest.approx(np.mean([float(found[f"f1/{c}"]) for c in (0, 2, 3)]))
    assert "f1" not in classification_measures(samples)


def test_multiclass():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 50)
    labels = np.eye(3, dtype=np.float32)[target]
    logits = rng.normal(size=(50, 3)).astype(np.float32) + labels
    labels[7] = np.nan
    samples, weights = table(logits, labels), drawn(50).double()
    found = classification_measures(samples, names=["a", "b", "c"], multiclass=True)
    keep = np.arange(50) != 7
    assert float(found["accuracy"]) == pytest.approx((logits.argmax(1) == target)[keep].mean())
    want = f1_score(target[keep], logits.argmax(1)[keep], average="macro")
    assert float(found["f1"]) == pytest.approx(want, abs=1e-6)
    assert float(found["auroc/b"]) == pytest.approx(roc_auc_score(target[keep] == 1, logits[keep, 1]), abs=1e-6)
    assert "f1_medklip" not in found
    weighted = classification_measures(samples, weights, names=["a", "b", "c"], multiclass=True)
    for r, counts in enumerate(weights.long()):
        again = classification_measures(
            samples.select(torch.repeat_interleave(counts)), names=["a", "b", "c"], multiclass=True
        )
        assert again.keys() == weighted.keys()
        for name, value in again.items():
            assert float(weighted[name][r]) == pytest.approx(float(value), abs=1e-6), name


def test_bad_tables_are_refused():
    with pytest.raises(ConfigError, match="one right class"):
        classification_measures(table([[0.1, 0.2]], [[1.0, 1.0]]), multiclass=True)
    with pytest.raises(ConfigError, match="both be"):
        classification_measures(table([[0.1, 0.2]], [[1.0]]))
    with pytest.raises(ConfigError, match="names"):
        classification_measures(table([[0.1, 0.2]], [[1.0, 0.0]]), names=["one"])
    with pytest.raises(DataError, match="1 of 2 samples are NaN"):
        classification_measures(table([[0.1], [torch.nan]], [[1.0], [0.0]]))
    with pytest.raises(ConfigError, match="one shape"):
        best_f1_thresholds(torch.zeros(2, 1), torch.zeros(2, 2))


@pytest.mark.parametrize("multiclass", [False, True])
def test_no_samples(multiclass):
    nothing = table(torch.zeros(0, 2), torch.zeros(0, 2))
    found = classification_measures(nothing, thresholds=torch.zeros(2), multiclass=multiclass)
    assert int(found.pop("classes_absent")) == 2
    assert all(math.isnan(value) for value in found.values())
    assert best_f1_thresholds(torch.zeros(0, 2), torch.zeros(0, 2)).isnan().all()
    empty = Samples(torch.zeros(0, dtype=torch.long), {"score": torch.zeros(0), "label": torch.zeros(0)})
    assert math.isnan(classification_measures(empty, names=["a", "b"])["auroc"])

"""The adapters of metrics and segmentation losses; see ``adapters.py``."""

from collections.abc import Callable

import numpy as np
import torch
from adapters_baselines import Arrays, tensor

from medvlp.metrics.classification import best_f1_thresholds, classification_measures
from medvlp.metrics.samples import Samples


def _table(**columns: np.ndarray) -> Samples:
    length = len(next(iter(columns.values())))
    return Samples(torch.arange(length), {name: tensor(column) for name, column in columns.items()})


def medklip_best_f1(x: Arrays) -> Arrays:
    """All keys."""
    classes = [str(c) for c in range(x["scores"].shape[1])]
    found = classification_measures(_table(score=x["scores"], label=x["labels"]), names=classes)
    named = {"max_f1": "f1_medklip", "acc_at_threshold": "accuracy_medklip", "auc": "auroc"}
    out = {key: np.array([float(found[f"{name}/{c}"]) for c in classes]) for key, name in named.items()}
    out["threshold"] = best_f1_thresholds(tensor(x["scores"]), tensor(x["labels"])).numpy()
    means = {"f1_mean": "f1_medklip", "acc_mean": "accuracy_medklip", "auc_mean": "auroc"}
    return out | {key: np.array(float(found[name])) for key, name in means.items()}


ADAPTERS_TASKS: dict[str, Callable[[Arrays], Arrays]] = {
    "medklip_best_f1": medklip_best_f1,
}
"""File to adapter. An adapter may give a part of a file's keys when another room gives the rest."""

GRADIENTS_TASKS: dict[str, Callable[[Arrays], Arrays]] = {}
"""File to gradients of its main loss, keys ``<file>__d_<input>``; called with the file's own inputs."""

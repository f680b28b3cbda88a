"""Priors of grounding: where findings lie on average, whatever the image, and the gain over such heatmaps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from medvlp.errors import DataError
from medvlp.metrics.grounding import COLUMNS, grounding_measures
from medvlp.metrics.samples import Samples
from medvlp.text import Collate

_IMAGES = 1000
"""Of the training part, evenly spread over it."""


_COMPARED = ("iou", "miou", "dice", "recall", "cnr", "pointing_game", "pixel_ap", "iou_category", "miou_category")
"""Metrics of the rows for a prior and the gain over it."""


def categories_of(batch: dict[str, Any], names: Sequence[str]) -> Tensor:
    """Determine the category of each phrase of a batch with ``label`` (B, C) and B texts.

    Returns:
        (B,) long: the class that the text names, else the first positive label; C if there is none.
    """
    labels = batch["label"] == 1
    first = torch.where(labels.any(1), labels.float().argmax(1), len(names))
    index = {name: i for i, name in enumerate(names)}
    named = torch.tensor([index.get(text, -1) for text in batch["text"]], device=first.device)
    return torch.where(named >= 0, named, first)


@torch.no_grad()
def mean_masks(datamodule: Any, names: Sequence[str]) -> Tensor | None:
    """Average the masks of each category over the training part, or over the validation part if there is no other.

    Returns:
        (C + 1, S, S) in [0, 1], of images without augmentation; the mean of all masks for a category without a sample,
        and for phrases without a category. None if only the test part has masks.
    """
    dataset: Any = None
    for split in ("train", "validate"):
        try:
            read = datamodule.read(split)
        except DataError:  # the split has no such part
            continue
        if len(read):
            dataset = datamodule.prepared(read, train=False)
            break
    if dataset is None:
        return None
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _IMAGES)).astype(int)).tolist()
    loader = DataLoader(
        Subset(dataset, rows),
        batch_size=datamodule.eval_batch_size,
        num_workers=datamodule.num_workers,
        collate_fn=Collate(None),
    )
    kinds = len(names) + 1
    totals: list[Tensor] = []
    count = torch.zeros(kinds, dtype=torch.float32)
    for batch in loader:
        mask, category = batch["mask"][:, 0], categories_of(batch, names)
        totals.append(mask.new_zeros(kinds, *mask.shape[1:]).index_add_(0, category, mask))
        count += torch.bincount(category, minlength=kinds)
    total = torch.stack(totals).sum(0)
    if not bool(total.any()):
        return None
    means = total / count.clamp_min(1)[:, None, None]
    return torch.where(count[:, None, None] > 0, means, total.sum(0) / count.sum())


def columns_of(samples: Samples, source: str) -> Samples:
    """Select the columns of the method (""), or of a prior under the method's names."""
    names = {name: name if name == "truth" or not source else f"{source}_{name}" for name in COLUMNS}
    return Samples(samples.index, {n: samples[of] for n, of in names.items()} | {"category": samples["category"]})


def _measures_of(
    samples: Samples, weights: Tensor | None, thresholds: Sequence[float], categories: Sequence[str]
) -> dict[str, Tensor]:
    """Compute the metrics of one source of heatmaps; a single threshold is omitted from their names."""
    values = grounding_measures(samples, weights, thresholds=thresholds, categories=[*categories, "none"])
    if len(categories) < 2:
        values = {name: v for name, v in values.items() if not name.endswith("_category") and "/" not in name}
    if len(thresholds) > 1:
        return values
    mark = f"@{thresholds[0]:g}"
    return {n.replace(mark, ""): v for n, v in values.items() if n.partition("/")[0] not in ("miou", "miou_category")}


def measures_with_priors(
    samples: Samples,
    weights: Tensor | None = None,
    *,
    thresholds: Mapping[str, Sequence[float]],
    priors: Sequence[str],
    categories: Sequence[str],
) -> dict[str, Tensor]:
    """Compute the metrics of the method and of the priors, and the gains."""
    values = _measures_of(columns_of(samples, ""), weights, thresholds["method"], categories)
    result = dict(values)
    main = "iou/" if len(thresholds["method"]) < 2 else "miou/"
    for prior in priors:
        of_prior = _measures_of(columns_of(samples, prior), weights, thresholds[prior], categories)
        gains = {name: value - of_prior[name] for name, value in values.items() if name in of_prior}
        for name in (name for name in _COMPARED if name in values):
            result[f"prior_{prior}/{name}"] = of_prior[name]
            result[f"gain_over_{prior}/{name}"] = gains[name]
        result.update({f"gain_over_{prior}/{name}": gain for name, gain in gains.items() if name.startswith(main)})
    return result

"""What grounding is compared with: where findings lie on average, without a look at the image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from medvlp.errors import DataError
from medvlp.text import Collate

_IMAGES = 1000
"""Of the training part, evenly spread over it."""


def categories_of(batch: dict[str, Any], names: Sequence[str]) -> Tensor:
    """The category of each phrase.

    Args:
        batch: ``label`` (B, C) and ``text``, B texts.
        names: of the C labels.

    Returns:
        (B,) long: the class that the text names, else the first that the labels have; C where there is none.
    """
    labels = batch["label"] == 1
    first = torch.where(labels.any(1), labels.float().argmax(1), len(names))
    places = {name: i for i, name in enumerate(names)}
    named = torch.tensor([places.get(text, -1) for text in batch["text"]], device=first.device)
    return torch.where(named >= 0, named, first)


@torch.no_grad()
def mean_masks(datamodule: Any, names: Sequence[str]) -> Tensor | None:
    """The mean mask of each category over the training part, or over the validation part where there is no other.

    Args:
        datamodule: of a corpus, for grounding.
        names: of the C labels.

    Returns:
        (C + 1, S, S) in [0, 1] as the masks go with the images that are not augmented; the mean of all masks for a
        category without a sample, and for phrases of none. None if no image outside the test part has a mask.
    """
    dataset: Any = None
    for split in ("train", "validate"):
        try:
            read = datamodule.read(split)
        except DataError:  # the split has no such part
            continue
        if len(read):
            dataset = datamodule._prepared(read, train=False)
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
    own = total / count.clamp_min(1)[:, None, None]
    return torch.where(count[:, None, None] > 0, own, total.sum(0) / count.sum())

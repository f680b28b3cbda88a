"""What a method made of a few test images, kept for the report: the same images whatever the method."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from medvlp.scoring.heatmaps import min_max
from medvlp.tasks.base import Task
from medvlp.text import Collate


def chosen(dataset: Any, count: int) -> list[int]:
    """Positions of images with a finding, in an order that depends on their identifiers alone.

    Args:
        dataset: with masks or boxes.
        count: how many; fewer if there are fewer.
    """
    order = sorted(range(len(dataset)), key=lambda i: hashlib.sha256(str(dataset.ids[i]).encode()).digest())
    found = []
    for at in order:
        sample = dataset[at]
        if len(sample.get("boxes", ())) or bool(torch.as_tensor(sample.get("mask", 0)).any()):
            found.append(at)
        if len(found) == count:
            break
    return found


@torch.no_grad()
def write_panels(task: Task, datamodule: Any, path: Path, count: int) -> None:
    """Writes images, truth and prediction of some test images as one npz file.

    Arrays, for n images of side S: ``ids`` (n,), ``images`` (n, S, S) uint8, ``truth_masks`` (n, S, S) bool or
    ``truth_boxes`` (n, k, 4) in pixels, padded with NaN, and what :meth:`medvlp.tasks.base.Task.pictures` gives.

    Args:
        task: after its test.
        datamodule: of the test.
        path: the file.
        count: how many images.
    """
    dataset = datamodule.test_set
    places = chosen(dataset, count)
    if not places:
        return
    batch = Collate(None)([dataset[at] for at in places])
    batch = {key: value.to(task.device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    training = task.training
    task.eval()
    arrays = task.pictures(batch)
    task.train(training)
    if not arrays:
        return
    grey = min_max(batch["image"].float().mean(1)) * 255
    arrays |= {
        "ids": np.asarray([str(name) for name in batch["id"]]),
        "images": grey.round().to(torch.uint8).cpu().numpy(),
    }
    # boxes where boxes are what is looked for: grounding has both
    if "boxes" in arrays:
        arrays["truth_boxes"] = pad_sequence(batch["boxes"], True, float("nan")).cpu().numpy()
    elif "mask" in batch:
        arrays["truth_masks"] = (batch["mask"][:, 0] > 0.5).cpu().numpy()
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]

"""Write the predictions on a few test images for the page: the same images for every method."""

import hashlib
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from medvlp.scoring.heatmaps import min_max
from medvlp.tasks.base import Task
from medvlp.text import Collate


def _with_findings(dataset: Any, count: int) -> list[dict[str, Any]]:
    """Return up to ``count`` samples with a box or mask, in an order that depends on their ids alone."""
    order = sorted(range(len(dataset)), key=lambda i: hashlib.sha256(str(dataset.ids[i]).encode()).digest())
    samples = (dataset[index] for index in order)
    matches = (s for s in samples if len(s.get("boxes", ())) or torch.as_tensor(s.get("mask", 0)).any())
    return list(islice(matches, count))


@torch.no_grad()
def write_panels(task: Task, datamodule: Any, path: Path, count: int) -> None:
    """Write images, truth and predictions of some test images with findings to one npz file.

    Arrays, for n images of side S: ``ids`` (n,), ``images`` (n, S, S) uint8, ``truth_masks`` (n, S, S) bool or
    ``truth_boxes`` (n, k, 4) in pixels, padded with NaN, and what :meth:`medvlp.tasks.base.Task.pictures` returns.
    No file is written if no image has a finding, or if the task has no pictures.

    Args:
        task: after its test.
        datamodule: of the test.
        path: the file.
        count: number of images; fewer if there are fewer.
    """
    samples = _with_findings(datamodule.test_set, count)
    if not samples:
        return
    batch = Collate(None)(samples)
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
    # grounding has both, and predicts no boxes
    if "boxes" in arrays:
        arrays["truth_boxes"] = pad_sequence(batch["boxes"], True, float("nan")).cpu().numpy()
    elif "mask" in batch:
        arrays["truth_masks"] = (batch["mask"][:, 0] > 0.5).cpu().numpy()
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]

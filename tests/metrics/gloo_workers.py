"""What each of two gloo processes does for ``test_samples.py``, and the same in one process."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from medvlp.metrics.classification import classification_measures
from medvlp.metrics.detection import COLUMNS, detection_measures
from medvlp.metrics.samples import SampleStore

WORLD = 2
SIZE = 7


def sample(index: int) -> dict[str, torch.Tensor]:
    """The columns of one sample; only samples 1, 3, 5 have boxes, and those of rank 0 have none."""
    g = torch.Generator().manual_seed(index)
    boxes = index if index % 2 else 0
    return {
        "score": torch.rand(3, generator=g),
        "label": torch.rand(1, generator=g)[0] > 0.5,
        "boxes": torch.rand(boxes, 4, generator=g),
        "tags": torch.arange(boxes),
    }


def fill(store: SampleStore, rows: list[int], batch: int) -> SampleStore:
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        items = [sample(row) for row in part]
        store.update(
            torch.tensor(part),
            **{name: torch.stack([item[name] for item in items]) for name in ("score", "label")},
            **{name: [item[name] for item in items] for name in ("boxes", "tags")},
        )
    return store


def make() -> SampleStore:
    return SampleStore(["score", "label"], ragged=["boxes", "tags"])


def measured(rows: list[int], batch: int) -> dict[str, float]:
    """Metrics of plain columns and of ragged ones."""
    flat, boxed = SampleStore(["score", "label"]), SampleStore([], COLUMNS)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        items = [sample(row) for row in part]
        labels = torch.tensor([[row % 2, row % 3 == 0, row > 2] for row in part]).float()
        flat.update(torch.tensor(part), score=torch.stack([item["score"] for item in items]), label=labels)
        truth = [9 * corners(item["boxes"]) for item in items]
        kinds = [item["tags"] * 0 for item in items]
        boxed.update(
            torch.tensor(part),
            boxes=[boxes + 0.4 for boxes in truth],
            scores=[item["boxes"][:, 0] for item in items],
            labels=kinds,
            truth=truth,
            truth_labels=kinds,
        )
    found = classification_measures(flat.compute()) | detection_measures(boxed.compute())
    return {name: float(value) for name, value in found.items()}


def corners(boxes: torch.Tensor) -> torch.Tensor:
    return torch.cat([boxes[:, :2], boxes[:, :2] + 0.1 + boxes[:, 2:]], 1)


def work(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    # As a distributed sampler deals them out: 0 2 4 6 and 1 3 5 0, with the first row again at the end.
    rows = [(rank + WORLD * i) % SIZE for i in range(-(-SIZE // WORLD))]
    found = fill(make(), rows, batch=3).compute()
    torch.save(
        {
            "measured": measured(rows, batch=3),
            "index": found.index,
            **found.columns,
            **{f"{n}.values": r.values for n, r in found.ragged.items()},
            **{f"{n}.offsets": r.offsets for n, r in found.ragged.items()},
        },
        Path(folder) / f"samples{rank}.pt",
    )
    dist.destroy_process_group()

"""Features of a frozen encoder, computed once and kept in memory-mapped files.

A stored set is a folder named by the hash of all that its numbers depend on: the encoder's weights and output, the
images (ids in order, transform, size, intensity rule, augmentation seed) and the number of views. View v of a sample is
augmented as in epoch v of a live run. With as many views as epochs, training sees the same samples as that run; with
fewer, the views repeat.

Each process writes one shard: of W processes, process r stores the samples r, r + W, …
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, Sampler

from medvlp.datasets.base import RadiographDataset
from medvlp.errors import ConfigError, DataError, check_choice
from medvlp.store import get_or_make, value_sha256
from medvlp.text import Collate
from medvlp.training.guards import need_weights

if TYPE_CHECKING:
    from medvlp.tasks.base import Task

_DONE = "features.json"
_WAIT = "wait"
_LEAST = {"views": 1, "side": 0, "levels": 1, "shards": 1}
_TYPES = ("float32", "float16")
_PLAIN = ("size", "geometry")


class _Shard:
    """The samples of one process: arrays (views, n, …) by name, and boxes; ValueError if they do not fit."""

    def __init__(self, folder: Path, facts: dict[str, Any], samples: int) -> None:
        names = [f"level{k}" for k in range(facts["levels"])]
        names += ["index", "label", *(["mask"] if facts["side"] else []), *facts["plain"]]
        expected = {f"{name}.npy" for name in names} | ({"boxes.npz"} if facts["boxes"] else set())
        if expected != {path.name for path in folder.glob("*.np[yz]")}:
            raise ValueError("other arrays than were stored")
        self.side = facts["side"]
        self.arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        self.width = self.arrays["index"].shape[1]
        self.boxes: dict[str, np.ndarray] = {}
        if facts["boxes"]:
            with np.load(folder / "boxes.npz") as file:
                self.boxes = dict(file)
        self._check(folder, facts, samples)

    def _check(self, folder: Path, facts: dict[str, Any], samples: int) -> None:
        for name, array in self.arrays.items():
            if array.offset + array.nbytes != (folder / f"{name}.npy").stat().st_size:
                raise ValueError(f"{name} has another length")
            if array.shape[:2] != (facts["views"], self.width):
                raise ValueError(f"{name} has another shape")
        index = self.arrays["index"]
        if index.ndim != 2 or (index.size and not 0 <= index.min() <= index.max() < samples):
            raise ValueError("index out of range")
        if self.side and self.arrays["mask"].shape[2] != -(-self.side * self.side // 8):
            raise ValueError("masks have another side")
        if facts["boxes"]:
            ends, count = self.boxes["offsets"], len(self.boxes["boxes"])
            if len(ends) != index.size + 1 or not ends[-1] == count == len(self.boxes["labels"]):
                raise ValueError("another number of boxes")
            if ends[0] != 0 or (np.diff(ends) < 0).any():
                raise ValueError("offsets of boxes out of order")

    def batch(self, views: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
        """Return the arrays of some samples, and lists of boxes."""
        batch: dict[str, Any] = {name: array[views, rows] for name, array in self.arrays.items()}
        if self.side:
            bits = np.unpackbits(batch["mask"], axis=-1, count=self.side * self.side)
            batch["mask"] = bits.reshape(-1, 1, self.side, self.side).astype(np.float32)
        if self.boxes:
            starts, ends = (self.boxes["offsets"][views * self.width + rows + k] for k in (0, 1))
            for key, name in (("boxes", "boxes"), ("box_labels", "labels")):
                batch[key] = [self.boxes[name][start:end] for start, end in zip(starts, ends, strict=True)]
        return batch


class StoredFeatures(Dataset[dict[str, Any]]):
    """Batches of stored features instead of images.

    A batch has the keys of :mod:`medvlp.datamodules.base` without image and text, and ``features``: a list of K
    float32 tensors (B, …).
    """

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.folder = folder
        self._ids = list(ids)
        try:
            facts: dict[str, Any] = json.loads((folder / _DONE).read_text())
            for name, least in _LEAST.items():
                if type(facts[name]) is not int or facts[name] < least:
                    raise ValueError(f"{name} out of range")
            self.views, self.levels, self._stride = facts["views"], facts["levels"], facts["shards"]
            self.skipped: list[tuple[str, str]] = [(item, reason) for item, reason in facts["skipped"]]
            # if there were more processes than samples, some shards are empty
            filled = range(min(self._stride, len(self._ids)))
            self._shards = [_Shard(folder / f"shard{r}", facts, len(self._ids)) for r in filled]
        except Exception as error:  # numpy's readers raise anything from BadZipFile to TokenError
            raise DataError(f"{folder}: damaged stored features ({type(error).__name__}); delete the folder") from error
        if sum(shard.width for shard in self._shards) != len(self._ids):
            raise DataError(f"{folder}: stored features of another number of samples; delete the folder")

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Return a batch of one; loaders call :meth:`__getitems__`."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> dict[str, Any]:
        """Return the batch of some samples, each (index, epoch), or the index alone for view 0."""
        pairs = np.array([key if isinstance(key, tuple) else (int(key), 0) for key in keys])
        rows, views = pairs[:, 0], pairs[:, 1] % self.views
        stored = self._gather(views, rows)
        features = [torch.from_numpy(stored.pop(f"level{k}").astype(np.float32)) for k in range(self.levels)]
        batch: dict[str, Any] = {
            name: [torch.from_numpy(item) for item in value] if isinstance(value, list) else torch.from_numpy(value)
            for name, value in stored.items()
        }
        return {**batch, "features": features, "id": [self._ids[i] for i in stored["index"]], "skipped": []}

    def _gather(self, views: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
        shard, row = rows % self._stride, rows // self._stride
        if self._stride == 1:
            return self._shards[0].batch(views, row)
        order = np.argsort(shard, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(shard[order])) + 1)
        parts = [self._shards[shard[group[0]]].batch(views[group], row[group]) for group in groups]
        back = np.argsort(order)
        stored: dict[str, Any] = {}
        for name, first in parts[0].items():
            if isinstance(first, list):
                joined = [item for part in parts for item in part[name]]
                stored[name] = [joined[i] for i in back]
            else:
                stored[name] = np.concatenate([part[name] for part in parts])[back]
        return stored


class _Views(Sampler[tuple[int, int]]):
    """Every (index, view) of one rank, in storage order."""

    def __init__(self, size: int, views: int, rank: int, world_size: int) -> None:
        self.rows = list(range(rank, size, world_size))
        self.views = views

    def __len__(self) -> int:
        return len(self.rows) * self.views

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((row, view) for view in range(self.views) for row in self.rows)


def _key(task: "Task", dataset: RadiographDataset, views: int) -> str:
    """Hash everything that the stored features of a dataset depend on."""
    transform, precision = dataset.transform, str(task.trainer.precision)
    annotations = [c for c in ("shapes", "boxes", "box_labels") if c in dataset.table.column_names]
    drawn = hashlib.sha256()
    for column in ("id", "image", *(annotations if dataset.targets else ())):
        drawn.update(json.dumps(dataset.table.column(column).to_pylist()).encode())
    drawn.update(dataset.labels.numpy().tobytes())
    return value_sha256(
        {
            "records": drawn.hexdigest(),
            "transform": repr(transform),
            "intensity": dataset.reading,
            "seed": dataset.seed if transform is not None and transform.train else None,
            "targets": list(dataset.targets),
            "encoder": task.encoder.sha256,
            "what": task.extracts,
            "views": views,
            "dtype": task.features_dtype,
            **({} if precision == "32-true" else {"precision": precision}),
        }
    )[:32]


class _Writer:
    """One shard while it is being written."""

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: "np.dtype[Any] | str") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype)
        self.arrays: dict[str, np.ndarray] = {}
        self.boxes: list[np.ndarray] = []
        self.box_labels: list[np.ndarray] = []
        self.has_boxes = False
        self.skipped: list[tuple[str, str]] = []
        self.side = 0
        self.done = 0

    def _put(self, name: str, values: np.ndarray, at: tuple[np.ndarray, np.ndarray], kind: Any = None) -> None:
        if name not in self.arrays:
            self.arrays[name] = np.lib.format.open_memmap(
                self.folder / f"{name}.npy", "w+", kind or values.dtype, (*self.shape, *values.shape[1:])
            )
        self.arrays[name][at] = values

    def add(self, levels: list[np.ndarray], batch: dict[str, Any]) -> None:
        """Append the next samples in the order of :class:`_Views`."""
        numbers = np.arange(self.done, self.done + len(batch["id"]))
        self.done += len(numbers)
        at = np.divmod(numbers, max(self.shape[1], 1))
        for k, level in enumerate(levels):
            if self.dtype == np.float16 and len(level) and np.abs(level).max() > np.finfo(np.float16).max:
                raise ConfigError("the encoder's features overflow float16; set features_dtype: float32")
            self._put(f"level{k}", level, at, self.dtype)
        self._put("index", batch["index"].numpy(), at)
        self._put("label", batch["label"].numpy(), at)
        if "mask" in batch:
            self.side = int(batch["mask"].shape[-1])
            self._put("mask", np.packbits(batch["mask"].numpy().reshape(len(numbers), -1) > 0.5, axis=-1), at)
        for name in _PLAIN:
            if name in batch:
                self._put(name, batch[name].numpy(), at)
        if "boxes" in batch:
            self.has_boxes = True
            self.boxes += [box.numpy() for box in batch["boxes"]]
            self.box_labels += [label.numpy() for label in batch["box_labels"]]
        self.skipped += [(str(item), str(reason)) for item, reason in batch.get("skipped", [])]

    def close(self) -> None:
        """Flush everything to disk and describe it."""
        for array in self.arrays.values():
            array.flush()  # type: ignore[attr-defined]
        if self.has_boxes:
            counts = [len(box) for box in self.boxes]
            np.savez(
                self.folder / "boxes.npz",
                boxes=np.concatenate([np.zeros((0, 4), np.float32), *self.boxes]),
                labels=np.concatenate([np.zeros(0, np.int64), *self.box_labels]),
                offsets=np.cumsum([0, *counts]),
            )
        facts = {
            "levels": sum(name.startswith("level") for name in self.arrays),
            "plain": [name for name in _PLAIN if name in self.arrays],
            "side": self.side,
            "boxes": self.has_boxes,
            "skipped": sorted(set(self.skipped)),
        }
        (self.folder / "shard.json").write_text(json.dumps(facts))


def _check_space(title: str, folder: Path, samples: int, views: int, each: int, limit_gb: float) -> None:
    total = samples * views * each
    at = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(at).free
    rank_zero_info(
        f"{title}: {samples:,} samples × {views} view(s) × {each / 1024:,.1f} KiB = {total / 1e9:,.2f} GB in {folder}"
        f" ({free / 1e9:,.1f} GB free)"
    )
    if total > min(limit_gb * 1e9, 0.95 * free):
        why = f"features_limit_gb: {limit_gb:g}" if total > limit_gb * 1e9 else "the free space"
        raise ConfigError(
            f"{title}: stored features would take {total / 1e9:,.1f} GB, more than {why} allows; set features: live, "
            "fewer views, or features_dtype: float16"
        )


@torch.no_grad()
def store_features(task: "Task", dataset: RadiographDataset, split: str) -> StoredFeatures:
    """Compute the features of a task's frozen encoder for a dataset, or open those that are stored.

    The ranks of a run share the work and must see the same folder. If another run computes the same features, wait for
    it. The size on disk is logged after the first batch.
    """
    if task.trainer.state.fn != "fit":
        need_weights(task.trainer, task)  # before encoding all images in vain
    check_choice("features_dtype", task.features_dtype, _TYPES)
    trainer, dtype = task.trainer, np.dtype(task.features_dtype)
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    views = task.views if split == "train" else 1
    folder = Path(task.features_dir or Path(trainer.default_root_dir) / "features")
    path = folder / _key(task, dataset, views)
    strategy, rank, world_size = trainer.strategy, trainer.global_rank, trainer.world_size
    task.encoder.to(strategy.root_device).eval()
    with _shared(path, strategy, rank) as part:
        if part is not None:
            sampler = _Views(len(dataset), views, rank, world_size)
            loader: DataLoader[dict[str, Any]] = DataLoader(
                dataset,
                batch_size=datamodule.eval_batch_size,
                sampler=sampler,
                num_workers=datamodule.num_workers,
                collate_fn=Collate(None),
            )
            writer = _Writer(part / f"shard{rank}", (views, len(sampler.rows)), dtype)
            for batch in loader:
                images = trainer.precision_plugin.convert_input(batch["image"]).to(strategy.root_device)
                with trainer.precision_plugin.forward_context():
                    levels = [level.float().cpu().numpy() for level in task.extract(images)]
                if writer.done == 0:
                    each = sum(level[0].size * dtype.itemsize for level in levels)
                    each += batch["mask"][0].numel() // 8 if "mask" in batch else 0
                    title = f"{task.encoder.name}, {split}"
                    _check_space(title, folder, len(dataset), views, each, task.features_limit_gb)
                writer.add(levels, batch)
            writer.close()
            strategy.barrier()
            if rank == 0:
                _finish(part, world_size, views)
    strategy.barrier()
    return StoredFeatures(path, dataset.ids)


@contextmanager
def _shared(path: Path, strategy: Any, rank: int) -> Iterator[Path | None]:
    """Yield to every rank the folder to fill, or None if the set is complete; rank 0 decides for all."""
    if rank > 0:
        while (told := strategy.broadcast(None)) == _WAIT:
            pass
        yield told
        return

    def waiting() -> None:
        rank_zero_info(f"waiting for the process that makes {path}")
        strategy.broadcast(_WAIT)

    with get_or_make(path, _DONE, waiting) as part:
        yield strategy.broadcast(part)


def _finish(part: Path, shards: int, views: int) -> None:
    """Join the descriptions of the shards."""
    notes = [json.loads((part / f"shard{r}" / "shard.json").read_text()) for r in range(shards)]
    facts = {**notes[0], "skipped": sorted({tuple(s) for n in notes for s in n["skipped"]})}
    (part / _DONE).write_text(json.dumps({**facts, "shards": shards, "views": views}))

"""Data modules: split × fraction × transform × collate.

Every loader yields batches of these keys (B samples, S pixels, L tokens, K labels), of which a task needs some:

============== ==================== ====================================================================
key            type, shape          meaning
============== ==================== ====================================================================
image          float32 (B, 3, S, S) normalised by the transform
input_ids      int64 (B, L)         token ids; the three token keys need an attached tokenizer
attention_mask int64 (B, L)         1 for tokens, 0 for padding
word_groups    int64 (B, L)         the word that a piece belongs to, −1 for special tokens and padding
text           list of B str        report, caption or phrase
id             list of B str
index          int64 (B,)           row in the dataset; repeated rows are duplicates (sharding, skipping)
label          float32 (B, K)       NaN where unknown; K may be 0
mask           float32 (B, 1, S, S) 0 and 1; segmentation and grounding
boxes          list of B (n, 4)     float32 x0, y0, x1, y1 in pixels of the image; detection and grounding
box_labels     list of B (n,)       int64 class numbers of the boxes
size           int64 (B, 2)         height and width of the file, where there are masks or boxes
geometry       int64 (B, 10)        what the resize did, to take results back to the file's pixels
skipped        list of (id, reason) unreadable items that others in the batch stand in for
============== ==================== ====================================================================
"""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from medvlp.datamodules.sampler import PlainErrorLoader, ResumableLoader, ResumableSampler
from medvlp.datasets.base import RadiographDataset, Target, TextSampling, dropped_by_reason
from medvlp.errors import ConfigError, DataError, TooManySkippedError, check_choice, check_range
from medvlp.io.cache import PixelCache
from medvlp.io.images import Damaged, check_reading
from medvlp.phantom.truth import in_phantom
from medvlp.splits import nested_fraction
from medvlp.text import Collate
from medvlp.transforms import TRANSFORMS, build_transform

Split = Literal["train", "validate", "test"]

CHECKPOINT = "checkpoint"
"""As ``transform``: the transform, image size and intensity rule that the model's own checkpoint was trained with."""


def _one_thread(worker_id: int) -> None:
    # workers are the parallelism; more threads in each only fight over the same cores
    torch.set_num_threads(1)


def _unchanged(batch: Any) -> Any:
    return batch


class RadiographDataModule(L.LightningDataModule):
    """Base of all data modules. Subclasses implement :meth:`read`.

    The order of the training samples and their augmentation depend on (seed, epoch, index) alone, so a resumed run goes
    on with the very next batch.

    Args:
        batch_size: training samples per device.
        eval_batch_size: samples per device in validation and testing; None uses batch_size.
        num_workers: loader processes; 0 loads in the main process.
        image_size: side of the images that the model sees, in pixels.
        transform: a name of medvlp.transforms.TRANSFORMS, or "checkpoint": transform, image_size and intensity of
            the checkpoint that the trainer's task starts from.
        intensity: how files become grey levels, a name of medvlp.io.images.INTENSITIES.
        damaged: "refuse" a file whose decoder warns of damage, as on_error says, or "accept" its pixels as they are.
        seed: seed of the sample order, the augmentation and the fraction.
        fraction: share of the training patients, in (0, 1]; smaller shares lie inside larger ones.
        text_sampling: the "whole" text, one random "sentence" of it (ConVIRT) or of those that GLoRIA's code makes
            ("gloria"), or a random part of its "sentences" or "pieces" in random order (MaCo).
        on_error: "raise" on the first unreadable item, or "skip": count it and take the next readable one.
        max_skipped: largest share of unreadable items that on_error: skip tolerates.
        pin_memory: page-locked batches, for faster copies to a CUDA device.
        cache_dir: folder of ``medvlp prepare``, whose images are not decoded again; the samples are the same. Keep it
            as safe as the corpus: it also holds parsed reports.
        loader_timeout: seconds to wait for a batch of the loader processes before the run ends with an error; 0 waits
            without limit.
    """

    targets: tuple[Target, ...] = ()
    """What the samples hold beside image, text and label."""
    if_empty: ClassVar[str] = "choose another split"
    """What an error about an empty split advises."""
    cache_name: str = ""
    """Name of the corpus in ``cache_dir``; without one, images are not looked for there."""

    def __init__(
        self,
        *,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        image_size: int = 224,
        transform: str = "g2d_paper",
        intensity: str = "standard",
        damaged: Damaged = "refuse",
        seed: int = 0,
        fraction: float = 1.0,
        text_sampling: TextSampling = "whole",
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: float = 0.05,
        pin_memory: bool = False,
        cache_dir: str | None = None,
        loader_timeout: float = 240.0,
    ) -> None:
        super().__init__()
        check_range("[1, inf)", batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_range("[0, 1024]", num_workers=num_workers)
        check_range("[1, 16384]", image_size=image_size)
        check_range("[0, inf)", seed=seed)
        check_range("(0, 1]", fraction=fraction)
        check_range("[0, 1]", max_skipped=max_skipped)
        check_choice("transform", transform, (*TRANSFORMS, CHECKPOINT))
        check_reading(intensity, damaged)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.image_size = image_size
        self.transform = transform
        self.intensity = intensity
        self.damaged: Damaged = damaged
        self.cache_dir = cache_dir
        self.seed = seed
        self.fraction = fraction
        self.text_sampling = text_sampling
        self.on_error = on_error
        self.max_skipped = max_skipped
        self.pin_memory = pin_memory
        self.loader_timeout = loader_timeout
        self.train_set: RadiographDataset | None = None
        self.val_set: RadiographDataset | None = None
        self.test_set: RadiographDataset | None = None
        self.collate = Collate(None)
        self.image_root: str | Path | None = None
        self._caches: dict[str, PixelCache | None] = {}
        self._stand_ins: dict[Split, Callable[[], Dataset[Any]]] = {}

    @abstractmethod
    def read(self, split: Split) -> RadiographDataset:
        """Index one split: all its records, without a transform."""

    def reduced(self, train: RadiographDataset) -> RadiographDataset:
        """The share of the training split that ``fraction`` asks for."""
        return train.subset(nested_fraction(train.groups, self.fraction, self.seed))

    def setup(self, stage: str | None = None) -> None:
        """Build the datasets that a stage ("fit", "validate", "test" or "predict", or None for all) needs, once."""
        if self.transform == CHECKPOINT:
            self._follow_model()
        if stage in ("fit", None) and self.train_set is None:
            train = self._indexed("train")
            if len(train) == 0:
                raise DataError(f"the training split is empty; {dropped_by_reason(train.dropped)}")
            if self.fraction < 1:
                train = self.reduced(train)
            self.train_set = self.prepared(train, train=True)
        if stage in ("fit", "validate", None) and self.val_set is None:
            self.val_set = self.prepared(self._indexed("validate"), train=False)
        if stage in ("test", "predict", None) and self.test_set is None:
            self.test_set = self.prepared(self._indexed("test"), train=False)

    def _follow_model(self) -> None:
        model = self.trainer.lightning_module if self.trainer is not None else None
        settings = getattr(model, "preprocess", None) or {}
        if "transform" not in settings:
            raise ConfigError(
                "transform: checkpoint needs a model that was loaded from a medvlp checkpoint; name a transform instead"
                f" ({', '.join(TRANSFORMS)})"
            )
        self.transform, self.image_size = settings["transform"], settings["size"]
        self.intensity = settings.get("intensity", self.intensity)

    def _indexed(self, split: Split) -> RadiographDataset:
        dataset = self.read(split)
        self._check_broken(dataset.dropped, len(dataset), f"the {split} split")
        return dataset

    def _check_broken(self, dropped: pd.DataFrame, kept: int, source: str, remedy: str = "") -> None:
        broken = int(dropped["broken"].sum())
        if broken > self.max_skipped * (kept + broken):
            raise TooManySkippedError(
                f"{broken} of the {kept + broken} items of {source} cannot be used ({dropped_by_reason(dropped)}),"
                f" more than max_skipped: {self.max_skipped} allows{remedy}"
            )

    def prepared(self, dataset: RadiographDataset, train: bool) -> RadiographDataset:
        """Return a dataset with the transform (of training or evaluation), the settings and the prepared pixels."""
        prepared = dataset.prepared(
            build_transform(self.transform, self.image_size, train),
            targets=self.targets,
            intensity=self.intensity,
            damaged=self.damaged,
            seed=self.seed,
            text_sampling=self.text_sampling,
            on_error=self.on_error,
        )
        cache = self._pixel_cache(prepared)
        return prepared if cache is None or not len(prepared) else prepared.with_cache(cache)

    def _pixel_cache(self, dataset: RadiographDataset) -> PixelCache | None:
        if self.cache_dir is None or not self.cache_name or self.image_root is None or dataset.transform is None:
            return None
        rule = dataset.transform.resize.name
        key = (self.cache_dir, self.cache_name, dataset.reading, rule)
        if rule in self._caches:
            return self._caches[rule]
        # a cache that is unfinished or of another version is an error; without one, files are decoded
        if PixelCache.exists(*key):
            self._caches[rule] = PixelCache.open(*key, root=self.image_root)
        else:
            self._caches[rule] = None
            rank_zero_warn(
                f"{self.cache_dir} holds no prepared images of {self.cache_name} for {dataset.reading} {rule}, so each"
                f" file is decoded in each epoch; prepare them once with: medvlp prepare {self.cache_name}"
                f" --root {self.image_root} --out {self.cache_dir} --transform {self.transform}"
                f" --size {self.image_size} --intensity {self.intensity} --damaged {self.damaged}",
                category=UserWarning,
            )
        return self._caches[rule]

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the K labels of the batches."""
        if self.train_set is None and self.test_set is None:
            self.setup("validate")
        return next(part.label_names for part in self._parts.values() if part is not None)

    @property
    def _parts(self) -> dict[Split, RadiographDataset | None]:
        return {"train": self.train_set, "validate": self.val_set, "test": self.test_set}

    def _part(self, split: Split) -> RadiographDataset:
        self.setup("fit" if split == "train" else split)
        part = self._parts[split]
        assert part is not None
        return part

    @property
    def preprocess(self) -> dict[str, Any]:
        """What an image needs before it enters the model: transform, intensity rule and the side in pixels."""
        return {"transform": self.transform, "size": self.image_size, "intensity": self.intensity}

    @property
    def skipped_at_index(self) -> pd.DataFrame:
        """Everything dropped while indexing, with columns split, id, row, reason and broken."""
        frames = [part.dropped.assign(split=name) for name, part in self._parts.items() if part is not None]
        columns = ["split", "id", "row", "reason", "broken"]
        return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)

    def describe(self) -> dict[str, Any]:
        """Return what a result row says of the data: corpus, phantom or not, fraction, preprocessing and batches."""
        return {
            "dataset": self.cache_name or type(self).__name__,
            "phantom": in_phantom(self.sources()),
            "fraction": self.fraction,
            "data_seed": self.seed,
            "batch_size": self.batch_size,
            **self.preprocess,
        }

    def sources(self) -> list[str | Path]:
        """Return files and folders that the images come from; one in a phantom tree makes all of them phantoms."""
        return [] if self.image_root is None else [self.image_root]

    def select_test(self, mask: Any) -> None:
        """Keep the test samples where ``mask``, a bool array (N,), is true."""
        if self.test_set is not None:
            self.test_set = self.test_set.subset(mask)

    def stand_in(self, split: Split, make: Callable[[], Dataset[Any]] | None) -> None:
        """Let the loaders of a part read stored features of a frozen encoder instead of images.

        ``make`` is called when the loader is built. It returns a dataset of as many samples, which takes lists of
        (index, epoch) in ``__getitems__`` and returns batches. None goes back to the images.
        """
        if make is None:
            self._stand_ins.pop(split, None)
        else:
            self._stand_ins[split] = make

    def training_texts(self) -> list[str]:
        """Return the whole training texts, to train a vocabulary on."""
        return self._part("train").texts

    def attach_tokenizer(
        self, tokenizer: Any, max_length: int = 256, padding: Literal["longest", "max_length"] = "longest"
    ) -> None:
        """Let the batches carry tokens; call it before the loaders are made.

        Args:
            tokenizer: a fast Hugging Face tokenizer, or None for batches without tokens.
            max_length: longer texts are cut to this many tokens, special ones included.
            padding: pad to the "longest" text of the batch, or always to "max_length".
        """
        self.collate = Collate(tokenizer, max_length=max_length, padding=padding)

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _position(self) -> tuple[int, int, int, int] | None:
        """Return (epoch, batches of it done, batches per epoch, batches left in the trainer's epoch).

        By the number of batches trained on, not Lightning's epoch counter: a run that ``max_steps`` stops in mid-epoch
        saves that epoch as finished.
        """
        trainer = self.trainer
        if trainer is None or trainer.state.fn != "fit" or not isinstance(trainer.num_training_batches, int):
            return None
        length = trainer.num_training_batches
        progress = trainer.fit_loop.epoch_loop.batch_progress
        epoch, done = divmod(progress.total.completed, length)
        return epoch, done, length, max(length - progress.current.ready, 0)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches, sharded over the ranks; incomplete batches are dropped."""
        train = self._part("train")
        world_size, rank = self._ranks()
        if len(train) < self.batch_size * world_size:
            raise ConfigError(
                f"{len(train)} training samples do not fill one batch of {self.batch_size} on"
                f" {world_size} device(s); lower batch_size or raise fraction"
            )
        dataset, options = self._source("train", train)
        options["sampler"] = ResumableSampler(train, world_size, rank, seed=self.seed)
        return ResumableLoader(dataset, batch_size=self.batch_size, drop_last=True, position=self._position, **options)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches in the order of the corpus."""
        return self._eval_loader("validate")

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches in the order of the corpus."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The batches of :meth:`test_dataloader`."""
        return self.test_dataloader()

    def _eval_loader(self, split: Split) -> DataLoader[Any]:
        dataset = self._part(split)
        command = self.trainer.state.fn if self.trainer is not None else None
        if not len(dataset) and command in ("validate", "test", "predict"):
            raise DataError(
                f"the {split} split is empty: there is nothing to {command.value};"
                f" {dropped_by_reason(dataset.dropped)}; {self.if_empty}"
            )
        world_size, rank = self._ranks()
        # the sharded sampler repeats items to give every rank the same number; their index tells them apart
        sampler: DistributedSampler[Any] | SequentialSampler = (
            DistributedSampler(dataset, world_size, rank, shuffle=False)
            if world_size > 1 and len(dataset)
            else SequentialSampler(dataset)
        )
        source, options = self._source(split, dataset)
        return PlainErrorLoader(source, batch_size=self.eval_batch_size, sampler=sampler, **options)

    def _source(self, split: Split, dataset: RadiographDataset) -> tuple[Dataset[Any], dict[str, Any]]:
        """What the loader of a part reads, and its other options."""
        if (make := self._stand_ins.get(split)) is not None:
            # whole batches are cut out of stored arrays: nothing for workers to do
            return make(), {"num_workers": 0, "collate_fn": _unchanged, "pin_memory": self.pin_memory}
        return dataset, {
            "num_workers": self.num_workers,
            "collate_fn": self.collate,
            "pin_memory": self.pin_memory,
            "persistent_workers": self.num_workers > 0,
            "patience": self.loader_timeout,
            "worker_init_fn": _one_thread,
        }

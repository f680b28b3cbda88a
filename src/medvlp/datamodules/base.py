"""Data modules for pre-training: split × fraction × transform × collate.

Every loader yields batches of these keys (B pairs, S pixels, L tokens, K labels):

============== ==================== ====================================================================
key            type, shape          meaning
============== ==================== ====================================================================
image          float32 (B, 3, S, S) normalised by the transform
input_ids      int64 (B, L)         token ids; the three token keys need an attached tokenizer
attention_mask int64 (B, L)         1 for tokens, 0 for padding
word_groups    int64 (B, L)         the word that a piece belongs to, −1 for special tokens and padding
text           list of B str
id             list of B str
index          int64 (B,)           row in the dataset; repeated rows are duplicates (sharding, skipping)
label          float32 (B, K)       NaN where unknown; K may be 0
skipped        list of (id, reason) unreadable items that others in the batch stand in for
============== ==================== ====================================================================
"""

from abc import abstractmethod
from typing import Any, Literal

import lightning as L
import pandas as pd
import torch
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from medvlp.datamodules.sampler import PlainErrorLoader, ResumableLoader, ResumableSampler
from medvlp.datasets.base import ERROR_REASONS, ImageTextDataset, nested_fraction
from medvlp.errors import ConfigError, DataError, TooManySkippedError
from medvlp.text import Collate
from medvlp.transforms import TRANSFORMS, build_transform

Split = Literal["train", "validate", "test"]


def _one_thread(worker_id: int) -> None:
    # workers are the parallelism; more threads in each only fight over the same cores
    torch.set_num_threads(1)


class PretrainDataModule(L.LightningDataModule):
    """What the data modules for pre-training share. Subclasses implement :meth:`read`.

    The order of the training samples and their augmentation depend only on (seed, epoch, index), so a run that is
    resumed from any checkpoint goes on with the very next batch.

    Args:
        batch_size: training pairs per device.
        eval_batch_size: pairs per device in validation and testing; None uses batch_size.
        num_workers: loader processes; 0 loads in the main process.
        image_size: side of the images that the model sees, in pixels.
        transform: a name of medvlp.transforms.TRANSFORMS.
        seed: seed of the sample order, the augmentation and the fraction.
        fraction: share of the training patients, in (0, 1]; smaller shares lie inside larger ones.
        text_sampling: "whole" text, or one random "sentence" of it (ConVIRT).
        on_error: "raise" on the first unreadable item, or "skip": count it and take the next readable one.
        max_skipped: largest share of unreadable items that on_error: skip tolerates.
        pin_memory: page-locked batches, for faster copies to a CUDA device.
    """

    def __init__(
        self,
        *,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        image_size: int = 224,
        transform: str = "g2d_paper",
        seed: int = 0,
        fraction: float = 1.0,
        text_sampling: Literal["whole", "sentence"] = "whole",
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: float = 0.05,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (eval_batch_size is not None and eval_batch_size < 1):
            raise ConfigError(f"batch sizes must be positive, not {batch_size} and {eval_batch_size}")
        if transform not in TRANSFORMS:
            raise ConfigError(f'there is no transform "{transform}"; there are {", ".join(TRANSFORMS)}')
        if not 0 < fraction <= 1:
            raise ConfigError(f"fraction must lie in (0, 1], not {fraction}")
        if not 0 <= max_skipped <= 1:
            raise ConfigError(f"max_skipped must lie in [0, 1], not {max_skipped}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.image_size = image_size
        self.transform = transform
        self.seed = seed
        self.fraction = fraction
        self.text_sampling = text_sampling
        self.on_error = on_error
        self.max_skipped = max_skipped
        self.pin_memory = pin_memory
        self.train_set: ImageTextDataset | None = None
        self.val_set: ImageTextDataset | None = None
        self.test_set: ImageTextDataset | None = None
        self.collate = Collate(None)

    # ------------------------------------------------------------------ datasets

    @abstractmethod
    def read(self, split: Split) -> ImageTextDataset:
        """Index one split: all its pairs, without a transform."""

    def setup(self, stage: str | None = None) -> None:
        """Build the datasets that a stage ("fit", "validate", "test" or "predict", or None for all) needs, once.

        Raises:
            DataError: the training split is empty.
            TooManySkippedError: more broken files than ``max_skipped`` allows.
        """
        if stage in ("fit", None) and self.train_set is None:
            train = self._indexed("train")
            if len(train) == 0:
                raise DataError(f"the training split is empty; left out: {train.dropped.attrs.get('counts', {})}")
            if self.fraction < 1:
                train = train.subset(nested_fraction(train.groups, self.fraction, self.seed))
            self.train_set = self._prepared(train, train=True)
        if stage in ("fit", "validate", None) and self.val_set is None:
            self.val_set = self._prepared(self._indexed("validate"), train=False)
        if stage in ("test", "predict", None) and self.test_set is None:
            self.test_set = self._prepared(self._indexed("test"), train=False)

    def _indexed(self, split: Split) -> ImageTextDataset:
        dataset = self.read(split)
        broken = int(dataset.dropped["reason"].isin(ERROR_REASONS).sum())
        listed = len(dataset) + broken
        if broken > self.max_skipped * listed:
            raise TooManySkippedError(
                f"{broken} of the {listed} items of the {split} split cannot be used"
                f" ({dataset.dropped.attrs.get('counts', {})}), more than max_skipped: {self.max_skipped} allows"
            )
        return dataset

    def _prepared(self, dataset: ImageTextDataset, train: bool) -> ImageTextDataset:
        return dataset.prepared(
            build_transform(self.transform, self.image_size, train),
            seed=self.seed,
            text_sampling=self.text_sampling,
            on_error=self.on_error,
        )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the K labels of the batches."""
        for dataset in (self.train_set, self.val_set, self.test_set):
            if dataset is not None:
                return dataset.label_names
        self.setup("validate")
        assert self.val_set is not None
        return self.val_set.label_names

    @property
    def preprocess(self) -> dict[str, Any]:
        """What an image needs before it enters the model: the transform's name and the side in pixels."""
        return {"transform": self.transform, "size": self.image_size}

    @property
    def skipped_at_index(self) -> pd.DataFrame:
        """Everything left out while indexing, with columns split, id, row and reason."""
        frames = [
            dataset.dropped.assign(split=name)
            for name, dataset in (("train", self.train_set), ("validate", self.val_set), ("test", self.test_set))
            if dataset is not None
        ]
        columns = ["split", "id", "row", "reason"]
        return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)

    # ------------------------------------------------------------------ text

    def corpus(self) -> list[str]:
        """The training texts, whole, for the training of a vocabulary."""
        self.setup("fit")
        assert self.train_set is not None
        return self.train_set.texts

    def attach_tokenizer(
        self, tokenizer: Any, max_length: int = 256, padding: Literal["longest", "max_length"] = "longest"
    ) -> None:
        """Let the batches carry tokens. Call it before the loaders are made.

        Args:
            tokenizer: a fast Hugging Face tokenizer, or None for batches without tokens.
            max_length: longer texts are cut to this many tokens, special ones included.
            padding: pad to the "longest" text of the batch, or always to "max_length".
        """
        self.collate = Collate(tokenizer, max_length=max_length, padding=padding)

    # ------------------------------------------------------------------ loaders

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _position(self) -> tuple[int, int, int, int] | None:
        """Where the trainer stands: (epoch, batches of it done, batches per epoch, batches left in its own epoch).

        The stream of samples follows the number of batches trained on so far and not Lightning's epoch counter: a
        run that ``max_steps`` stops in mid-epoch saves that epoch as finished, and when such a run is extended the
        rest of the epoch would be lost.
        """
        trainer = self.trainer
        if trainer is None or trainer.state.fn != "fit" or not isinstance(trainer.num_training_batches, int):
            return None
        length = trainer.num_training_batches
        progress = trainer.fit_loop.epoch_loop.batch_progress
        epoch, done = divmod(progress.total.completed, length)
        return epoch, done, length, max(length - progress.current.ready, 0)

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches, sharded over the ranks; incomplete batches are dropped.

        Raises:
            ConfigError: there are fewer training pairs than one step of all devices needs.
        """
        self.setup("fit")
        assert self.train_set is not None
        world_size, rank = self._ranks()
        if len(self.train_set) < self.batch_size * world_size:
            raise ConfigError(
                f"{len(self.train_set)} training pairs do not fill one batch of {self.batch_size} on"
                f" {world_size} device(s); lower batch_size or raise fraction"
            )
        sampler = ResumableSampler(self.train_set, world_size, rank, seed=self.seed)
        return ResumableLoader(
            self.train_set,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=True,
            position=self._position,
            **self._loader_options(),
        )

    def val_dataloader(self) -> DataLoader:
        """Validation batches in the order of the corpus."""
        self.setup("validate")
        assert self.val_set is not None
        return self._eval_loader(self.val_set)

    def test_dataloader(self) -> DataLoader:
        """Test batches in the order of the corpus."""
        self.setup("test")
        assert self.test_set is not None
        return self._eval_loader(self.test_set)

    def predict_dataloader(self) -> DataLoader:
        """The batches of :meth:`test_dataloader`."""
        return self.test_dataloader()

    def _eval_loader(self, dataset: ImageTextDataset) -> DataLoader:
        world_size, rank = self._ranks()
        # the sharded sampler repeats items to give every rank the same number; their index tells them apart
        sampler: DistributedSampler | SequentialSampler = (
            DistributedSampler(dataset, world_size, rank, shuffle=False)
            if world_size > 1 and len(dataset)
            else SequentialSampler(dataset)
        )
        return PlainErrorLoader(dataset, batch_size=self.eval_batch_size, sampler=sampler, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "collate_fn": self.collate,
            "pin_memory": self.pin_memory,
            "persistent_workers": self.num_workers > 0,
            "worker_init_fn": _one_thread,
        }

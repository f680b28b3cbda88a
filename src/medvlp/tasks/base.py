"""What every downstream task is: an encoder, a protocol, per-sample predictions, metrics with intervals, rows."""

import os
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from medvlp.errors import CheckpointError, ConfigError, DataError, check_range
from medvlp.losses.precision import total
from medvlp.metrics.bootstrap import Measures, group_codes, interval
from medvlp.metrics.samples import Samples, SampleStore
from medvlp.results import ResultRow, append_rows, write_predictions
from medvlp.seeding import derive_seed, run_seed
from medvlp.store import sha256_of
from medvlp.tasks.encoder import EncoderSource, TaskEncoder, optim_from, source_from
from medvlp.tasks.features import StoredFeatures, features_key, store_features
from medvlp.tasks.printing import print_rows
from medvlp.training.guards import need_weights
from medvlp.training.module import TrainingModule
from medvlp.training.optim import OptimConfig
from medvlp.training.schema import CHECKPOINT_KEY, conform, mapping
from medvlp.training.settings import check_named, plain

Features = Literal["cached", "live"]


class Task(TrainingModule):
    """Base of every task.

    A task sets :attr:`task`, builds its head after ``super().__init__(...)`` and implements :meth:`store`,
    :meth:`columns` and :meth:`measures_from`; one that trains also :meth:`extract`, :meth:`head_outputs` and
    :meth:`loss`. It sees the encoder alone and never asks which method it is from.

    ``medvlp test`` gathers per-sample columns over all ranks, each sample of the split once, computes every metric
    of the task with a bootstrap interval over patients, writes the predictions as Parquet and one line per metric to
    ``results.jsonl`` in the run's folder (:mod:`medvlp.results`).

    Args:
        encoder: where the encoder comes from.
        protocol: by whose rules; the class lists them. What is given explicitly goes before the protocol's value.
        image_size: side of the task's images in pixels.
        frozen: keep the encoder's weights as they are.
        encoder_mode: of a frozen encoder: "eval", or "train" (batch norms use and update batch statistics, as much
            released code does without meaning to).
        optim: optimiser and schedule.
        features: of a frozen encoder in eval mode: "cached" computes its outputs once, "live" in every step.
        views: augmented views of each training image that are cached; a live run has one per epoch.
        features_dir: folder of cached features, for all runs; ``features`` in the run's folder if None.
        features_dtype: "float32" or "float16".
        features_limit_gb: larger caches are refused.
        resamples: bootstrap resamples of the patients; 0 for no intervals.
        level: of the intervals.
        dense: no stretching of the images before the encoder.
        keep_method: keep the whole method.

    Raises:
        ConfigError: settings that contradict each other.
        CheckpointError: from the encoder's source.
    """

    task: ClassVar[str] = ""
    """The task's name in result rows."""

    trains: ClassVar[bool] = True
    """Whether there is anything to fit; otherwise ``medvlp test`` is all."""

    def __init__(
        self,
        encoder: EncoderSource | None,
        *,
        protocol: str,
        image_size: int = 224,
        frozen: bool = True,
        encoder_mode: Literal["eval", "train"] = "eval",
        optim: OptimConfig | None = None,
        features: Features = "cached",
        views: int = 1,
        features_dir: str | None = None,
        features_dtype: Literal["float32", "float16"] = "float32",
        features_limit_gb: float = 50.0,
        resamples: int = 1000,
        level: float = 0.95,
        dense: bool = False,
        keep_method: bool = False,
    ) -> None:
        super().__init__()
        check_range("(0, 1)", level=level)
        check_range("(0, inf)", features_limit_gb=features_limit_gb)
        check_range("[1, 16384]", image_size=image_size)
        # Collects the arguments of the subclass as well.
        self.save_hyperparameters()
        check_named({**self.hparams, "views": views, "resamples": resamples})
        self.protocol = protocol
        self.image_size = image_size
        self.frozen = frozen
        self.encoder_mode = encoder_mode
        self.optim_config = optim_from(optim) or OptimConfig()
        self.cached = self.trains and frozen and encoder_mode == "eval" and features == "cached"
        self.views = views
        self.features_dir = features_dir
        self.features_dtype = features_dtype
        self.features_limit_gb = features_limit_gb
        self.resamples = resamples
        self.level = level
        self.encoder = TaskEncoder(source_from(encoder), image_size, dense=dense, keep_method=keep_method)
        self.preprocess: dict[str, Any] = self.encoder.preprocess
        self.rows: list[ResultRow] = []
        if frozen:
            self.encoder.requires_grad_(False)
        self.has_weights = not self.trains
        self._start = time.monotonic()
        self._stores: dict[str, SampleStore] = {}
        self.train()

    # ---------------------------------------------------------------- the contract

    @abstractmethod
    def store(self) -> SampleStore:
        """An empty store with the task's per-sample columns."""

    @abstractmethod
    def columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The columns of a batch: predictions and truth, per sample."""

    @classmethod
    @abstractmethod
    def measures_from(cls, facts: Mapping[str, Any]) -> Measures:
        """All metrics of the task by protocol name; see :mod:`medvlp.metrics`.

        A class method of :meth:`facts` alone, so that whoever has a result row and its predictions can compute the
        row's numbers again (``medvlp benchmark verify``).

        Args:
            facts: of the task, or the ``notes`` of a row, which hold them.

        Returns:
            What gives the metrics of samples, and with weights those of each resample.

        Raises:
            KeyError: a fact is missing, by its name.
        """

    def measures(self, samples: Samples, weights: Tensor | None = None) -> dict[str, Tensor]:
        """All metrics of samples, weighted; see :meth:`measures_from`."""
        return self.measures_from(self.facts())(samples, weights)

    def extract(self, images: Tensor) -> Sequence[Tensor]:
        """What the task takes from the encoder: (B, 3, S, S) → K tensors (B, …)."""
        raise NotImplementedError

    def what(self) -> str:
        """Names what :meth:`extract` takes, for the key of stored features."""
        return type(self).__name__

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Named loss terms of a batch; their sum is optimised."""
        raise NotImplementedError

    def pictures(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """What there is to see of a batch's predictions; nothing for tasks that only score.

        Returns:
            Of n images of side S: ``masks`` (n, S, S) bool, ``boxes`` (n, k, 4) xyxy pixels padded with NaN with
            ``scores`` (n, k), or ``heatmaps`` (n, S, S) float32 in [0, 1] with ``phrases`` (n,).
        """
        return {}

    def monitored(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Which of the metrics are logged in validation, as ``val/<name>``."""
        return measures

    # ---------------------------------------------------------------- encoder

    def train(self, mode: bool = True) -> "Task":
        """As always, but a frozen encoder stays in its own mode."""
        super().train(mode)
        if self.frozen and (self.encoder_mode == "eval" or not mode):
            self.encoder.eval()
        return self

    def features(self, batch: dict[str, Any]) -> Sequence[Tensor]:
        """The encoder's outputs for a batch: the stored ones where the batch holds them."""
        if "features" in batch:
            return batch["features"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.extract(batch["image"])

    # ---------------------------------------------------------------- Lightning

    def setup(self, stage: str) -> None:
        """Hands the loaders stored features in the place of images where the encoder is frozen."""
        if stage == "fit" and not self.trains:
            raise ConfigError(f"{type(self).__name__} has nothing to train: run medvlp test with this config")
        self._start = time.monotonic()
        self._check_data()
        if stage == "fit":
            self._check_training(self._datamodule().train_set)
            self.train()
        if not self.cached:
            return
        datamodule = self._datamodule()
        for split, name in (("train", "train_set"), ("validate", "val_set"), ("test", "test_set")):
            dataset = getattr(datamodule, name)
            if dataset is not None and len(dataset):
                datamodule.stand_in(split, lambda split=split, dataset=dataset: self._stored(split, dataset))

    def teardown(self, stage: str) -> None:
        """Gives the loaders their images back."""
        if self.cached:
            for split in ("train", "validate", "test"):
                self._datamodule().stand_in(split, None)

    def _check_data(self) -> None:
        """Raises where the data module has not what the task needs; subclasses add to it."""
        self._datamodule()

    def _check_training(self, train: Any) -> None:
        """Raises where the training part holds nothing to learn; subclasses say what that is."""

    def _datamodule(self) -> Any:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "stand_in"):
            raise ConfigError(f"{type(self).__name__} needs a medvlp data module")
        return datamodule

    def _stored(self, split: str, dataset: Any) -> StoredFeatures:
        if self.trainer.state.fn != "fit":
            need_weights(self.trainer, self)  # before the encoder sees every image for nothing
        datamodule = self._datamodule()
        views = self.views if split == "train" else 1
        precision = str(self.trainer.precision)
        key = features_key(dataset, self.encoder.sha256, self.what(), views, self.features_dtype, precision)
        folder = self.features_dir or os.path.join(self.trainer.default_root_dir, "features")
        self.encoder.to(self.trainer.strategy.root_device).eval()
        return store_features(
            dataset,
            self.extract,
            folder=folder,
            key=key,
            trainer=self.trainer,
            views=views,
            dtype=self.features_dtype,
            batch_size=datamodule.eval_batch_size,
            num_workers=datamodule.num_workers,
            title=f"{self.encoder.name}, {split}",
            limit_gb=self.features_limit_gb,
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Sum of :meth:`loss`; every term is logged as ``train/<term>``."""
        terms = self.loss(batch)
        return self.sum_and_log(terms, len(batch["index"]), each=len(terms) > 1)

    def _collect(self, part: str, batch: dict[str, Any], columns: dict[str, Any] | None = None) -> None:
        if part not in self._stores:
            self._stores[part] = self.store().to(self.device)
        self._stores[part].update(batch["index"], **(self.columns(batch) if columns is None else columns))

    def _gathered(self, part: str) -> Samples:
        store = self._stores.pop(part, None)
        if store is None:
            raise DataError(f"the {part} part of the split is empty: there is nothing to score")
        return store.compute().to("cpu")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss, and per-sample columns for the epoch's end."""
        if self.trains:
            loss = total(self.loss(batch))
            self.log("val/loss", loss, sync_dist=True, batch_size=len(batch["index"]), prog_bar=True)
        self._collect("validate", batch)

    def on_validation_epoch_end(self) -> None:
        """The metrics on the validation part, logged as ``val/<metric>``."""
        samples = self._gathered("validate")
        if self.trainer.sanity_checking:
            return
        self.validated(samples)
        found = self.monitored(self.measures(samples))
        # Equal on all ranks already, since the store gathers; the flag only tells Lightning so.
        self.log_dict({f"val/{name}": value.float().to(self.device) for name, value in found.items()}, sync_dist=True)

    def validated(self, samples: Samples) -> None:
        """What the task learns from the whole validation part: thresholds, the best of several heads."""

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Per-sample columns."""
        self._collect("test", batch)

    def on_test_epoch_end(self) -> None:
        """Metrics, intervals, predictions and result rows; every metric is logged as ``test/<metric>``."""
        samples = self._gathered("test")
        found = self.report(samples)
        self.log_dict({f"test/{name}": value.float().to(self.device) for name, value in found.items()}, sync_dist=True)

    # ---------------------------------------------------------------- results

    def report(self, samples: Samples, part: str = "test", notes: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """Scores samples and, on the first rank, writes predictions and result rows and prints a table.

        Args:
            samples: of a whole part.
            part: its name.
            notes: further facts for the rows.

        Returns:
            Metric to value.
        """
        found = self.measures(samples)
        if not self.trainer.is_global_zero:
            return found
        datamodule = self._datamodule()
        dataset = {"train": datamodule.train_set, "validate": datamodule.val_set, "test": datamodule.test_set}[part]
        at = samples.index.tolist()
        ids, patients = dataset.ids, dataset.groups
        ids, patients = [ids[i] for i in at], [patients[i] for i in at]
        codes = group_codes(patients)
        intervals: dict[str, Any] = {}
        if self.resamples and len(samples):
            seed = bootstrap_seed(len(samples))
            intervals = interval(self.measures, samples, codes, self.resamples, self.level, seed)
        data, settings = datamodule.describe(), self.settings()
        config = sha256_of({"model": settings, "data": data})
        folder = Path(self.trainer.default_root_dir)
        # Of equal settings and seeds the predictions are equal too: a repeated run may write over its file.
        name = Path("predictions") / f"{self.task}-{part}-{config[:12]}-seed{run_seed()}.parquet"
        predictions_sha256 = write_predictions(folder / name, samples.to_frame(ids, patients))
        common: dict[str, Any] = {
            "method": self.encoder.name,
            "checkpoint": self.encoder.checkpoint_sha256,
            "task": self.task,
            "protocol": self.protocol,
            "dataset": data["dataset"],
            "part": part,
            "split": data.get("split"),
            "split_sha256": data.get("split_sha256"),
            "fraction": data.get("fraction") if self.trains else None,
            "seed": run_seed(),
            "samples": len(samples),
            "groups": len(np.unique(codes.numpy())),
            "predictions": str(name),
            "predictions_sha256": predictions_sha256,
            "config_sha256": config,
            "seconds": round(time.monotonic() - self._start, 2),
            "notes": {"model": settings, "data": data, **self.facts(), **(notes or {})},
        }
        self.rows = []
        for metric, value in found.items():
            low, high = intervals.get(metric, (None, None))
            self.rows.append(
                ResultRow(
                    **common,
                    metric=metric,
                    value=float(value),
                    low=low,
                    high=high,
                    level=self.level if intervals else None,
                    resamples=self.resamples if intervals else 0,
                )
            )
        path = append_rows(folder / "results.jsonl", self.rows)
        print_rows(self.rows)
        rank_zero_info(f"rows written to {path}")
        return found

    def facts(self) -> dict[str, Any]:
        """What else a result row should say: chosen thresholds, learning rates, all that the metrics depend on.

        Plain values that JSON keeps as they are; see :meth:`measures_from`.
        """
        return {}

    def settings(self) -> dict[str, Any]:
        """The arguments of the task as plain values; of files their content counts, not their path."""
        given = {key: value for key, value in self.hparams.items() if not key.startswith("_")}
        settings = {"class": type(self).__name__, **plain(given)}
        source = dict(plain(source_from(self.hparams.get("encoder"))))
        source["checkpoint"] = self.encoder.checkpoint_sha256 if source["checkpoint"] else None
        settings["encoder"] = source
        settings.pop("features_dir", None)
        return settings

    # ---------------------------------------------------------------- checkpoints

    def payload(self) -> dict[str, Any]:
        """What the task recognises its own checkpoints by."""
        return {
            "task": type(self).__name__,
            "encoder_sha256": self.encoder.sha256,
            "settings": self.settings(),
        }

    def take_payload(self, checkpoint: dict[str, Any]) -> None:
        """Raise unless the checkpoint is of this task and of this encoder."""
        stored = mapping(checkpoint.get(CHECKPOINT_KEY, {}), CHECKPOINT_KEY)
        if stored.get("task") != type(self).__name__:
            kind = stored.get("task") or f"method {stored.get('method')!r}"
            raise CheckpointError(
                f"the checkpoint is of {kind}, not of {type(self).__name__}; a method's checkpoint goes into "
                "model.init_args.encoder.checkpoint"
            )
        sha256 = conform(stored.get("encoder_sha256"), str, f"{CHECKPOINT_KEY}.encoder_sha256")
        if sha256 != self.encoder.sha256:
            raise CheckpointError(
                "the head in this checkpoint was trained on another encoder than encoder.checkpoint names now "
                f"({sha256[:12]}, now {self.encoder.sha256[:12]}); name the one it was trained on"
            )


def bootstrap_seed(samples: int) -> int:
    """Seed of the intervals in result rows: equal for all methods that are scored on the same samples."""
    return derive_seed(0, samples) % 2**31

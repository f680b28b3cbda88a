"""Base of the downstream tasks: an encoder, a protocol, per-sample predictions, metrics with intervals, result rows."""

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from rich.table import Table
from torch import Tensor

from medvlp.console import console
from medvlp.errors import CheckpointError, ConfigError, DataError, check_choice, check_range
from medvlp.losses.precision import total
from medvlp.metrics.bootstrap import Interval, Measures, group_codes, interval
from medvlp.metrics.samples import Samples, SampleStore
from medvlp.results import ResultRow, append_rows, write_predictions
from medvlp.seeding import derive_seed, run_seed
from medvlp.store import value_sha256
from medvlp.tasks.encoder import EncoderSource, TaskEncoder, optim_from, source_from
from medvlp.tasks.features import store_features
from medvlp.training.module import TrainingModule
from medvlp.training.optim import OptimConfig
from medvlp.training.schema import CHECKPOINT_KEY, conform, mapping
from medvlp.training.settings import check_named, plain

Features = Literal["cached", "live"]
S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class TrainedProtocol:
    """Settings of a protocol that trains; batch, epochs, images and selection belong to data module and trainer."""

    frozen: bool = True
    encoder_mode: Literal["eval", "train"] = "eval"
    optim: OptimConfig


def protocol_settings(what: str, protocols: Mapping[str, S], protocol: str, **arguments: Any) -> S:
    """Return the settings of a protocol, in which arguments that are not None replace its own."""
    check_choice(f"{what} protocol", protocol, protocols)
    given = {name: value for name, value in arguments.items() if value is not None}
    return replace(protocols[protocol], **given)  # type: ignore[type-var]


class Task(TrainingModule):
    """Base of every task.

    A task sets :attr:`task`, builds its head after ``super().__init__(...)`` and implements :meth:`store`,
    :meth:`columns` and :meth:`measures_from`; one that trains also :meth:`extract` and :meth:`loss`. Tasks do not
    depend on the method that the encoder is from.

    ``medvlp test`` gathers per-sample columns over all ranks, each sample of the split once, computes every metric of
    the task with a bootstrap interval over patients, writes the predictions as Parquet and one line per metric to
    ``results.jsonl`` in the run's folder (:mod:`medvlp.results`).

    Args:
        encoder: source of the encoder.
        protocol: evaluation protocol; see the class. Explicit arguments override the protocol's settings.
        image_size: side of the task's images in pixels.
        frozen: keep the encoder's weights as they are.
        encoder_mode: of a frozen encoder: "eval", or "train" (batch norms use and update batch statistics, as in much
            released code).
        optim: optimiser and schedule.
        features: of a frozen encoder in eval mode: "cached" computes its outputs once, "live" in every step.
        views: cached augmented views of each training image; a live run draws one per epoch.
        features_dir: folder of cached features, shared by all runs; None for ``features`` in the run's folder.
        features_dtype: "float32" or "float16".
        features_limit_gb: larger caches are refused.
        resamples: bootstrap resamples of the patients; 0 for no intervals.
        level: coverage of the intervals.
        dense: do not upsample the images before the encoder.
        keep_method: keep the whole method.
    """

    task: ClassVar[str] = ""
    """Name in result rows."""

    extracts: str = ""
    """Name of the outputs of :meth:`extract`, for the key of stored features."""

    trains: ClassVar[bool] = True
    """Whether there is anything to fit; otherwise only ``medvlp test`` applies."""

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
        self.save_hyperparameters()  # the arguments of the subclass as well
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

    @abstractmethod
    def store(self) -> SampleStore:
        """Make an empty store with the task's per-sample columns."""

    @abstractmethod
    def columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the columns of a batch: predictions and truth, per sample."""

    @classmethod
    @abstractmethod
    def measures_from(cls, facts: Mapping[str, Any]) -> Measures:
        """Return the function that computes all metrics of samples, and with weights of each resample.

        It depends on ``facts`` alone: :meth:`facts` of the task, or the ``notes`` of a result row, which include them,
        so that ``medvlp benchmark verify`` can recompute a row from its predictions. KeyError if a fact is missing.
        """

    def measures(self, samples: Samples, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Compute all metrics of samples; see :meth:`measures_from`."""
        return self.measures_from(self.facts())(samples, weights)

    def extract(self, images: Tensor) -> Sequence[Tensor]:
        """Compute the encoder's outputs that the task uses: (B, 3, S, S) → K tensors (B, …)."""
        raise NotImplementedError

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return named loss terms of a batch; their sum is optimised."""
        raise NotImplementedError

    def pictures(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the predictions of a batch that can be drawn; none for tasks that only score.

        Returns:
            Of n images of side S: ``masks`` (n, S, S) bool, ``boxes`` (n, k, 4) xyxy pixels padded with NaN with
            ``scores`` (n, k), or ``heatmaps`` (n, S, S) float32 in [0, 1] with ``phrases`` (n,).
        """
        return {}

    def monitored(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Choose the metrics that validation logs, as ``val/<name>``."""
        return measures

    def train(self, mode: bool = True) -> "Task":
        """Override: a frozen encoder keeps its own mode."""
        super().train(mode)
        if self.frozen and (self.encoder_mode == "eval" or not mode):
            self.encoder.eval()
        return self

    def features(self, batch: dict[str, Any]) -> Sequence[Tensor]:
        """Return the encoder's outputs for a batch: the stored ones if the batch has them."""
        if "features" in batch:
            return batch["features"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.extract(batch["image"])

    def setup(self, stage: str) -> None:
        """Check the data, and let the loaders read stored features instead of images if the encoder is frozen."""
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
                datamodule.stand_in(split, partial(store_features, self, dataset, split))

    def teardown(self, stage: str) -> None:
        """Let the loaders read images again."""
        if self.cached:
            for split in ("train", "validate", "test"):
                self._datamodule().stand_in(split, None)

    def _check_data(self) -> None:
        """Raise unless the data module provides what the task needs."""
        self._datamodule()

    def _check_training(self, train: Any) -> None:
        """Raise if the training part has no labels of the task."""

    def _datamodule(self) -> Any:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "stand_in"):
            raise ConfigError(f"{type(self).__name__} needs a medvlp data module")
        return datamodule

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the sum of :meth:`loss`, with every term logged as ``train/<term>``."""
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
        """Log the loss and collect per-sample columns."""
        if self.trains:
            self._log_val_loss(total(self.loss(batch)), batch)
        self._collect("validate", batch)

    def _log_val_loss(self, loss: Tensor, batch: dict[str, Any]) -> None:
        self.log("val/loss", loss, sync_dist=True, batch_size=len(batch["index"]), prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics on the validation part and log them as ``val/<metric>``."""
        samples = self._gathered("validate")
        if self.trainer.sanity_checking:
            return
        self.validated(samples)
        self._log_metrics("val", self.monitored(self.measures(samples)))

    def _log_metrics(self, stage: str, values: Mapping[str, Tensor]) -> None:
        # The values are equal on all ranks, since the store gathers; sync_dist only tells Lightning so.
        logged = {f"{stage}/{name}": value.float().to(self.device) for name, value in values.items()}
        self.log_dict(logged, sync_dist=True)

    def validated(self, samples: Samples) -> None:
        """Choose thresholds or heads on the whole validation part."""

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect per-sample columns."""
        self._collect("test", batch)

    def on_test_epoch_end(self) -> None:
        """Log every metric as ``test/<metric>``; on rank 0 write predictions and result rows."""
        samples = self._gathered("test")
        values = self.measures(samples)
        if self.trainer.is_global_zero:
            self._write(samples, values)
        self._log_metrics("test", values)

    def _write(self, samples: Samples, values: Mapping[str, Tensor]) -> None:
        """Write predictions and one row per metric, and print a table."""
        dataset, at = self._datamodule().test_set, samples.index.tolist()
        ids, groups = dataset.ids, dataset.groups
        ids, groups = [ids[i] for i in at], [groups[i] for i in at]
        codes = group_codes(groups)
        intervals: dict[str, Interval] = {}
        if self.resamples and len(samples):
            seed = bootstrap_seed(len(samples))
            intervals = interval(self.measures, samples, codes, self.resamples, self.level, seed)
        folder = Path(self.trainer.default_root_dir)
        run = self._run_columns(samples)
        # Equal settings and seeds give equal predictions, so that a repeated run may overwrite its file.
        run["predictions"] = f"predictions/{self.task}-test-{run['config_sha256'][:12]}-seed{run['seed']}.parquet"
        run["predictions_sha256"] = write_predictions(folder / run["predictions"], samples.to_frame(ids, groups))
        run["groups"] = len(np.unique(codes.numpy()))
        if intervals:
            run |= {"level": self.level, "resamples": self.resamples}
        self.rows = []
        for metric, value in values.items():
            low, high = intervals.get(metric, (None, None))
            self.rows.append(ResultRow(**run, metric=metric, value=float(value), low=low, high=high))
        path = append_rows(folder / "results.jsonl", self.rows)
        _print_rows(self.rows)
        rank_zero_info(f"rows written to {path}")

    def _run_columns(self, samples: Samples) -> dict[str, Any]:
        """Columns that the rows of a run share."""
        data, settings = self._datamodule().describe(), self.settings()
        return {
            "method": self.encoder.name,
            "checkpoint": self.encoder.checkpoint_sha256,
            "task": self.task,
            "protocol": self.protocol,
            "dataset": data["dataset"],
            "part": "test",
            "split": data.get("split"),
            "split_sha256": data.get("split_sha256"),
            "fraction": data.get("fraction") if self.trains else None,
            "seed": run_seed(),
            "samples": len(samples),
            "config_sha256": value_sha256({"model": settings, "data": data}),
            "seconds": round(time.monotonic() - self._start, 2),
            "notes": {"model": settings, "data": data, **self.facts(), **self.notes(samples)},
        }

    def notes(self, samples: Samples) -> dict[str, Any]:
        """Return further notes of result rows, of the scored samples."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return all that the metrics depend on (chosen thresholds, class names, …) as plain values for result rows."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the task as plain values, with a hash of the content instead of a file's path."""
        given = {key: value for key, value in self.hparams.items() if not key.startswith("_")}
        settings = {"class": type(self).__name__, **plain(given)}
        source = dict(plain(source_from(self.hparams.get("encoder"))))
        source["checkpoint"] = self.encoder.checkpoint_sha256 if source["checkpoint"] else None
        settings["encoder"] = source
        settings.pop("features_dir", None)
        return settings

    def payload(self) -> dict[str, Any]:
        """Identify task and encoder."""
        return {"task": type(self).__name__, "encoder_sha256": self.encoder.sha256, "settings": self.settings()}

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


@contextmanager
def seeded(stream: int) -> Iterator[None]:
    """Draw torch's random numbers on the CPU from a stream of the run's seed; the state before is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(run_seed(), stream))
        yield


def bootstrap_seed(samples: int) -> int:
    """Seed of the intervals in result rows: equal for all methods that are scored on the same samples."""
    return derive_seed(0, samples) % 2**31


def _print_rows(rows: Sequence[ResultRow]) -> None:
    first = rows[0]
    title = f"{first.task} ({first.protocol}), {first.dataset} {first.part}, {first.method}: {first.samples} samples"
    table = Table(title=title)
    for column in ("metric", "value", f"{first.level:.0%} interval" if first.level else "interval"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for row in rows:
        known = row.low is not None and row.high is not None and row.low == row.low
        table.add_row(row.metric, f"{row.value:.4f}", f"{row.low:.4f} – {row.high:.4f}" if known else "")
    console().print(table)

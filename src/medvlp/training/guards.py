"""Callbacks of every run: they reject random weights and non-finite losses, and count skipped items."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from medvlp.errors import ConfigError, NonFiniteLossError, TooManySkippedError


def need_weights(trainer: L.Trainer, module: Any) -> None:
    """Raise a ConfigError that names the run's checkpoint if the weights of a method or task are random."""
    if module.has_weights:
        return
    folder = Path(
        getattr(trainer.checkpoint_callback, "dirpath", None) or Path(trainer.default_root_dir, "checkpoints")
    )
    files = [path for path in (folder / "best.ckpt", folder / "last.ckpt", *folder.glob("*.ckpt")) if path.is_file()]
    remedy = f"add --ckpt_path {files[0]}" if files else f"run medvlp fit, then add --ckpt_path FILE (none in {folder})"
    raise ConfigError(f"{type(module).__name__} is neither trained nor loaded, so its weights are random: {remedy}")


class UntrainedGuard(L.Callback):
    """Refuse to validate, test and predict with random weights."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Mark the weights as trained."""
        pl_module.has_weights = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the weights, unless in a fit."""
        if trainer.state.fn != "fit":
            need_weights(trainer, pl_module)

    on_test_start = on_predict_start = on_validation_start


class NonFiniteGuard(L.Callback):
    """Stop the run at a NaN or infinite loss and save the ids of the batch.

    On CPU each loss is checked before its backward pass. On an accelerator a check costs a synchronisation: flags stay
    on the device until ``log_every_n_steps`` or the next checkpoint, and the error still names the first bad step.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[int, int, list[str], Tensor]] = []
        self._ids: list[str] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep the ids of the batch."""
        self._ids = list(batch.get("id", [])) if isinstance(batch, dict) else []
        self._batch_idx = batch_idx

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Record whether the loss is finite."""
        self._pending.append((trainer.global_step, self._batch_idx, self._ids, torch.isfinite(loss.detach())))
        every = 1 if loss.device.type == "cpu" else max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if (self._batch_idx + 1) % every == 0:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the remaining steps."""
        self._check(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check the steps so far, so that no checkpoint holds NaN."""
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        finite = torch.stack([flag for *_, flag in pending]).tolist()
        bad = finite.index(False) if False in finite else None
        anywhere = bad is not None
        if trainer.world_size > 1:  # all ranks stop together
            anywhere = trainer.strategy.reduce_boolean_decision(anywhere, all=False)
        if not anywhere:
            return
        if bad is None:
            raise NonFiniteLossError("the loss of another process is NaN or infinite; that process saves the ids")
        step, batch_idx, ids, _ = pending[bad]
        path = Path(trainer.default_root_dir) / f"nonfinite_batch_rank{trainer.global_rank}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"step": step, "epoch": trainer.current_epoch, "batch_idx": batch_idx, "ids": ids}
        path.write_text(json.dumps(content, indent=1))
        raise NonFiniteLossError(
            f"step {step} (epoch {trainer.current_epoch}, batch {batch_idx}): the loss is NaN or infinite; the batch's "
            f"ids are in {path}; lower the learning rate, clip gradients, or check those items"
        )


class SkippedItems(L.Callback):
    """List the items that ``on_error: skip`` skipped, and stop the run if there are too many.

    ``skipped.csv`` in the run's folder (one file per further rank) is rewritten after each epoch; it also lists the
    items that were dropped when the dataset was indexed.
    """

    def __init__(self) -> None:
        self._indexed: dict[str, str] = {}
        self._seen: dict[str, str] = {}
        self._reported = -1

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """List the items dropped at indexing."""
        table = getattr(trainer.datamodule, "skipped_at_index", None)  # type: ignore[attr-defined]
        if table is not None and len(table):
            self._indexed = dict(zip(table["id"].astype(str), table["reason"].astype(str), strict=True))
            self._write(trainer)
            counts = ", ".join(f"{reason}: {n}" for reason, n in table["reason"].value_counts().items())
            rank_zero_info(f"{len(table)} items dropped at indexing ({counts}); listed in {self._path(trainer)}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the skipped items of the batch."""
        before = len(self._seen)
        for item, reason in batch.get("skipped", []) if isinstance(batch, dict) else []:
            self._seen.setdefault(str(item), str(reason))
        if len(self._seen) == before:
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        share = datamodule.max_skipped
        total = sum(len(d) for d in (datamodule.train_set, datamodule.val_set) if d is not None)
        if total and len(self._seen) > share * total:
            self._write(trainer)
            raise TooManySkippedError(
                f"{len(self._seen)} of {total} items cannot be read, more than the allowed share of {share:g}; they "
                f"are listed in {self._path(trainer)}; fix the data, or raise data.max_skipped"
            )

    on_validation_batch_end = on_train_batch_end

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rewrite the list if it has grown."""
        if self._seen and len(self._seen) != self._reported:
            self._reported = len(self._seen)
            self._write(trainer)
            rank_zero_warn(f"{len(self._seen)} items skipped so far; listed in {self._path(trainer)}")

    def _path(self, trainer: L.Trainer) -> Path:
        suffix = f"_rank{trainer.global_rank}" if trainer.global_rank else ""
        return Path(trainer.default_root_dir) / f"skipped{suffix}.csv"

    def _write(self, trainer: L.Trainer) -> None:
        path = self._path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        items = pd.DataFrame((self._indexed | self._seen).items(), columns=["id", "reason"])
        items.to_csv(path, index=False, lineterminator="\r\n")

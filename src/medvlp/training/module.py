"""Base class of pre-training methods and downstream tasks."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from medvlp import compat
from medvlp._version import __version__
from medvlp.encoders.loading import check_finite, check_kind
from medvlp.errors import CheckpointError, NotSupportedError
from medvlp.losses.precision import total
from medvlp.seeding import derive_seed, run_seed
from medvlp.training.averaging import MovingAverage
from medvlp.training.guards import NonFiniteGuard, SkippedItems, UntrainedGuard
from medvlp.training.optim import OptimConfig, build_optimizer, build_schedule
from medvlp.training.schema import (
    CHECKPOINT_KEY,
    check_optimizer,
    conform,
    mapping,
    read_training_state,
    restoring,
    weights_of,
)
from medvlp.training.stopping import StopGuard

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_INPUTS = ("image", "features")
"""Keys of a batch that the network reads; the others are targets."""

COMPILED = "_orig_mod."
"""What ``torch.compile`` inserts into the names of the weights of a wrapped module."""

RUN_FOLDER = "<run>"
"""Placeholder for the run's folder in checkpoints, so that runs can be moved."""


def _exact_tensors(root: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that stay in float32; see :class:`TrainingModule`."""
    for module in root.modules():
        if isinstance(module, BATCH_NORMS):
            yield from chain(module.parameters(recurse=False), module.buffers(recurse=False))
        yield from (parameter for parameter in module.parameters(recurse=False) if parameter.ndim == 0)
        # heads are built late, once the data module is known, so a part may be missing
        parts = (getattr(module, name, None) for name in getattr(module, "exact_parts", ()))
        for part in (part for part in parts if part is not None):
            yield from chain(part.parameters(), part.buffers()) if isinstance(part, nn.Module) else (part,)


class KeepTargets(L.Callback):
    """Convert only images and stored features to the precision of a run, not labels, masks and boxes.

    Lightning converts all floating-point tensors of a batch; in bfloat16 a box in a 512 px image moves by up to 1 px.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restrict what the precision plugin converts."""
        plugin = trainer.precision_plugin
        convert = type(plugin).convert_input

        def convert_input(data: Any) -> Any:
            if not isinstance(data, dict):
                return convert(plugin, data)
            return {key: convert(plugin, value) if key in _INPUTS else value for key, value in data.items()}

        plugin.convert_input = convert_input  # type: ignore[method-assign]


class TrainingModule(L.LightningModule, ABC):
    """LightningModule with guards, one seed per step, and safe loading of untrusted checkpoints.

    Batch norms, scalar parameters (learned temperatures) and the buffers, parameters and submodules that a submodule
    names in its tuple ``exact_parts`` stay in float32 when the weights are in half precision: their updates are below
    the rounding of bfloat16.
    """

    optim_config: OptimConfig
    has_weights: bool = False
    """Whether the weights were trained or loaded; random weights are not evaluated."""
    _stored_states: tuple[int, int] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        exact = {id(tensor) for tensor in _exact_tensors(self)}

        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            if id(tensor) in exact and converted.dtype in (torch.float16, torch.bfloat16):
                return tensor.to(converted.device, torch.float32)
            return converted

        return super()._apply(convert, recurse)  # type: ignore[no-untyped-call]

    def configure_callbacks(self) -> list[L.Callback]:
        """Return the guards of every run."""
        present = any(isinstance(callback, StopGuard) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        guards: list[L.Callback] = [KeepTargets(), NonFiniteGuard(), SkippedItems(), UntrainedGuard()]
        return guards if present else [*guards, StopGuard()]

    def configure_optimizers(self) -> Any:
        """Build optimiser and schedule of :attr:`optim_config`."""
        optimizer = build_optimizer(self, self.optim_config)
        schedule = build_schedule(optimizer, self.optim_config, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": schedule} if schedule else optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step from (run seed, epoch, batch, rank), so that a resumed run draws the same random numbers."""
        torch.manual_seed(derive_seed(run_seed(), self.current_epoch, batch_idx, self.global_rank))

    def sum_and_log(self, terms: Mapping[str, Tensor], size: int, each: bool = True) -> Tensor:
        """Return the sum of loss terms; log it as ``train/loss`` and, if ``each``, every term as ``train/<term>``."""
        loss = total(terms)
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, batch_size=size)
        if each:
            self.log_dict({f"train/{k}": v.detach() for k, v in terms.items()}, on_step=True, batch_size=size)
        return loss

    def on_train_start(self) -> None:
        """Check the restored state of optimisers and schedules, which neither torch nor Lightning does."""
        if not self.trainer.ckpt_path:
            return
        with restoring(self._checkpoint_path()):
            schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
            optimizers, schedules = self._stored_states or (0, 0)
            if optimizers < len(self.trainer.optimizers) or schedules < len(schedulers):
                raise CheckpointError("the number of optimisers or schedules differs; use the run's own config.yaml")
            for scheduler in schedulers:
                conform(scheduler.last_epoch, int, "lr_schedulers: last_epoch")
            for optimizer in self.trainer.optimizers:
                check_optimizer(optimizer)

    @abstractmethod
    def payload(self) -> dict[str, Any]:
        """Return the contents of the checkpoint beside weights and training state, as plain values."""

    @abstractmethod
    def take_payload(self, checkpoint: dict[str, Any]) -> None:
        """Validate and restore the :meth:`payload` of an untrusted checkpoint."""

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **options: Any) -> Any:
        """Override: raise a NotSupportedError, since Lightning would build whatever the hyper-parameters name."""
        raise NotSupportedError(f"{cls.__name__}.load_from_checkpoint: use medvlp.load(path) for a method's checkpoint")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Override: accept names of compiled modules, reject non-finite values, name the file in errors."""
        where = self._checkpoint_path()
        names = {name.replace(COMPILED, ""): name for name in self.state_dict()}
        with restoring(where):
            state_dict = weights_of({"state_dict": state_dict})
        unmarked = {name.replace(COMPILED, ""): value for name, value in state_dict.items()}
        given = {names.get(name, name): value for name, value in unmarked.items()}
        check_kind(where, given, self.state_dict())
        try:
            result = super().load_state_dict(given, strict=strict, assign=assign)
        except RuntimeError as error:
            name, reason = getattr(self, "name", type(self).__name__), " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{where}weights do not fit {name} as configured: {reason}; use the config.yaml of their run"
            ) from error
        check_finite(where, self)
        self.has_weights = True
        return result

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only weights and plain values in the checkpoint, without local paths."""
        for key in [key for key in checkpoint if key.startswith("datamodule_hyper") or key == "hparams_name"]:
            del checkpoint[key]
        payload = self.payload()
        checkpoint["hyper_parameters"] = payload.get("hyperparameters", {})
        checkpoint[CHECKPOINT_KEY] = {**payload, "version": __version__}
        if (trainer := compat.trainer_of(self)) is not None:
            folder = os.path.realpath(trainer.default_root_dir)
            states = checkpoint.get("callbacks", {})
            checkpoint["callbacks"] = _map_texts(states, lambda text: _moved(text, folder, RUN_FOLDER))
            for callback in trainer.callbacks:
                if isinstance(callback, MovingAverage):
                    callback.put_average(checkpoint)
        for key in ("state_dict", "current_model_state"):
            if key in checkpoint:
                checkpoint[key] = {name.replace(COMPILED, ""): value for name, value in checkpoint[key].items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the payload; check the state of callbacks and, in a resumed fit, of training."""
        with restoring(self._checkpoint_path()):
            self.take_payload(checkpoint)
            trainer = compat.trainer_of(self)
            if trainer is None:
                return
            _restore_callbacks(checkpoint, trainer)
            if trainer.state.fn == "fit":
                self._stored_states = read_training_state(checkpoint)
        averages = any(isinstance(callback, MovingAverage) for callback in trainer.callbacks)
        if trainer.state.fn == "fit" and "current_model_state" in checkpoint and not averages:
            rank_zero_warn(
                f"{self._checkpoint_path()}the checkpoint holds a moving average, but this run keeps none: training "
                "continues from the averaged weights; set model.ema_decay to continue from the trained ones"
            )

    def _checkpoint_path(self) -> str:
        path = getattr(compat.trainer_of(self), "ckpt_path", None)
        return f"{path}: " if path else ""


def _restore_callbacks(checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
    """Restore the run's folder in the state of callbacks; reject paths outside of it: callbacks delete old files."""
    folder = os.path.realpath(trainer.default_root_dir)

    def restored(text: str) -> str:
        path = _moved(text, RUN_FOLDER, folder)
        if ".." in path.split(os.sep) or "://" in path:
            raise CheckpointError(f"a callback's state names {path!r}; expected local paths")
        return path

    states = mapping(checkpoint.get("callbacks", {}), "callbacks")
    checkpoint["callbacks"] = {
        _map_texts(name, restored): _map_texts(mapping(state, f"callbacks.{name}"), restored)
        for name, state in states.items()
    }


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if path == old or path.startswith(old + os.sep) else path


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map_texts(key, change): _map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_texts(item, change) for item in value)
    return value

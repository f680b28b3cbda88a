"""An exponential moving average of the weights, kept beside the weights that are trained."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from itertools import chain
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medvlp.errors import check_range


class MovingAverage(L.Callback):
    """Keep ``decay · average + (1 − decay) · weights`` after every optimiser step, from the first step on.

    The methods' argument ``ema_decay`` adds it. Validation, figures and the final weights of ``fit`` use the average. A
    checkpoint holds the average as ``state_dict`` (the default of ``medvlp.load``) and the trained weights, from which
    a resumed run continues, as ``current_model_state``.

    Differences from Lightning's ``WeightAveraging``: the average is float32 or wider, since steps of ``1 − decay`` are
    below the rounding of half precision; integer buffers (position ids, counters) are copied, since averages in
    floating point may round down; and the average stays in place until validation has ended, since the module's own
    hook, which embeds the prompts, runs after those of the callbacks.
    """

    def __init__(self, decay: float = 0.999) -> None:
        check_range("[0, 1)", ema_decay=decay)
        self.decay = decay
        self._average: AveragedModel | None = None
        self._trained: list[Tensor] | None = None  # while the module holds the average
        self._step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the average at the initial weights."""
        self._trained = None
        if stage != "fit":
            return
        self._average = AveragedModel(
            pl_module, device=pl_module.device, use_buffers=True, multi_avg_fn=_averaging(self.decay)
        )
        for tensor in _tensors(trainer.precision_plugin.convert_module(self._average.module)):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()

    def _swap(self, pl_module: L.LightningModule) -> None:
        if self._average is None:
            return
        if self._trained is None:
            self._trained = [tensor.detach().clone() for tensor in _tensors(pl_module)]
            source: Iterable[Tensor] = _tensors(self._average.module)
        else:
            source, self._trained = self._trained, None
        for tensor, value in zip(_tensors(pl_module), source, strict=True):
            tensor.data.copy_(value)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the average after each optimiser step."""
        assert self._average is not None
        if trainer.global_step <= self._step:
            return
        self._step = trainer.global_step
        # the update takes lists of one type
        pairs = zip(_tensors(self._average.module), _tensors(pl_module), strict=True)
        weights = [current.detach().to(average.dtype) for average, current in pairs]
        given: Any = SimpleNamespace(parameters=lambda: weights, buffers=list)
        self._average.update_parameters(given)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap the average in."""
        if self._trained is None:
            self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap the trained weights in, before any checkpoint is written."""
        if self._trained is not None:
            self._swap(pl_module)

    on_train_end = on_validation_epoch_start  # later checkpoints still hold both

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser step of the last update."""
        return {"latest_update_step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._step = state_dict["latest_update_step"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average as ``state_dict`` and the trained weights as ``current_model_state``."""
        if self._average is None:
            return
        trained = checkpoint["state_dict"]
        if self._trained is not None:
            self._swap(pl_module)
            trained = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
            self._swap(pl_module)
        checkpoint["current_model_state"] = trained
        checkpoint["state_dict"] = self._average.module.state_dict()
        checkpoint["averaging_state"] = {"n_averaged": self._average.n_averaged}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore both sets of weights; a checkpoint without an average initialises it with its weights."""
        if self._average is None:
            return
        if "current_model_state" in checkpoint and "averaging_state" in checkpoint:
            average = {f"module.{name}": value for name, value in checkpoint["state_dict"].items()}
            self._average.load_state_dict({**average, **checkpoint["averaging_state"]})
            pl_module.load_state_dict(checkpoint["current_model_state"])
        else:
            rank_zero_warn("the checkpoint holds no moving average: the average starts from its weights")
            self._average.module.load_state_dict(deepcopy(checkpoint["state_dict"]), strict=False)

    def put_average(self, checkpoint: dict[str, Any]) -> None:
        """Store the average as ``state_dict`` of a weights-only checkpoint, for which no callback hook runs."""
        if self._average is not None and "current_model_state" not in checkpoint:
            checkpoint["state_dict"] = self._average.module.state_dict()


def _averaging(decay: float) -> Any:
    update_floats = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], count: Any) -> None:
        if averages[0].is_floating_point():
            update_floats(averages, currents, count)
        else:
            for average, current in zip(averages, currents, strict=True):
                average.copy_(current)

    return update


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())

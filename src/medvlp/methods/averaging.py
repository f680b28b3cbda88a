"""An exponential moving average of the weights, kept beside the weights that are trained."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from medvlp.errors import ConfigError


class MovingAverage(WeightAveraging):
    """Keeps ``decay · average + (1 − decay) · weights`` after every optimiser step; the first step starts it.

    The methods' argument ``ema_decay`` adds it. Validation, figures and the weights left at the end of ``fit`` are
    the average's. In a checkpoint ``state_dict`` is the average, which ``medvlp.load`` takes unless it is told
    otherwise, and ``current_model_state`` is what a resumed run goes on with.

    Two things differ from the library's own callback. Whole-number buffers (position ids, counters) are copied: an
    average of them in floating point rounds down now and then. And the average stays in place until validation is
    over: the module's own hook at its end, which embeds the prompts, runs after that of the callbacks.

    Args:
        decay: in [0, 1).

    Raises:
        ConfigError: another decay.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"ema_decay must lie in [0, 1), not {decay}")

        @torch.no_grad()
        def update(averages: list[Tensor], currents: list[Tensor], _: Any) -> None:
            if averages[0].is_floating_point():
                torch._foreach_lerp_(averages, currents, 1 - decay)
            else:
                torch._foreach_copy_(averages, currents)

        super().__init__(use_buffers=True, multi_avg_fn=update)
        self.decay = decay
        self._swapped = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Starts the average at the initial weights."""
        super().setup(trainer, pl_module, stage)
        self._swapped = False

    def _swap(self, pl_module: L.LightningModule) -> None:
        if self._average_model is not None:
            self._swap_models(pl_module)
            self._swapped = not self._swapped

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the average in the weights' place."""
        if not self._swapped:
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves it there."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the weights back, before any checkpoint is written."""
        if self._swapped:
            self._swap(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the average in the module; checkpoints written from now on still hold both."""
        if not self._swapped:
            self._swap(pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Average to ``state_dict``, the weights that are trained to ``current_model_state``."""
        if self._average_model is None:
            return
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            first, second = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = first, second

    def put_average(self, checkpoint: dict[str, Any]) -> None:
        """Makes the average the ``state_dict`` of a checkpoint of weights alone, for which callbacks are not asked."""
        if self._average_model is None or self._swapped or "current_model_state" in checkpoint:
            return
        average: AveragedModel = self._average_model
        checkpoint["state_dict"] = average.module.state_dict()

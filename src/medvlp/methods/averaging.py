"""An exponential moving average of the weights, kept beside the weights that are trained."""

from collections.abc import Iterable, Iterator
from itertools import chain
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from medvlp.errors import ConfigError


class MovingAverage(WeightAveraging):
    """Keeps ``decay · average + (1 − decay) · weights`` after every optimiser step; the first step starts it.

    The methods' argument ``ema_decay`` adds it. Validation, figures and the weights left at the end of ``fit`` are
    the average's. In a checkpoint ``state_dict`` is the average, which ``medvlp.load`` takes unless it is told
    otherwise, and ``current_model_state`` is what a resumed run goes on with.

    Three things differ from the library's own callback. The average is in float32 at least, whatever the weights are:
    a step of ``1 − decay`` is below the rounding of half precision. Whole-number buffers (position ids, counters) are
    copied: an average of them in floating point rounds down now and then. And the average stays in place until
    validation is over: the module's own hook at its end, which embeds the prompts, runs after that of the callbacks.

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
        self._weights: list[Tensor] | None = None  # those that are trained, while the average is in their place

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Starts the average at the initial weights."""
        super().setup(trainer, pl_module, stage)
        self._weights = None
        if self._average_model is not None:
            for tensor in _tensors(trainer.precision_plugin.convert_module(self._average_model.module)):
                if tensor.dtype in (torch.float16, torch.bfloat16):
                    tensor.data = tensor.data.float()

    @property
    def _swapped(self) -> bool:
        return self._weights is not None

    def _swap_models(self, pl_module: L.LightningModule) -> None:
        assert self._average_model is not None
        if self._weights is None:
            self._weights = [tensor.detach().clone() for tensor in _tensors(pl_module)]
            source: Iterable[Tensor] = _tensors(self._average_model.module)
        else:
            source, self._weights = self._weights, None
        for tensor, value in zip(_tensors(pl_module), source, strict=True):
            tensor.data.copy_(value)

    def _swap(self, pl_module: L.LightningModule) -> None:
        if self._average_model is not None:
            self._swap_models(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the weights, in the precision of the average, whose update takes lists of one type."""
        assert self._average_model is not None
        pairs = zip(_tensors(self._average_model.module), _tensors(pl_module), strict=True)
        weights = [current.detach().to(average.dtype) for average, current in pairs]
        given: Any = SimpleNamespace(parameters=lambda: weights, buffers=list)
        super().on_train_batch_end(trainer, given, outputs, batch, batch_idx)

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
            self._swap(pl_module)
            state = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
            checkpoint["current_model_state"] = state
            self._swap(pl_module)

    def put_average(self, checkpoint: dict[str, Any]) -> None:
        """Makes the average the ``state_dict`` of a checkpoint of weights alone, for which callbacks are not asked."""
        if self._average_model is None or "current_model_state" in checkpoint:
            return
        average: AveragedModel = self._average_model
        checkpoint["state_dict"] = average.module.state_dict()


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())

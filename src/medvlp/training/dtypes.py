"""Exceptions to ``trainer.precision`` bf16-true, 16-true and 64-true: tensors that keep their own type."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import lightning as L
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_INPUTS = ("image", "features")
"""Keys of a batch that the network reads; the others are targets."""


def exact_tensors(root: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that stay in float32; see :class:`~medvlp.training.module.TrainingModule`."""
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

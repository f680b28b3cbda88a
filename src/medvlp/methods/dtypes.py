"""What keeps its precision in a run whose weights have another (``trainer.precision`` bf16-true, 16-true, 64-true)."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_INPUTS = ("image", "features")
"""What of a batch the network reads; the rest is what its answers are compared with."""


class ExactTensors(L.LightningModule):
    """Module whose statistics stay in float32 at least when its weights go to half precision.

    Running statistics move by a tenth of a difference per batch, and a learned temperature by a learning rate per step:
    both are below the rounding of bfloat16. So batch norms (which take half precision inputs beside float32 statistics,
    as under autocast) and scalar parameters stay, and so does what a submodule names in an attribute ``exact_parts``: a
    tuple of names of its buffers, parameters or submodules.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExactTensors":
        exact = {id(tensor) for tensor in _exact_tensors(self)}

        def convert(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            if id(tensor) in exact and made.dtype in (torch.float16, torch.bfloat16):
                return tensor.to(made.device, torch.float32)
            return made

        return super()._apply(convert, recurse)


def _exact_tensors(root: nn.Module) -> Iterator[Tensor]:
    for module in root.modules():
        if isinstance(module, _BatchNorm):
            yield from chain(module.parameters(recurse=False), module.buffers(recurse=False))
        yield from (parameter for parameter in module.parameters(recurse=False) if parameter.ndim == 0)
        # a head's parts may not be there before the data module is known
        parts = (getattr(module, name, None) for name in getattr(module, "exact_parts", ()))
        for part in (part for part in parts if part is not None):
            yield from chain(part.parameters(), part.buffers()) if isinstance(part, nn.Module) else (part,)


class KeepTargets(L.Callback):
    """Converts images and stored features to the precision of a run, and leaves labels, masks and boxes as they are.

    Lightning would convert every floating point tensor of a batch: in bfloat16 a box of a 512 px image would move by up
    to a pixel, in the targets of the loss and in the truth of the metrics.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Narrows what the precision plugin converts."""
        plugin = trainer.precision_plugin
        convert = type(plugin).convert_input

        def convert_input(data: Any) -> Any:
            if not isinstance(data, dict):
                return convert(plugin, data)
            return {key: convert(plugin, value) if key in _INPUTS else value for key, value in data.items()}

        plugin.convert_input = convert_input  # type: ignore[method-assign]

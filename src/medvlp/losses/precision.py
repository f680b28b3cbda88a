"""The precision that losses are computed in."""

from collections.abc import Mapping

import torch
from torch import Tensor


def exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in their common precision, float32 at least: losses divide by small temperatures.

    Matrix products also need ``torch.autocast(..., enabled=False)`` around them, or they go back to half precision.
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of scalar loss terms, in float32 at least."""
    return torch.stack(exact(*terms.values())).sum()

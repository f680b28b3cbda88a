"""Collectives with gradient, and rank helpers. The only module of medvlp that imports ``torch.distributed``."""

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from medvlp.compat import set_group_timeout

DEFAULT_TIMEOUT = dist.default_pg_timeout if dist.is_available() else timedelta(minutes=30)
"""Default timeout of a collective."""


def world_size() -> int:
    """Number of processes in the default group; 1 when none is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process in the default group; 0 when none is initialised."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _AllGather(torch.autograd.Function):
    """Concatenation over ranks whose backward sums the gradients of all ranks for this rank's slice.

    Without that sum the averaged gradient would lack the cross-rank part, a frequent bug in contrastive code.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        if dist.get_backend() == "nccl":
            part = grad.new_empty((ctx.rows, *grad.shape[1:]))
            dist.reduce_scatter_tensor(part, grad)
            return part
        # gloo has no reduce-scatter
        total = grad.clone()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def all_gather(x: Tensor) -> Tensor:
    """Concatenate ``x`` of all ranks, in rank order, with gradient: (b, ...) → (world_size · b, ...).

    ``x`` has the same shape on every rank. With each rank's loss a mean over its own rows and DistributedDataParallel's
    averaging of the gradients, the result equals that of one process with the whole batch.
    """
    return x if world_size() == 1 else _AllGather.apply(x)


def cpu_group() -> Any:
    """Return a group of all ranks whose collectives run on CPUs. All ranks must call it."""
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def highest(value: int, group: Any) -> int:
    """Return the largest of the ranks' values, over a :func:`cpu_group`."""
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group)
    return int(tensor)


def processes(group: Any) -> list[tuple[str, int]]:
    """Return host name and process id of every rank, over a :func:`cpu_group`."""
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, (socket.gethostname(), os.getpid()), group)
    return gathered


def set_timeout(timeout: timedelta, group: Any) -> None:
    """Set the timeout of later collectives of the default group and of ``group``."""
    for each in {dist.group.WORLD, group}:
        set_group_timeout(dist, timeout, each)

"""A batch encoded in chunks, of which one at a time keeps its activations.

A contrast needs the embeddings of the whole batch at once, but not the activations. Each chunk is encoded under
``torch.utils.checkpoint``: its embeddings stay, its activations go, and the backward pass of the loss makes those of
one chunk again, uses them, and drops them before it comes to the next. Loss and gradient are those of the whole batch;
the price is a second forward pass.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medvlp.errors import ConfigError

Encode = Callable[[dict[str, Any]], dict[str, Tensor]]


def split_batch(batch: dict[str, Any], chunks: int) -> list[dict[str, Any]]:
    """Cuts a batch along its samples, into chunks whose sizes differ by at most one (as ``torch.tensor_split`` does).

    Args:
        batch: as documented in :mod:`medvlp.datamodules.base`. Tensors and lists with one entry per sample are cut;
            lists of another length (``skipped``), plain values and tensors without dimensions go to every chunk.
        chunks: how many.

    Returns:
        The chunks, in order.

    Raises:
        ConfigError: more chunks than samples, or a tensor whose rows are not samples.
    """
    size = len(batch["image"])
    if not 1 <= chunks <= size:
        raise ConfigError(
            f"contrastive_chunks is {chunks}, but the batch holds {size} samples; set it from 1 to {size}, or raise "
            "data.batch_size"
        )
    short, longer = divmod(size, chunks)
    starts = [i * short + min(i, longer) for i in range(chunks + 1)]
    parts: list[dict[str, Any]] = [{} for _ in range(chunks)]
    for key, value in batch.items():
        is_tensor = isinstance(value, Tensor) and value.ndim > 0
        if is_tensor and len(value) != size:
            raise ConfigError(
                f"batch[{key!r}] has {len(value)} rows for {size} samples, so the batch cannot be cut; set "
                "contrastive_chunks: 1"
            )
        cut = is_tensor or (isinstance(value, list | tuple) and len(value) == size)
        for part, start, end in zip(parts, starts, starts[1:], strict=False):
            part[key] = value[start:end] if cut else value
    return parts


class KeepBuffers(AbstractContextManager):
    """Leaves the buffers of modules in train mode as they were: a recomputation must not count a chunk twice.

    Batch norms add each batch to their running statistics. What they normalise with in train mode is the chunk's own,
    so the recomputed activations are the same whatever the running statistics have become.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._before: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> None:
        found = (b for m in self.module.modules() if m.training for b in m.buffers(recurse=False))
        self._before = [(buffer, buffer.detach().clone()) for buffer in found]

    def __exit__(self, *_: object) -> None:
        # By .data: the backward pass reads no running statistics, and must not be told that they have changed.
        for buffer, value in self._before:
            buffer.data.copy_(value)
        self._before = []


def encode_in_chunks(
    encode: Encode, batch: dict[str, Any], chunks: int, module: nn.Module, recompute: bool = True
) -> dict[str, Tensor]:
    """Encodes a batch chunk by chunk and joins what comes out.

    What ``encode`` does with a sample must depend on that sample alone. Where it does not, the chunk takes the place of
    the batch: batch norm in train mode uses the statistics of the chunk, as it would on so many devices without
    synchronisation, and updates its running statistics once per chunk.

    Args:
        encode: batch to outputs, each with one row per sample; random numbers and autocast are the same when it runs
            again. It must neither log nor count.
        batch: the whole batch.
        chunks: how many, from 1 to the number of samples.
        module: whose buffers a recomputation leaves alone.
        recompute: False keeps all activations, which gives the same and saves nothing.

    Returns:
        The outputs of the whole batch.

    Raises:
        ConfigError: a batch that cannot be cut, a chunk of one pair for a batch norm, or outputs that cannot be joined.
    """

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), KeepBuffers(module)

    parts = split_batch(batch, chunks)
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    if len(parts[-1]["image"]) < 2 and any(norm.training for norm in norms):
        size = len(batch["image"])
        raise ConfigError(
            f"contrastive_chunks {chunks} makes chunks of one of the {size} pairs, which have no statistics for a "
            f"batch norm; set it to at most {max(1, size // 2)}"
        )
    made: list[dict[str, Tensor]] = []
    for part in parts:
        if recompute:
            outputs = checkpoint(encode, part, use_reentrant=False, preserve_rng_state=True, context_fn=contexts)
        else:
            outputs = encode(part)
        # Autocast keeps half-precision copies of the weights; shared by the chunks, they would collect the chunks'
        # gradients in half precision.
        torch.clear_autocast_cache()
        _check(outputs, len(part["image"]), made[0] if made else None)
        made.append(outputs)
    return {key: torch.cat([outputs[key] for outputs in made]) for key in made[0]}


def _check(outputs: Any, size: int, first: dict[str, Tensor] | None) -> None:
    remedy = "; return it per sample from forward(), compute it in losses(), or set contrastive_chunks: 1"
    if not isinstance(outputs, dict):
        raise ConfigError(f"forward() gave a {type(outputs).__name__}, and chunks need a dictionary of tensors")
    for key, value in outputs.items():
        if not isinstance(value, Tensor):
            raise ConfigError(f"output {key!r} of forward() is a {type(value).__name__}, not a tensor{remedy}")
        if value.ndim == 0 or len(value) != size:
            what = "no rows" if value.ndim == 0 else f"{len(value)} rows"
            raise ConfigError(f"output {key!r} of forward() has {what} for a chunk of {size} samples{remedy}")
        if first is not None and (key not in first or first[key].shape[1:] != value.shape[1:]):
            raise ConfigError(f"output {key!r} of forward() has another shape in another chunk{remedy}")
    if first is not None and len(first) != len(outputs):
        raise ConfigError(f"forward() gave {sorted(first)} for one chunk and {sorted(outputs)} for another{remedy}")

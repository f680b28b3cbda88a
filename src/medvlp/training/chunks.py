"""Gradient caching: encode a batch in chunks under ``torch.utils.checkpoint``.

A contrast needs all embeddings of a batch at once, but not all activations. The backward pass recomputes the
activations chunk by chunk. Loss and gradient are those of the whole batch, for a second forward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medvlp.errors import ConfigError
from medvlp.training.module import BATCH_NORMS


def split_batch(batch: dict[str, Any], chunks: int) -> list[dict[str, Any]]:
    """Split a batch along its samples, as ``torch.tensor_split`` does.

    Lists of another length (``skipped``), plain values and tensors without dimensions go to every chunk.
    """
    size = len(batch["image"])
    if not 1 <= chunks <= size:
        raise ConfigError(
            f"contrastive_chunks is {chunks}, but the batch holds {size} samples; set it from 1 to {size}, or raise "
            "data.batch_size"
        )
    rows = [slice(int(part[0]), int(part[-1]) + 1) for part in torch.arange(size).tensor_split(chunks)]
    parts: list[dict[str, Any]] = [{} for _ in range(chunks)]
    for key, value in batch.items():
        is_tensor = isinstance(value, Tensor) and value.ndim > 0
        if is_tensor and len(value) != size:
            raise ConfigError(
                f"batch[{key!r}] has {len(value)} rows for {size} samples, so the batch cannot be split; set "
                "contrastive_chunks: 1"
            )
        per_sample = is_tensor or (isinstance(value, list | tuple) and len(value) == size)
        for part, of_part in zip(parts, rows, strict=True):
            part[key] = value[of_part] if per_sample else value
    return parts


@contextmanager
def keep_buffers(module: nn.Module) -> Iterator[None]:
    """Restore the buffers of modules in train mode, so that running statistics count a recomputed chunk once."""
    buffers = (b for m in module.modules() if m.training for b in m.buffers(recurse=False))
    before = [(buffer, buffer.detach().clone()) for buffer in buffers]
    try:
        yield
    finally:
        # .data hides the change from autograd, which would reject it; the backward pass does not read these buffers.
        for buffer, value in before:
            buffer.data.copy_(value)


@contextmanager
def _recomputing(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with keep_buffers(module):
            yield
    finally:
        torch.set_default_dtype(before)


def encode_in_chunks(
    encode: Callable[[dict[str, Any]], dict[str, Tensor]], batch: dict[str, Any], chunks: int, module: nn.Module
) -> dict[str, Tensor]:
    """Encode a batch chunk by chunk and concatenate the outputs.

    Samples must not depend on each other. Batch norms in train mode normalise each chunk by itself, as unsynchronised
    devices do, and update their running statistics once per chunk.

    Args:
        encode: batch to outputs, each with one row per sample. It runs again in the backward pass, with the same random
            numbers and autocast, so it must neither log nor count.
        batch: the whole batch.
        chunks: number of chunks, from 1 to the number of samples.
        module: module with the buffers of ``encode``.
    """
    dtype = torch.get_default_dtype()  # precision 64-true changes it in the forward pass, but not in the backward pass

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _recomputing(module, dtype)

    parts = split_batch(batch, chunks)
    training_norms = any(m.training for m in module.modules() if isinstance(m, BATCH_NORMS))
    if len(parts[-1]["image"]) < 2 and training_norms:
        size = len(batch["image"])
        raise ConfigError(
            f"contrastive_chunks {chunks} splits {size} pairs into chunks of one, which have no statistics for a "
            f"batch norm; set it to at most {max(1, size // 2)}"
        )
    encoded: list[dict[str, Tensor]] = []
    for part in parts:
        outputs = checkpoint(encode, part, use_reentrant=False, preserve_rng_state=True, context_fn=contexts)
        # Half-precision copies of the weights, if shared by the chunks, would accumulate gradients in half precision.
        torch.clear_autocast_cache()
        _check(outputs, len(part["image"]), encoded[0] if encoded else None)
        encoded.append(outputs)
    return {key: torch.cat([outputs[key] for outputs in encoded]) for key in encoded[0]}


def _check(outputs: Any, size: int, first: dict[str, Tensor] | None) -> None:
    remedy = "; return it per sample from forward(), compute it in losses(), or set contrastive_chunks: 1"
    if not isinstance(outputs, dict):
        raise ConfigError(f"forward() returned a {type(outputs).__name__}; chunks need a dictionary of tensors")
    for key, value in outputs.items():
        if not isinstance(value, Tensor):
            raise ConfigError(f"output {key!r} of forward() is a {type(value).__name__}, not a tensor{remedy}")
        if value.ndim == 0 or len(value) != size:
            what = "no rows" if value.ndim == 0 else f"{len(value)} rows"
            raise ConfigError(f"output {key!r} of forward() has {what} for a chunk of {size} samples{remedy}")
        if first is not None and (key not in first or first[key].shape[1:] != value.shape[1:]):
            raise ConfigError(f"output {key!r} of forward() has another shape in another chunk{remedy}")
    if first is not None and len(first) != len(outputs):
        raise ConfigError(f"forward() returned {sorted(first)} for one chunk, {sorted(outputs)} for another{remedy}")

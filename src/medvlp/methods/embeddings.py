"""Embeddings of unit length, and of texts in batches."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from medvlp.errors import CheckpointError, ConfigError, NotSupportedError

if TYPE_CHECKING:
    from medvlp.methods.base import PretrainModule


def unit_length(vectors: Tensor, module: Any, dim: int = -1) -> Tensor:
    """Give embeddings unit length, as ``F.normalize`` does, in float32.

    Args:
        vectors: embeddings.
        module: the method that computed them, for the error.
        dim: along which the length is one.

    Raises:
        CheckpointError: one is NaN or infinite, or so long that it would become zero.
    """
    vectors = vectors.float()
    if not vectors.norm(dim=dim).isfinite().all():
        raise CheckpointError(
            f"{module.name}: embeddings are NaN or infinite: the images hold such values, or the run that wrote the "
            "weights diverged, or their file is damaged; use an earlier checkpoint"
        )
    return F.normalize(vectors, dim=dim)


def encoded_texts(model: "PretrainModule", texts: Sequence[str], chunk: int) -> Iterator[Tensor]:
    """Yield the joint-space vectors of ``chunk`` texts at a time, (n, d) as the method computes them.

    Raises:
        NotSupportedError: the method has no text side.
        ConfigError: no tokenizer yet.
    """
    if not model.has_text:
        raise NotSupportedError(f"{model.name} has no text side: it cannot embed texts")
    if model.tokenizer is None:
        raise ConfigError("the model has no tokenizer yet: fit it, load a checkpoint, or call attach_tokenizer()")
    for start in range(0, len(texts), chunk):
        tokens = model.tokenizer(
            list(texts[start : start + chunk]),
            padding=model.text_config.padding,
            truncation=True,
            max_length=model.text_config.max_length,
            return_tensors="pt",
        )
        yield model.encode_tokens(tokens["input_ids"].to(model.device), tokens["attention_mask"].to(model.device))

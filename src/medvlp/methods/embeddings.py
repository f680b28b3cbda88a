"""Normalisation of embeddings, and the tokenizer that texts need."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from medvlp.errors import CheckpointError, ConfigError


def tokenizer_of(model: Any) -> Any:
    """Return the tokenizer of a method; raise ConfigError if it has none yet."""
    if model.tokenizer is None:
        raise ConfigError("the model has no tokenizer yet: fit it, load a checkpoint, or call attach_tokenizer()")
    return model.tokenizer


def unit_length(vectors: Tensor, module: Any, dim: int = -1) -> Tensor:
    """L2-normalise the embeddings of a method along ``dim``, in float32; raise a CheckpointError unless finite."""
    vectors = vectors.float()
    if not vectors.norm(dim=dim).isfinite().all():
        raise CheckpointError(
            f"{module.name}: embeddings are NaN or infinite: the images hold such values, or the run that wrote the "
            "weights diverged, or their file is damaged; use an earlier checkpoint"
        )
    return F.normalize(vectors, dim=dim)

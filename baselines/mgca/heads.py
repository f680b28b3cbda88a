"""MGCA's projection heads, and what fills the padding of the words that go through them."""

import torch
from torch import Tensor, nn

from medvlp.encoders.projection import normed_projector
from medvlp.errors import ConfigError


class ProjectionHead(nn.Module):
    """:func:`~medvlp.encoders.projection.normed_projector` on single vectors or on tokens.

    Every head of the released code is of this form, those of the tokens as 1×1 convolutions, which are the same maps.
    The paper calls them non-linear projections and says no more.
    """

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int = 2048) -> None:
        super().__init__()
        self.layers = normed_projector(in_dim, out_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Project (B, in_dim) or (B, N, in_dim); the norms' statistics are over the tokens of all samples."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) < 2 and self.training and self.layers[1].training:
            raise ConfigError(
                "MGCA's batch norms need at least two pairs per device: raise data.batch_size (or lower "
                "contrastive_chunks)"
            )
        return self.layers(rows).view(*x.shape[:-1], -1)


def repeat_words(words: Tensor, padding: Tensor) -> Tensor:
    """Fill the padding of each report with its own words again, from the first on.

    The norms then see words alone, however much padding a batch holds, and each report counts alike. The filled
    positions are not read afterwards. A report without words repeats its first row. Words (B, L, D) come first;
    ``padding`` (B, L) is true where there is no word.
    """
    count = (~padding).sum(1, keepdim=True).clamp_min(1)
    index = torch.arange(words.shape[1], device=words.device) % count
    return words.gather(1, index[..., None].expand(-1, -1, words.shape[-1]))

"""MGCA's projection heads, and what fills the padding of the words that go through them."""

import torch
from torch import Tensor, nn

from medvlp.errors import ConfigError


class ProjectionHead(nn.Module):
    """Linear → batch norm → ReLU → Linear → batch norm without scale and shift, on single vectors or on tokens.

    Every head of the released code is of this form, those of the tokens as 1×1 convolutions, which are the same maps.
    The paper calls them non-linear projections and says no more.

    Args:
        in_dim: channels in.
        out_dim: channels out, the joint dimension.
        hidden_dim: channels between.
    """

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int = 2048) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, out_dim),
            nn.BatchNorm1d(out_dim, affine=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Projects; the norms' statistics are over all rows, which for tokens are those of all samples.

        Args:
            x: (B, in_dim), or (B, N, in_dim).

        Returns:
            (B, out_dim) or (B, N, out_dim), not normalised.

        Raises:
            ConfigError: a single row in training, which has no statistics.
        """
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) < 2 and self.training and isinstance(self.layers[1], nn.BatchNorm1d) and self.layers[1].training:
            raise ConfigError(
                "MGCA's batch norms need at least two pairs per device: raise data.batch_size (or lower "
                "contrastive_chunks)"
            )
        return self.layers(rows).view(*x.shape[:-1], -1)


def repeat_words(words: Tensor, padding: Tensor) -> Tensor:
    """Puts each report's own words again, from the first on, where it has none.

    The norms then see words alone, however much padding a batch holds, and each report counts alike. What stands at
    padding is not read afterwards. A report without words repeats its first row.

    Args:
        words: (B, L, D), words first.
        padding: (B, L) bool, true where there is no word.

    Returns:
        (B, L, D).
    """
    count = (~padding).sum(1, keepdim=True).clamp_min(1)
    place = torch.arange(words.shape[1], device=words.device) % count
    return words.gather(1, place[..., None].expand(-1, -1, words.shape[-1]))

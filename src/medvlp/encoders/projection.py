"""Projectors into the joint space."""

from typing import Literal

from torch import Tensor, nn


def mlp_projector(in_dim: int, hidden_dim: int, out_dim: int, norm: bool = False, bias: bool = True) -> nn.Sequential:
    """Linear → [BatchNorm without scale and shift] → ReLU → Linear on (B, D) (ConVIRT; with the norm G2D)."""
    layers: list[nn.Module] = [nn.Linear(in_dim, hidden_dim, bias=bias)]
    if norm:
        layers.append(nn.BatchNorm1d(hidden_dim, affine=False))
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(hidden_dim, out_dim, bias=bias))


def normed_projector(in_dim: int, out_dim: int, hidden_dim: int = 2048) -> nn.Sequential:
    """Linear → BatchNorm → ReLU → Linear → BatchNorm without scale and shift on (B, D) (MGCA, and its ConVIRT)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, out_dim),
        nn.BatchNorm1d(out_dim, affine=False),
    )


def map_projector(in_dim: int, out_dim: int) -> nn.Sequential:
    """1×1 conv → BatchNorm without scale and shift → ReLU → 1×1 conv on (B, C, H, W) (G2D's ``proj_v``)."""
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, 1, bias=False),
        nn.BatchNorm2d(out_dim, affine=False),
        nn.ReLU(),
        nn.Conv2d(out_dim, out_dim, 1, bias=False),
    )


class TextProjector(nn.Module):
    """G2D's report projector: Linear → BatchNorm (no affine) → ReLU → Linear, no biases.

    ``scope`` "report" projects the report vector alone, so that the norm's statistics are over B reports (paper);
    "tokens" projects every position, padding included, as the released code does: its statistics, and so every
    embedding, depend on how much padding a batch holds.
    """

    def __init__(self, in_dim: int, out_dim: int, scope: Literal["report", "tokens"]) -> None:
        super().__init__()
        self.scope = scope
        self.layers = mlp_projector(in_dim, out_dim, out_dim, norm=True, bias=False)

    def forward(self, hidden: Tensor, report: Tensor) -> Tensor:
        """Project all positions (B, L, D) and the pooled report vectors (B, D) to (B, out_dim), not normalised."""
        if self.scope == "report":
            return self.layers(report)
        batch, length, width = hidden.shape
        return self.layers(hidden.reshape(batch * length, width)).view(batch, length, -1)[:, 0]

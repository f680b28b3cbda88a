"""YOLOv3's neck and head (Redmon and Farhadi 2018), on three levels of any widths."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.errors import ConfigError

WIDTHS: tuple[int, int, int] = (512, 256, 128)
"""Channels a of the branches of the papers' heads, coarsest level first."""


def conv_block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """CBL: convolution without bias, batch norm, LeakyReLU(0.1); the grid stays."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1, inplace=True),
    )


def _scaled(channels: int, factor: float) -> int:
    """Channels times a factor, to a multiple of 8, at least 8."""
    return max(8, round(channels * factor / 8) * 8)


class Branch(nn.Module):
    """One level: CBL 1 × 1 to a, 3 × 3 to 2a, 1 × 1 to a, 3 × 3 to 2a, 1 × 1 to a (the tap), 3 × 3 to 2a, output."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_block(inputs, width, 1),
            conv_block(width, 2 * width, 3),
            conv_block(2 * width, width, 1),
            conv_block(width, 2 * width, 3),
            conv_block(2 * width, width, 1),
        )
        self.last = conv_block(width, 2 * width, 3)
        self.output = nn.Conv2d(2 * width, outputs, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, H, W) to the output (B, outputs, H, W) and the tap (B, a, H, W), which feeds the next level."""
        tap = self.stem(features)
        return self.output(self.last(tap)), tap


class YOLOv3Neck(nn.Module):
    """Top-down path and output of each level, as in LoVT, MGCA and G2D (MGCA ``mgca/models/ssl_detector.py``).

    The tap of a level passes a CBL 1 × 1 to half its channels, is enlarged (nearest neighbour) to the grid of the next
    level and concatenated with it.

    Args:
        channels: of the three levels, coarsest first.
        num_classes: classes of the boxes.
        num_anchors: anchors of each level.
        width: factor on the papers' 512, 256 and 128 channels, for narrow encoders.

    Raises:
        ConfigError: not three levels, or a factor or a number that is not positive.
    """

    def __init__(self, channels: Sequence[int], num_classes: int = 1, num_anchors: int = 3, width: float = 1.0) -> None:
        super().__init__()
        if len(channels) != len(WIDTHS):
            raise ConfigError(f"the detection head takes {len(WIDTHS)} levels, not {len(channels)}")
        if width <= 0 or num_classes < 1 or num_anchors < 1:
            raise ConfigError(
                f"width, num_classes and num_anchors must be positive, not {width}, {num_classes} and {num_anchors}"
            )
        outputs = num_anchors * (5 + num_classes)
        widths = [_scaled(a, width) for a in WIDTHS]
        passed = [_scaled(a // 2, width) for a in WIDTHS[:-1]]
        inputs = [channels[0], *(extra + level for extra, level in zip(passed, channels[1:], strict=True))]
        self.branches = nn.ModuleList(Branch(i, a, outputs) for i, a in zip(inputs, widths, strict=True))
        self.passes = nn.ModuleList(conv_block(a, p, 1) for a, p in zip(widths, passed, strict=False))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Compute the raw outputs of the three levels.

        Args:
            levels: (B, channels[i], H_i, W_i), coarsest first.

        Returns:
            (B, anchors · (5 + classes), H_i, W_i) each: anchor by anchor x, y, w, h, objectness, classes.
        """
        outputs = []
        features = levels[0]
        for i, branch in enumerate(self.branches):
            output, tap = branch(features)
            outputs.append(output)
            if i < len(self.passes):
                finer = levels[i + 1]
                enlarged = F.interpolate(self.passes[i](tap), size=finer.shape[-2:], mode="nearest")
                features = torch.cat([enlarged, finer], 1)
        return outputs

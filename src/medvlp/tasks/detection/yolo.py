"""YOLOv3 (Redmon and Farhadi 2018) on the pyramid of an encoder, as LoVT, MGCA and G2D train it."""

from collections.abc import Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.errors import check_choice
from medvlp.tasks.detection.decode import Predictions, decode
from medvlp.tasks.detection.loss import Truth, Variant, assign, weighted, yolo_loss
from medvlp.tasks.detection.pyramid import LevelPlan, ThreeLevels

COCO_ANCHORS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((116, 90), (156, 198), (373, 326)),
    ((30, 61), (62, 45), (59, 119)),
    ((10, 13), (16, 30), (33, 23)),
)
"""Width and height in pixels of a 416 px image (Redmon and Farhadi 2018, section 2.3), for the coarsest level first."""
_COCO_SIZE = 416
_WIDTHS = (512, 256, 128)
"""Channels a of the branches of the papers' heads, coarsest level first."""


def scaled_anchors(image_size: tuple[int, int]) -> Tensor:
    """Scale the anchors by image size / 416, as LoVT, MGCA and G2D do.

    The largest three belong to the coarsest of three levels, whatever its stride. So a pyramid of strides 16, 8, 4 of a
    112 px image has the grids and, in cells, the anchors of the papers' strides 32, 16, 8 of a 224 px image.

    Returns:
        (3, 3, 2) float32: level (coarsest first), anchor, (width, height) in pixels.
    """
    height, width = image_size
    scale = torch.tensor([width / _COCO_SIZE, height / _COCO_SIZE], dtype=torch.float32)
    return torch.tensor(COCO_ANCHORS, dtype=torch.float32) * scale


def _conv_block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """CBL: convolution without bias, batch norm, LeakyReLU(0.1); the grid stays."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1, inplace=True),
    )


def _scaled(channels: int, factor: float) -> int:
    return max(8, round(channels * factor / 8) * 8)


class _Branch(nn.Module):
    """One level: CBL 1 × 1 to a, 3 × 3 to 2a, 1 × 1 to a, 3 × 3 to 2a, 1 × 1 to a (the tap), 3 × 3 to 2a, output."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv_block(inputs, width, 1),
            _conv_block(width, 2 * width, 3),
            _conv_block(2 * width, width, 1),
            _conv_block(width, 2 * width, 3),
            _conv_block(2 * width, width, 1),
        )
        self.last = _conv_block(width, 2 * width, 3)
        self.output = nn.Conv2d(2 * width, outputs, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, inputs, H, W) to the output (B, outputs, H, W) and the tap (B, a, H, W) for the next level."""
        tap = self.stem(features)
        return self.output(self.last(tap)), tap


class YOLOv3Neck(nn.Module):
    """Top-down path and output of each level, coarsest first (MGCA ``mgca/models/ssl_detector.py``).

    The tap of a level passes a CBL 1 × 1 to half its channels, is enlarged (nearest neighbour) to the grid of the next
    level and concatenated with it.
    """

    def __init__(self, channels: Sequence[int], num_classes: int = 1, width: float = 1.0) -> None:
        super().__init__()
        outputs = len(COCO_ANCHORS[0]) * (5 + num_classes)
        widths = [_scaled(a, width) for a in _WIDTHS]
        passed = [_scaled(a // 2, width) for a in _WIDTHS[:-1]]
        inputs = [channels[0], *(extra + level for extra, level in zip(passed, channels[1:], strict=True))]
        self.branches = nn.ModuleList(_Branch(i, a, outputs) for i, a in zip(inputs, widths, strict=True))
        self.passes = nn.ModuleList(_conv_block(a, p, 1) for a, p in zip(widths, passed, strict=False))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Compute the raw outputs of levels (B, channels[i], H_i, W_i), coarsest first.

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


class YOLOv3(nn.Module):
    """YOLOv3: levels, neck, loss and decoding.

    Args:
        plan: source of its three levels.
        channels: of the encoder's levels ``plan.used``.
        image_size: height and width of the images in pixels.
        num_classes: classes of the boxes.
        variant: see :func:`medvlp.tasks.detection.loss.assign`.
        width: factor on the papers' channels.
    """

    exact_parts = ("anchors",)
    anchors: Tensor

    def __init__(
        self,
        plan: LevelPlan,
        channels: Sequence[int],
        image_size: tuple[int, int],
        num_classes: int = 1,
        variant: Variant = "official",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("detection variant", variant, get_args(Variant))
        self.levels = ThreeLevels(plan, channels)
        neck = YOLOv3Neck(self.levels.channels, num_classes, width=width)
        # 20 % faster on CPUs, and the layout that tensor cores expect
        self.neck = neck.to(memory_format=torch.channels_last)
        self.image_size = image_size
        self.num_classes = num_classes
        self.variant: Variant = variant
        self.register_buffer("anchors", scaled_anchors(image_size), persistent=False)

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The used levels, finest first, to raw outputs, coarsest first: (B, 3 · (5 + C), H, W) each."""
        return self.neck(self.levels(pyramid))

    def loss(self, outputs: Sequence[Tensor], truth: Truth) -> dict[str, Tensor]:
        """Return the weighted terms, xy, wh, confidence and classes, each summed over the levels of :meth:`forward`."""
        grids = [(raw.shape[2], raw.shape[3]) for raw in outputs]
        targets = assign(truth, grids, self.anchors, self.image_size, self.num_classes, self.variant)
        return weighted(yolo_loss(outputs, targets))

    def decode(self, outputs: Sequence[Tensor]) -> Predictions:
        """Return all boxes of the outputs of :meth:`forward`."""
        return decode(outputs, self.anchors, self.image_size, self.num_classes)
